"""Reads an image and its mask once and computes statistics that replace the pixels."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError, ImageError, ImageTooLargeError, MaskserveError, first_line, quoted
from models.imaging.call_decoder import call_decoder
from models.imaging.decode import IMAGE_SUFFIXES, MAX_PIXELS, RGB, decode_image
from models.imaging.file_header import FileHeader, read_file_header, read_header
from models.imaging.files import read_image_file
from models.readers import npy, read_sample
from models.readers.composite import needs_reader, preview
from models.readers.prepare import find_valid
from models.sample import Sample
from training.data.dataset import Pair, SegmentationDataset
from training.data.mask_decoding import MaskKind, RawMask
from training.data.scan.alignment import MAX_IMAGES, Gradients, gradient_map, mask_alignment
from training.data.scan.pixel_stats import count_border_runs, count_values, perceptual_hash, pixel_digest
from training.data.scan.sample_format import EIGHT_BITS, SampleFormat, describe_sample


@dataclass(frozen=True)
class SampleStats:
    """Statistics of one image and its mask. Independent of the classes: a `MaskEncoding` maps values to labels."""

    size: tuple[int, int] | None  # (height, width) of the image, upright; None if it cannot be read
    mask_size: tuple[int, int] | None  # of the mask
    orientation: int  # EXIF orientation, 1 to 8; 1 is upright
    image_format: str  # Pillow's name, such as JPEG
    mask_format: str  # the same, or "" if the mask is not an image
    kind: MaskKind  # of the mask's values
    values: NDArray[np.int64]  # K: the values that occur (the most frequent 256), ascending
    palette_colors: NDArray[np.int64]  # K: for a palette file, their colors 0xRRGGBB
    quarters: NDArray[np.int64]  # K x 2 x 2: pixels of each value in the (top, bottom) x (left, right) quarter
    edges: NDArray[np.int64]  # K: pixels of each value with one of the 4 neighbors of another value
    border_runs: NDArray[np.int64]  # K: objects of each value that the image border cuts (`count_border_runs`)
    extra_values: int  # number of values beyond those 256
    digest: str  # of the image's decoded pixels: equal for equal images
    perceptual_hash: int  # 64 bits, close in Hamming distance for similar images; 0 with too little contrast
    errors: tuple[str, ...]  # error messages about files that could not be read
    lossy: bool = False  # whether the mask's file has lossy compression, as JPEG
    sample_format: SampleFormat = EIGHT_BITS  # of the image
    mask_digest: str = ""  # as `digest`, of the mask's values
    alignment: float = 0.0  # of mask and image (`mask_alignment`); 0 if it cannot be told, or is not compared

    @property
    def is_valid(self) -> bool:
        """Whether both could be read, and the mask has the size of its image."""
        return not self.errors and self.size == self.mask_size


class PixelBudget:
    """Limits the pixels that threads decode at the same time; a larger image waits until it is alone."""

    def __init__(self, pixels: int) -> None:
        self._total, self._free, self._changed = pixels, pixels, threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until the budget has this many pixels, and hold them during the block."""
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


def compute_sample_stats(dataset: SegmentationDataset, index: int, budget: PixelBudget | None = None) -> SampleStats:
    """Read one pair. Raises nothing: problems are in `errors`."""
    pair, errors, sample_format = dataset.pairs[index], [], EIGHT_BITS
    budget = budget or PixelBudget(MAX_PIXELS)
    compared = index % -(-len(dataset) // MAX_IMAGES) == 0
    gradients: Gradients | None = None
    try:
        data = read_image_file(pair.image)
        image = call_decoder(read_header, data)
        with budget.reserve(image.pixels):
            if needs_reader(data):
                sample = call_decoder(read_sample, data)
                sample_format, size = describe_sample(sample), (sample.size[0], sample.size[1])
                shown = _without_missing(preview(sample), sample)
                digest, image_hash = pixel_digest(sample.values), perceptual_hash(shown)
                gradients = gradient_map(shown) if compared else None
                image = image._replace(format=image.format or ("NumPy" if npy.sniff(data) else "TIFF"))
                del sample, shown
            else:
                rgb = call_decoder(decode_image, data, max_pixels=MAX_PIXELS)
                gradients = gradient_map(rgb) if compared else None
                size, digest, image_hash = (rgb.shape[0], rgb.shape[1]), pixel_digest(rgb), perceptual_hash(rgb)
                del rgb
    except Exception as error:  # one broken file must not stop the scan
        errors.append(error_message(pair.image, error))
        image, size, digest, image_hash = FileHeader(), None, "", 0
    mask, mask_size = FileHeader(), None
    kind: MaskKind = "gray"
    mask_digest = ""
    values = palette_colors = edges = border_runs = np.zeros(0, np.int64)
    quarters, extra_values, alignment = np.zeros((0, 2, 2), np.int64), 0, 0.0
    try:
        mask = _read_mask_header(pair)
        with budget.reserve(mask.pixels or image.pixels):
            raw = dataset.raw_mask(index)
            kind, mask_size = raw.kind, (raw.array.shape[0], raw.array.shape[1])
            values, quarters, edges, extra_values = count_values(raw.array)
            mask_digest = pixel_digest(raw.array)
            palette_colors = _palette_colors(raw, values)
            border_runs = count_border_runs(raw.array, values)
            if gradients is not None and mask_size == size:
                alignment = mask_alignment(gradients, raw.array)
    except Exception as error:
        errors.append(error_message(pair.mask, error))
    return SampleStats(
        size=size,
        mask_size=mask_size,
        orientation=image.orientation,
        image_format=image.format,
        mask_format=mask.format,
        kind=kind,
        values=values,
        palette_colors=palette_colors,
        quarters=quarters,
        edges=edges,
        border_runs=border_runs,
        extra_values=extra_values,
        digest=digest,
        perceptual_hash=image_hash,
        errors=tuple(errors),
        lossy=mask.lossy,
        sample_format=sample_format,
        mask_digest=mask_digest,
        alignment=alignment,
    )


def content_digest(dataset: SegmentationDataset, all_stats: list[SampleStats]) -> str:
    """Digest of the pixels of all images and masks of a split, by name; the order and the files' formats do not count."""
    lines = [
        f"{pair.name}\t{stats.digest}\t{stats.mask_digest}\n"
        for pair, stats in zip(dataset.pairs, all_stats, strict=True)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def describe_changes(data: Path, changed: list[str], datasets: dict[str, SegmentationDataset]) -> str:
    """That images or masks of the `changed` splits are others than in the training, and the file that changed last."""
    files = {path for split in changed for pair in datasets[split].pairs for path in (pair.image, pair.mask)}
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    when = datetime.fromtimestamp(newest.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return (
        f"Images or masks of {data} ({' and '.join(changed)}) have changed since the training, under the same names; the "
        f"newest file is {newest}, of {when}"
    )


def _without_missing(shown: RGB, sample: Sample) -> RGB:
    """RGB uint8 H x W x 3 with missing pixels in the mean color: their shape, which tiles share, makes no duplicates."""
    valid = find_valid(sample.values, sample.valid, {sample.nodata} - {None})
    if valid is not None and valid.any():
        shown[~valid] = shown[valid].mean(axis=0).round()
    return shown


def _palette_colors(mask: RawMask, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """K: the colors of palette indices; those past the end of the palette are black, as in image viewers."""
    if mask.kind != "palette" or not mask.palette:
        return np.zeros(0, np.int64)
    padded = np.zeros(256, np.int64)
    padded[: len(mask.palette)] = mask.palette
    return np.asarray(padded[indices])


def _read_mask_header(pair: Pair) -> FileHeader:
    """Raises: ImageTooLargeError."""
    if pair.mask.suffix.lower() not in IMAGE_SUFFIXES:
        return FileHeader()
    try:
        header = read_file_header(pair.mask)
    except Exception:
        return FileHeader()
    if header.pixels > MAX_PIXELS:
        raise ImageTooLargeError(f"The mask has {header.pixels:,} pixels; the limit is {MAX_PIXELS:,}.")
    return header


def error_message(file: Path, error: Exception) -> str:
    """What is wrong with a file, with its path."""
    if isinstance(error, DataError | ImageError) and str(file) in str(error):
        return str(error)
    if isinstance(error, DataError) and str(error).startswith(f"{file.name}: "):  # of a WFDB record
        return f"{file}{str(error)[len(file.name) :]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{file}: cannot be opened ({error.strerror})."
    if isinstance(error, MemoryError):
        return f"{file}: not enough free memory to decode it; make it smaller."
    return f"{file}: {error if isinstance(error, MaskserveError) else f'cannot be read ({quoted(first_line(error))}).'}"
