"""Mutations of real images. A seed always gives the same image, so that failures can be reproduced."""

import io
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image, grey_page, make_png, make_tiff, png_chunk

HOSTILE_FOLDER = Path(__file__).parents[2] / "shared" / "data" / "hostile" / "files"
MAX_SEED_BYTES = 120_000  # of a hostile image: in larger ones, mutations rarely change a header

# Numbers that programs handle incorrectly.
EDGE_VALUES = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    100_000,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


# Length fields: struct format, offset from a name, and the names.
LENGTH_FIELDS = (
    (">I", -4, (b"IHDR", b"IDAT", b"iCCP", b"eXIf", b"tRNS", b"PLTE")),
    (">I", -4, (b"meta", b"iloc", b"iinf", b"ispe", b"av1C", b"mdat")),
    ("<I", 4, (b"VP8 ", b"VP8X", b"VP8L", b"EXIF", b"ANMF")),
    (">H", 2, (b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb", b"\xff\xe1", b"\xff\xe2")),
)


def _exif_with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a street"
    return exif


def _encode_multi_frame(format: str) -> bytes:
    first, *others = (Image.fromarray(synthetic_image(60, 80, seed=seed)) for seed in range(3))
    return encode_image(first, format, save_all=True, append_images=others)


@cache
def seed_images() -> tuple[bytes, ...]:
    """One image of every supported kind, some of unsupported ones, and the hostile images if they are available."""
    photo, deep = Image.fromarray(synthetic_image(60, 80)), np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear = Image.fromarray(np.dstack([synthetic_image(48, 64), deep.astype(np.uint8)]))
    images: list[bytes] = [
        encode_image(photo, format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "GIF")
    ]
    images += [encode_image(photo, "JPEG", progressive=True, exif=_exif_with_orientation(6), icc_profile=profile)]
    images += [encode_image(photo.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    images += [_encode_multi_frame("MPO")]
    images += [
        encode_image(photo.convert("P"), "PNG", transparency=3),
        encode_image(deep, "PNG"),
        encode_image(clear, "PNG", exif=_exif_with_orientation(3)),
    ]
    images += [encode_image(photo, "PNG", icc_profile=profile), make_png((8, 1), 16, 6, b"\0" + bytes(64))]
    images += [
        encode_image(clear, "WEBP", lossless=True, exif=_exif_with_orientation(8)),
        encode_image(clear, "AVIF"),
        encode_image(photo, "AVIF", exif=_exif_with_orientation(5)),
    ]
    images += [
        encode_image(photo, "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "zstd")
    ]
    images += [
        encode_image(deep, "TIFF"),
        encode_image(photo.convert("LAB"), "TIFF"),
        encode_image(photo.convert("CMYK"), "TIFF"),
    ]
    images += [
        encode_image(photo.convert("1"), "TIFF", compression="group4"),
        make_tiff(grey_page(16, 8), grey_page(4, 2)),
    ]
    images += [_encode_multi_frame(format) for format in ("PNG", "WEBP", "TIFF", "AVIF")]
    hostile = sorted(HOSTILE_FOLDER.iterdir()) if HOSTILE_FOLDER.is_dir() else []
    return (*images, *(path.read_bytes() for path in hostile if path.stat().st_size <= MAX_SEED_BYTES))


def make_mutation(seed: int) -> bytes:
    """A seed image with one to three mutations."""
    random = np.random.default_rng(seed)
    data = bytearray(seed_images()[random.integers(len(seed_images()))])
    for _ in range(random.integers(1, 4)):
        if len(data) > 16:
            MUTATIONS[random.integers(len(MUTATIONS))](data, random)
    if data.startswith(b"\x89PNG") and random.random() < 0.7:  # else its checksums would reveal nearly every change
        return _fix_png_checksums(bytes(data))
    return bytes(data)


def _random_offset(data: bytearray, random: np.random.Generator, width: int = 1) -> int:
    """A random offset, in half of the cases within the first 300 bytes, where headers are."""
    end = max(1, len(data) - width)
    return int(random.integers(0, min(end, 300) if random.random() < 0.5 else end))


def flip_bits(data: bytearray, random: np.random.Generator) -> None:
    for _ in range(random.integers(1, 20)):
        data[_random_offset(data, random)] ^= 1 << int(random.integers(8))


def truncate(data: bytearray, random: np.random.Generator) -> None:
    del data[_random_offset(data, random) :]


def delete_bytes(data: bytearray, random: np.random.Generator) -> None:
    offset = _random_offset(data, random)
    del data[offset : offset + int(random.integers(1, 200))]


def repeat_bytes(data: bytearray, random: np.random.Generator) -> None:
    offset = _random_offset(data, random)
    piece = bytes(data[offset : offset + int(random.integers(1, 200))])
    data[offset:offset] = piece * int(random.integers(1, 50))


def splice(data: bytearray, random: np.random.Generator) -> None:
    other = seed_images()[random.integers(len(seed_images()))]
    start = int(random.integers(len(other)))
    offset = _random_offset(data, random)
    data[offset:] = other[start:] if random.random() < 0.5 else other[start : start + 400] + bytes(data[offset:])


def randomize_bytes(data: bytearray, random: np.random.Generator) -> None:
    offset = _random_offset(data, random)
    count = min(int(random.integers(1, 64)), len(data) - offset)
    data[offset : offset + count] = random.integers(0, 256, count, dtype=np.uint8).tobytes()


def write_edge_value(data: bytearray, random: np.random.Generator) -> None:
    """Overwrite 16 or 32 bits, such as a width, a count or an offset in a header."""
    format = "HI"[random.integers(2)]
    order = "<>"[random.integers(2)]
    size = struct.calcsize(format)
    value = EDGE_VALUES[random.integers(len(EDGE_VALUES))] & (1 << 8 * size) - 1
    offset = _random_offset(data, random, size)
    data[offset : offset + size] = struct.pack(order + format, value)


def write_wrong_length(data: bytearray, random: np.random.Generator) -> None:
    """Overwrite the length of a chunk, a segment or a box."""
    format, shift, names = LENGTH_FIELDS[random.integers(len(LENGTH_FIELDS))]
    positions = [data.find(name) for name in names]
    offset = max(positions, default=-1) + shift
    if max(positions) >= 4 and offset + struct.calcsize(format) <= len(data):
        struct.pack_into(format, data, offset, int(random.integers(0, 1 << (16 if format == ">H" else 20))))


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    flip_bits,
    truncate,
    delete_bytes,
    repeat_bytes,
    splice,
    randomize_bytes,
    write_edge_value,
    write_edge_value,
    write_wrong_length,
)


def _fix_png_checksums(data: bytes) -> bytes:
    out, offset = io.BytesIO(), 8
    out.write(data[:8])
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if offset + 12 + length > len(data):
            break
        out.write(png_chunk(kind, data[offset + 8 : offset + 8 + length]))
        offset += 12 + length
    out.write(data[offset:])
    return out.getvalue()
