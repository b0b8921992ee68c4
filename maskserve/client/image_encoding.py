"""Images on their way out: what is sent of each kind, and the same image opened again to be looked at."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

# A path, the bytes of an image file, RGB uint8 H x W x 3, or a Pillow image.
ImageLike = Path | str | bytes | bytearray | memoryview | NDArray[np.uint8] | Image.Image

# A Pillow image's mode -> the mode in which a file holds it. Where that is another, the service would make the same of it.
FILE_MODES = {
    "1": "1", "L": "L", "LA": "LA", "La": "LA", "P": "P", "PA": "RGBA", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA",
    "RGBa": "RGBA", "CMYK": "CMYK", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "I": "I", "F": "F", "I;16": "I;16",
    "I;16L": "I;16", "I;16B": "I;16", "I;16N": "I;16",
}  # fmt: skip
_TIFF_MODES = ("I", "F", "CMYK")  # 32 bits a sample and a press's colours, which no PNG holds
# Of an image's `info`, what its pixels mean nothing without. The rest stays: an orientation would make the service turn them.
_PIXEL_INFO_KEYS = ("transparency", "icc_profile")

# Bytes of pixels up to which RGB goes to this same machine as a BMP: a quarter of the service's default limit.
MAX_BMP_BYTES = 8 * 2**20
# Farther, and larger, RGB goes as lossless WebP of the least effort. Of street scenes it has two thirds to three quarters of
# the bytes of a PNG of level 1, is made in half its time (a BMP: in a fortieth), and read in two thirds; benchmarks/client.py.
WEBP_MAX_SIDE = 16383  # pixels a side, all that it holds

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
EXIF_ORIENTATION = 0x0112  # EXIF's tag; from 5 on, height and width change places


def to_request_body(image: ImageLike, near: bool) -> bytes:
    """The bytes to send: files as they are, pixels without loss. `near`: the service is on this machine.

    Raises: OSError for a path that cannot be read; ValueError and TypeError for what is no image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Path | str):
        return Path(image).read_bytes()
    if isinstance(image, Image.Image):
        return _encode_pil(image, near)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"The image is a {type(image).__name__}; send a path, bytes, an RGB uint8 array or a Pillow image."
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"The array is {image.dtype} of shape {image.shape}; send uint8 of H x W x 3, RGB.")
    return _encode_pil(Image.fromarray(image), near)


def _encode_pil(image: Image.Image, near: bool) -> bytes:
    """The pixels as they stand. Raises: ValueError for a mode that is not known."""
    image = _to_file_mode(image)
    if image.info:
        image = image.copy()
        image.info = {key: image.info[key] for key in _PIXEL_INFO_KEYS if image.info.get(key) is not None}
    buffer = io.BytesIO()
    image.save(buffer, **_save_options(image, near))
    return buffer.getvalue()


def _to_file_mode(image: Image.Image) -> Image.Image:
    """The image in a mode that a file holds. Raises: ValueError for a mode that is not known."""
    if image.mode not in FILE_MODES:
        raise ValueError(f"The image is of the mode {image.mode}; convert it to RGB and send that.")
    if image.mode == FILE_MODES[image.mode]:
        return image
    if image.mode.startswith("I;16"):  # which Pillow's `convert` would cut off at 255
        swapped = Image.fromarray(np.asarray(image).astype("<u2"))
        swapped.info = image.info
        return swapped
    return image.convert(FILE_MODES[image.mode])


def _save_options(image: Image.Image, near: bool) -> dict[str, Any]:
    """The cheapest file that holds all of the pixels, and their profile."""
    if image.mode in _TIFF_MODES:
        return {"format": "TIFF"}
    if image.mode != "RGB" or "transparency" in image.info:
        return {"format": "PNG", "compress_level": 1}
    if near and 3 * image.width * image.height <= MAX_BMP_BYTES and not image.info:
        return {"format": "BMP"}
    if max(image.size) <= WEBP_MAX_SIDE and features.check("webp"):
        profile = image.info.get("icc_profile")
        return {"format": "WEBP", "lossless": True, "method": 0, "quality": 0, "icc_profile": profile}
    return {"format": "PNG", "compress_level": 1}


def open_sent_image(image: ImageLike, size: tuple[int, int], side: int | None = None) -> Image.Image | None:
    """An image that was sent, upright and in RGB, to be looked at; None where it cannot be had.

    Args:
        image: what was sent.
        size: (width, height) of its mask; an image of another size is none.
        side: the longest side in pixels that is wanted; None is all of it.
    """
    # Of a format that this Pillow was built without, it raises a KeyError.
    with suppress(OSError, ValueError, SyntaxError, LookupError, Image.DecompressionBombError):
        if isinstance(image, Image.Image):
            return _shrink(_to_rgb(image), side) if image.size == size else None
        if isinstance(image, np.ndarray):
            return _shrink(Image.fromarray(image), side) if image.shape[1::-1] == size else None
        file = image if isinstance(image, Path | str) else io.BytesIO(image)
        with Image.open(file, formats=FORMATS) as opened:
            # A TIFF's size is that of the upright image already.
            turned = opened.format != "TIFF" and opened.getexif().get(EXIF_ORIENTATION, 1) >= 5
            if (opened.size[::-1] if turned else opened.size) != size:
                return None
            if side:
                opened.draft("RGB", (side, side))  # a JPEG is decoded at a half, a quarter or an eighth
            return _shrink(_to_rgb(ImageOps.exif_transpose(opened)), side)
    return None


def _shrink(image: Image.Image, side: int | None) -> Image.Image:
    if side and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """As people see it: 16 bits scaled, transparency on white."""
    image = _to_file_mode(image)
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")
