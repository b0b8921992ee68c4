"""Images whose cost is limited by what their headers say. Every one would take seconds to minutes, or gigabytes."""

import struct
import zlib

import numpy as np
import pytest

from models.errors import CorruptImageError, ImageError, ImageTooLargeError, MultiFrameImageError
from models.imaging import icc_limits, tiff_limits
from models.imaging.decode import decode_image
from models.imaging.icc_limits import has_costly_chain
from tests import hostile_images as hostile
from tests.fixtures_images import encode_image, grey_page, isobmff_box, make_png, make_tiff, uncompressed_tags

MAX_PIXELS = 50_000_000
MATRIX = struct.pack(">4s4xHH12f", b"matf", 3, 3, 0.5, 0, 0, 0, 0.5, 0, 0, 0, 0.5, 0, 0, 0)
CLUT = struct.pack(">4s4xHH16s", b"clut", 3, 3, b"\2\2\2") + bytes(4 * 3 * 8)
WIDE_CLUT = struct.pack(">4s4xHH16s", b"clut", 12, 12, b"\2" * 12)
LARGE_CLUT = struct.pack(">4s4xHH16s", b"clut", 3, 3, b"\x40\x40\x40") + bytes(4 * 3 * 64**3)
DEFLATED_TILE = zlib.compress(bytes(2000 * 2000))


@pytest.mark.parametrize(
    ("profile", "costly"),
    [
        (hostile.profile_with_chain([MATRIX]), False),
        (hostile.profile_with_curves(1, 5), False),
        (hostile.profile_with_chain([MATRIX, CLUT, MATRIX]), False),
        (hostile.profile_with_curves(1, 0, samples=4096), False),
        (hostile.profile_with_curves(1, 32_000), True),
        (hostile.profile_with_curves(1, 200), True),
        (hostile.profile_with_curves(31, 20), True),
        (hostile.profile_with_curves(31, 0, samples=50_000), True),
        (hostile.profile_with_chain([MATRIX] * 33), True),
        (hostile.profile_with_chain([MATRIX, WIDE_CLUT]), True),
        (hostile.profile_with_chain([LARGE_CLUT] * 6), True),
    ],
    ids=["matrix", "curves", "clut", "samples", "segments", "less", "sets", "shared", "elements", "wide", "large"],
)
def test_costs_of_a_profile(profile: bytes, costly: bool) -> None:
    assert has_costly_chain(profile) == costly


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_costly_profile_is_ignored_in_every_container(format: str) -> None:
    """The profile is applied while it is cheap: it halves the light."""
    image = np.full((8, 8, 3), 200, np.uint8)
    plain, cheap, costly = (
        decode_image(encode_image(image, format, **({"icc_profile": profile} if profile else {})))
        for profile in (b"", hostile.profile_with_chain([MATRIX]), hostile.profile_with_chain([MATRIX] * 33))
    )
    np.testing.assert_array_equal(costly, plain)
    assert cheap.mean() < plain.mean() - 20


def test_scans_of_an_arithmetic_coded_jpeg() -> None:
    """An empty scan costs a decoding step per coefficient: 20 of them took 4 seconds at 49 megapixels."""
    with pytest.raises(CorruptImageError, match="11 scans or more; the limit is 10"):
        decode_image(hostile.arithmetic_jpeg(7000, 7000, 2000, 20), MAX_PIXELS)
    assert decode_image(hostile.arithmetic_jpeg(64, 64, 2000, 20), MAX_PIXELS).shape == (64, 64, 3)


def test_a_chain_of_the_limit_is_still_read() -> None:
    inside = icc_limits.MAX_OPERATIONS // 9
    assert not has_costly_chain(hostile.profile_with_chain([MATRIX] * min(inside, icc_limits.MAX_ELEMENTS)))


REFUSED: dict[str, tuple[bytes, type[ImageError], str]] = {
    "png of one column": (make_png((1, 1_000_001), 8, 0, b""), ImageTooLargeError, "1,000,000 a side"),
    "png of one row": (make_png((50_000_000, 1), 8, 0, b""), ImageTooLargeError, "1,000,000 a side"),
    "bmp of one row": (hostile.run_length_bmp(50_000_000, 1, 8, b"\1\1\0\0"), ImageTooLargeError, "50,000,000 pixels"),
    "bmp upside down": (hostile.run_length_bmp(1, -5_000_000, 8, b"\1\1"), ImageTooLargeError, "5,000,000 pixels"),
    "bmp of 4 bits": (hostile.run_length_bmp(5_000_000, 1, 4, b"\xff\x12"), ImageTooLargeError, "5,000,000 pixels"),
    "avif of frames": (hostile.avif_of_frames(16, 6), CorruptImageError, "4 frames"),
    "avif of copies": (hostile.avif_of_frames(16, 2, 3), CorruptImageError, "4 frames"),
    "avif of units": (
        hostile.avif_file([(1, b"av01", b"\x12\0" * 30_000)], 8), CorruptImageError, "20,000 units",
    ),
    "avif of extents": (
        hostile.avif_file([(1, b"av01", bytes(50_000))], 8, extents=100), CorruptImageError, "more than the file's",
    ),
    "avif of extents of XMP": (
        hostile.avif_file([(1, b"mime", bytes(50_000))], 8, extents=100), CorruptImageError, "more than the file's",
    ),
    "avif of a large table": (
        hostile.avif_of_tables(b"stco", struct.pack(">I", 50_000) + bytes(200_000)), CorruptImageError, "table",
    ),
    "avif of samples": (
        hostile.avif_of_tables(b"stsz", struct.pack(">II", 1, 2_500_000)), CorruptImageError, "2,500,000 frames",
    ),
    "avif of associations": (
        isobmff_box(b"ftyp", b"avif", bytes(4), b"avif")
        + isobmff_box(b"meta", bytes(4), isobmff_box(b"iprp", isobmff_box(b"ipma", bytes(100_000)))),
        CorruptImageError, "ipma",
    ),
    "tiff of shared strips": (hostile.tiff_of_shared_strips(1000, 1 << 14), CorruptImageError, "more than the file's"),
    "tiff of shared tiles": (
        hostile.tiff_of_shared_tiles(100_000, 2000, 8, DEFLATED_TILE), CorruptImageError, "more than the file's",
    ),
    "tiff of tiles beyond its rows": (
        hostile.tiff_of_shared_tiles(100_000, 2000, 8, b"\0"), ImageTooLargeError, "200,000,000 in all",
    ),
    "tiff after a thumbnail": (hostile.tiff_after_a_thumbnail_of_strips(500_000), CorruptImageError, "500,"),
    "tiff of strips": (
        make_tiff(([*[tag for tag in uncompressed_tags(1, 140_000, [8], 1) if tag[0] not in (273, 278)], (278, 4, [1]),
                    (324, 4, [8] * 140_000)], bytes(8))),
        CorruptImageError, "strips or tiles",
    ),
    "tiff of two fax pages": (hostile.two_fax_pages(), MultiFrameImageError, "2 full-size pages"),
    "jpeg of restart markers": (hostile.jpeg_of_restart_markers(20_000, False), CorruptImageError, "segments"),
    "jpeg of scans": (hostile.jpeg_of_scans(7000, 7000, 30), CorruptImageError, "the limit is 20"),
    "jpeg of resources": (
        b"\xff\xd8" + (b"\xff\xed\xff\xfe" + b"Photoshop 3.0\0".ljust(14) + b"8BIM\4\4\0\0\0\0\0\0" * 5458).ljust(65_536 + 2) * 2,
        CorruptImageError, "Photoshop resources",
    ),
    "jpeg of tables": (
        b"\xff\xd8" + (b"\xff\xdb" + struct.pack(">H", 2 + 65 * 1000) + (b"\0" + bytes(64)) * 1000) * 5,
        CorruptImageError, "quantization tables",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_by_the_header(data: bytes, error: type[ImageError], words: str) -> None:
    with pytest.raises(ImageError, match=words) as refused:
        decode_image(data, MAX_PIXELS)
    assert type(refused.value) is error


def test_images_within_the_limits_are_decoded() -> None:
    assert decode_image(hostile.run_length_bmp(2000, 1, 8, b"\xff\1" * 7 + b"\xff\1\0\1")).shape == (1, 2000, 3)
    assert decode_image(hostile.jpeg_of_restart_markers(20_000, in_scan=True)).shape == (64, 64, 3)
    assert decode_image(hostile.jpeg_of_scans(640, 480, 80)).shape == (480, 640, 3)
    tiled = hostile.tiff_of_shared_tiles(1000, 2000, 8, DEFLATED_TILE)
    assert decode_image(tiled).shape == (1, 1000, 3)


def test_a_thumbnail_is_small_or_says_so() -> None:
    page, half = grey_page(1200, 800), (600, 400)
    with pytest.raises(MultiFrameImageError):
        decode_image(make_tiff(page, grey_page(*half)))
    assert decode_image(make_tiff(page, grey_page(*half, (254, 4, [1])))).shape == (800, 1200, 3)
    assert decode_image(make_tiff(page, grey_page(300, 200))).shape == (800, 1200, 3)


def test_values_of_a_directory_are_read_as_far_as_the_file_reaches() -> None:
    page = tiff_limits.read_first_directory(make_tiff([(270, 4, [7] * 3), (279, 3, [1, 2, 3]), (258, 4, [9])])[:-4])
    assert list(page.iterate_values(279)) == [1]
    assert list(page.iterate_values(270)) == [7] * 3
    assert page.first_value(999, 4) == 4
