"""Images and labels as the network sees them, kept uncompressed while a training lasts.

Decoding a photograph and fitting it costs more than all that follows: 86 ms of a core for 3 megapixels, where a step takes 6 ms a
crop. Kept as they come out of that, images are read by the page, and only the pages that a crop needs.
"""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.imaging.decode import RGB, Labels
from models.inference.geometry import network_input_size
from models.spec import InputRule

SIZE_DTYPE = np.dtype("<u4")  # height and width stand before the pixels
MAX_DISK_FRACTION = 0.5  # of the free disk that may be taken


class DecodedCache:
    """A folder of images by their place in the split. Any process may write one; all would write the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.full = False

    def get(self, place: int) -> tuple[RGB, Labels] | None:
        """RGB uint8 H x W x 3 and labels uint8 H x W, not to be written to; None where they are not kept."""
        try:
            held = np.asarray(np.memmap(self.folder / str(place), np.uint8, "r"))
            height, width = held[:8].view(SIZE_DTYPE).tolist()
            end = 8 + 3 * height * width
            return held[8:end].reshape(height, width, 3), held[end:].reshape(height, width)
        except (OSError, ValueError):  # not there, or cut short
            return None

    def put(self, place: int, image: RGB, labels: Labels) -> None:
        """Keep them, whole or not at all. A disk that is full or lost is no error: they are read again next time."""
        if self.full:
            return
        unfinished = self.folder / f"{place}.{uuid.uuid4().hex}"
        try:
            with unfinished.open("wb") as file:
                for part in (np.array(labels.shape, SIZE_DTYPE), image, labels):
                    file.write(np.ascontiguousarray(part).data)
            unfinished.replace(self.folder / str(place))
        except OSError:
            self.full = True
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)


def decoded_bytes(sizes: list[tuple[int, int]], rule: InputRule) -> int:
    """Bytes that images of these (height, width) take when they are kept."""
    fitted = (network_input_size(size, rule) for size in sizes)
    return sum(4 * height * width + 8 for height, width in fitted)


def fits_on_disk(folder: Path, wanted: int) -> bool:
    """Whether a folder's disk holds so many bytes beside as many again."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return wanted <= MAX_DISK_FRACTION * shutil.disk_usage(there).free


def create_cache_folder(folder: Path) -> Path:
    """The folder made anew, with one for each split."""
    remove_cache_folder(folder)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    return folder


def remove_cache_folder(folder: Path) -> None:
    """What is kept there, or was left by a training that was killed."""
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def removed_on_exit(folder: Path | None) -> Iterator[None]:
    """Ends with the folder gone."""
    try:
        yield
    finally:
        if folder:
            remove_cache_folder(folder)
