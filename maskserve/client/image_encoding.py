"""Encodes images for a request, and opens the image that was sent again for display."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

# A path, the bytes of an image file, RGB uint8 H x W x 3, an array of other channels H x W x C or H x W, or a Pillow image.
ImageLike = Path | str | bytes | bytearray | memoryview | NDArray[Any] | Image.Image

# A Pillow image's mode -> the mode in which it is sent. If they differ, the service decodes both to the same pixels.
FILE_MODES = {
    "1": "1", "L": "L", "LA": "LA", "La": "LA", "P": "P", "PA": "RGBA", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA",
    "RGBa": "RGBA", "CMYK": "CMYK", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "I": "I", "F": "F", "I;16": "I;16",
    "I;16L": "I;16", "I;16B": "I;16", "I;16N": "I;16",
}  # fmt: skip
_TIFF_MODES = ("I", "F", "CMYK")  # 32 bits a sample and CMYK, which PNG does not support
# The parts of an image's `info` that its pixels depend on. The others are not sent: the service would apply an orientation.
_PIXEL_INFO_KEYS = ("transparency", "icc_profile")

# Bytes of pixels up to which RGB is sent to this machine as a BMP: a quarter of the service's default limit.
MAX_BMP_BYTES = 8 * 2**20
# To other machines, and above that, RGB is sent as lossless WebP of the least effort. For street scenes it has two thirds to
# three quarters of the bytes of a PNG of level 1, is encoded in half its time (a BMP: in a fortieth), and decoded in two thirds
# (benchmarks/client.py).
WEBP_MAX_SIDE = 16383  # pixels a side, the limit of the format

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
EXIF_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on swap height and width


def to_request_body(image: ImageLike, local: bool) -> bytes:
    """The bytes to send: files unchanged, pixels lossless. `local`: whether the service is on this machine.

    Raises: OSError for a path that cannot be read; ValueError and TypeError for an argument that is not an image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Path | str):
        return Path(image).read_bytes()
    if isinstance(image, Image.Image):
        return _encode_pil(image, local)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"The image is a {type(image).__name__}; send a path, bytes, an array or a Pillow image.")
    if _is_rgb(image):
        return _encode_pil(Image.fromarray(image), local)
    if image.dtype.kind not in "uifb" or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(
            f"The array is {image.dtype} of shape {image.shape}; send uint8 of H x W x 3, RGB, or the numbers that the model "
            "takes, of H x W x C."
        )
    buffer = io.BytesIO()
    np.save(buffer, image, allow_pickle=False)
    return buffer.getvalue()


def _is_rgb(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size > 0


def _encode_pil(image: Image.Image, local: bool) -> bytes:
    """The file of a Pillow image, with its pixels unchanged. Raises: ValueError for an unknown mode."""
    image = _to_file_mode(image)
    if image.info:
        image = image.copy()
        image.info = {key: image.info[key] for key in _PIXEL_INFO_KEYS if image.info.get(key) is not None}
    buffer = io.BytesIO()
    image.save(buffer, **_save_options(image, local))
    return buffer.getvalue()


def _to_file_mode(image: Image.Image) -> Image.Image:
    """The image in a mode that can be sent (FILE_MODES). Raises: ValueError for an unknown mode."""
    if image.mode not in FILE_MODES:
        raise ValueError(f"The image has the mode {image.mode}, which is not supported. Convert it to RGB.")
    if image.mode == FILE_MODES[image.mode]:
        return image
    if image.mode.startswith("I;16"):  # Pillow's `convert` would clip it at 255
        swapped = Image.fromarray(np.asarray(image).astype("<u2"))
        swapped.info = image.info
        return swapped
    return image.convert(FILE_MODES[image.mode])


def _save_options(image: Image.Image, local: bool) -> dict[str, Any]:
    """The cheapest lossless format for the image, and its options."""
    if image.mode in _TIFF_MODES:
        return {"format": "TIFF"}
    if image.mode != "RGB" or "transparency" in image.info:
        return {"format": "PNG", "compress_level": 1}
    if local and 3 * image.width * image.height <= MAX_BMP_BYTES and not image.info:
        return {"format": "BMP"}
    if max(image.size) <= WEBP_MAX_SIDE and features.check("webp"):
        profile = image.info.get("icc_profile")
        return {"format": "WEBP", "lossless": True, "method": 0, "quality": 0, "icc_profile": profile}
    return {"format": "PNG", "compress_level": 1}


def open_sent_image(image: ImageLike, size: tuple[int, int], side: int | None = None) -> Image.Image | None:
    """An image that was sent, upright and in RGB, for display; None if it cannot be opened, or is an array of other channels.

    Args:
        image: the object that was sent.
        size: (width, height) of its mask; an image of another size counts as not opened.
        side: the longest side in pixels to return; None is the full size.
    """
    # Pillow raises a KeyError for a format that it was built without.
    with suppress(OSError, ValueError, SyntaxError, LookupError, Image.DecompressionBombError):
        if isinstance(image, Image.Image):
            return _shrink(_to_rgb(image), side) if image.size == size else None
        if isinstance(image, np.ndarray):
            shown = _is_rgb(image) and image.shape[1::-1] == size
            return _shrink(Image.fromarray(image), side) if shown else None
        file = image if isinstance(image, Path | str) else io.BytesIO(image)
        with Image.open(file, formats=FORMATS) as opened:
            # Pillow reports a TIFF's size upright already.
            rotated = opened.format != "TIFF" and opened.getexif().get(EXIF_ORIENTATION, 1) >= 5
            if (opened.size[::-1] if rotated else opened.size) != size:
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
    """The image as displayed: 16 bits scaled to 8, transparency on white."""
    image = _to_file_mode(image)
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
