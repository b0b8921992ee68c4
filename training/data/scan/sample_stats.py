"""One image and its mask read once: what they hold, in figures that need no pixel any more."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import DataError, ImageError, ImageTooLargeError, MaskserveError, first_line
from models.imaging.decode import FORMATS, IMAGE_SUFFIXES, MAX_PIXELS, decode_image
from training.data.dataset import Pair, SegmentationDataset
from training.data.mask_decoding import MaskKind, RawMask
from training.data.scan.pixel_stats import count_values, perceptual_hash, pixel_digest

ORIENTATION_TAG = 0x0112  # EXIF's tag
# Asked for its EXIF, Pillow decodes all of a PNG, since it may stand at the end; few have any.
PNG_EXIF_MARKERS = (b"eXIf", b"exif", b"rientation")


@dataclass(frozen=True)
class SampleStats:
    """What one image and its mask hold. It knows no classes: a value gets its label by the data set's `Meaning`."""

    size: tuple[int, int] | None  # (height, width) of the image, upright; None where it cannot be read
    mask_size: tuple[int, int] | None  # of the mask
    orientation: int  # EXIF's, 1..8; 1 is upright
    image_format: str  # Pillow's name, such as JPEG
    mask_format: str  # the same, or "" where the mask is no image
    kind: MaskKind  # of the mask's values
    values: NDArray[np.int64]  # K: the values that occur (the most frequent 256), ascending
    palette_colors: NDArray[np.int64]  # K: for a palette file, their colours 0xRRGGBB
    quarters: NDArray[np.int64]  # K x 2 x 2: pixels of each value in the (top, bottom) x (left, right) quarter
    edges: NDArray[np.int64]  # K: pixels of each value that have one of the 4 neighbours of another value
    extra_values: int  # values beyond those 256
    digest: str  # of the image's decoded pixels: equal for equal images
    perceptual_hash: int  # 64 bits, near in Hamming distance for images that look alike; 0 where it is too flat to tell
    errors: tuple[str, ...]  # what could not be read, a sentence each
    lossy: bool = False  # whether the mask's file keeps colours only nearly, as JPEG does

    @property
    def is_valid(self) -> bool:
        """Whether both could be read, and the mask has its image's size."""
        return not self.errors and self.size == self.mask_size


class PixelBudget:
    """Lets threads in while their images together have so many pixels at most; a larger one comes in alone."""

    def __init__(self, pixels: int) -> None:
        self._total, self._free, self._changed = pixels, pixels, threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until there is room."""
        pixels = min(pixels, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


@dataclass(frozen=True)
class FileHeader:
    """What an image file says before it is decoded."""

    format: str = ""
    pixels: int = 0
    orientation: int = 1
    lossy: bool = False


def compute_sample_stats(samples: SegmentationDataset, index: int, budget: PixelBudget | None = None) -> SampleStats:
    """Read one pair. What cannot be read is told in `errors`; nothing is raised."""
    pair, errors = samples.pairs[index], []
    budget = budget or PixelBudget(MAX_PIXELS)
    try:
        data = pair.image.read_bytes()
        image = _read_header(data)
        with budget.reserve(image.pixels):
            rgb = decode_image(data)
            size, name, like = (rgb.shape[0], rgb.shape[1]), pixel_digest(rgb), perceptual_hash(rgb)
            del rgb
    except Exception as error:  # one broken file must not end the reading of all
        errors.append(_error_message(pair.image, error))
        image, size, name, like = FileHeader(), None, "", 0
    nothing = np.zeros(0, np.int64)
    mask, mask_size = FileHeader(), None
    kind: MaskKind = "grey"
    values, colours, quarters, edges, more = nothing, nothing, np.zeros((0, 2, 2), np.int64), nothing, 0
    try:
        mask = _read_mask_header(pair)
        with budget.reserve(mask.pixels or image.pixels):
            held = samples.raw_mask(index)
            kind, mask_size = held.kind, (held.array.shape[0], held.array.shape[1])
            values, quarters, edges, more = count_values(held.array)
            colours = _palette_colors(held, values)
    except Exception as error:
        errors.append(_error_message(pair.mask, error))
    return SampleStats(
        size, mask_size, image.orientation, image.format, mask.format, kind, values, colours, quarters, edges, more,
        name, like, tuple(errors), mask.lossy,
    )  # fmt: skip


def _palette_colors(held: RawMask, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """K: the colours of places in the palette; those past its end are black, as every viewer shows them."""
    if held.kind != "palette" or not held.palette:
        return np.zeros(0, np.int64)
    padded = np.zeros(256, np.int64)
    padded[: len(held.palette)] = held.palette
    return np.asarray(padded[places])


def _read_header(data: bytes) -> FileHeader:
    """Of an image's bytes; nothing where they are none, which `decode` will say better."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            says = image.format != "PNG" or any(word in data for word in PNG_EXIF_MARKERS)
            return FileHeader(image.format or "", image.width * image.height, _read_orientation(image) if says else 1)
    except Exception:
        return FileHeader()


def _read_orientation(image: Image.Image) -> int:
    try:
        told = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block: `decode` takes such an image as upright
        return 1
    return told if told in range(1, 9) else 1


def _read_mask_header(pair: Pair) -> FileHeader:
    """Raises: ImageTooLarge."""
    if pair.mask.suffix.lower() not in IMAGE_SUFFIXES:
        return FileHeader()
    try:
        with pair.mask.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            pixels, lossy = image.width * image.height, _is_lossy(image, pair.mask)
            header = FileHeader(image.format or "", pixels, lossy=lossy)
    except Exception:
        return FileHeader()
    if header.pixels > MAX_PIXELS:
        raise ImageTooLargeError(f"The mask has {header.pixels:,} pixels; the limit is {MAX_PIXELS:,}.")
    return header


def _is_lossy(image: Image.Image, file: Path) -> bool:
    """Whether the pixels are only nearly what was saved. AVIF can be exact, but its colours pass through YUV."""
    if image.format == "WEBP":
        return b"VP8L" not in file.read_bytes()[:64]
    return image.format in ("JPEG", "AVIF") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


def _error_message(file: Path, error: Exception) -> str:
    if isinstance(error, DataError | ImageError) and str(file) in str(error):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{file}: cannot be opened ({error.strerror})."
    if isinstance(error, MemoryError):
        return f"{file}: is larger than the free memory; make it smaller."
    return f"{file}: {error if isinstance(error, MaskserveError) else f'cannot be read ({first_line(error)!r}).'}"
