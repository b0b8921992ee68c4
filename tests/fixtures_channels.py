"""Data sets of chips with any channels and dtype, on which two classes differ in the last channel only."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

CHANNELS = ("red", "green", "blue", "nir")
CLASS_NAMES = ("ground", "crop", "plastic")
SIZE = 64  # pixels a side
RANGES = {"uint8": (20, 230), "uint16": (200, 3800), "int16": (-1500, 2500), "float32": (0.05, 0.9)}


def draw_chip(
    seed: int, channels: int = 4, dtype: str = "uint16", size: int = SIZE
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Squares of two classes on ground: they look alike, except for the last channel. Returns: H x W x C, labels H x W."""
    random = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.uint8)
    for label in (1, 2, 1, 2):
        top, left = random.integers(0, size - 24, 2)
        labels[top : top + 24, left : left + 24] = label
    levels = np.full((size, size, channels), 0.3)
    levels[labels > 0, :-1] = 0.7
    levels[labels == 1, -1], levels[labels == 2, -1] = 0.1, 0.9
    levels += random.normal(0, 0.03, levels.shape)
    low, high = RANGES[dtype]
    values = low + levels.clip(0, 1) * (high - low)
    return (values if dtype == "float32" else np.rint(values)).astype(dtype), labels


def encode_tiff(values: NDArray[Any], names: tuple[str, ...] = (), **options: Any) -> bytes:
    """H x W x C as a GeoTIFF; `names` are the descriptions of its bands."""
    height, width, count = values.shape
    options = {"photometric": "MINISBLACK", **options}
    with MemoryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open(
            driver="GTiff", width=width, height=height, count=count, dtype=values.dtype, **options
        ) as raster:
            raster.write(values.transpose(2, 0, 1))
            if names:
                raster.descriptions = names
        return bytes(file.read())


def make_channel_dataset(
    root: Path, count: int = 12, channels: tuple[str, ...] = CHANNELS, dtype: str = "uint16", **options: Any
) -> Path:
    """Chips with masks and a class file; named channels, GeoTIFF."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.csv").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000)}
    for index in range(count):
        values, labels = draw_chip(index, len(channels), dtype)
        (root / f"images/chip{index}.tif").write_bytes(encode_tiff(values, channels, **place, **options))
        Image.fromarray(labels).save(root / f"masks/chip{index}.png")
    return root
