"""A bundle: the folder into which a trained network is frozen, and all that serving it needs.

spec.json            what it is (`models/spec.py`)
model.onnx           uint8 N x H x W x 3 RGB -> labels uint8 N x H x W, logits float32 N x C x h x w
model.int8.xml .bin  the same in int8 for OpenVINO, where the export was asked for it and it was found good
weights.safetensors  the same weights by name, for fine-tuning and the engine torch (not there if it came from ONNX)
probes/              a few images and the labels that the network gave them, answered again before serving
report/              sample images from the export
SHA256SUMS           of every file above; `sha256sum --check SHA256SUMS` reads it too
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

from models.errors import BundleError
from models.spec import FORMAT_VERSION, BundleSpec

CHECKSUM_FILE = "SHA256SUMS"
MODEL_FILE = "model.onnx"
INT8_MODEL_FILE, INT8_WEIGHTS_FILE = "model.int8.xml", "model.int8.bin"
WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "spec.json"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. A draft, which an export has yet to sum, has neither hash nor sums."""

    folder: Path
    spec: BundleSpec
    hash: str = ""  # sha256 of SHA256SUMS: names this content and no other
    checksums: dict[str, str] = field(default_factory=dict)  # sha256 by file name

    @property
    def model_path(self) -> Path:
        """The frozen graph."""
        return self.folder / MODEL_FILE

    @property
    def weights_path(self) -> Path:
        """The weights by name."""
        return self.folder / WEIGHTS_FILE

    def has_file(self, name: str) -> bool:
        """Whether a file belongs to the bundle."""
        return name in self.checksums if self.hash else (self.folder / name).is_file()

    def verify_file(self, name: str) -> Path:
        """The path of a file, which must be the one that was exported. Raises: BundleError."""
        return _verify_checksum(self.folder, name, self.checksums) if self.hash else self.folder / name

    def probes(self) -> list[tuple[Path, Path]]:
        """Pairs of image and label mask, verified, sorted by name. Raises: BundleError."""
        masks = sorted(path.name for path in (self.folder / "probes").glob("*.labels.png"))
        return [
            (self.verify_file(f"probes/{mask.removesuffix('.labels.png')}.png"), self.verify_file(f"probes/{mask}"))
            for mask in masks
        ]


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle: every file that it lists must be there, and its spec be the one that was exported.

    The other files are verified by whoever opens them, so that a start reads no more than it needs.
    `sha256sum --check SHA256SUMS` in the folder verifies them all.
    Raises: BundleError naming what is missing, altered, or of a later format.
    """
    sums = folder / CHECKSUM_FILE
    if not sums.is_file():
        if (folder / "bundle" / CHECKSUM_FILE).is_file():
            raise BundleError(f"{folder} is no bundle, but a run: its bundle is {folder / 'bundle'}.")
        lacking = f"it has no {CHECKSUM_FILE}" if folder.exists() else "nothing is there"
        raise BundleError(f"{folder} is no bundle: {lacking}. Make one with `maskserve export RUN`.")
    listed = _read_checksums(sums)
    if MODEL_FILE not in listed:
        raise BundleError(f"{folder}: {CHECKSUM_FILE} lists no {MODEL_FILE}. Export the bundle again.")
    for name in listed:
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: {name} is missing. Copy or export the bundle again.")
    return Bundle(folder, _read_spec(_verify_checksum(folder, SPEC_FILE, listed)), file_sha256(sums), listed)


@contextmanager
def bundle_writer(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end it is summed and renamed to `target`, whole.

    On any error nothing is left and an older bundle at `target` stays as it was.
    Raises: BundleError where `target` is something other than a bundle or an empty folder.
    """
    if target.exists() and not _can_overwrite(target):
        raise BundleError(f"{target} exists and is no bundle; it will not be overwritten. Choose another --out.")
    target = target.absolute()  # `.` has no name of its own and cannot be renamed
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        files = sorted(path for path in new.rglob("*") if path.is_file() and path != new / CHECKSUM_FILE)
        for path in files:
            path.chmod(0o644)  # safetensors writes for the owner alone, and a container runs as somebody else
        lines = [f"{file_sha256(path)}  {path.relative_to(new).as_posix()}\n" for path in files]
        (new / CHECKSUM_FILE).write_text("".join(lines), encoding="utf-8")
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except BaseException:  # Ctrl-C between the two renames would else lose both
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _can_overwrite(target: Path) -> bool:
    """Whether a folder is empty or a bundle that holds no file of anybody else."""
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


def _verify_checksum(folder: Path, name: str, sums: dict[str, str]) -> Path:
    path = folder / name
    if name not in sums:
        raise BundleError(f"{folder}: {CHECKSUM_FILE} lists no {name}. Export the bundle again.")
    if not path.is_file():
        raise BundleError(f"{folder}: {name} is missing. Copy or export the bundle again.")
    if file_sha256(path) != sums[name]:
        raise BundleError(
            f"{folder}: {name} is not the file that was exported (its sha256 differs). Copy or export it again."
        )
    return path


def _read_checksums(path: Path) -> dict[str, str]:
    listed = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, separator, name = line.partition("  ")
        inside = separator and not Path(name).is_absolute() and ".." not in Path(name).parts
        if len(digest) != 64 or not inside:
            raise BundleError(
                f"{path}: the line {line[:80]!r} is no sha256 and file name. Copy or export the bundle again."
            )
        listed[name] = digest
    return listed


def _read_spec(path: Path) -> BundleSpec:
    try:
        content = json.loads(path.read_bytes())
        version = content.get("format_version", 0)
        if version < FORMAT_VERSION:
            raise BundleError(f"{path}: its format is {version}, of an earlier maskserve. Export the bundle again.")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{path}: its format is {version}, this maskserve reads up to {FORMAT_VERSION}. Update maskserve."
            )
        return BundleSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}. Export the bundle again.") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"{path} is no spec: {error}. Export the bundle again.") from error
