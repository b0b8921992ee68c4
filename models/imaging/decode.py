"""Bytes to pixels: the one decoder of the house, used by training and service alike.

An image that trained the network and the same image sent over HTTP are the same array.
"""

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.errors import (
    CorruptImageError,
    DataError,
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    InsufficientMemoryError,
    MultiFrameImageError,
    first_line,
)
from models.imaging import tiff_limits
from models.imaging.avif_limits import check_avif
from models.imaging.detect_format import detect_format
from models.imaging.header_limits import check_bmp, check_jpeg, check_size, check_webp
from models.imaging.icc import to_srgb
from models.imaging.libtiff import silence_libtiff
from models.imaging.png_limits import check_png, check_png_rows

RGB = NDArray[np.uint8]  # H x W x 3, colours in the order red, green, blue, 0..255
Labels = NDArray[np.uint8]  # H x W, class indices, 255 is void
Decoded = TypeVar("Decoded")

# What is read before a library is asked (a TIFF's answers with its page), and Pillow's reader.
# JPEG's own reader, for `Image.open` would make a phone's photograph with a gain map a file of several.
DECODERS: dict[str, tuple[Callable[[bytes, int], int | None], type[ImageFile]]] = {
    "JPEG": (check_jpeg, JpegImageFile),
    "PNG": (check_png, PngImageFile),
    "WEBP": (check_webp, WebPImageFile),
    "TIFF": (tiff_limits.check_tiff, TiffImageFile),
    "BMP": (check_bmp, BmpImageFile),
    "AVIF": (check_avif, AvifImageFile),
}
FORMATS = tuple(DECODERS)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif"})
MAX_PIXELS = 100_000_000

# What Pillow multiplies the grey of 2 and 4 bits by, by the beginning of its raw mode.
GREY_SCALE_FACTORS = {"L;2": 85, "L;4": 17}

ORIENTATION_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")

# `Image.open`, with which training looks at headers, looks its formats up before it has loaded the plugins of all.
Image.init()
silence_libtiff()

# Our own limit is checked against the header before any pixel is decoded; Pillow's stands behind it for what
# a header hides (the extents of later frames). What it only warns of (sizes below that, broken EXIF) would fill
# the log with the faults of other people's images.
Image.MAX_IMAGE_PIXELS = 4 * MAX_PIXELS
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decode the bytes of an image.

    The bytes decide the format, never a name or a content type. The image is turned upright by its orientation
    (EXIF's, or XMP's), brought to sRGB by its ICC profile (`colour.py`), transparency is composed on white, 16-bit and
    float samples are scaled (not clipped) to 8 bits. Of a phone's JPEG with a preview or a gain map behind it, and of a
    TIFF with thumbnails, the first full image is taken; animations and several full pages are refused.

    Returns: RGB uint8, H x W x 3, 0..255.
    Raises: EmptyImage, NotAnImage, BrokenImage, SeveralImages, ImageTooLarge, TooLittleMemory; nothing else.
    """
    if not data:
        raise EmptyImageError("The image is empty: 0 bytes came.")
    image = _open_image(data, max_pixels)
    return _translate_errors(image, max_pixels, lambda: _to_rgb(_apply_orientation(_load_pixels(image, data))))


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decode an image file; as `decode`, with the file's name in front of every error."""
    return _decode_file(path, lambda data: decode_image(data, max_pixels))


def read_mask(path: Path) -> Labels:
    """Read a mask file whose samples are labels: a grey or palette image of at most 8 bits.

    Returns: uint8, H x W, the file's own values (the data set says which of them are ignored).
    Raises: DataError for a colour mask or labels above 255, ImageError for a file that cannot be read.
    """
    return _decode_file(path, _decode_mask)


def read_stored_mask(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A mask file's samples as they are stored, decoded, in whatever mode, for no colour of it may be touched.

    Grey of 2 and 4 bits is 0..3 and 0..15, not spread over 0..255.
    Turned upright where it has an EXIF orientation: a tool that wrote it there means what it says.
    Raises: ImageError, DataError, naming the file.
    """
    return _decode_file(path, lambda data: _decode_stored_mask(data, max_pixels))


def _decode_stored_mask(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise EmptyImageError("The mask is empty: 0 bytes.")
    image = _open_image(data, max_pixels)
    spread = _grey_scale_factor(image)

    def stored() -> Image.Image:
        upright = _apply_orientation(_load_pixels(image, data))
        return upright.point(lambda grey: grey // spread) if spread > 1 else upright

    return _translate_errors(image, max_pixels, stored)


def _decode_mask(data: bytes) -> Labels:
    image = _decode_stored_mask(data, 4 * MAX_PIXELS)
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise DataError(f"the mask is in {image.mode} colours, but one label a pixel (grey or palette) is wanted.")
    labels = np.asarray(image)
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest > 255:
        wrong = lowest if lowest < 0 else highest
        raise DataError(f"the mask holds the label {wrong}, but labels go from 0 to 254, and 255 is void.")
    return labels.astype(np.uint8)


def _decode_file(path: Path, decoder: Callable[[bytes], Decoded]) -> Decoded:
    try:
        return decoder(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}).") from error
    except (ImageError, DataError) as error:
        raise type(error)(f"{path}: {error}") from error


def _open_image(data: bytes, max_pixels: int) -> ImageFile:
    """The image with its header read and none of its pixels, which are `max_pixels` at most."""
    name = detect_format(data)
    check, reader = DECODERS[name]
    try:
        page = check(data, max_pixels)
        image = reader(io.BytesIO(data))
        if page:
            image.seek(page)
        _record_sample_info(image)
    except (ImageError, MemoryError, Image.DecompressionBombError) as error:
        raise _to_image_error(error, max_pixels) from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing met
        raise CorruptImageError(
            f"The image begins like a {name}, but its header is truncated or corrupt, or of a kind that is not "
            f"read here ({first_line(error)!r}); save it again as PNG or JPEG."
        ) from error
    check_size(*image.size, max_pixels)
    count = 1 if name == "TIFF" else getattr(image, "n_frames", 1)
    if count > 1:
        raise MultiFrameImageError(f"The {name} is an animation of {count:,} frames; send one of them as an image.")
    return image


def _load_pixels(image: ImageFile, data: bytes) -> Image.Image:
    image.load()
    if image.format == "PNG":
        check_png_rows(image, data)
    return image


def _translate_errors(image: ImageFile, max_pixels: int, work: Callable[[], Decoded]) -> Decoded:
    """What decoding can meet, in the house's words."""
    try:
        return work()
    except (ImageError, MemoryError, Image.DecompressionBombError) as error:
        raise _to_image_error(error, max_pixels) from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing met
        raise CorruptImageError(
            f"The image is truncated or corrupt: {image.format} said {first_line(error)!r}."
        ) from error


def _to_image_error(error: Exception, max_pixels: int) -> Exception:
    if isinstance(error, MemoryError):
        return InsufficientMemoryError(
            "The image is more than the free memory holds; send a smaller one, or send it later."
        )
    if isinstance(error, Image.DecompressionBombError):
        return ImageTooLargeError(f"The image unfolds to more than the limit of {max_pixels:,} pixels.")
    return error


def _apply_orientation(image: Image.Image) -> Image.Image:
    turn = ORIENTATION_TRANSPOSES.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1..8, once the image is loaded: a PNG may say it behind its pixels.

    Pillow has turned a TIFF, and has put an AVIF's own (`irot`, `imir`) into its EXIF. It would unpack the whole block
    to read this one number, and fail where any of it is broken.
    """
    if image.format == "TIFF":
        return 1
    exif = image.info.get("exif") or _decode_hex_exif(image.info.get("Raw profile type exif"))
    if exif and (told := tiff_limits.exif_orientation(exif)):
        return told
    xmp = image.info.get("xmp") if image.format != "AVIF" else None
    found = XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
    return int(found[1]) if found else 1


def _decode_hex_exif(text: object) -> bytes:
    """ImageMagick's EXIF in a PNG: a name, a length, and the block in hexadecimal digits."""
    try:
        return bytes.fromhex("".join(str(text).split("\n")[3:])) if isinstance(text, str) else b""
    except ValueError:
        return b""


def _record_sample_info(image: ImageFile) -> None:
    """Bring to mind, in `info`, what a header says of the samples; it is gone once the image is loaded."""
    key, raw = image.info.get("transparency"), _raw_mode(image)
    if isinstance(key, int) and image.mode == "L":  # a PNG's transparent colour is in its own bits
        image.info["transparency"] = key * _grey_scale_factor(image)
    elif isinstance(key, tuple) and ";16" in raw:
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    if isinstance(image, TiffImageFile):
        image.info["full"] = 4095.0 if "I;12" in raw else 65535.0
        image.info["white is 0"] = image.tag_v2.get(tiff_limits.PHOTOMETRIC) == 0


def _grey_scale_factor(image: ImageFile) -> int:
    """What the grey of an opened, not loaded image will be multiplied by: 2 and 4 bits are spread over 0..255."""
    return GREY_SCALE_FACTORS.get(_raw_mode(image)[:3], 1) if image.mode == "L" else 1


def _raw_mode(image: ImageFile) -> str:
    """Pillow's name of how the samples are stored, such as `L;4I` or `RGB;16B`; gone once the image is loaded."""
    arguments = image.tile[0].args if image.tile else None
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _to_rgb(image: Image.Image) -> RGB:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(to_srgb(image))
    if image.mode.startswith(("I", "F")):
        samples = np.asarray(image)
        grey = _to_8_bits(samples, image.info.get("full", 65535.0))
        if image.info.get("white is 0"):  # of fewer bits Pillow turns it itself
            grey = 255 - grey
        seen = to_srgb(_copy_profile(Image.fromarray(grey), image))
        rgb = np.array(seen) if seen.mode == "RGB" else np.repeat(grey[:, :, None], 3, axis=2)
        if "transparency" in image.info:
            rgb[samples == image.info["transparency"]] = 255
        return rgb
    if image.has_transparency_data:
        single = image.mode in ("L", "LA", "La")
        image = _copy_profile(image.convert("LA" if single else "RGBA"), image)
        opaque = to_srgb(_copy_profile(image.convert("L" if single else "RGB"), image)).convert("RGBA")
        opaque.putalpha(image.getchannel("A"))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB"))
    if image.mode in ("P", "YCbCr"):
        image = _copy_profile(image.convert("RGB"), image)
    return np.asarray(to_srgb(image).convert("RGB"))


def _copy_profile(image: Image.Image, source: Image.Image) -> Image.Image:
    """An image made from another, with its profile; a conversion may have dropped it."""
    if "icc_profile" in source.info:
        image.info["icc_profile"] = source.info["icc_profile"]
    return image


def _to_8_bits(samples: NDArray[np.generic], full: float) -> NDArray[np.uint8]:
    """Scale grey samples: unsigned 12 and 16 bits by their `full` range, others by the smallest usual range that holds
    them (1 for floats alone, 255, 65535), or else by their own maximum."""
    values = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    if not np.issubdtype(samples.dtype, np.unsignedinteger):  # a dark 16-bit image stays dark
        usual = (1.0, 255.0, 65535.0) if np.issubdtype(samples.dtype, np.floating) else (255.0, 65535.0)
        full = next((full for full in usual if largest <= full), largest)
    return (values.clip(0, full) * (255.0 / full) + 0.5).astype(np.uint8)
