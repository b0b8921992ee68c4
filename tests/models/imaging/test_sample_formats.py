"""Pictures of rare samples, thin ones, and those that are turned by what stands beside their pixels."""

import struct

import numpy as np
import pytest
from PIL import Image

from models.imaging.decode import FORMATS, decode
from tests.fixtures_bundles import drawing
from tests.fixtures_images import chunk, encoded, plain, png, tiff


def check(data: bytes, size: tuple[int, int]) -> None:
    assert decode(data).shape == (*size, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 9000), (9000, 1)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_thin_pictures(format: str, size: tuple[int, int]) -> None:
    check(encoded(np.zeros((*size, 3), np.uint8), format), size)


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_xmp_turns_a_picture_too(format: str, orientation: int) -> None:
    picture = drawing(24, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if format == "PNG":
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation))
        plain_png = encoded(picture, "PNG")
        data = plain_png[:33] + text + plain_png[33:]
    elif format == "TIFF":
        data = encoded(picture, "TIFF", tiffinfo={700: xmp(orientation)})
    else:
        data = encoded(picture, format, xmp=xmp(orientation))
    np.testing.assert_array_equal(decode(data), decode(encoded(picture, format, exif=exif)))


def test_exif_stands_over_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(drawing(24, 40), "JPEG", exif=exif, xmp=xmp(6))
    assert decode(data).shape == (24, 40, 3)


@pytest.mark.parametrize("told", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(told: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = told
    np.testing.assert_array_equal(
        decode(encoded(drawing(24, 40), "JPEG", exif=exif)), decode(encoded(drawing(24, 40), "JPEG"))
    )


def test_a_png_may_say_its_orientation_behind_its_pixels() -> None:
    data = encoded(drawing(24, 40), "PNG")
    turned = data[:-12] + chunk(b"eXIf", tiff([(0x0112, 3, [6])])) + data[-12:]
    assert decode(turned).shape == (40, 24, 3)


def sixteen(order: str, *samples: int) -> bytes:
    return struct.pack(f"{order}{len(samples)}H", *samples)


# A name -> the bytes and the pixels that must come, within one level.
PIXELS: dict[str, tuple[bytes, list[list[int]]]] = {
    "png rgb of 16 bits": (
        png((2, 1), 16, 2, b"\0" + sixteen(">", 65535, 32768, 257, 0, 128, 1000)), [[255, 128, 1], [0, 0, 4]],
    ),
    "png rgb of 16 bits with a transparent colour": (
        png((2, 1), 16, 2, b"\0" + sixteen(">", 51400, 0, 0, 0, 51400, 0), chunk(b"tRNS", sixteen(">", 51400, 0, 0))),
        [[255, 255, 255], [0, 200, 0]],
    ),
    "png rgba of 16 bits": (
        png((2, 1), 16, 6, b"\0" + sixteen(">", 51400, 0, 0, 65535, 51400, 0, 0, 32896)), [[200, 0, 0], [227, 127, 127]],
    ),
    "png grey and alpha of 16 bits": (png((2, 1), 16, 4, b"\0" + sixteen(">", 32896, 65535, 0, 0)), [[128] * 3, [255] * 3]),
    "png grey of 2 bits with a transparent grey": (
        png((4, 1), 2, 0, b"\0\x1b", chunk(b"tRNS", b"\0\1")), [[0] * 3, [255] * 3, [170] * 3, [255] * 3],
    ),
    "png grey of 4 bits with a transparent grey": (
        png((2, 1), 4, 0, b"\0\x2f", chunk(b"tRNS", b"\0\2")), [[255] * 3, [255] * 3],
    ),
    "png palette that is too short": (
        png((2, 1), 8, 3, b"\0\0\xf0", chunk(b"PLTE", bytes((10, 20, 30)))), [[10, 20, 30], [0, 0, 0]],
    ),
    "tiff grey of 12 bits": (tiff((plain(2, 1, [12], 1), b"\xff\xf8\0")), [[255] * 3, [128] * 3]),
    "tiff grey of 16 bits where 0 is white": (
        tiff((plain(2, 1, [16], 0), sixteen("<", 0, 65535))), [[255] * 3, [0] * 3],
    ),
    "tiff grey where 0 is white": (tiff((plain(2, 1, [8], 0), b"\0\xff")), [[255] * 3, [0] * 3]),
    "tiff grey with premultiplied alpha": (
        tiff((plain(2, 1, [8, 8], 1, (338, 3, [1])), bytes((100, 128, 50, 255)))), [[227] * 3, [50] * 3],
    ),
    "tiff grey with alpha": (
        tiff((plain(2, 1, [8, 8], 1, (338, 3, [2])), bytes((100, 128, 50, 255)))), [[177] * 3, [50] * 3],
    ),
    "tiff YCbCr": (tiff((plain(1, 1, [8] * 3, 6), bytes((76, 85, 255)))), [[254, 0, 0]]),
    "tiff Lab": (tiff((plain(1, 1, [8] * 3, 8), bytes((138, 80, 67)))), [[251, 9, 11]]),
    "tiff palette": (
        tiff((plain(2, 1, [8], 3, (320, 3, [65535, 0] + [0] * 254 + [0, 51400] + [0] * 510)), b"\0\1")),
        [[255, 0, 0], [0, 200, 0]],
    ),
    "tiff of five bands": (tiff((plain(1, 1, [8] * 5, 2, (338, 3, [0, 0])), bytes((1, 2, 3, 4, 5)))), [[1, 2, 3]]),
}  # fmt: skip
for order in "<>":
    PIXELS |= {
        f"tiff rgb of 16 bits {order}": (
            tiff((plain(1, 1, [16] * 3, 2), sixteen(order, 65535, 32768, 257)), order=order), [[255, 128, 1]],
        ),
        f"tiff rgba of 16 bits {order}": (
            tiff((plain(1, 1, [16] * 4, 2, (338, 3, [2])), sixteen(order, 65535, 32768, 257, 32768)), order=order),
            [[255, 191, 128]],
        ),
        f"tiff premultiplied rgba of 16 bits {order}": (
            tiff((plain(1, 1, [16] * 4, 2, (338, 3, [1])), sixteen(order, 32768, 16384, 0, 32768)), order=order),
            [[255, 191, 127]],
        ),
        f"tiff with infrared {order}": (
            tiff((plain(1, 1, [16] * 4, 2, (338, 3, [0])), sixteen(order, 65535, 32768, 257, 0)), order=order),
            [[255, 128, 1]],
        ),
        f"tiff cmyk of 16 bits {order}": (
            tiff((plain(1, 1, [16] * 4, 5), sixteen(order, 0, 65535, 65535, 0)), order=order), [[255, 0, 0]],
        ),
    }  # fmt: skip


@pytest.mark.parametrize(("data", "pixels"), PIXELS.values(), ids=PIXELS)
def test_rare_samples(data: bytes, pixels: list[list[int]]) -> None:
    assert np.abs(decode(data).reshape(-1, 3).astype(int) - pixels).max() <= 1
