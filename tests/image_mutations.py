"""Real pictures, changed: the same number makes the same picture, so that a failure can be played again."""

import io
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from tests.fixtures_bundles import drawing
from tests.fixtures_images import chunk, encoded, grey_page, png, tiff

HOSTILE = Path(__file__).parents[2] / "shared" / "data" / "hostile" / "files"
LARGEST = 120_000  # bytes of a hostile picture: mutations are meant to meet headers

# Numbers that programs get wrong.
EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 100_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


# How lengths are written, where from the names of what they measure, and those names.
LENGTHS = (
    (">I", -4, (b"IHDR", b"IDAT", b"iCCP", b"eXIf", b"tRNS", b"PLTE")),
    (">I", -4, (b"meta", b"iloc", b"iinf", b"ispe", b"av1C", b"mdat")),
    ("<I", 4, (b"VP8 ", b"VP8X", b"VP8L", b"EXIF", b"ANMF")),
    (">H", 2, (b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb", b"\xff\xe1", b"\xff\xe2")),
)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a street"
    return exif


def _several(format: str) -> bytes:
    first, *others = (Image.fromarray(drawing(60, 80, seed=seed)) for seed in range(3))
    return encoded(first, format, save_all=True, append_images=others)


@cache
def seeds() -> tuple[bytes, ...]:
    """One picture of every kind that the house reads, some that it does not, and the hostile ones where they are."""
    photo, deep = Image.fromarray(drawing(60, 80)), np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear = Image.fromarray(np.dstack([drawing(48, 64), deep.astype(np.uint8)]))
    made: list[bytes] = [encoded(photo, format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "GIF")]
    made += [encoded(photo, "JPEG", progressive=True, exif=_exif(6), icc_profile=profile)]
    made += [encoded(photo.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    made += [_several("MPO")]
    made += [
        encoded(photo.convert("P"), "PNG", transparency=3),
        encoded(deep, "PNG"),
        encoded(clear, "PNG", exif=_exif(3)),
    ]
    made += [encoded(photo, "PNG", icc_profile=profile), png((8, 1), 16, 6, b"\0" + bytes(64))]
    made += [
        encoded(clear, "WEBP", lossless=True, exif=_exif(8)),
        encoded(clear, "AVIF"),
        encoded(photo, "AVIF", exif=_exif(5)),
    ]
    made += [
        encoded(photo, "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "zstd")
    ]
    made += [encoded(deep, "TIFF"), encoded(photo.convert("LAB"), "TIFF"), encoded(photo.convert("CMYK"), "TIFF")]
    made += [encoded(photo.convert("1"), "TIFF", compression="group4"), tiff(grey_page(16, 8), grey_page(4, 2))]
    made += [_several(format) for format in ("PNG", "WEBP", "TIFF", "AVIF")]
    hostile = sorted(HOSTILE.iterdir()) if HOSTILE.is_dir() else []
    return (*made, *(path.read_bytes() for path in hostile if path.stat().st_size <= LARGEST))


def mutated(number: int) -> bytes:
    """The picture of that number: a seed, changed in one to three ways."""
    random = np.random.default_rng(number)
    data = bytearray(seeds()[random.integers(len(seeds()))])
    for _ in range(random.integers(1, 4)):
        if len(data) > 16:
            WAYS[random.integers(len(WAYS))](data, random)
    if data.startswith(b"\x89PNG") and random.random() < 0.7:  # else its sums would stop nearly every change
        return _with_right_sums(bytes(data))
    return bytes(data)


def _place(data: bytearray, random: np.random.Generator, width: int = 1) -> int:
    """Anywhere, but in half of the cases in the first 300 bytes, where headers are."""
    end = max(1, len(data) - width)
    return int(random.integers(0, min(end, 300) if random.random() < 0.5 else end))


def flip_bits(data: bytearray, random: np.random.Generator) -> None:
    for _ in range(random.integers(1, 20)):
        data[_place(data, random)] ^= 1 << int(random.integers(8))


def cut(data: bytearray, random: np.random.Generator) -> None:
    del data[_place(data, random) :]


def remove(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    del data[place : place + int(random.integers(1, 200))]


def repeat(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    piece = bytes(data[place : place + int(random.integers(1, 200))])
    data[place:place] = piece * int(random.integers(1, 50))


def splice(data: bytearray, random: np.random.Generator) -> None:
    other = seeds()[random.integers(len(seeds()))]
    start = int(random.integers(len(other)))
    place = _place(data, random)
    data[place:] = other[start:] if random.random() < 0.5 else other[start : start + 400] + bytes(data[place:])


def noise(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    count = min(int(random.integers(1, 64)), len(data) - place)
    data[place : place + count] = random.integers(0, 256, count, dtype=np.uint8).tobytes()


def edge_number(data: bytearray, random: np.random.Generator) -> None:
    """A number of 16 or 32 bits in a header's place: a width, a count, an offset."""
    wide = "HI"[random.integers(2)]
    order = "<>"[random.integers(2)]
    size = struct.calcsize(wide)
    value = EDGES[random.integers(len(EDGES))] & (1 << 8 * size) - 1
    place = _place(data, random, size)
    data[place : place + size] = struct.pack(order + wide, value)


def wrong_length(data: bytearray, random: np.random.Generator) -> None:
    """Of a chunk, a segment or a box: the number before a name, or behind a marker."""
    shape, before, names = LENGTHS[random.integers(len(LENGTHS))]
    places = [data.find(name) for name in names]
    at = max(places, default=-1) + before
    if max(places) >= 4 and at + struct.calcsize(shape) <= len(data):
        struct.pack_into(shape, data, at, int(random.integers(0, 1 << (16 if shape == ">H" else 20))))


WAYS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    flip_bits, cut, remove, repeat, splice, noise, edge_number, edge_number, wrong_length,
)  # fmt: skip


def _with_right_sums(data: bytes) -> bytes:
    out, place = io.BytesIO(), 8
    out.write(data[:8])
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if place + 12 + length > len(data):
            break
        out.write(chunk(kind, data[place + 8 : place + 8 + length]))
        place += 12 + length
    out.write(data[place:])
    return out.getvalue()
