"""What the values in mask files mean: labels as written, 0/255, or colours.

A mask is read to `Values`, as its file holds them; a `Meaning`, one for the whole data set, makes labels of them.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import DataError
from models.imaging.decode import Labels, read_stored_mask
from models.spec import IGNORE_INDEX

MaskKind = Literal["grey", "palette", "colour"]
MaskArray = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]

MAX_GRAY = (1 << 32) - 1
NO_LABEL = -1


@dataclass(frozen=True)
class RawMask:
    """What a mask file holds: H x W of grey values (0..2^32-1), places in a palette (0..255), or colours (0xRRGGBB)."""

    array: MaskArray
    kind: MaskKind = "grey"
    palette: tuple[int, ...] = ()  # of a palette file: the colour 0xRRGGBB of each place


@dataclass(frozen=True)
class MaskEncoding:
    """From values to labels."""

    gray_to_label: tuple[
        tuple[int, int], ...
    ] = ()  # value or palette place -> label; one that is not here is its own label
    color_to_label: tuple[tuple[int, int], ...] = ()  # 0xRRGGBB -> label; one that is not here has no meaning
    use_palette_colors: bool = (
        False  # palette files are read through their palettes' colours, for their places mean nothing
    )
    accept_gray_rgb: bool = False  # a colour r = g = b that is not in `colours` is read as that grey value

    def decode_value(self, value: int, kind: MaskKind, colour: int | None = None) -> int | None:
        """The label of one value, or None where it has no meaning; `colour`: of a palette's place."""
        if kind == "palette" and self.use_palette_colors:
            return None if colour is None else self.decode_value(colour, "colour")
        if kind != "colour":
            return self._gray_lookup.get(value, value)
        if value not in self._color_lookup and self.accept_gray_rgb and value % 0x010101 == 0:
            return self.decode_value(value // 0x010101, "grey")
        return self._color_lookup.get(value)

    def decode(self, values: RawMask, file: Path) -> Labels:
        """uint8 H x W, 255 is void. Raises: DataError that names the file and a value without a meaning."""
        array = values.array
        if values.kind == "palette" and self.use_palette_colors:
            by_place = np.full(256, NO_LABEL, np.int16)
            by_place[: len(values.palette)] = [self._decode_or_no_label(colour, "colour") for colour in values.palette]
            return _check_labels(np.take(by_place, array), values, file)
        if array.dtype == np.uint8 and values.kind != "colour":
            return np.take(self._lookup_table, array)
        # A mask has few runs of equal values, and each is looked up once: ten times quicker than a search for each pixel.
        flat = array.ravel()
        starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
        there, places = np.unique(flat[starts], return_inverse=True)
        table = np.array([self._decode_or_no_label(value, values.kind) for value in there.tolist()], np.int16)
        by_run = _check_labels(table[places], RawMask(flat[starts], values.kind), file)
        return np.repeat(by_run, np.diff(starts, append=flat.size)).reshape(array.shape)

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
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


IDENTITY_ENCODING = MaskEncoding()


def read_raw_mask(file: Path) -> RawMask:
    """What a mask file holds.

    Grey keeps the numbers that its file holds, of 1 to 32 bits; palette places stay places. Of colours the pixels that are
    transparent throughout are black, as tools leave what nobody has painted, and other transparency says nothing.
    Raises: DataError, ImageError, naming the file.
    """
    image = read_stored_mask(file)
    if image.mode == "P":
        flat = image.getpalette("RGB") or []
        colours = np.array(flat, np.uint32).reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        return RawMask(np.asarray(image), "palette", tuple(colours.tolist()))
    if image.mode in ("RGB", "RGBA", "LA", "PA", "RGBX"):
        return RawMask(_read_packed_rgb(image), "colour")
    if image.mode not in ("1", "L") and not image.mode.startswith(("I", "F")):
        raise DataError(
            f"{file}: a mask in {image.mode} colours cannot be read; save it as a grey, palette or RGB PNG."
        )
    return RawMask(_read_gray(image, file))


def _read_packed_rgb(image: Image.Image) -> NDArray[np.uint32]:
    """0xRRGGBB, H x W."""
    size = (image.height, image.width)
    if image.mode in ("RGB", "RGBX"):
        return np.frombuffer(image.tobytes("raw", "BGRX"), "<u4").reshape(size) & np.uint32(0xFFFFFF)
    both = np.frombuffer(image.convert("RGBA").tobytes("raw", "BGRA"), "<u4").reshape(size)
    return np.where(both >> 24 == 0, 0, both & np.uint32(0xFFFFFF)).astype(np.uint32)


def _read_gray(image: Image.Image, file: Path) -> MaskArray:
    samples = np.asarray(image)
    if image.mode == "1":
        return samples.astype(np.uint8)
    if image.mode == "L":
        return samples
    with np.errstate(invalid="ignore"):
        lowest, highest = samples.min(), samples.max()
    if np.issubdtype(samples.dtype, np.floating) and not np.array_equal(samples, np.floor(samples)):
        raise DataError(f"{file}: the mask holds fractions; wanted are whole numbers, a label each.")
    if lowest < 0 or highest > MAX_GRAY:
        wrong = (lowest if lowest < 0 else highest).item()
        raise DataError(f"{file}: the mask holds the value {wrong}; wanted are labels from 0 to 254, and 255 for void.")
    if highest <= 255:
        return samples.astype(np.uint8)
    return samples.astype(np.uint16) if highest <= 65535 else samples.astype(np.uint32)


def _check_labels(labels: NDArray[np.int16], values: RawMask, file: Path) -> Labels:
    """Raises: DataError that names the first value without a label."""
    if labels.size and labels.min() < 0:
        value = int(values.array[labels < 0][0])
        raise DataError(f"{file}: {_unknown_value_message(value, values, file)}")
    return labels.astype(np.uint8)


def _unknown_value_message(value: int, values: RawMask, file: Path) -> str:
    if values.kind == "grey":
        return f"the mask holds the label {value}, but labels go from 0 to 254, and 255 is void."
    colour = value if values.kind == "colour" else values.palette[value] if value < len(values.palette) else 0
    if file.suffix.lower() in (".jpg", ".jpeg"):
        return f"the mask holds the colour {format_rgb(colour)}, which no class has; JPEG changes colours, so save masks as PNG."
    return (
        f"the mask holds the colour {format_rgb(colour)}, which no class has; "
        f"add a line `name,{format_rgb(colour)}` to classes.csv, `void,{format_rgb(colour)}` where it is to be ignored."
    )


def format_rgb(colour: int) -> str:
    """A colour 0xRRGGBB as a class file has it: `r,g,b`."""
    return f"{colour >> 16},{colour >> 8 & 255},{colour & 255}"


def pack_rgb(rgb: tuple[int, int, int]) -> int:
    """A colour as 0xRRGGBB."""
    red, green, blue = rgb
    return red << 16 | green << 8 | blue
