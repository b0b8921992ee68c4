"""Scenes that do not fit in memory: a GeoTIFF is read by windows and its mask written by rows of blocks.

The labels are those that `Segmenter.segment` gives for the whole image. What the raster says to be no data (by a value,
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

from maskserve.predict.config import PredictConfig
from models.errors import DataError, RunError, first_line
from models.imaging.decode import RGB, Labels
from models.inference.postprocess import Confidence
from models.inference.segmenter import Prediction, Segmenter
from models.outputs.select import filter_prediction
from models.spec import IGNORE_INDEX, BundleSpec

BLOCK_SIZE = 512  # pixels a side of the mask's blocks
GDAL_CACHE_BYTES = 64 << 20  # of GDAL, which would else take a twentieth of the memory
MAX_STRIP_CACHE_BYTES = (
    1 << 30
)  # at the most, of a scene in strips over its whole width: with less than a row of windows, each window
# unpacks them again (a scene 12,288 wide took 12 times as long)
SAMPLE_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}  # as models/imaging/decode.py scales them
EMPTY_IMAGE = np.empty((0, 0, 3), np.uint8)


def segment_raster(
    segmenter: Segmenter, spec: BundleSpec, source: Path, target: Path, job: PredictConfig, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Write the mask of a GeoTIFF as a GeoTIFF: one band uint8 with the classes' palette, 255 is no data.

    `stopped` is asked before each window.
    Returns: height, width, classes and milliseconds, as in `manifest.Row`.
    Raises: RunError where it was stopped; DataError for what is no GeoTIFF or lacks the bands; EngineError for a bundle that
    takes whole images alone; OSError where the mask cannot be written.
    """
    began = time.perf_counter()
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with open_geotiff(source) as scene, rasterio.Env(GDAL_CACHEMAX=gdal_cache_bytes(scene, segmenter.tile_size)):
            read = RasterReader(scene, job, stopped)
            sure = job.options.min_confidence > 0
            answers = segmenter.segment_rows(read.read_window, (scene.height, scene.width), sure)
            kept = (_select_labels(labels, confidence, spec, job) for labels, confidence in answers)
            pixels = _write_mask(target, scene, spec, read.mask_nodata(split_into_blocks(kept)))
        _verify_written(target, pixels)
    classes = [
        {"label": label, "name": entry.name, "fraction": round(int(pixels[label]) / int(pixels.sum()), 6)}
        for label, entry in enumerate(spec.classes)
        if pixels[label]
    ]
    milliseconds = round((time.perf_counter() - began) * 1e3, 2)
    return {
        "height": read.dataset.height,
        "width": read.dataset.width,
        "classes": classes,
        "milliseconds": milliseconds,
    }


def gdal_cache_bytes(scene: Any, tile: int) -> int:
    """Bytes that GDAL may keep of what it has unpacked."""
    height, width = scene.block_shapes[0]
    if width < scene.width:
        return GDAL_CACHE_BYTES
    sample = sum(np.dtype(kind).itemsize for kind in scene.dtypes)
    return int(np.clip(scene.width * (tile + 2 * height) * sample, GDAL_CACHE_BYTES, MAX_STRIP_CACHE_BYTES))


class RasterReader:
    """An opened raster as an image: three of its bands, scaled to 0..255."""

    def __init__(self, scene: Any, job: PredictConfig, stopped: Callable[[], bool]) -> None:
        """Raises: DataError for bands that it has not, or samples whose range is not known."""
        self.dataset, self.bands, self.should_stop = scene, list(job.bands), stopped
        if max(self.bands) > scene.count:
            raise DataError(f"it has {scene.count} bands, and --bands asks for {','.join(map(str, self.bands))}.")
        kind = scene.dtypes[self.bands[0] - 1]
        if job.scale is None and kind not in SAMPLE_RANGES:
            raise DataError(f"its samples are {kind}: say with --scale LOW,HIGH which of them are black and white.")
        self.low, self.high = job.scale or SAMPLE_RANGES[kind]
        self.has_float_bands = any(np.issubdtype(np.dtype(scene.dtypes[band - 1]), np.floating) for band in self.bands)

    def read_window(self, corner: tuple[int, int], size: tuple[int, int]) -> RGB:
        """The window at (top, left) of (height, width): RGB uint8 H x W x 3, contiguous. Raises: RunError, DataError."""
        if self.should_stop():
            raise RunError("The run was stopped.")
        with _translate_errors():
            samples = self.dataset.read(self.bands, window=_window(corner, size))
        if samples.dtype != np.uint8 or (self.low, self.high) != SAMPLE_RANGES["uint8"]:
            values = np.nan_to_num(samples.astype(np.float32), nan=self.low).clip(self.low, self.high)
            samples = ((values - self.low) * (255.0 / (self.high - self.low)) + 0.5).astype(np.uint8)
        return np.ascontiguousarray(samples.transpose(1, 2, 0))

    def mask_nodata(self, blocks: Iterable[Labels]) -> Iterator[Labels]:
        """Rows of labels, from the first, with no data as void."""
        top = 0
        for labels in blocks:
            window = _window((top, 0), labels.shape)
            valid = np.zeros(labels.shape, np.bool_)
            with _translate_errors():
                for band in self.bands:
                    valid |= self.dataset.read_masks(band, window=window) > 0
                for band in self.bands if self.has_float_bands else ():
                    valid &= ~np.isnan(self.dataset.read(band, window=window))
            yield np.where(valid, labels, np.uint8(IGNORE_INDEX))
            top += len(labels)


def split_into_blocks(rows: Iterable[Labels]) -> Iterator[Labels]:
    """The same rows, by whole rows of blocks: a compressed block that is written twice leaves its first self in the file."""
    held: list[Labels] = []
    for labels in rows:
        held.append(labels)
        count = sum(map(len, held))
        if count >= BLOCK_SIZE:
            whole = np.concatenate(held)
            for top in range(0, count - BLOCK_SIZE + 1, BLOCK_SIZE):
                yield whole[top : top + BLOCK_SIZE]
            held = [whole[count - count % BLOCK_SIZE :].copy()]
    last = np.concatenate(held)
    if len(last):
        yield last


def _select_labels(labels: Labels, sure: Confidence | None, spec: BundleSpec, job: PredictConfig) -> Labels:
    return filter_prediction(Prediction(EMPTY_IMAGE, labels, sure), spec, job.options).labels


def _write_mask(target: Path, scene: Any, spec: BundleSpec, blocks: Iterable[Labels]) -> NDArray[np.int64]:
    """The mask with the scene's georeference. Returns: pixels by label. Raises: OSError."""
    pixels, top = np.zeros(256, np.int64), 0
    layout = {
        "tiled": True,
        "blockxsize": BLOCK_SIZE,
        "blockysize": BLOCK_SIZE,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    with rasterio.open(
        target, "w", driver="GTiff", width=scene.width, height=scene.height, count=1, dtype="uint8", nodata=IGNORE_INDEX,
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
            pixels += _count_labels(labels)
            top += len(labels)
    return pixels


def _verify_written(target: Path, pixels: NDArray[np.int64]) -> None:
    """Read it again: where the disk became full, GDAL may tell nobody. Raises: OSError."""
    found = np.zeros(256, np.int64)
    try:
        with rasterio.open(target, driver="GTiff") as mask:
            for top in range(0, mask.height, BLOCK_SIZE):
                size = min(BLOCK_SIZE, mask.height - top), mask.width
                found += _count_labels(mask.read(1, window=_window((top, 0), size)))
    except RasterioError as error:
        raise OSError(f"it cannot be read again: {first_line(error)}") from error
    if (found != pixels).any():
        raise OSError("it is not read as it was written: is the disk full?")


def _count_labels(labels: Labels) -> NDArray[np.int64]:
    return np.asarray(cv2.calcHist([labels], [0], None, [256], [0, 256])).ravel().astype(np.int64)


def _window(corner: tuple[int, int], size: tuple[int, ...]) -> Window:
    return Window(corner[1], corner[0], size[1], size[0])


@contextmanager
def open_geotiff(source: Path) -> Iterator[Any]:
    """A GeoTIFF, by GDAL's driver for it alone: others follow addresses that a file may hold. Raises: DataError."""
    try:
        scene = rasterio.open(source, driver="GTiff")
    except RasterioError as error:  # it says the whole path again
        raise DataError("this is no GeoTIFF; without --format geotiff it is read as an ordinary image.") from error
    with scene:
        yield scene


@contextmanager
def _translate_errors() -> Iterator[None]:
    """What GDAL says of a file that it cannot read. Raises: DataError."""
    try:
        yield
    except RasterioError as error:
        raise DataError(f"this is no GeoTIFF that can be read ({first_line(error)}).") from error
