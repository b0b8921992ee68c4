"""The decoder, on images encoded here by Pillow. test_hostile.py has malformed ones."""

import contextlib
import io
import resource
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.errors import (
    CorruptImageError,
    DataError,
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    UnsupportedFormatError,
)
from models.imaging.decode import FORMATS, IMAGE_SUFFIXES, decode_image, read_image, read_mask
from models.imaging.orientation import read_orientation
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image, png_chunk, png_header

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}
SAMPLES_16_BIT = np.random.default_rng(0).integers(0, 65536, (7, 5), dtype=np.uint16)

# Outside pytest, models/imaging/decode.py filters these warnings.
IGNORE_PIL_WARNINGS = pytest.mark.filterwarnings(r"ignore:::PIL\.")

# EXIF orientation -> function from the stored pixels to the upright ones.
APPLY_ORIENTATION: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


def exif_with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def check_rgb(image: np.ndarray, size: tuple[int, int]) -> None:
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_decodes(format: str) -> None:
    image = synthetic_image(37, 53)
    decoded = decode_image(encode_image(image, format))
    check_rgb(decoded, (37, 53))
    if format in LOSSLESS:
        np.testing.assert_array_equal(decode_image(encode_image(image, format, **LOSSLESS[format])), image)
    else:
        assert np.abs(decoded.astype(int) - image).mean() < 16


@pytest.mark.parametrize("format", FORMATS)
def test_image_of_one_pixel(format: str) -> None:
    check_rgb(decode_image(encode_image(synthetic_image(1, 1), format)), (1, 1))


@pytest.mark.parametrize("orientation", APPLY_ORIENTATION)
@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"BMP"}))
def test_images_are_turned_upright(format: str, orientation: int) -> None:
    image = synthetic_image(24, 40)
    stored = decode_image(encode_image(image, format))
    turned = decode_image(encode_image(image, format, exif=exif_with_orientation(orientation)))
    np.testing.assert_array_equal(turned, APPLY_ORIENTATION[orientation](stored))
    check_rgb(np.ascontiguousarray(turned), (24, 40) if orientation < 5 else (40, 24))


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"BMP"}))
def test_orientation_is_read_from_the_header(format: str) -> None:
    data = encode_image(synthetic_image(4, 6), format, exif=exif_with_orientation(6))
    with Image.open(io.BytesIO(data)) as image:
        assert read_orientation(image) == 6
    with Image.open(io.BytesIO(encode_image(synthetic_image(4, 6), format))) as image:
        assert read_orientation(image) == 1


@pytest.mark.parametrize("orientation", APPLY_ORIENTATION)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_images_are_turned_upright(format: str, orientation: int) -> None:
    grey = np.floor(SAMPLES_16_BIT / 257 + 0.5)
    decoded = decode_image(encode_image(SAMPLES_16_BIT, format, exif=exif_with_orientation(orientation)))
    np.testing.assert_array_equal(decoded[:, :, 0], APPLY_ORIENTATION[orientation](grey))


def test_transparency_is_blended_with_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, :, 0] = 200
    rgba[:, 1, 3] = 128
    rgba[:, 2, 3] = 255
    expected = [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    for format in ("PNG", "WEBP", "TIFF"):
        decoded = decode_image(encode_image(rgba, format, **LOSSLESS[format]))
        check_rgb(decoded, (2, 3))
        assert np.abs(decoded[0].astype(int) - expected).max() <= 1, format


def test_grey_with_transparency() -> None:
    grey = Image.fromarray(np.array([[[50, 0], [50, 255]]], np.uint8), "LA")
    assert decode_image(encode_image(grey, "PNG")).tolist() == [[[255] * 3, [50] * 3]]


@pytest.mark.parametrize(
    ("mode", "transparency", "expected"),
    [
        ("P", 0, [255, 255, 255]),
        ("P", b"\x80\xff", [227, 127, 127]),
        ("RGB", (200, 0, 0), [255, 255, 255]),
        ("L", 60, [255, 255, 255]),
    ],
    ids=["palette", "half a palette", "rgb", "grey"],
)
def test_transparent_color_becomes_white(mode: str, transparency: object, expected: list[int]) -> None:
    image = Image.fromarray(np.array([[[200, 0, 0], [0, 200, 0]]], np.uint8)).convert(
        mode, palette=Image.Palette.ADAPTIVE
    )
    if mode == "P":
        image.putpalette([200, 0, 0, 0, 200, 0])
        image.putdata([0, 1])
    first, second = decode_image(encode_image(image, "PNG", transparency=transparency))[0].astype(int)
    assert np.abs(first - expected).max() <= 1
    assert second.tolist() == np.asarray(image.convert("RGB"))[0, 1].tolist()


def test_transparent_16_bit_grey_becomes_white() -> None:
    decoded = decode_image(encode_image(SAMPLES_16_BIT, "PNG", transparency=int(SAMPLES_16_BIT[2, 3])))
    assert decoded[2, 3].tolist() == [255, 255, 255]
    assert decoded[0, 0, 0] == round(SAMPLES_16_BIT[0, 0] / 257)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format: str) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode_image(encode_image(red, format))
    check_rgb(decoded, (16, 16))
    assert np.abs(decoded.astype(int) - [255, 0, 0]).max() < 20


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(format: str) -> None:
    ramp = np.array([[0, 128, 257, 1000, 32768, 65535]], np.uint16)
    decoded = decode_image(encode_image(ramp, format))
    check_rgb(decoded, (1, 6))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 4, 128, 255]
    assert (decoded == decoded[:, :, :1]).all()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("largest", [200, 5000, 65535])
def test_16_bit_grey_of_either_byte_order(order: str, largest: int) -> None:
    samples = (SAMPLES_16_BIT.astype(np.uint32) * largest // 65535).astype(np.uint16)
    decoded = decode_image(encode_image(samples.astype(order), "TIFF"))
    np.testing.assert_array_equal(decoded[:, :, 0], np.floor(samples / 257 + 0.5))


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),
        ([0.0, 50000.0, 100000.0], [0, 128, 255]),
        ([float("nan"), -3.0, 1.0], [0, 0, 255]),
        ([float("inf"), float("-inf"), 0.0], [0, 0, 0]),
    ],
)
def test_float_samples_are_scaled(samples: list[float], expected: list[int]) -> None:
    decoded = decode_image(encode_image(np.array([samples], np.float32), "TIFF"))
    check_rgb(decoded, (1, 3))
    assert decoded[0, :, 0].tolist() == expected


def test_32_bit_grey() -> None:
    decoded = decode_image(encode_image(np.array([[-5, 0, 65535, 200_000]], np.int32), "TIFF"))
    assert decoded[0, :, 0].tolist() == [0, 0, 84, 255]
    assert decode_image(encode_image(np.array([[0, 7, 255]], np.int32), "TIFF"))[0, :, 0].tolist() == [0, 7, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_1_bit(format: str) -> None:
    bits = np.indices((5, 9)).sum(axis=0) % 2 == 1
    decoded = decode_image(encode_image(bits, format))
    check_rgb(decoded, (5, 9))
    np.testing.assert_array_equal(decoded[:, :, 1], bits * np.uint8(255))


def test_the_first_image_of_a_phones_jpeg_is_decoded() -> None:
    first = synthetic_image(16, 24)
    both = encode_image(first, "MPO", save_all=True, append_images=[Image.fromarray(synthetic_image(16, 24, seed=1))])
    np.testing.assert_array_equal(decode_image(both), decode_image(encode_image(first, "JPEG")))


@IGNORE_PIL_WARNINGS
def test_corrupt_exif_is_no_error() -> None:
    image = synthetic_image(16, 24)
    whole = exif_with_orientation(6).tobytes()
    stored = decode_image(encode_image(image, "JPEG"))
    for exif in (whole[:10], whole[:-4], b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        decoded = decode_image(encode_image(image, "JPEG", exif=exif))
        assert any(np.array_equal(decoded, turned(stored)) for turned in APPLY_ORIENTATION.values())
    assert decode_image(encode_image(image, "JPEG", exif=whole[:-4])).shape == (24, 16, 3)


def test_empty_bytes() -> None:
    with pytest.raises(EmptyImageError, match="0 bytes"):
        decode_image(b"")


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_at_every_length(format: str) -> None:
    data = encode_image(synthetic_image(20, 24), format)
    for length in range(1, 12):
        with pytest.raises((CorruptImageError, UnsupportedFormatError)):
            decode_image(data[:length])
    ending = 21 if format == "PNG" else 0  # bytes after the pixels: the checksums and the last chunk
    for length in range(12, len(data) - ending):
        with pytest.raises(CorruptImageError):
            decode_image(data[:length])


def test_a_png_without_its_last_chunk_is_complete() -> None:
    data = encode_image(synthetic_image(20, 24), "PNG")
    np.testing.assert_array_equal(decode_image(data[:-12]), synthetic_image(20, 24))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("options", [{}, {"progressive": True, "optimize": True}], ids=["plain", "progressive"])
def test_truncated_photographs(format: str, options: dict[str, bool]) -> None:
    data = encode_image(synthetic_image(240, 320), format, **options)
    for length in range(16, len(data) - 12, max(1, len(data) // 25)):
        with pytest.raises(CorruptImageError, match="truncated or corrupt"):
            decode_image(data[:length])


@settings(max_examples=25, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), format=st.sampled_from(FORMATS))
def test_a_flipped_byte_raises_only_image_errors(position: float, value: int, format: str) -> None:
    data = bytearray(
        encode_image(synthetic_image(20, 24), format, exif=exif_with_orientation(6))
        if format != "BMP"
        else encode_image(synthetic_image(20, 24), format)
    )
    data[int(position * len(data))] ^= value
    try:
        decoded = decode_image(bytes(data), max_pixels=10_000)
    except ImageError:
        return
    check_rgb(np.ascontiguousarray(decoded), decoded.shape[:2])


@settings(max_examples=40, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from(
        [b"", b"\xff\xd8\xff\xe0", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x1cftypavif", png_header(4, 4)]
    ),
)
def test_random_bytes_raise_only_image_errors(data: bytes, head: bytes) -> None:
    with contextlib.suppress(ImageError):
        decode_image(head + data, max_pixels=10_000)


def test_a_bomb_is_refused_by_its_header() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLargeError, match="pixels"):
        decode_image(png_header(60000, 60000) + png_chunk(b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(ImageTooLargeError, match="20000 x 20000 = 400,000,000 pixels; the limit is 100,000,000"):
        decode_image(png_header(20000, 20000) + png_chunk(b"IDAT", zlib.compress(bytes(1000))))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; decoded they have over 1 GB


@pytest.mark.parametrize("format", FORMATS)
def test_the_pixel_limit(format: str) -> None:
    data = encode_image(synthetic_image(20, 30), format)
    check_rgb(decode_image(data, max_pixels=600), (20, 30))
    with pytest.raises(ImageTooLargeError, match="30 x 20 = 600 pixels; the limit is 599"):
        decode_image(data, max_pixels=599)


def test_read_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "street.png"
    Image.fromarray(synthetic_image(9, 7)).save(path)
    np.testing.assert_array_equal(read_image(path), synthetic_image(9, 7))
    with pytest.raises(ImageTooLargeError, match=r"street\.png: The image has 7 x 9"):
        read_image(path, max_pixels=62)
    for content, error in (
        (b"", EmptyImageError),
        (b"text", UnsupportedFormatError),
        (path.read_bytes()[:-40], CorruptImageError),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=r"street\.png: "):
            read_image(path)
    for missing in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(DataError, match=f"{missing}: cannot open the file"):
            read_image(missing)


def test_the_file_name_does_not_decide_the_format(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encode_image(synthetic_image(9, 7), "PNG"))
    np.testing.assert_array_equal(read_image(path), synthetic_image(9, 7))


def test_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_keep_their_values(mode: str, format: str, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (11, 13), dtype=np.uint8)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "mask", format)
    mask = read_mask(tmp_path / "mask")
    np.testing.assert_array_equal(mask, labels)
    assert mask.dtype == np.uint8


def test_small_palettes_keep_their_values(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "mask.png", bits=2)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), labels)


def test_1_bit_masks_are_0_and_1(tmp_path: Path) -> None:
    bits = np.indices((5, 9)).sum(axis=0) % 3 == 1
    Image.fromarray(bits).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, bits)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_deep_masks_within_range(dtype: type, tmp_path: Path) -> None:
    labels = np.array([[0, 7, 255]], dtype)
    Image.fromarray(labels).save(tmp_path / "mask.tif")
    mask = read_mask(tmp_path / "mask.tif")
    assert (mask.dtype, mask.tolist()) == (np.uint8, [[0, 7, 255]])


@pytest.mark.parametrize(("value", "dtype"), [(256, np.uint16), (65535, np.uint16), (70000, np.int32), (-1, np.int32)])
def test_labels_out_of_range(value: int, dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, value]], dtype)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match=rf"mask\.tif: .* label {value}; expected labels from 0"):
        read_mask(tmp_path / "mask.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F", "CMYK"])
def test_color_masks_are_refused(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match=rf"mask\.tif: the mask has {mode} colors"):
        read_mask(tmp_path / "mask.tif")


def test_unreadable_masks(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    whole = encode_image(synthetic_image(20, 20)[:, :, 0], "PNG")
    for content, error in (
        (b"", EmptyImageError),
        (b"text", UnsupportedFormatError),
        (whole[: len(whole) // 2], CorruptImageError),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=r"mask\.png: "):
            read_mask(path)
    with pytest.raises(DataError, match=r"none\.png: cannot open the file"):
        read_mask(tmp_path / "none.png")
