"""Scenes that do not fit in memory: a GeoTIFF is read by windows and its mask written by rows of blocks.

The labels are those that `Segmenter.segment` gives for the whole picture. What the raster says to be no data (by a value,
an alpha band or a mask, in all three bands; NaN in one) becomes void.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from maskserve.predict.config import Job
from models.errors import DataError, RunError, first_line
from models.imaging.decode import RGB, Labels
from models.inference.postprocess import Confidence
from models.inference.segmenter import Prediction, Segmenter
from models.outputs.select import select
from models.spec import VOID, Spec

BLOCK = 512  # pixels a side of the mask's blocks
CACHE_BYTES = 64 << 20  # of GDAL, which would else take a twentieth of the memory
STRIP_BYTES = (
    1 << 30
)  # at the most, of a scene in strips over its whole width: with less than a row of windows, each window
# unpacks them again (a scene 12,288 wide took 12 times as long)
RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}  # as models/imaging/decode.py scales them
NO_PICTURE = np.empty((0, 0, 3), np.uint8)


def label_raster(
    segmenter: Segmenter, spec: Spec, source: Path, target: Path, job: Job, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Write the mask of a GeoTIFF as a GeoTIFF: one band uint8 with the classes' palette, 255 is no data.

    `stopped` is asked before each window.
    Returns: height, width, classes and milliseconds, as in `manifest.Row`.
    Raises: RunError where it was stopped; DataError for what is no GeoTIFF or lacks the bands; EngineError for a bundle that
    takes whole pictures alone; OSError where the mask cannot be written.
    """
    began = time.perf_counter()
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with opened(source) as scene, rasterio.Env(GDAL_CACHEMAX=cache_of(scene, segmenter.tile)):
            read = Reader(scene, job, stopped)
            sure = job.options.min_confidence > 0
            answers = segmenter.segment_rows(read.picture, (scene.height, scene.width), sure)
            kept = (_selected(labels, confidence, spec, job) for labels, confidence in answers)
            pixels = _write(target, scene, spec, read.voided(in_blocks(kept)))
        _check(target, pixels)
    classes = [
        {"label": label, "name": entry.name, "share": round(int(pixels[label]) / int(pixels.sum()), 6)}
        for label, entry in enumerate(spec.classes)
        if pixels[label]
    ]
    milliseconds = round((time.perf_counter() - began) * 1e3, 2)
    return {"height": read.scene.height, "width": read.scene.width, "classes": classes, "milliseconds": milliseconds}


def cache_of(scene: Any, tile: int) -> int:
    """Bytes that GDAL may keep of what it has unpacked."""
    height, width = scene.block_shapes[0]
    if width < scene.width:
        return CACHE_BYTES
    sample = sum(np.dtype(kind).itemsize for kind in scene.dtypes)
    return int(np.clip(scene.width * (tile + 2 * height) * sample, CACHE_BYTES, STRIP_BYTES))


class Reader:
    """An opened raster as a picture: three of its bands, scaled to 0..255."""

    def __init__(self, scene: Any, job: Job, stopped: Callable[[], bool]) -> None:
        """Raises: DataError for bands that it has not, or samples whose range is not known."""
        self.scene, self.bands, self.stopped = scene, list(job.bands), stopped
        if max(self.bands) > scene.count:
            raise DataError(f"it has {scene.count} bands, and --bands asks for {','.join(map(str, self.bands))}.")
        kind = scene.dtypes[self.bands[0] - 1]
        if job.scale is None and kind not in RANGES:
            raise DataError(f"its samples are {kind}: say with --scale LOW,HIGH which of them are black and white.")
        self.low, self.high = job.scale or RANGES[kind]
        self.floats = any(np.issubdtype(np.dtype(scene.dtypes[band - 1]), np.floating) for band in self.bands)

    def picture(self, corner: tuple[int, int], size: tuple[int, int]) -> RGB:
        """The window at (top, left) of (height, width): RGB uint8 H x W x 3, contiguous. Raises: RunError, DataError."""
        if self.stopped():
            raise RunError("The run was stopped.")
        with _told():
            samples = self.scene.read(self.bands, window=_window(corner, size))
        if samples.dtype != np.uint8 or (self.low, self.high) != RANGES["uint8"]:
            values = np.nan_to_num(samples.astype(np.float32), nan=self.low).clip(self.low, self.high)
            samples = ((values - self.low) * (255.0 / (self.high - self.low)) + 0.5).astype(np.uint8)
        return np.ascontiguousarray(samples.transpose(1, 2, 0))

    def voided(self, blocks: Iterable[Labels]) -> Iterator[Labels]:
        """Rows of labels, from the first, with no data as void."""
        top = 0
        for labels in blocks:
            window = _window((top, 0), labels.shape)
            valid = np.zeros(labels.shape, np.bool_)
            with _told():
                for band in self.bands:
                    valid |= self.scene.read_masks(band, window=window) > 0
                for band in self.bands if self.floats else ():
                    valid &= ~np.isnan(self.scene.read(band, window=window))
            yield np.where(valid, labels, np.uint8(VOID))
            top += len(labels)


def in_blocks(rows: Iterable[Labels]) -> Iterator[Labels]:
    """The same rows, by whole rows of blocks: a compressed block that is written twice leaves its first self in the file."""
    held: list[Labels] = []
    for labels in rows:
        held.append(labels)
        count = sum(map(len, held))
        if count >= BLOCK:
            whole = np.concatenate(held)
            for top in range(0, count - BLOCK + 1, BLOCK):
                yield whole[top : top + BLOCK]
            held = [whole[count - count % BLOCK :].copy()]
    last = np.concatenate(held)
    if len(last):
        yield last


def _selected(labels: Labels, sure: Confidence | None, spec: Spec, job: Job) -> Labels:
    return select(Prediction(NO_PICTURE, labels, sure), spec, job.options).labels


def _write(target: Path, scene: Any, spec: Spec, blocks: Iterable[Labels]) -> NDArray[np.int64]:
    """The mask with the scene's georeference. Returns: pixels by label. Raises: OSError."""
    pixels, top = np.zeros(256, np.int64), 0
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "bigtiff": "if_safer"}
    with rasterio.open(
        target, "w", driver="GTiff", width=scene.width, height=scene.height, count=1, dtype="uint8", nodata=VOID,
        crs=scene.crs, transform=scene.transform, **layout,
    ) as mask:  # fmt: skip
        if scene.gcps[0]:
            mask.gcps = scene.gcps
        if scene.rpcs:
            mask.rpcs = scene.rpcs
        if point := scene.tags().get("AREA_OR_POINT"):
            mask.update_tags(AREA_OR_POINT=point)
        mask.write_colormap(1, {label: (*entry.rgb, 255) for label, entry in enumerate(spec.classes)})
        for labels in blocks:
            mask.write(labels, 1, window=_window((top, 0), labels.shape))
            pixels += _counts(labels)
            top += len(labels)
    return pixels


def _check(target: Path, pixels: NDArray[np.int64]) -> None:
    """Read it again: where the disk became full, GDAL may tell nobody. Raises: OSError."""
    found = np.zeros(256, np.int64)
    try:
        with rasterio.open(target, driver="GTiff") as mask:
            for top in range(0, mask.height, BLOCK):
                size = min(BLOCK, mask.height - top), mask.width
                found += _counts(mask.read(1, window=_window((top, 0), size)))
    except RasterioError as error:
        raise OSError(f"it cannot be read again: {first_line(error)}") from error
    if (found != pixels).any():
        raise OSError("it is not read as it was written: is the disk full?")


def _counts(labels: Labels) -> NDArray[np.int64]:
    return np.asarray(cv2.calcHist([labels], [0], None, [256], [0, 256])).ravel().astype(np.int64)


def _window(corner: tuple[int, int], size: tuple[int, ...]) -> Window:
    return Window(corner[1], corner[0], size[1], size[0])


@contextmanager
def opened(source: Path) -> Iterator[Any]:
    """A GeoTIFF, by GDAL's driver for it alone: others follow addresses that a file may hold. Raises: DataError."""
    try:
        scene = rasterio.open(source, driver="GTiff")
    except RasterioError as error:  # it says the whole path again
        raise DataError("this is no GeoTIFF; without --format geotiff it is read as an ordinary picture.") from error
    with scene:
        yield scene


@contextmanager
def _told() -> Iterator[None]:
    """What GDAL says of a file that it cannot read. Raises: DataError."""
    try:
        yield
    except RasterioError as error:
        raise DataError(f"this is no GeoTIFF that can be read ({first_line(error)}).") from error
