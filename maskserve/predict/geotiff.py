"""Segments rasters that do not fit in memory: a GeoTIFF is read in windows, and its mask written in rows of blocks.

The labels equal those of `Segmenter.segment` for the whole image. Pixels without data in the raster (by a value, an alpha band
or a mask, in all bands that are read; NaN or infinity in one) become 255.
"""

import os
import tempfile
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
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from maskserve.predict.config import GEOTIFF, PredictConfig
from maskserve.predict.vectors import write_vectors
from models.errors import ChannelsError, DataError, RunError, first_line
from models.imaging.decode import Labels
from models.inference.geometry import Image
from models.inference.postprocess import Confidence
from models.inference.segmenter import Prediction, Segmenter
from models.outputs.select import filter_prediction
from models.readers.names import channel_names
from models.readers.prepare import channel_indices, fill_values, find_valid, is_measured
from models.readers.statistics import StatisticsAccumulator
from models.sample import Sample, Statistics, Valid
from models.spec import IGNORE_INDEX, RGB_CHANNELS, BundleSpec, InputRule

BLOCK_SIZE = 512  # pixels a side of the mask's blocks
GDAL_CACHE_BYTES = 64 << 20  # GDAL's default is a twentieth of the memory
# For a raster stored in strips over its whole width. If the cache holds less than a row of windows, each window unpacks the
# strips again: a raster 12,288 pixels wide took 12 times as long.
MAX_STRIP_CACHE_BYTES = 1 << 30
SAMPLE_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}  # as models/imaging/decode.py scales them
EMPTY_IMAGE = np.empty((0, 0, 3), np.uint8)


def segment_raster(
    segmenter: Segmenter,
    spec: BundleSpec,
    source: Path,
    target: Path,
    config: PredictConfig,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Write the mask of a GeoTIFF as a GeoTIFF, one uint8 band with the classes' palette, where 255 is no data; or its polygons.

    `should_stop` is called before each window.
    Returns: height, width, classes and milliseconds, as in ManifestRow.
    Raises: RunError after `should_stop` returned True; DataError for a file that is not a GeoTIFF or lacks the bands;
    EngineError for a bundle whose input rule needs whole images; OSError if the mask cannot be written.
    """
    start = time.perf_counter()
    with (
        utf8_path(source) as readable,
        utf8_path(target) as writable,
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            open_geotiff(readable) as raster,
            rasterio.Env(GDAL_CACHEMAX=gdal_cache_bytes(raster, segmenter.tile_size)),
        ):
            reader = RasterReader(raster, spec.input, config, should_stop)
            size = (raster.height, raster.width)
            rows = segmenter.segment_rows(
                reader.read_window, size, config.options.min_confidence > 0, reader.statistics()
            )
            filtered = (_filter_labels(labels, confidence, spec, config) for labels, confidence in rows)
            with _mask_file(writable, config.format) as mask:
                pixels = _write_mask(mask, raster, spec, reader.mask_nodata(split_into_blocks(filtered)))
                _verify_written(mask, pixels)
                if config.format != GEOTIFF:
                    write_vectors(mask, target, config.format, spec, config.crs)
    classes = [
        {"label": label, "name": entry.name, "fraction": round(int(pixels[label]) / int(pixels.sum()), 6)}
        for label, entry in enumerate(spec.classes)
        if pixels[label]
    ]
    milliseconds = round((time.perf_counter() - start) * 1e3, 2)
    return {"height": size[0], "width": size[1], "classes": classes, "milliseconds": milliseconds}


@contextmanager
def _mask_file(target: Path, format: str) -> Iterator[Path]:
    """Where the mask is written: the target, or a temporary file beside it for the formats of polygons."""
    if format == GEOTIFF:
        yield target
        return
    mask = target.with_name(f"{target.name}.mask.tif")
    try:
        yield mask
    finally:
        mask.unlink(missing_ok=True)


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """A path that GDAL can open: the path itself, or a temporary link to it if its name is not UTF-8."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, "raster.tif")
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path


def gdal_cache_bytes(raster: Any, tile: int) -> int:
    """Size of GDAL's cache of unpacked blocks, in bytes, for tiles of `tile` pixels a side."""
    height, width = raster.block_shapes[0]
    if width < raster.width:
        return GDAL_CACHE_BYTES
    pixel_bytes = sum(np.dtype(kind).itemsize for kind in raster.dtypes)
    return int(np.clip(raster.width * (tile + 2 * height) * pixel_bytes, GDAL_CACHE_BYTES, MAX_STRIP_CACHE_BYTES))


def choose_bands(raster: Any) -> list[int]:
    """The red, green and blue bands, from 1, of a raster that is read without --bands.

    Those that it marks as such; the first three of three or four; a single band as gray. Alpha does not count.
    Raises: DataError for other numbers of bands, and for a color table.
    """
    colors = list(raster.colorinterp)
    rgb = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    if all(color in colors for color in rgb):
        return [colors.index(color) + 1 for color in rgb]
    if ColorInterp.palette in colors:
        raise DataError("the raster has a color table: expand it with `gdal_translate -expand rgb IN.tif OUT.tif`.")
    bands = [band for band, color in enumerate(colors, 1) if color != ColorInterp.alpha]
    if len(bands) == 1:
        return bands * 3
    if len(bands) in (3, 4):
        return bands[:3]
    raise DataError(
        f"the raster has {raster.count} bands, and does not mark red, green and blue: name them with --bands, such as "
        "--bands 3,2,1."
    )


def choose_channels(raster: Any, rule: InputRule) -> list[int]:
    """The bands, from 1, of a network's channels: by the descriptions and colors of the bands, or by their order.

    Raises: DataError for other channels.
    """
    colors, alpha = list(raster.colorinterp), ColorInterp.alpha
    bands = [band for band, color in enumerate(colors, 1) if color != alpha] or [1]
    named = [
        raster.descriptions[band - 1] or (colors[band - 1].name if colors[band - 1].name in RGB_CHANNELS else "")
        for band in bands
    ]
    found = Sample(np.empty((1, 1, len(bands)), raster.dtypes[0]), channels=channel_names(named, len(bands)))
    try:
        return [bands[index] for index in channel_indices(found, rule)]
    except ChannelsError as error:
        raise DataError(f"{error} Or name the bands of the model's channels with --bands.") from error


class RasterReader:
    """Reads an opened raster as the network takes it: the bands of its channels."""

    def __init__(self, raster: Any, rule: InputRule, config: PredictConfig, should_stop: Callable[[], bool]) -> None:
        """Raises: DataError for bands that the raster does not have, or samples of another type or unknown range."""
        self.raster, self.rule, self.should_stop = raster, rule, should_stop
        chosen = choose_bands(raster) if rule.channels == RGB_CHANNELS and rule.dtype == "uint8" else None
        self.bands = list(config.bands or chosen or choose_channels(raster, rule))
        if len(self.bands) != len(rule.channels):
            listed = ",".join(map(str, self.bands))
            raise DataError(f"--bands is {listed}; the model takes {rule.describe()}: name a band for each.")
        if max(self.bands) > raster.count:
            raise DataError(f"the raster has {raster.count} bands; --bands is {','.join(map(str, self.bands))}.")
        kind = raster.dtypes[self.bands[0] - 1]
        self.has_float_bands = any(np.issubdtype(np.dtype(raster.dtypes[band - 1]), np.floating) for band in self.bands)
        self.low, self.high = config.scale or SAMPLE_RANGES.get(kind, (0.0, 0.0))
        self.scales = rule.is_photograph
        if self.scales and self.low == self.high:
            raise DataError(f"the samples are {kind}: give the values of black and white with --scale LOW,HIGH.")
        if not self.scales and config.scale:
            raise DataError(
                f"--scale is for models of photographs; this one takes {rule.describe()} as they are: omit it."
            )
        if not self.scales and rule.dtype not in (kind, "float32"):
            raise DataError(
                f"the samples are {kind}; the model takes {rule.describe()}, in the scale of its training images."
            )
        self.fill = fill_values(rule)

    def read_window(self, corner: tuple[int, int], size: tuple[int, int]) -> Image:
        """The window at (top, left) of (height, width): H x W x C, contiguous. Raises: RunError, DataError."""
        if self.should_stop():
            raise RunError("The run was stopped.")
        with _translate_errors():
            samples = self.raster.read(self.bands, window=_window(corner, size))
        if not self.scales:
            values = np.ascontiguousarray(samples.transpose(1, 2, 0), dtype=self.rule.dtype)
            valid = self._find_valid(corner, size, values)
            return values if valid is None else np.where(valid[:, :, None], values, self.fill)
        if samples.dtype != np.uint8 or (self.low, self.high) != SAMPLE_RANGES["uint8"]:
            values = np.nan_to_num(samples.astype(np.float32), nan=self.low).clip(self.low, self.high)
            samples = ((values - self.low) * (255.0 / (self.high - self.low)) + 0.5).astype(np.uint8)
        return np.ascontiguousarray(samples.transpose(1, 2, 0))

    def statistics(self) -> Statistics | None:
        """Mean and scale of the whole raster, in a first pass over its rows, for the scaling `zscore`; else None."""
        if self.rule.scaling.kind != "zscore":
            return None
        sums = StatisticsAccumulator(len(self.bands))
        for top in range(0, self.raster.height, BLOCK_SIZE):
            size = min(BLOCK_SIZE, self.raster.height - top), self.raster.width
            values = self.read_window((top, 0), size)
            sums.add(values, self._find_valid((top, 0), size, None))
        result = sums.result()
        self.fill = result[0].astype(self.rule.dtype)
        return result

    def mask_nodata(self, blocks: Iterable[Labels]) -> Iterator[Labels]:
        """Set pixels without data to 255. `blocks`: rows of labels, from the first."""
        top = 0
        for labels in blocks:
            valid = self._find_valid((top, 0), (labels.shape[0], labels.shape[1]), None)
            yield labels if valid is None else np.where(valid, labels, np.uint8(IGNORE_INDEX))
            top += len(labels)

    def _find_valid(self, corner: tuple[int, int], size: tuple[int, int], values: Image | None) -> Valid | None:
        """Where a window has data, bool H x W; None if it has everywhere. `values`: its samples, read again if None."""
        window = _window(corner, size)
        valid = np.zeros(size, np.bool_)
        with _translate_errors():
            for band in self.bands:
                valid |= self.raster.read_masks(band, window=window) > 0
            for band in self.bands if self.has_float_bands else ():
                valid &= is_measured(self.raster.read([band], window=window).transpose(1, 2, 0))
            if self.rule.nodata is not None and values is None:
                values = self.raster.read(self.bands, window=window).transpose(1, 2, 0)
        if self.rule.nodata is not None and values is not None:
            return find_valid(values, valid, {self.rule.nodata})
        return None if valid.all() else valid


def split_into_blocks(rows: Iterable[Labels]) -> Iterator[Labels]:
    """Regroup rows of labels into rows of blocks: a compressed block that is written twice stays in the file twice."""
    pending: list[Labels] = []
    for labels in rows:
        pending.append(labels)
        count = sum(map(len, pending))
        if count >= BLOCK_SIZE:
            joined = np.concatenate(pending)
            for top in range(0, count - BLOCK_SIZE + 1, BLOCK_SIZE):
                yield joined[top : top + BLOCK_SIZE]
            pending = [joined[count - count % BLOCK_SIZE :].copy()]
    last = np.concatenate(pending)
    if len(last):
        yield last


def _filter_labels(labels: Labels, confidence: Confidence | None, spec: BundleSpec, config: PredictConfig) -> Labels:
    return filter_prediction(Prediction(EMPTY_IMAGE, labels, confidence), spec, config.options).labels


def _write_mask(target: Path, raster: Any, spec: BundleSpec, blocks: Iterable[Labels]) -> NDArray[np.int64]:
    """Write the mask, with the raster's georeference. Returns: number of pixels by label, int64 256. Raises: OSError."""
    pixels, top = np.zeros(256, np.int64), 0
    layout = {
        "tiled": True,
        "blockxsize": BLOCK_SIZE,
        "blockysize": BLOCK_SIZE,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    with rasterio.open(
        target, "w", driver="GTiff", width=raster.width, height=raster.height, count=1, dtype="uint8", nodata=IGNORE_INDEX,
        crs=raster.crs, transform=raster.transform, **layout,
    ) as mask:  # fmt: skip
        if raster.gcps[0]:
            mask.gcps = raster.gcps
        if raster.rpcs:
            mask.rpcs = raster.rpcs
        if point := raster.tags().get("AREA_OR_POINT"):
            mask.update_tags(AREA_OR_POINT=point)
        mask.write_colormap(1, {label: (*entry.rgb, 255) for label, entry in enumerate(spec.classes)})
        for labels in blocks:
            mask.write(labels, 1, window=_window((top, 0), labels.shape))
            pixels += _count_labels(labels)
            top += len(labels)
    return pixels


def _verify_written(target: Path, pixels: NDArray[np.int64]) -> None:
    """Read the mask back: GDAL may not report a full disk. Raises: OSError if its pixels differ."""
    found = np.zeros(256, np.int64)
    try:
        with rasterio.open(target, driver="GTiff") as mask:
            for top in range(0, mask.height, BLOCK_SIZE):
                size = min(BLOCK_SIZE, mask.height - top), mask.width
                found += _count_labels(mask.read(1, window=_window((top, 0), size)))
    except RasterioError as error:
        raise OSError(f"reading it back failed: {first_line(error)}") from error
    if (found != pixels).any():
        raise OSError("its content differs from what was written: is the disk full?")


def _count_labels(labels: Labels) -> NDArray[np.int64]:
    return np.asarray(cv2.calcHist([labels], [0], None, [256], [0, 256])).ravel().astype(np.int64)


def _window(corner: tuple[int, int], size: tuple[int, ...]) -> Window:
    return Window(corner[1], corner[0], size[1], size[0])


@contextmanager
def open_geotiff(source: Path) -> Iterator[Any]:
    """Open a GeoTIFF, only with GDAL's GTiff driver: other drivers follow URLs inside a file. Raises: DataError."""
    try:
        raster = rasterio.open(source, driver="GTiff")
    except RasterioError as error:  # its message repeats the path
        raise DataError("not a GeoTIFF. Other image formats need another --format.") from error
    with raster:
        yield raster


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translates GDAL's errors for a file that it cannot read. Raises: DataError."""
    try:
        yield
    except RasterioError as error:
        raise DataError(f"the GeoTIFF cannot be read ({first_line(error)}).") from error
