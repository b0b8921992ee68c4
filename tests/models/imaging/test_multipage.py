"""Files of several images: which of them is decoded, and when the file is refused."""

import itertools
import struct
from collections.abc import Callable

import pytest
from PIL import Image

from models.errors import MultiFrameImageError
from models.imaging import tiff_limits
from models.imaging.decode import decode_image
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image, grey_page, make_tiff, uncompressed_tags


def check_decodes_to(data: bytes, size: tuple[int, int]) -> None:
    assert decode_image(data).shape == (*size, 3)


def encode_frames(format: str, count: int = 3) -> bytes:
    first, *others = (Image.fromarray(synthetic_image(16, 24, seed=seed)) for seed in range(count))
    return encode_image(first, format, save_all=True, append_images=others)


def make_apng(count: int, default_image: bool = False) -> bytes:
    return encode_image(
        Image.fromarray(synthetic_image(8, 8)), "PNG", save_all=True, default_image=default_image,
        append_images=[Image.fromarray(synthetic_image(8, 8, seed=seed)) for seed in range(1, count)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode_frames("PNG"), "animation of 3 frames"),
        (make_apng(2, default_image=True), "animation of 2 frames"),
        (encode_frames("WEBP"), "animation of 3 frames"),
        (encode_frames("AVIF"), "animation of 3 frames"),
        (encode_frames("TIFF"), "3 full-size pages"),
        (make_tiff(*[grey_page(16, 8)] * 2), "2 full-size pages"),
        (make_tiff(grey_page(16, 8), grey_page(15, 8)), "2 full-size pages"),
        (make_tiff(grey_page(16, 8), grey_page(4, 4), grey_page(16, 8)), "2 full-size pages"),
        (make_tiff(grey_page(8, 8), grey_page(16, 16)), "2 full-size pages"),
        (make_tiff(*[grey_page(2, 2)] * 1500), "more than 1,000 full-size pages"),
    ],
    ids=["apng", "apng with a default", "webp", "avif", "scan", "two", "alike", "thumbnail between", "growing", "many"],
)
def test_several_images_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(MultiFrameImageError, match=f"{words}; expected"):
        decode_image(data)


@pytest.mark.parametrize(
    "data",
    [
        make_tiff(grey_page(16, 8), grey_page(4, 2)),
        make_tiff(grey_page(16, 8), grey_page(16, 8, (254, 4, [1]))),
        make_tiff(grey_page(16, 8), grey_page(16, 8, (254, 4, [4]))),
        make_tiff(grey_page(16, 8), grey_page(8, 4, (254, 4, [1])), grey_page(8, 4, (254, 4, [5])), grey_page(4, 2)),
        make_tiff(grey_page(16, 8), grey_page(16, 8, (255, 3, [2]))),
        make_tiff(grey_page(4, 2, (254, 4, [1])), grey_page(16, 8)),
        make_tiff(grey_page(16, 8), loop=True),
        make_tiff(grey_page(16, 8), grey_page(4, 2), loop=True),
        make_tiff(grey_page(16, 8))[:-128] + bytes(128),
        make_tiff(grey_page(16, 8), grey_page(16, 8))[:-140],
    ],
    ids=[
        "thumbnail", "reduced", "mask", "pyramid", "old flag", "thumbnail first", "loop to itself", "loop of two",
        "zeros", "second page cut off",
    ],
)  # fmt: skip
def test_tiffs_with_one_full_page(data: bytes) -> None:
    check_decodes_to(data, (8, 16))


def test_the_full_page_is_decoded_if_a_thumbnail_comes_first() -> None:
    thumbnail = (uncompressed_tags(4, 2, [8], 1, (254, 4, [1])), bytes([9] * 8))
    image = (uncompressed_tags(16, 8, [8], 1), bytes([200] * 128))
    assert (decode_image(make_tiff(thumbnail, image)) == 200).all()


def test_a_loop_through_the_middle_of_a_directory_ends() -> None:
    data = bytearray(make_tiff(grey_page(16, 8), grey_page(16, 8)))
    offset = 8 + 2 + 12 * 9
    data[offset : offset + 4] = struct.pack("<I", 8 + 12)
    check_decodes_to(bytes(data), (8, 16))


def test_a_file_of_many_pages_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    read = itertools.count()
    real: Callable[..., object] = tiff_limits._read_directory
    monkeypatch.setattr(tiff_limits, "_read_directory", lambda *args: next(read) >= 0 and real(*args))
    with pytest.raises(MultiFrameImageError):
        decode_image(make_tiff(*[grey_page(1, 1)] * 20_000))
    assert next(read) <= tiff_limits.MAX_PAGES + 1
