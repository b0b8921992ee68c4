"""Decoder of image and mask files, used by training and service alike.

An image in the training data and the same image sent over HTTP become the same array.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
    quoted,
)
from models.imaging import tiff_limits
from models.imaging.avif_limits import check_avif
from models.imaging.call_decoder import call_decoder
from models.imaging.cpu_budget import allow_pixels
from models.imaging.detect_format import detect_format
from models.imaging.files import read_image_file
from models.imaging.header_limits import check_bmp, check_jpeg, check_size, check_webp
from models.imaging.icc import to_srgb
from models.imaging.libtiff import silence_libtiff
from models.imaging.orientation import apply_orientation
from models.imaging.png_limits import check_png, check_png_rows

RGB = NDArray[np.uint8]  # H x W x 3, channels in the order red, green, blue, 0..255
Labels = NDArray[np.uint8]  # H x W, class indices, 255 is IGNORE_INDEX
Decoded = TypeVar("Decoded")

# A check of the header, which runs before any library reads the file (a TIFF's returns the page to read), and Pillow's reader.
# JPEG has its own reader, because `Image.open` would open a phone's photograph with a gain map as a file of several images.
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

# The factor by which Pillow multiplies gray of 2 and 4 bits, by the first characters of its raw mode.
GRAY_SCALE_FACTORS = {"L;2": 85, "L;4": 17}
UNASSOCIATED_ALPHA = 2  # value of the TIFF tag EXTRA_SAMPLES
MIN_TOLD_PIXELS = 64  # by fewer nobody can tell what an alpha band is

# `Image.open`, which training uses to read headers, looks up its formats before it has loaded the plugins of all.
Image.init()
silence_libtiff()

# Our own limit is checked against the header before any pixel is decoded. Pillow's covers what a header hides (the
# extents of later frames). Its warnings (smaller sizes, corrupt EXIF) would fill the log with flaws of users' images.
Image.MAX_IMAGE_PIXELS = 4 * MAX_PIXELS
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decode the bytes of an image.

    The format is detected from the bytes, never from a name or a content type. The image is turned upright by its EXIF
    or XMP orientation and converted to sRGB by its ICC profile (`icc.py`); transparent pixels are blended with white;
    16-bit and float samples are scaled (not clipped) to 8 bits. Of a phone's JPEG with a preview or a gain map behind it,
    and of a TIFF with thumbnails, the first full image is decoded. Animations and several full pages are refused.

    Returns: RGB uint8, H x W x 3, 0..255.
    Raises: EmptyImageError, UnsupportedFormatError, CorruptImageError, MultiFrameImageError, ImageTooLargeError,
    InsufficientMemoryError; nothing else.
    """
    if not data:
        raise EmptyImageError("The image is empty (0 bytes). Send the bytes of an image file.")
    image = _open_image(data, max_pixels)
    return _translate_errors(image, max_pixels, lambda: _to_rgb(apply_orientation(_load_pixels(image, data))))


def decode_samples(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Decode the bytes of an image as samples for a network that does not take photographs.

    Returns: gray as it is stored, uint8, uint16 or float32 H x W x 1, upright; color as `decode_image`, uint8 H x W x 3.
    Raises: as `decode_image`.
    """
    if not data:
        raise EmptyImageError("The image is empty (0 bytes). Send the bytes of an image file.")
    image = _open_image(data, max_pixels)

    def load_samples() -> NDArray[Any]:
        upright = apply_orientation(_load_pixels(image, data))
        if upright.mode not in ("1", "L", "I", "F") and not upright.mode.startswith("I;16"):
            return _to_rgb(upright)
        samples = np.asarray(upright.convert("L") if upright.mode == "1" else upright)
        kind = np.uint16 if upright.mode.startswith("I;16") else np.float32 if upright.mode in ("I", "F") else np.uint8
        return np.ascontiguousarray(samples, kind)[:, :, None]

    return _translate_errors(image, max_pixels, load_samples)


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decode an image file. As `decode_image`, with the path at the start of every error message."""
    return decode_file(path, decode_image, max_pixels=max_pixels)


def read_mask(path: Path) -> Labels:
    """Read a mask file whose samples are labels: a gray or palette image of at most 8 bits.

    Returns: uint8, H x W, the values in the file (the data set defines which of them are ignored).
    Raises: DataError for a color mask or labels above 255, ImageError for a file that cannot be read.
    """
    return decode_file(path, decode_mask)


def read_stored_mask(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a mask file and return its samples as they are stored, in whatever mode: no color is converted.

    Gray of 2 and 4 bits is 0..3 and 0..15, not scaled to 0..255. A mask with an EXIF orientation is turned upright.
    Raises: ImageError, DataError; both name the file.
    """
    return decode_file(path, decode_stored_mask, max_pixels=max_pixels)


def decode_file(
    path: Path,
    decoder: Callable[..., Decoded],
    read: Callable[[Path], bytes] = read_image_file,
    **arguments: Any,
) -> Decoded:
    """`decoder(data, **arguments)` of the bytes that `read` gives, in a child process if the sandbox is on (`sandbox.py`).

    Raises: DataError, ImageError, InsufficientMemoryError; all name the file.
    """
    try:
        data = read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot open the file ({error.strerror}).") from error
    try:
        return call_decoder(decoder, data, **arguments)
    except (ImageError, DataError, InsufficientMemoryError) as error:
        raise type(error)(f"{path}: {error}") from error


def decode_stored_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `read_stored_mask`, from the bytes of a file."""
    if not data:
        raise EmptyImageError("The mask file is empty (0 bytes). Save the mask again.")
    image = _open_image(data, max_pixels)
    factor = _gray_scale_factor(image)

    def load_samples() -> Image.Image:
        upright = apply_orientation(_load_pixels(image, data))
        return upright.point(lambda gray: gray // factor) if factor > 1 else upright

    return _translate_errors(image, max_pixels, load_samples)


def decode_mask(data: bytes) -> Labels:
    """As `read_mask`, from the bytes of a file."""
    image = decode_stored_mask(data, 4 * MAX_PIXELS)
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise DataError(f"the mask has {image.mode} colors; expected one label per pixel: a gray or palette image.")
    labels = np.asarray(image)
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest > 255:
        wrong = lowest if lowest < 0 else highest
        raise DataError(
            f"the mask contains the label {wrong}; expected labels from 0 to 254, and 255 for ignored pixels."
        )
    return labels.astype(np.uint8)


def _open_image(data: bytes, max_pixels: int) -> ImageFile:
    """Open an image of at most `max_pixels` pixels: its header is read, its pixels are not."""
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
    except Exception as error:  # Pillow's plugins raise exceptions of any class
        if name == "TIFF":
            tiff_limits.check_bands(data)
        raise CorruptImageError(
            f"The image begins like a {name}, but its header is truncated or corrupt, or of an unsupported variant "
            f"({quoted(first_line(error))}). Save it again as PNG or JPEG."
        ) from error
    if isinstance(image, TiffImageFile) and len(image.getbands()) == 1 < image.tag_v2.get(
        tiff_limits.SAMPLES_PER_PIXEL, 1
    ):
        tiff_limits.check_bands(data)  # of bands of 16 bits, plane by plane, Pillow reads the first one as gray
    check_size(*image.size, max_pixels)
    allow_pixels(image.width * image.height)
    count = 1 if name == "TIFF" else getattr(image, "n_frames", 1)
    if count > 1:
        raise MultiFrameImageError(
            f"The {name} is an animation of {count:,} frames; expected a single image. Save one frame as an image."
        )
    return image


def _load_pixels(image: ImageFile, data: bytes) -> Image.Image:
    image.load()
    if image.format == "PNG":
        check_png_rows(image, data)
    return image


def _translate_errors(image: ImageFile, max_pixels: int, work: Callable[[], Decoded]) -> Decoded:
    """Run `work` and translate the errors of decoding to our own."""
    try:
        return work()
    except (ImageError, MemoryError, Image.DecompressionBombError) as error:
        raise _to_image_error(error, max_pixels) from error
    except Exception as error:  # Pillow's plugins raise exceptions of any class
        raise CorruptImageError(
            f"The {image.format} image is truncated or corrupt ({quoted(first_line(error))}). Save it again."
        ) from error


def _to_image_error(error: Exception, max_pixels: int) -> Exception:
    if isinstance(error, MemoryError):
        return InsufficientMemoryError(
            "There is not enough free memory to decode the image. Use a smaller one, or try again later."
        )
    if isinstance(error, Image.DecompressionBombError):
        return ImageTooLargeError(
            f"The image decodes to more than the limit of {max_pixels:,} pixels. Use a smaller one."
        )
    return error


def _record_sample_info(image: ImageFile) -> None:
    """Keep in `image.info` the facts about the samples that Pillow drops when it loads the image."""
    key, raw = image.info.get("transparency"), _raw_mode(image)
    if isinstance(key, int) and image.mode == "L":  # a PNG states its transparent color in its own bit depth
        image.info["transparency"] = key * _gray_scale_factor(image)
    elif isinstance(key, tuple) and ";16" in raw:
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    if isinstance(image, TiffImageFile):
        image.info["unassociated alpha"] = UNASSOCIATED_ALPHA in image.tag_v2.get(tiff_limits.EXTRA_SAMPLES, ())
        image.info["full"] = 4095.0 if "I;12" in raw else 65535.0
        image.info["white is 0"] = image.tag_v2.get(tiff_limits.PHOTOMETRIC) == 0


def _gray_scale_factor(image: ImageFile) -> int:
    """The factor by which loading will multiply the gray of an opened image: 2 and 4 bits are scaled to 0..255."""
    return GRAY_SCALE_FACTORS.get(_raw_mode(image)[:3], 1) if image.mode == "L" else 1


def _raw_mode(image: ImageFile) -> str:
    """Pillow's name for the storage of the samples, such as `L;4I` or `RGB;16B`; unknown once the image is loaded."""
    arguments = image.tile[0].args if image.tile else None
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _to_rgb(image: Image.Image) -> RGB:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(to_srgb(image))
    if image.mode.startswith(("I", "F")):
        samples = np.asarray(image)
        gray = _to_8_bits(samples, image.info.get("full", 65535.0))
        if image.info.get("white is 0"):  # with fewer bits Pillow inverts it itself
            gray = 255 - gray
        converted = to_srgb(_copy_profile(Image.fromarray(gray), image))
        rgb = np.array(converted) if converted.mode == "RGB" else np.repeat(gray[:, :, None], 3, axis=2)
        if "transparency" in image.info:
            rgb[samples == image.info["transparency"]] = 255
        return rgb
    is_tagged = image.info.get("unassociated alpha") and image.mode in ("LA", "RGBA")
    if is_tagged and not is_opacity(np.asarray(image.getchannel("A"))):
        image = _copy_profile(image.convert(image.mode[:-1]), image)
    if image.has_transparency_data:
        single = image.mode in ("L", "LA", "La")
        image = _copy_profile(image.convert("LA" if single else "RGBA"), image)
        opaque = to_srgb(_copy_profile(image.convert("L" if single else "RGB"), image)).convert("RGBA")
        opaque.putalpha(image.getchannel("A"))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB"))
    if image.mode in ("P", "YCbCr"):
        image = _copy_profile(image.convert("RGB"), image)
    return np.asarray(to_srgb(image).convert("RGB"))


def is_opacity(alpha: NDArray[Any]) -> bool:
    """Whether a band that a TIFF tags as unassociated alpha is opacity: most of what it does not hide is opaque.

    GDAL tags the fourth of four bands of 8 bits as alpha by default (its GTiff driver, ALPHA), also if it is near infrared.
    """
    opaque, visible = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max, np.count_nonzero(alpha)
    return bool(visible < MIN_TOLD_PIXELS or 2 * np.count_nonzero(alpha == opaque) >= visible)


def _copy_profile(image: Image.Image, source: Image.Image) -> Image.Image:
    """Give a converted image the ICC profile of its source, which the conversion may have dropped."""
    if "icc_profile" in source.info:
        image.info["icc_profile"] = source.info["icc_profile"]
    return image


def _to_8_bits(samples: NDArray[np.generic], full: float) -> NDArray[np.uint8]:
    """Scale gray samples to 0..255.

    Unsigned samples of 12 and 16 bits are scaled by their `full` range, others by the smallest usual range that holds
    them (1 for floats only, 255, 65535), or else by their own maximum.
    """
    values = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    if not np.issubdtype(samples.dtype, np.unsignedinteger):  # a dark 16-bit image stays dark
        usual = (1.0, 255.0, 65535.0) if np.issubdtype(samples.dtype, np.floating) else (255.0, 65535.0)
        full = next((full for full in usual if largest <= full), largest)
    return (values.clip(0, full) * (255.0 / full) + 0.5).astype(np.uint8)
