"""Decodes mask files to labels: labels as written, 0/255, or colors.

`read_raw_mask` returns a `RawMask`, the values as the file holds them. A `MaskEncoding`, one per data set, maps them to labels.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import DataError
from models.imaging.decode import MAX_PIXELS, Labels, decode_file, read_stored_mask
from models.imaging.gif_mask import decode_gif_mask
from models.readers.npy import decode_npy_mask
from models.spec import IGNORE_INDEX

MaskKind = Literal["gray", "palette", "color"]
MaskArray = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]

MAX_GRAY = (1 << 32) - 1
NO_LABEL = -1


@dataclass(frozen=True)
class RawMask:
    """A mask as stored: H x W of gray values (0 to 2^32-1), palette indices (0 to 255), or colors (0xRRGGBB)."""

    array: MaskArray
    kind: MaskKind = "gray"
    palette: tuple[int, ...] = ()  # of a palette file: the color 0xRRGGBB of each index


@dataclass(frozen=True)
class MaskEncoding:
    """Maps mask values to labels."""

    # Gray value or palette index -> label; other values are their own label.
    gray_to_label: tuple[tuple[int, int], ...] = ()
    # 0xRRGGBB -> label; other colors have no label.
    color_to_label: tuple[tuple[int, int], ...] = ()
    # Palette files are decoded by their colors, because their indices are not labels.
    use_palette_colors: bool = False
    # A color r = g = b that is not in `color_to_label` is read as that gray value.
    accept_gray_rgb: bool = False

    def decode_value(self, value: int, kind: MaskKind, color: int | None = None) -> int | None:
        """The label of one value, or None if it has none; `color` is that of a palette index."""
        if kind == "palette" and self.use_palette_colors:
            return None if color is None else self.decode_value(color, "color")
        if kind != "color":
            return self._gray_lookup.get(value, value)
        if value not in self._color_lookup and self.accept_gray_rgb and value % 0x010101 == 0:
            return self.decode_value(value // 0x010101, "gray")
        return self._color_lookup.get(value)

    def decode(self, mask: RawMask, file: Path) -> Labels:
        """Labels, uint8 H x W; 255 is ignored. Raises: DataError that names the file and a value without a label."""
        array = mask.array
        if mask.kind == "palette" and self.use_palette_colors:
            label_by_index = np.full(256, NO_LABEL, np.int16)
            label_by_index[: len(mask.palette)] = [self._decode_or_no_label(color, "color") for color in mask.palette]
            return _check_labels(np.take(label_by_index, array), mask, file)
        if array.dtype == np.uint8 and mask.kind != "color":
            return np.take(self._lookup_table, array)
        # A mask has few runs of equal values. One lookup per run is ten times faster than a search per pixel.
        flat = array.ravel()
        starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
        values, inverse = np.unique(flat[starts], return_inverse=True)
        table = np.array([self._decode_or_no_label(value, mask.kind) for value in values.tolist()], np.int16)
        label_by_run = _check_labels(table[inverse], RawMask(flat[starts], mask.kind), file)
        return np.repeat(label_by_run, np.diff(starts, append=flat.size)).reshape(array.shape)

    def _decode_or_no_label(self, value: int, kind: MaskKind) -> int:
        label = self.decode_value(value, kind)
        return NO_LABEL if label is None or label > IGNORE_INDEX else label

    @cached_property
    def _gray_lookup(self) -> dict[int, int]:
        return dict(self.gray_to_label)

    @cached_property
    def _color_lookup(self) -> dict[int, int]:
        return dict(self.color_to_label)

    @cached_property
    def _lookup_table(self) -> Labels:
        return np.array([self._gray_lookup.get(value, value) for value in range(256)], np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        # Workers build the cached tables themselves.
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


IDENTITY_ENCODING = MaskEncoding()


def read_raw_mask(file: Path) -> RawMask:
    """Read a mask file, without decoding its values.

    Gray values keep their number at 1 to 32 bits; palette files keep their indices. In color masks, fully transparent
    pixels become black, because tools leave unlabeled pixels transparent; partial transparency is dropped.
    Raises: DataError, ImageError, naming the file.
    """
    if file.suffix.lower() == ".npy":
        return RawMask(_read_array(file))
    is_gif = file.suffix.lower() == ".gif"
    image = decode_file(file, decode_gif_mask, max_pixels=MAX_PIXELS) if is_gif else read_stored_mask(file)
    if image.mode == "P":
        flat = image.getpalette("RGB") or []
        colors = np.array(flat, np.uint32).reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        return RawMask(np.asarray(image), "palette", tuple(colors.tolist()))
    if image.mode in ("RGB", "RGBA", "LA", "PA", "RGBX"):
        return RawMask(_read_packed_rgb(image), "color")
    if image.mode not in ("1", "L") and not image.mode.startswith(("I", "F")):
        raise DataError(f"{file}: cannot read a mask in {image.mode} colors; save it as a gray, palette or RGB PNG.")
    return RawMask(_read_gray(image, file))


def _read_array(file: Path) -> MaskArray:
    """A mask of a NumPy file: whole numbers, H x W. Raises: DataError, ImageError."""
    array = decode_file(file, decode_npy_mask, max_pixels=MAX_PIXELS)
    if array.ndim != 2:
        raise DataError(f"{file}: has the shape {array.shape}; expected H x W of whole numbers. Save the mask as PNG.")
    return check_gray(array.astype(np.uint8) if array.dtype.kind == "b" else array, file)


def _read_packed_rgb(image: Image.Image) -> NDArray[np.uint32]:
    """0xRRGGBB, H x W."""
    size = (image.height, image.width)
    if image.mode in ("RGB", "RGBX"):
        return np.frombuffer(image.tobytes("raw", "BGRX"), "<u4").reshape(size) & np.uint32(0xFFFFFF)
    rgba = np.frombuffer(image.convert("RGBA").tobytes("raw", "BGRA"), "<u4").reshape(size)
    return np.where(rgba >> 24 == 0, 0, rgba & np.uint32(0xFFFFFF)).astype(np.uint32)


def _read_gray(image: Image.Image, file: Path) -> MaskArray:
    values = np.asarray(image)
    if image.mode == "1":
        return values.astype(np.uint8)
    if image.mode == "L":
        return values
    return check_gray(values, file)


def check_gray(values: NDArray[Any], file: Path) -> MaskArray:
    """The values in the smallest unsigned type. Raises: DataError for fractions and values out of range."""
    with np.errstate(invalid="ignore"):
        lowest, highest = values.min(), values.max()
    if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.floor(values)):
        raise DataError(f"{file}: the mask has fractional values; expected whole numbers, one label per pixel.")
    if lowest < 0 or highest > MAX_GRAY:
        wrong = (lowest if lowest < 0 else highest).item()
        raise DataError(f"{file}: the mask has the value {wrong}; expected labels 0 to 254, or 255 for ignored pixels.")
    if highest <= 255:
        return values.astype(np.uint8)
    return values.astype(np.uint16) if highest <= 65535 else values.astype(np.uint32)


def _check_labels(labels: NDArray[np.int16], mask: RawMask, file: Path) -> Labels:
    """Labels as uint8. Raises: DataError that names the first value without a label."""
    if labels.size and labels.min() < 0:
        value = int(mask.array[labels < 0][0])
        raise DataError(f"{file}: {_unknown_value_message(value, mask, file)}")
    return labels.astype(np.uint8)


def _unknown_value_message(value: int, mask: RawMask, file: Path) -> str:
    if mask.kind == "gray":
        return f"the mask has the label {value}; expected labels 0 to 254, or 255 for ignored pixels."
    color = value if mask.kind == "color" else mask.palette[value] if value < len(mask.palette) else 0
    rgb = format_rgb(color)
    if file.suffix.lower() in (".jpg", ".jpeg"):
        return f"the mask has the color {rgb}, which belongs to no class. JPEG changes colors; save masks as PNG."
    return (
        f"the mask has the color {rgb}, which belongs to no class; add a line `name,{rgb}` to classes.csv, or `void,{rgb}` "
        "to ignore it."
    )


def format_rgb(color: int) -> str:
    """A color 0xRRGGBB as written in a class file: `r,g,b`."""
    return f"{color >> 16},{color >> 8 & 255},{color & 255}"


def pack_rgb(rgb: tuple[int, int, int]) -> int:
    """A color as 0xRRGGBB."""
    red, green, blue = rgb
    return red << 16 | green << 8 | blue
