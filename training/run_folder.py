"""The files of a run folder, its lock, and `run.json`: what a resume and an export need to know beside the settings."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from models.atomic_write import write_atomically
from models.errors import ConfigError, RunError
from models.file_lock import lock_file
from models.setting_errors import plain_reason
from models.spec import ClassInfo, InputRule

BEST_CHECKPOINT, LAST_CHECKPOINT = Path("checkpoints") / "best.ckpt", Path("checkpoints") / "last.ckpt"
CONFIG_FILE, METADATA_FILE, METRICS_CSV, LOCK_FILE = "config.yaml", "run.json", "metrics.csv", ".lock"
KERNELS_FILE = "kernels.npz"  # the first layer's kernels in the course of the training
EndSetting = Literal["epochs", "minutes", "patience"]  # a setting that ends a training
METADATA_VERSION = 2  # of run.json; a run of another version is refused


class ImageList(BaseModel):
    """The images of a run, to notice when they change before a resume or an export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    sha256: str  # of the names of the training images, in order, joined by newlines
    content: dict[str, str] = {}  # digest of the pixels of images and masks, by split; empty in older runs

    @classmethod
    def from_names(cls, names: Iterable[str], content: dict[str, str] | None = None) -> Self:
        """The list of these training images. A file name need not be UTF-8: its bytes are hashed."""
        encoded = [os.fsencode(name) for name in names]
        digest = hashlib.sha256(b"\n".join(encoded)).hexdigest()
        return cls(count=len(encoded), sha256=digest, content=content or {})

    def changed_splits(self, content: dict[str, str]) -> list[str]:
        """The splits whose pixels are others than those of the run."""
        return [split for split, digest in content.items() if self.content.get(split, digest) != digest]


class RunEnd(BaseModel):
    """How far a finished run was trained, and the setting that ended it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: EndSetting
    epochs: float  # passes over the training images
    minutes: float
    warnings: list[str] = []  # why the network is probably not of use yet
    monitor: str = "miou"  # the validation metric that chose the best checkpoint
    score: float | None = None  # its value there, 0..1; None in older runs


class RunMetadata(BaseModel):
    """The content of `run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = METADATA_VERSION
    data: Path  # absolute path of the data set
    classes: list[ClassInfo]
    input: InputRule
    crop: tuple[int, ...]  # of the training, one length per axis: (height, width) in pixels, (time steps,)
    precision: Literal["f32", "bf16"]  # of convolutions
    images: ImageList
    end: RunEnd | None = None  # None until the training ends, and again while it is resumed

    def check_images(self, run: Path, data: Path, classes: list[ClassInfo], names: Iterable[str]) -> None:
        """Raises: RunError if classes or training images of `data` are not those that the run was trained on."""
        advice = other_images_advice(run)
        if self.classes != classes:
            expected, found = (", ".join(entry.name for entry in each) for each in (self.classes, classes))
            raise RunError(
                f"The classes of {data} are not those that {run} was trained on ({found} instead of {expected}). {advice}"
            )
        images = ImageList.from_names(names)
        if (self.images.count, self.images.sha256) != (images.count, images.sha256):
            raise RunError(
                f"The training images of {data} are not those that {run} was trained on ({self.images.count} then, "
                f"{images.count} now, compared by their names). {advice}"
            )


def other_images_advice(run: Path) -> str:
    """What to do when the data set is not that of the run."""
    return (
        "To use other images, train into another --out; to start from this run's weights, export it and set "
        f"weights={run}/bundle."
    )


def read_run_metadata(run: Path) -> RunMetadata:
    """Read `run.json`. Raises: RunError if it is missing, damaged or of another version."""
    file = run / METADATA_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); train again with `maskserve train`.") from error
    if not isinstance(content, dict) or content.get("format_version") != METADATA_VERSION:
        raise RunError(f"{file} was written by another version of maskserve; train again into another --out.")
    try:
        return RunMetadata.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(
            f"{file} was changed: {'.'.join(map(str, first['loc']))}: {plain_reason(first)}; train again into another --out."
        ) from error


def write_run_metadata(metadata: RunMetadata, run: Path) -> None:
    """Write `run.json`. Raises: OSError, with the old file unchanged."""
    # `json` escapes what is not UTF-8 in the path of the data set; pydantic's own JSON refuses it.
    content = json.dumps(metadata.model_dump(mode="json"), indent=2)
    write_atomically(run / METADATA_FILE, f"{content}\n".encode())


_held_locks: dict[Path, int] = {}  # file descriptors of the locks that this process holds, by run folder


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep trainings of other processes out of the run folder, which is created if it is missing.

    Within one process the lock may be taken again. It ends with the block, or with the process. A folder that is still empty
    then is removed.
    Raises: RunError if another training holds the lock; ConfigError if the folder cannot be written.
    """
    key = run.resolve()
    if key in _held_locks:
        yield
        return
    new_folders = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        _held_locks[key] = _open_lock(run)
    except OSError as error:
        _remove_empty(new_folders)
        raise ConfigError(
            f"The run folder {run} cannot be written ({error.strerror}); name another one with --out."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (run / LOCK_FILE).unlink()
        os.close(_held_locks.pop(key))
        _remove_empty(new_folders)


def _open_lock(run: Path) -> int:
    """The descriptor of the run's lock file, locked. Raises: RunError, OSError."""
    while True:
        descriptor = os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock_file(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(run / LOCK_FILE)):
                    return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise RunError(
                f"Another training is writing to {run}. Wait until it ends, or choose another --out."
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the training before removed this file in the meantime


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _close_inherited_locks() -> None:
    """In a forked worker, which would otherwise keep the lock of a training that was killed."""
    for descriptor in _held_locks.values():
        os.close(descriptor)
    _held_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)
