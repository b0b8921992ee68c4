"""A cache of decoded and resized images and labels on disk, uncompressed, for the time of a training.

Decoding and resizing a photograph costs more than all later steps: 86 ms of a core for 3 megapixels, when a training step takes
6 ms per crop. Cached images are memory-mapped, so that only the pages of the crop are read.
"""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models.imaging.decode import Labels
from models.inference.geometry import Image, network_input_size
from models.sample import Statistics
from models.spec import InputRule

SIZE_DTYPE = np.dtype("<u4")  # of height and width, which precede the pixels
MAX_DISK_FRACTION = 0.5  # of the free disk space that the cache may use


class DecodedCache:
    """A folder of images by index in the split. Any process may write one; all write the same bytes."""

    def __init__(self, folder: Path, rule: InputRule | None = None) -> None:
        """`rule`: the network's input; None for photographs."""
        self.folder = folder
        self.full = False
        self.channels = len(rule.channels) if rule else 3
        self.dtype: np.dtype[Any] = np.dtype(rule.dtype if rule else "uint8")
        self.has_statistics = rule is not None and rule.scaling.kind == "zscore"

    def get(self, index: int) -> tuple[Image, Labels, Statistics | None] | None:
        """The image H x W x C, labels uint8 H x W, and statistics for `zscore`, all read-only; None if they are not cached."""
        try:
            content = np.asarray(np.memmap(self.folder / str(index), np.uint8, "r"))
            height, width = content[:8].view(SIZE_DTYPE).tolist()
            end = 8 + self.channels * self.dtype.itemsize * height * width
            image = content[8:end].view(self.dtype).reshape(height, width, self.channels)
            labels = content[end : end + height * width].reshape(height, width)
            rest = content[end + height * width :]
            return image, labels, rest.copy().view(np.float32).reshape(2, -1) if self.has_statistics else None
        except (OSError, ValueError):  # missing, or truncated
            return None

    def put(self, index: int, image: Image, labels: Labels, statistics: Statistics | None = None) -> None:
        """Write them whole or not at all. A full or lost disk is not an error: the images are then decoded each time."""
        if self.full:
            return
        unfinished = self.folder / f"{index}.{uuid.uuid4().hex}"
        try:
            with unfinished.open("wb") as file:
                parts = [np.array(labels.shape, SIZE_DTYPE), image, labels]
                for part in parts if statistics is None else [*parts, statistics]:
                    file.write(np.ascontiguousarray(part).data)
            unfinished.replace(self.folder / str(index))
        except OSError:
            self.full = True
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)


def decoded_bytes(sizes: list[tuple[int, ...]], rule: InputRule) -> int:
    """Bytes that the cache needs for images of these (height, width)."""
    resized = (network_input_size((height, width), rule) for height, width in sizes)
    pixel_bytes = len(rule.channels) * np.dtype(rule.dtype).itemsize + 1
    return sum(pixel_bytes * height * width + 8 for height, width in resized)


def fits_on_disk(folder: Path, size: int) -> bool:
    """Whether `size` bytes are at most half of the free space on the disk of `folder`, which need not exist."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return size <= MAX_DISK_FRACTION * shutil.disk_usage(existing).free


def create_cache_folder(folder: Path) -> Path:
    """Create the folder, empty, with a subfolder per split."""
    remove_cache_folder(folder)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    return folder


def remove_cache_folder(folder: Path) -> None:
    """Delete the folder, also one that a killed training left."""
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def removed_on_exit(folder: Path | None) -> Iterator[None]:
    """Delete the folder at the end of the context."""
    try:
        yield
    finally:
        if folder:
            remove_cache_folder(folder)
