"""Small images that cost minutes of CPU or gigabytes of memory if nothing limits what their headers ask for."""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.fixtures_images import (
    encode_image,
    grey_page,
    isobmff_box,
    jpeg_segment,
    make_png,
    make_tiff,
    uncompressed_tags,
)


def profile_with_curves(elements: int, segments: int, samples: int = 0) -> bytes:
    """An RGB profile whose floating-point chain has curve sets of so many segments, or of one with so many samples."""
    if samples:
        curve = struct.pack(">4s4xHHf", b"curf", 2, 0, 0.0) + struct.pack(">4s4xHHffff", b"parf", 0, 0, 1, 1, 0, 0)
        curve += struct.pack(">4s4xI", b"samf", samples) + bytes(4 * samples)
    else:
        curve = struct.pack(">4s4xHH", b"curf", segments, 0) + struct.pack(">f", 0.99999) * (segments - 1)
        curve += struct.pack(">4s4xHHffff", b"parf", 0, 0, 1, 1, 0, 0) * segments
    curve_set = struct.pack(">4s4xHH", b"cvst", 3, 3) + struct.pack(">II", 36, len(curve)) * 3 + curve
    return profile_with_chain([curve_set] * elements)


def profile_with_chain(elements: list[bytes]) -> bytes:
    """An RGB profile with a floating-point chain; equal elements share their bytes."""
    offsets, body = {}, b""
    start = 16 + 8 * len(elements)
    for element in elements:
        if element not in offsets:
            offsets[element] = start + len(body)
            body += element
    table = b"".join(struct.pack(">II", offsets[element], len(element)) for element in elements)
    chain = struct.pack(">4s4xHHI", b"mpet", 3, 3, len(elements)) + table + body
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    tags = [(b"wtpt", white), (b"D2B0", chain)]
    places, at = b"", 132 + 12 * len(tags)
    for name, content in tags:
        places += name + struct.pack(">II", at, len(content))
        at += len(content)
    head = struct.pack(
        ">I4sI4s4s4s12x4s28x3i", at, b"lcms", 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp", 63190, 65536, 54061
    )
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + places + b"".join(content for _, content in tags)


def png_with_profile(profile: bytes) -> bytes:
    return encode_image(np.full((8, 8, 3), 99, np.uint8), "PNG", icc_profile=profile)


def run_length_bmp(width: int, height: int, bits: int, runs: bytes) -> bytes:
    """A BMP of 4 or 8 bits in runs."""
    start = 54 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, len(runs), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + bytes(1024) + runs


def avif_of_frames(side: int, frames: int, copies: int = 1) -> bytes:
    """An AVIF whose image item holds the frames of an animation, `copies` times: each is decoded, the first is used."""
    still = Image.new("RGB", (side, side), (90, 120, 60))
    moving = encode_image(
        still, "AVIF", save_all=True, append_images=[still.copy() for _ in range(frames - 1)], speed=10
    )
    table = moving.index(b"stsz")
    (count,) = struct.unpack_from(">I", moving, table + 12)
    length = sum(struct.unpack_from(f">{count}I", moving, table + 16))
    (first,) = struct.unpack_from(">I", moving, moving.index(b"stco") + 12)
    units = moving[first : first + length] * copies
    sequence_header = isobmff_box(b"av1C", b"\x81\0\0\0")
    return avif_file([(1, b"av01", units)], side, sequence_header)


def avif_file(items: list[tuple[int, bytes, bytes]], side: int, *properties: bytes, extents: int = 1) -> bytes:
    """An AVIF of items (number, type, content); with `extents` > 1, the first one is the whole file so many times."""
    infe = [
        isobmff_box(b"infe", b"\2\0\0\0" + struct.pack(">HH4s", number, 0, kind) + b"\0") for number, kind, _ in items
    ]
    ispe = isobmff_box(b"ispe", bytes(4) + struct.pack(">II", side, side))
    associations = bytes(range(1, 2 + len(properties)))
    ipma = struct.pack(">IIHB", 0, 1, 1, len(associations)) + associations
    file_type = isobmff_box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")

    def meta(start: int) -> bytes:
        places = b""
        for number, _, content in items:
            places += struct.pack(">HHH", number, 0, extents if extents > 1 else 1)
            places += bytes(8 * extents) if extents > 1 else struct.pack(">II", start, len(content))
            start += len(content)
        return isobmff_box(
            b"meta", bytes(4), isobmff_box(b"hdlr", bytes(8), b"pict", bytes(13)),
            isobmff_box(b"pitm", bytes(4), struct.pack(">H", 1)),
            isobmff_box(b"iinf", bytes(4), struct.pack(">H", len(items)), *infe),
            isobmff_box(b"iprp", isobmff_box(b"ipco", ispe, *properties), isobmff_box(b"ipma", ipma)),
            isobmff_box(b"iloc", b"\0\0\0\0\x44\0", struct.pack(">H", len(items)), places),
        )  # fmt: skip

    start = len(file_type) + len(meta(0)) + 8
    return file_type + meta(start) + isobmff_box(b"mdat", *[content for _, _, content in items])


def avif_of_tables(kind: bytes, content: bytes, count: int = 1) -> bytes:
    """An AVIF sequence with a box in the table of its samples."""
    table = isobmff_box(b"stbl", *[isobmff_box(kind, bytes(4), content)] * count)
    track = isobmff_box(b"trak", isobmff_box(b"mdia", isobmff_box(b"minf", table)))
    return isobmff_box(b"ftyp", b"avis", bytes(4), b"avifavis") + isobmff_box(b"moov", track)


def tiff_of_shared_strips(strips: int, bytes_each: int, compression: int = 32773) -> bytes:
    """A TIFF of one row a strip, all in one place, whose bits libtiff turns (FillOrder 2) for each strip."""
    tags = uncompressed_tags(250, strips, [8], 1, (266, 3, [2]))
    kept = [tag for tag in tags if tag[0] not in (259, 273, 278, 279)]
    return make_shared_tiff([*kept, (259, 3, [compression]), (278, 4, [1])], (273, 279), strips, bytes_each)


def tiff_of_shared_tiles(width: int, tile: int, compression: int, data: bytes, height: int = 1) -> bytes:
    """A TIFF in square tiles of `tile` pixels, all in one place."""
    count = -(-width // tile) * -(-height // tile)
    tags = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [8]), (259, 3, [compression]), (262, 3, [1]), (277, 3, [1]),
        (322, 4, [tile]), (323, 4, [tile]),
    ]  # fmt: skip
    return make_shared_tiff(tags, (324, 325), count, len(data), data)


def make_shared_tiff(
    tags: list[tuple[int, int, list[int]]], names: tuple[int, int], count: int, bytes_each: int, data: bytes = b""
) -> bytes:
    at = len(make_tiff([*tags, (names[0], 4, [0] * count), (names[1], 4, [0] * count)]))
    data = data.ljust(bytes_each, b"\0")
    return make_tiff(([*tags, (names[0], 4, [at] * count), (names[1], 4, [bytes_each] * count)], data))


def tiff_after_a_thumbnail_of_strips(strips: int) -> bytes:
    """A good page after one that says "reduced" and names many strips."""
    tags = [tag for tag in uncompressed_tags(1, 8, [8], 1, (254, 4, [1])) if tag[0] != 273]
    return make_tiff([*tags, (324, 4, [8] * strips)], grey_page(8, 8))


def jpeg_of_restart_markers(count: int, in_scan: bool) -> bytes:
    data = encode_image(np.zeros((64, 64, 3), np.uint8), "JPEG", progressive=in_scan)
    at = 2
    if in_scan:
        scan = data.index(b"\xff\xda")
        at = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    return data[:at] + b"\xff\xd0" * count + data[at:] + (b"\xff\xda" * 101 if in_scan else b"")


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated, over a large frame."""
    data = encode_image(np.zeros((16, 16, 3), np.uint8), "JPEG", progressive=True)
    frame = data.index(b"\xff\xc2")
    data = data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


def resized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """A JPEG with a larger frame: the decoder takes what is missing for gray."""
    frame = re.search(rb"\xff[\xc0-\xc2\xc9\xca]", data)
    assert frame is not None
    return data[: frame.start() + 5] + struct.pack(">HH", height, width) + data[frame.start() + 9 :]


def arithmetic_jpeg(width: int, height: int, scan_bytes: int, scans: int = 1) -> bytes:
    """An arithmetic-coded JPEG whose scans hold random bytes, which are valid: of a single pass, or of progressive ones."""
    data = encode_image(np.zeros((16, 16, 3), np.uint8), "JPEG", quality=100, progressive=scans > 1)
    data = resized_jpeg(data, width, height)
    head, *found = re.split(rb"(?=\xff\xda)", data)
    head = re.sub(
        rb"\xff\xc4..(?=\xff)", b"", head, flags=re.DOTALL
    )  # no Huffman tables: the decoder skips those that stay
    head = head.replace(b"\xff\xc2", b"\xff\xca").replace(b"\xff\xc0", b"\xff\xc9")
    noise = np.random.default_rng(0).integers(0, 255, scan_bytes // scans, np.uint8).tobytes()  # without 0xFF
    heads = [scan[: 2 + int.from_bytes(scan[2:4], "big")] for scan in found]
    return head + b"".join((heads[min(index, len(heads) - 1)]) + noise for index in range(scans)) + b"\xff\xd9"


def jpeg_of_components(count: int) -> bytes:
    """A JPEG whose frame names so many components."""
    data = encode_image(np.zeros((8, 8, 3), np.uint8), "JPEG")
    at = data.index(b"\xff\xc0")
    frame = struct.pack(">BHHB", 8, 64, 64, count) + b"".join(bytes([index, 0x11, 0]) for index in range(count))
    return data[:at] + jpeg_segment(0xC0, frame) + data[at + 19 :]


def webp_of_groups(groups: int = 65_536) -> bytes:
    """A lossless WebP whose blocks of 4 x 4 pixels have a set of Huffman tables each; libwebp builds them all.

    WebP Lossless Bitstream Specification, 6.2.
    """
    bits: list[str] = []

    def put(value: int, count: int) -> None:  # least significant bit first
        bits.append(format(value, f"0{count}b")[::-1])

    def put_single_symbol() -> None:  # a code of one symbol, 0, which takes no bits
        bits.append("1000")

    def put_bytes_code(unused: int) -> None:  # symbols 0 to 255 with 8 bits each, and some that do not occur
        put(0, 1)
        put(12 - 4, 4)
        for length in (
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            1,
        ):  # of the lengths' codes, in the order 17, 18, 0 to 5, 16, 6, 7, 8
            put(length, 3)
        put(0, 1)
        bits.append("0" * 256)  # "8", 256 times
        if unused:
            bits.append("1")
            put(unused - 11, 7)

    side = math.isqrt(groups)
    put(0x2F, 8)
    put(4 * side - 1, 14)
    put(4 * side - 1, 14)
    put(0, 4)  # no alpha, version 0
    put(0, 1)  # no transform
    put(0, 1)  # no color cache
    put(1, 1)  # groups, by blocks of 1 << 2 pixels
    put(0, 3)
    put(0, 1)  # the image of the groups' numbers: no color cache
    put_bytes_code(24)  # green
    put_bytes_code(0)  # red
    for _ in range(3):
        put_single_symbol()
    for group in range(side * side):
        bits.append(format(group & 255, "08b") + format(group >> 8, "08b"))  # codes begin with the most significant bit
    bits.append("1000" * 5 * side * side)
    text = "".join(bits)
    text = text.ljust(-(-len(text) // 8) * 8, "0")
    data = int(text[::-1], 2).to_bytes(len(text) // 8, "little")
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tall_png(height: int = 50_000_000) -> bytes:
    """A gray PNG of one column, 97 KB: its mask has a run for each row."""
    return make_png((1, height), 8, 0, bytes(2 * height))


def tiff_of_bands(width: int, height: int, bands: int, bits: int, *more: tuple[int, int, list[int]]) -> bytes:
    """A deflated TIFF of zeros, in one strip."""
    data = zlib.compress(bytes(width * height * bands * bits // 8), 9)
    tags = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * bands), (259, 3, [8]), (262, 3, [1]), (273, 4, [0]),
        (277, 3, [bands]), (278, 4, [height]), (279, 4, [len(data)]), *more,
    ]  # fmt: skip
    return make_tiff((tags, data))


def npy_file(header: str, samples: int = 0) -> bytes:
    """A `.npy` file with any header, and zeros."""
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(header)) + header.encode() + bytes(samples)


def npy_header(shape: tuple[int, ...], dtype: str = "|u1") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


def npz_file(shape: tuple[int, ...], samples: int, method: int = zipfile.ZIP_DEFLATED, dtype: str = "|u1") -> bytes:
    """An archive with one array of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("values.npy", npy_file(npy_header(shape, dtype), samples))
    return file.getvalue()


def npz_of_overlapping_members(count: int = 10_000) -> bytes:
    """An archive whose directory names one array so many times."""
    body = npy_file(npy_header((3000, 3000, 3)), 27_000_000)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = compressor.compress(body) + compressor.flush()
    sizes = struct.pack("<3I", zlib.crc32(body), len(packed), len(body))
    local = struct.pack("<4s5H", b"PK\3\4", 20, 0, 8, 0, 0) + sizes + struct.pack("<2H", 5, 0) + b"a.npy" + packed
    entries = b"".join(
        struct.pack("<4s6H", b"PK\1\2", 20, 20, 0, 8, 0, 0) + sizes + struct.pack("<5H2I", 9, 0, 0, 0, 0, 0, 0)
        + b"%05d.npy" % number
        for number in range(count)
    )  # fmt: skip
    return local + entries + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(entries), len(local), 0)


def two_fax_pages() -> bytes:
    """Two full pages of a fax, the second with a quarter of the first one's pixels."""

    def page(width: int, height: int) -> bytes:
        rows = zlib.compress(bytes(width // 8 * height))
        return rows

    def tags(width: int, height: int, length: int) -> list[tuple[int, int, list[int]]]:
        return [
            (256, 4, [width]), (257, 4, [height]), (258, 3, [1]), (259, 3, [8]), (262, 3, [0]), (273, 4, [0]),
            (277, 3, [1]), (278, 4, [height]), (279, 4, [length]),
        ]  # fmt: skip

    sizes = ((2464, 3248), (1232, 1624))
    return make_tiff(*[(tags(*size, len(page(*size))), page(*size)) for size in sizes])


# What draws each image, and the status of its response.
HOSTILE_IMAGES: dict[str, tuple[Callable[[], bytes], int]] = {
    "icc segments": (lambda: png_with_profile(profile_with_curves(1, 32_000)), 200),
    "icc segments in 31 curve sets": (lambda: png_with_profile(profile_with_curves(31, 32_000)), 200),
    "bmp of one row": (lambda: run_length_bmp(50_000_000, 1, 8, b"\1\1\0\0"), 413),
    "bmp of one row, 4 bits": (lambda: run_length_bmp(50_000_000, 1, 4, b"\xff\x12" * 200_000), 413),
    "avif frames": (lambda: avif_of_frames(64, 16, 20), 422),
    "avif extents": (lambda: avif_file([(1, b"av01", bytes(1_000_000))], 8, extents=3000), 422),
    "avif tables": (lambda: avif_of_tables(b"stco", struct.pack(">II", 1, 1), 4500) + bytes(8_000_000), 422),
    "tall": (tall_png, 413),
    "tiff strips": (lambda: tiff_of_shared_strips(20_000, 1 << 20), 422),
    "tiff thumbnail": (lambda: tiff_after_a_thumbnail_of_strips(1_000_000), 422),
    "jpeg markers": (lambda: jpeg_of_restart_markers(8_000_000, in_scan=False), 422),
    "jpeg markers in the scan": (lambda: jpeg_of_restart_markers(8_000_000, in_scan=True), 200),
    "arithmetic scans": (lambda: arithmetic_jpeg(7000, 7000, 2000, 20), 422),
    "two fax pages": (two_fax_pages, 422),
    "npy header": (lambda: npy_file("(" * 300_000), 422),
    "npz of 900 megapixels": (lambda: npz_file((30_000, 30_000), 100_000_000), 413),
    "npz of overlapping members": (npz_of_overlapping_members, 413),
    "npz by LZMA": (lambda: npz_file((4000, 4000), 16_000_000, zipfile.ZIP_LZMA), 415),
}
