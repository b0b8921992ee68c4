"""Pictures on their way out: what is sent of each kind, and the same picture opened again to be looked at."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

# A path, the bytes of a picture file, RGB uint8 H x W x 3, or a Pillow image.
Picture = Path | str | bytes | NDArray[np.uint8] | Image.Image

# Modes that a PNG holds as they are. Others are sent as the RGB that the service would make of them.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_TIFF_MODES = ("I", "F")  # 32 bits a sample, which no PNG holds

# Bytes of pixels up to which RGB goes to this same machine as a BMP: a quarter of the service's default limit.
PLAIN = 8 * 2**20
# Farther, and larger, RGB goes as lossless WebP of the least effort. Of street scenes it has two thirds to three quarters of
# the bytes of a PNG of level 1, is made in half its time (a BMP: in a fortieth), and read in two thirds; benchmarks/client.py.
LONGEST = 16383  # pixels a side, all that it holds

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
ORIENTATION = 0x0112  # EXIF's tag; from 5 on, height and width change places


def body_of(picture: Picture, near: bool) -> bytes:
    """The bytes to send: files as they are, pixels without loss. `near`: the service is on this machine.

    Raises: OSError for a path that cannot be read; ValueError and TypeError for what is no picture.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, Path | str):
        return Path(picture).read_bytes()
    if isinstance(picture, Image.Image):
        return _encoded(picture, near)
    if not isinstance(picture, np.ndarray):
        raise TypeError(
            f"The picture is a {type(picture).__name__}; send a path, bytes, an RGB uint8 array or a Pillow image."
        )
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"The array is {picture.dtype} of shape {picture.shape}; send uint8 of H x W x 3, RGB.")
    return _encoded(Image.fromarray(picture), near)


def _encoded(image: Image.Image, near: bool) -> bytes:
    """The pixels as they stand: an orientation tag in `info` would make the service turn them."""
    if image.mode not in (*_PNG_MODES, *_TIFF_MODES):
        image = image.convert("RGB")
    if image.info:
        image = image.copy()
        image.info = {key: value for key, value in image.info.items() if key == "transparency"}
    buffer = io.BytesIO()
    image.save(buffer, **_form(image, near))
    return buffer.getvalue()


def _form(image: Image.Image, near: bool) -> dict[str, Any]:
    """The cheapest file that holds all of the pixels."""
    if image.mode in _TIFF_MODES:
        return {"format": "TIFF"}
    if image.mode != "RGB" or image.info:
        return {"format": "PNG", "compress_level": 1}
    if near and 3 * image.width * image.height <= PLAIN:
        return {"format": "BMP"}
    if max(image.size) <= LONGEST and features.check("webp"):
        return {"format": "WEBP", "lossless": True, "method": 0, "quality": 0}
    return {"format": "PNG", "compress_level": 1}


def opened(picture: Picture, size: tuple[int, int], side: int | None = None) -> Image.Image | None:
    """A picture that was sent, upright and in RGB, to be looked at; None where it cannot be had.

    Args:
        picture: what was sent.
        size: (width, height) of its mask; a picture of another size is none.
        side: the longest side in pixels that is wanted; None is all of it.
    """
    # Of a format that this Pillow was built without, it raises a KeyError.
    with suppress(OSError, ValueError, SyntaxError, LookupError, Image.DecompressionBombError):
        if isinstance(picture, Image.Image):
            return _reduced(_rgb(picture), side) if picture.size == size else None
        if isinstance(picture, np.ndarray):
            return _reduced(Image.fromarray(picture), side) if picture.shape[1::-1] == size else None
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            if (image.size[::-1] if turned else image.size) != size:
                return None
            if side:
                image.draft("RGB", (side, side))  # a JPEG is decoded at a half, a quarter or an eighth
            return _reduced(ImageOps.exif_transpose(_rgb(image)), side)
    return None


def _reduced(image: Image.Image, side: int | None) -> Image.Image:
    if side and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """As people see it: 16 bits scaled, transparency on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")
