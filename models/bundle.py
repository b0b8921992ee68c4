"""A bundle: the folder that an export writes, with everything that is needed to serve a network.

spec.json            classes, input rule, parity and metrics (`models/spec.py`)
model.onnx           N x H x W x C, as `input` in the spec says (a photograph: uint8 RGB) -> labels uint8 N x H x W, logits
                     float32 N x classes x h x w; with the scaling `zscore` also float32 N x C `shift` and `scale`; for signals
                     T instead of H x W, for volumes D x H x W
model.int8.xml .bin  the same in int8 for OpenVINO, if the export was asked for it and its mIoU was good enough
weights.safetensors  the weights by name, for fine-tuning and the engine torch (absent if the bundle was made from ONNX)
probes/              a few images (or signals, volumes) with the labels that the network predicted, compared again before serving
report/              sample images from the export
SHA256SUMS           of every file above; `sha256sum --check SHA256SUMS` verifies them
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from models.errors import BundleError, quoted
from models.external_data import external_data_files
from models.setting_errors import plain_reason
from models.spec import FORMAT_VERSION, OLDEST_FORMAT_VERSION, BundleSpec

CHECKSUM_FILE = "SHA256SUMS"
MODEL_FILE = "model.onnx"
INT8_MODEL_FILE, INT8_WEIGHTS_FILE = "model.int8.xml", "model.int8.bin"
WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "spec.json"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. A draft during an export has neither hash nor checksums yet."""

    folder: Path
    spec: BundleSpec
    hash: str = ""  # sha256 of SHA256SUMS: identifies the content
    checksums: dict[str, str] = field(default_factory=dict)  # sha256 by file name

    @property
    def model_path(self) -> Path:
        """The ONNX graph."""
        return self.folder / MODEL_FILE

    @property
    def weights_path(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS_FILE

    def has_file(self, name: str) -> bool:
        """Whether the bundle contains a file."""
        return name in self.checksums if self.hash else (self.folder / name).is_file()

    def verify_file(self, name: str) -> Path:
        """The path of a file, after its checksum was verified.

        Raises: BundleError; also for a graph that keeps tensors in other files, which no checksum would cover.
        """
        path = _verify_checksum(self.folder, name, self.checksums) if self.hash else self.folder / name
        if name == MODEL_FILE:
            _check_no_external_data(path)
        return path

    def verify(self) -> None:
        """Verify every file of the bundle. Raises: BundleError for the first one that is missing or altered."""
        for name in self.checksums:
            self.verify_file(name)

    def probes(self) -> list[tuple[Path, Path]]:
        """Paths of the probe images and their label masks, verified, sorted by name. Raises: BundleError."""
        labels = ".labels.png" if self.spec.input.axes == "HW" else ".labels.npy"
        suffix = ".png" if self.spec.input.is_photograph else ".npz"
        names = sorted(path.name.removesuffix(labels) for path in (self.folder / "probes").glob(f"*{labels}"))
        return [
            (self.verify_file(f"probes/{name}{suffix}"), self.verify_file(f"probes/{name}{labels}")) for name in names
        ]


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle: checks that every listed file exists, and verifies and reads its spec.

    Other files are verified when they are opened, so that a start reads no more than it needs.
    `sha256sum --check SHA256SUMS` in the folder verifies them all.
    Raises: BundleError if a file is missing or altered, or the format is of another version.
    """
    checksum_file = folder / CHECKSUM_FILE
    if not checksum_file.is_file():
        if (folder / "bundle" / CHECKSUM_FILE).is_file():
            raise BundleError(f"{folder} is a run folder, not a bundle. Use its bundle: {folder / 'bundle'}.")
        problem = f"it has no {CHECKSUM_FILE}" if folder.exists() else "it does not exist"
        raise BundleError(f"{folder} is not a bundle: {problem}. Make one with `maskserve export RUN`.")
    checksums = _read_checksums(checksum_file)
    if MODEL_FILE not in checksums:
        raise BundleError(f"{folder}: {CHECKSUM_FILE} does not list {MODEL_FILE}. Export the bundle again.")
    for name in checksums:
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: {name} is missing. Copy or export the bundle again.")
    spec = _read_spec(_verify_checksum(folder, SPEC_FILE, checksums))
    return Bundle(folder, spec, file_sha256(checksum_file), checksums)


@contextmanager
def bundle_writer(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end write its checksums and rename it to `target`.

    On any error the folder is deleted and an older bundle at `target` stays as it was.
    Raises: BundleError if `target` is something other than a bundle or an empty folder.
    """
    if target.exists() and not _can_overwrite(target):
        raise BundleError(f"{target} exists and is not a bundle, so it is not overwritten. Choose another --out.")
    target = target.absolute()  # `.` has no name and cannot be renamed
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        files = sorted(path for path in new.rglob("*") if path.is_file() and path != new / CHECKSUM_FILE)
        for path in files:
            path.chmod(0o644)  # safetensors files are readable by their owner only, and a container has another user
        lines = [f"{file_sha256(path)}  {path.relative_to(new).as_posix()}\n" for path in files]
        (new / CHECKSUM_FILE).write_text("".join(lines), encoding="utf-8")
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except BaseException:  # also Ctrl-C between the two renames
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _can_overwrite(target: Path) -> bool:
    """Whether a folder is empty, or a bundle without other files."""
    if not target.is_dir():
        return False
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    if not files and not any(target.iterdir()):
        return True
    if not {CHECKSUM_FILE, SPEC_FILE, MODEL_FILE} <= files:
        return False
    return files <= {CHECKSUM_FILE, *_read_checksums(target / CHECKSUM_FILE)}


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify_checksum(folder: Path, name: str, checksums: dict[str, str]) -> Path:
    path = folder / name
    if name not in checksums:
        raise BundleError(f"{folder}: {CHECKSUM_FILE} does not list {name}. Export the bundle again.")
    if not path.is_file():
        raise BundleError(f"{folder}: {name} is missing. Copy or export the bundle again.")
    if file_sha256(path) != checksums[name]:
        raise BundleError(
            f"{folder}: {name} is not the file that was exported (its sha256 differs). Copy or export the bundle again."
        )
    return path


def _check_no_external_data(graph: Path) -> None:
    """Check that a graph holds all its tensors itself. Raises: BundleError."""
    try:
        files = sorted(external_data_files(graph))
    except (OSError, ValueError):  # the engine says what is wrong
        return
    if files:
        raise BundleError(
            f"{graph} keeps weights in another file ({quoted(files[0][:80])}), but a bundle's graph holds all of them itself: "
            "otherwise its hash would not name the network. Export the bundle again."
        )


def _read_checksums(path: Path) -> dict[str, str]:
    checksums = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, separator, name = line.partition("  ")
        inside = separator and not Path(name).is_absolute() and ".." not in Path(name).parts
        if len(digest) != 64 or not inside:
            raise BundleError(
                f"{path}: the line {quoted(line[:80])} is not a sha256 and a file name. Copy or export the bundle again."
            )
        checksums[name] = digest
    return checksums


def _read_spec(path: Path) -> BundleSpec:
    try:
        content = json.loads(path.read_bytes())
        version = content.get("format_version", 0)
        if version < OLDEST_FORMAT_VERSION:
            raise BundleError(
                f"{path}: the bundle has format {version} of an earlier maskserve; this one reads format "
                f"{OLDEST_FORMAT_VERSION} to {FORMAT_VERSION}: export again."
            )
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{path}: the bundle has format {version}; this maskserve reads format {FORMAT_VERSION}. Update maskserve."
            )
        return BundleSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {key}: {plain_reason(first)}. Export the bundle again.") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"{path} is not a valid spec: {error}. Export the bundle again.") from error
