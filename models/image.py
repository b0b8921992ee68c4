"""Bytes to pixels: the one decoder of the house, used by training and service alike.

A picture that trained the network and the same picture sent over HTTP are the same array.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from models.colour import to_srgb
from models.errors import BrokenImage, DataError, EmptyImage, ImageError, ImageTooLarge, NotAnImage

RGB = NDArray[np.uint8]  # H x W x 3, colours in the order red, green, blue, 0..255
Labels = NDArray[np.uint8]  # H x W, class indices, 255 is void
Decoded = TypeVar("Decoded")

# Pillow knows some fifty formats, and many are attack surface.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif"})
READABLE = "JPEG, PNG, WebP, TIFF, BMP or AVIF"
MAX_PIXELS = 100_000_000

# First bytes of those formats: they tell a broken picture (mend it) from what is no picture at all (send another).
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM")

# What Pillow multiplies the grey of 2 and 4 bits by, by the beginning of its raw mode.
_SPREAD = {"L;2": 85, "L;4": 17}

# `Image.open` looks its formats up before it has loaded the plugins of all of them.
Image.init()

# Our own limit is checked against the header before any pixel is decoded; Pillow's stands behind it for what
# a header hides (the extents of later frames). What it only warns of (sizes below that, broken EXIF) would fill
# the log with the faults of other people's pictures.
Image.MAX_IMAGE_PIXELS = 4 * MAX_PIXELS
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decode the bytes of a picture.

    The bytes decide the format, never a name or a content type. The picture is turned upright by its EXIF
    orientation, brought to sRGB by its ICC profile (`colour.py`), transparency is composed on white, 16-bit and float
    samples are scaled (not clipped) to 8 bits, and of several frames the first is taken.

    Returns: RGB uint8, H x W x 3, 0..255.
    Raises: EmptyImage, NotAnImage, BrokenImage, ImageTooLarge.
    """
    if not data:
        raise EmptyImage("The picture is empty: 0 bytes came.")
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"The picture has {width} x {height} = {width * height:,} pixels; the limit is {max_pixels:,}."
        )
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"The picture unfolds to more than the limit of {max_pixels:,} pixels.") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing met
        raise BrokenImage(
            f"The picture is truncated or corrupt: {image.format} said {_first_line(error)!r}."
        ) from error


def read(path: Path, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decode a picture file; as `decode`, with the file's name in front of every error."""
    return _named(path, lambda data: decode(data, max_pixels))


def read_mask(path: Path) -> Labels:
    """Read a mask file whose samples are labels: a grey or palette picture of at most 8 bits.

    Returns: uint8, H x W, the file's own values (the data set says which of them are ignored).
    Raises: DataError for a colour mask or labels above 255, ImageError for a file that cannot be read.
    """
    return _named(path, _decode_mask)


def read_stored(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A mask file's samples as they are stored, decoded, in whatever mode, for no colour of it may be touched.

    Grey of 2 and 4 bits is 0..3 and 0..15, not spread over 0..255.
    Turned upright where it has an EXIF orientation: a tool that wrote it there means what it says.
    Raises: ImageError, DataError, naming the file.
    """
    return _named(path, lambda data: _decode_stored(data, max_pixels))


def _decode_stored(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise EmptyImage("The mask is empty: 0 bytes.")
    image = _open(data)
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(f"The mask has {image.width * image.height:,} pixels; the limit is {max_pixels:,}.")
    raw = str([tile.args for tile in getattr(image, "tile", [])])  # gone once it is loaded
    try:
        image.load()
    except Exception as error:
        raise BrokenImage(f"The mask is truncated or corrupt: {_first_line(error)!r}.") from error
    step = next((step for start, step in _SPREAD.items() if start in raw), 1) if image.mode == "L" else 1
    return _upright(image.point(lambda grey: grey // step) if step > 1 else image)


def _decode_mask(data: bytes) -> Labels:
    image = _decode_stored(data, 4 * MAX_PIXELS)
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise DataError(f"the mask is in {image.mode} colours, but one label a pixel (grey or palette) is wanted.")
    labels = np.asarray(image)
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest > 255:
        wrong = lowest if lowest < 0 else highest
        raise DataError(f"the mask holds the label {wrong}, but labels go from 0 to 254, and 255 is void.")
    return labels.astype(np.uint8)


def _named(path: Path, decoder: Callable[[bytes], Decoded]) -> Decoded:
    try:
        return decoder(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}).") from error
    except (ImageError, DataError) as error:
        raise type(error)(f"{path}: {error}") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge("The picture's header claims more pixels than any limit here allows.") from error
    except UnidentifiedImageError as error:
        if _begins_known(data):
            raise BrokenImage(
                "The picture begins like a known format, but its header is truncated or corrupt."
            ) from error
        raise NotAnImage(f"These {len(data):,} bytes are no picture that can be read here; send {READABLE}.") from error
    except Exception as error:
        raise BrokenImage(f"The picture's header is truncated or corrupt: {_first_line(error)!r}.") from error


def _begins_known(data: bytes) -> bool:
    # `RIFF` alone is also a WAV's, and `ftyp` a video's.
    return data.startswith(_SIGNATURES) or data[8:12] == b"WEBP" or data[4:12] in (b"ftypavif", b"ftypavis")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about orientation; the pixels are still good
        return image


def _to_rgb(image: Image.Image) -> RGB:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(to_srgb(image))
    if image.mode.startswith(("I", "F")):
        samples = np.asarray(image)
        grey = _to_8_bits(samples)
        seen = to_srgb(_with_profile(Image.fromarray(grey), image))
        rgb = np.array(seen) if seen.mode == "RGB" else np.repeat(grey[:, :, None], 3, axis=2)
        if "transparency" in image.info:
            rgb[samples == image.info["transparency"]] = 255
        return rgb
    if image.has_transparency_data:
        single = image.mode in ("L", "LA")
        image = _with_profile(image.convert("LA" if single else "RGBA"), image)
        opaque = to_srgb(_with_profile(image.convert("L" if single else "RGB"), image)).convert("RGBA")
        opaque.putalpha(image.getchannel("A"))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB"))
    if image.mode == "P":
        image = _with_profile(image.convert("RGB"), image)
    return np.asarray(to_srgb(image).convert("RGB"))


def _with_profile(image: Image.Image, source: Image.Image) -> Image.Image:
    """A picture made from another, with its profile; a conversion may have dropped it."""
    if "icc_profile" in source.info:
        image.info["icc_profile"] = source.info["icc_profile"]
    return image


def _to_8_bits(samples: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale grey samples: unsigned 16 bits by 65535, others by the smallest usual range that holds them (1 for floats
    alone, 255, 65535), or else by their own maximum."""
    values = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    if np.issubdtype(samples.dtype, np.unsignedinteger):  # a dark 16-bit picture stays dark
        full = 65535.0
    else:
        usual = (1.0, 255.0, 65535.0) if np.issubdtype(samples.dtype, np.floating) else (255.0, 65535.0)
        full = next((full for full in usual if largest <= full), largest)
    return (values.clip(0, full) * (255.0 / full) + 0.5).astype(np.uint8)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
