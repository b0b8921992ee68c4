"""Images with rare sample formats, thin images, and orientation in EXIF and XMP."""

import struct

import numpy as np
import pytest
from PIL import Image

from models.imaging.decode import FORMATS, decode_image
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image, make_png, make_tiff, png_chunk, uncompressed_tags


def check_decoded_shape(data: bytes, size: tuple[int, int]) -> None:
    assert decode_image(data).shape == (*size, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 9000), (9000, 1)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_thin_images(format: str, size: tuple[int, int]) -> None:
    check_decoded_shape(encode_image(np.zeros((*size, 3), np.uint8), format), size)


def xmp_with_orientation(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_xmp_orientation_is_applied(format: str, orientation: int) -> None:
    image = synthetic_image(24, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if format == "PNG":
        text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_with_orientation(orientation))
        plain_png = encode_image(image, "PNG")
        data = plain_png[:33] + text + plain_png[33:]
    elif format == "TIFF":
        data = encode_image(image, "TIFF", tiffinfo={700: xmp_with_orientation(orientation)})
    else:
        data = encode_image(image, format, xmp=xmp_with_orientation(orientation))
    np.testing.assert_array_equal(decode_image(data), decode_image(encode_image(image, format, exif=exif)))


def test_exif_overrides_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encode_image(synthetic_image(24, 40), "JPEG", exif=exif, xmp=xmp_with_orientation(6))
    assert decode_image(data).shape == (24, 40, 3)


@pytest.mark.parametrize("invalid", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(invalid: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = invalid
    np.testing.assert_array_equal(
        decode_image(encode_image(synthetic_image(24, 40), "JPEG", exif=exif)),
        decode_image(encode_image(synthetic_image(24, 40), "JPEG")),
    )


def test_a_png_may_state_its_orientation_after_its_pixels() -> None:
    data = encode_image(synthetic_image(24, 40), "PNG")
    turned = data[:-12] + png_chunk(b"eXIf", make_tiff([(0x0112, 3, [6])])) + data[-12:]
    assert decode_image(turned).shape == (40, 24, 3)


def pack_uint16(order: str, *samples: int) -> bytes:
    return struct.pack(f"{order}{len(samples)}H", *samples)


# Name -> bytes, and the expected pixels, within one level.
RARE_SAMPLES: dict[str, tuple[bytes, list[list[int]]]] = {
    "png rgb of 16 bits": (
        make_png((2, 1), 16, 2, b"\0" + pack_uint16(">", 65535, 32768, 257, 0, 128, 1000)),
        [[255, 128, 1], [0, 0, 4]],
    ),
    "png rgb of 16 bits with a transparent colour": (
        make_png(
            (2, 1),
            16,
            2,
            b"\0" + pack_uint16(">", 51400, 0, 0, 0, 51400, 0),
            png_chunk(b"tRNS", pack_uint16(">", 51400, 0, 0)),
        ),
        [[255, 255, 255], [0, 200, 0]],
    ),
    "png rgba of 16 bits": (
        make_png((2, 1), 16, 6, b"\0" + pack_uint16(">", 51400, 0, 0, 65535, 51400, 0, 0, 32896)),
        [[200, 0, 0], [227, 127, 127]],
    ),
    "png grey and alpha of 16 bits": (
        make_png((2, 1), 16, 4, b"\0" + pack_uint16(">", 32896, 65535, 0, 0)),
        [[128] * 3, [255] * 3],
    ),
    "png grey of 2 bits with a transparent grey": (
        make_png((4, 1), 2, 0, b"\0\x1b", png_chunk(b"tRNS", b"\0\1")),
        [[0] * 3, [255] * 3, [170] * 3, [255] * 3],
    ),
    "png grey of 4 bits with a transparent grey": (
        make_png((2, 1), 4, 0, b"\0\x2f", png_chunk(b"tRNS", b"\0\2")),
        [[255] * 3, [255] * 3],
    ),
    "png palette that is too short": (
        make_png((2, 1), 8, 3, b"\0\0\xf0", png_chunk(b"PLTE", bytes((10, 20, 30)))),
        [[10, 20, 30], [0, 0, 0]],
    ),
    "tiff grey of 12 bits": (make_tiff((uncompressed_tags(2, 1, [12], 1), b"\xff\xf8\0")), [[255] * 3, [128] * 3]),
    "tiff grey of 16 bits where 0 is white": (
        make_tiff((uncompressed_tags(2, 1, [16], 0), pack_uint16("<", 0, 65535))),
        [[255] * 3, [0] * 3],
    ),
    "tiff grey where 0 is white": (make_tiff((uncompressed_tags(2, 1, [8], 0), b"\0\xff")), [[255] * 3, [0] * 3]),
    "tiff grey with premultiplied alpha": (
        make_tiff((uncompressed_tags(2, 1, [8, 8], 1, (338, 3, [1])), bytes((100, 128, 50, 255)))),
        [[227] * 3, [50] * 3],
    ),
    "tiff grey with alpha": (
        make_tiff((uncompressed_tags(2, 1, [8, 8], 1, (338, 3, [2])), bytes((100, 128, 50, 255)))),
        [[177] * 3, [50] * 3],
    ),
    "tiff YCbCr": (make_tiff((uncompressed_tags(1, 1, [8] * 3, 6), bytes((76, 85, 255)))), [[254, 0, 0]]),
    "tiff Lab": (make_tiff((uncompressed_tags(1, 1, [8] * 3, 8), bytes((138, 80, 67)))), [[251, 9, 11]]),
    "tiff palette": (
        make_tiff(
            (uncompressed_tags(2, 1, [8], 3, (320, 3, [65535, 0] + [0] * 254 + [0, 51400] + [0] * 510)), b"\0\1")
        ),
        [[255, 0, 0], [0, 200, 0]],
    ),
    "tiff of five bands": (
        make_tiff((uncompressed_tags(1, 1, [8] * 5, 2, (338, 3, [0, 0])), bytes((1, 2, 3, 4, 5)))),
        [[1, 2, 3]],
    ),
}
for order in "<>":
    RARE_SAMPLES |= {
        f"tiff rgb of 16 bits {order}": (
            make_tiff((uncompressed_tags(1, 1, [16] * 3, 2), pack_uint16(order, 65535, 32768, 257)), order=order),
            [[255, 128, 1]],
        ),
        f"tiff rgba of 16 bits {order}": (
            make_tiff(
                (uncompressed_tags(1, 1, [16] * 4, 2, (338, 3, [2])), pack_uint16(order, 65535, 32768, 257, 32768)),
                order=order,
            ),
            [[255, 191, 128]],
        ),
        f"tiff premultiplied rgba of 16 bits {order}": (
            make_tiff(
                (uncompressed_tags(1, 1, [16] * 4, 2, (338, 3, [1])), pack_uint16(order, 32768, 16384, 0, 32768)),
                order=order,
            ),
            [[255, 191, 127]],
        ),
        f"tiff with infrared {order}": (
            make_tiff(
                (uncompressed_tags(1, 1, [16] * 4, 2, (338, 3, [0])), pack_uint16(order, 65535, 32768, 257, 0)),
                order=order,
            ),
            [[255, 128, 1]],
        ),
        f"tiff cmyk of 16 bits {order}": (
            make_tiff((uncompressed_tags(1, 1, [16] * 4, 5), pack_uint16(order, 0, 65535, 65535, 0)), order=order),
            [[255, 0, 0]],
        ),
    }


@pytest.mark.parametrize(("data", "pixels"), RARE_SAMPLES.values(), ids=RARE_SAMPLES)
def test_rare_samples(data: bytes, pixels: list[list[int]]) -> None:
    assert np.abs(decode_image(data).reshape(-1, 3).astype(int) - pixels).max() <= 1
