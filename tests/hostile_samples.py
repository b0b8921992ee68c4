"""Small files of signals and volumes that take seconds or gigabytes if nothing limits what they ask for."""

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from tests.fixtures_images import encode_image, make_png
from tests.hostile_images import resized_jpeg

EXPLICIT, JPEG_BASELINE = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.4.50"  # transfer syntaxes of DICOM


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def lying_zip(name: str, content: bytes, claimed: int) -> bytes:
    """A zip whose tables state another size of its one file."""
    data = bytearray(zipped({name: content}))
    for place in (22, data.rfind(b"PK\1\2") + 24):  # in the file's header, and in the table at the end
        struct.pack_into("<I", data, place, claimed)
    return bytes(data)


def wfdb(lines: list[str], files: dict[str, bytes], rate: str = "250") -> bytes:
    header = "\n".join([f"a {len(lines)} {rate}", *lines])
    return zipped({"a.hea": header.encode(), **files})


def edf(per_record: list[int], records: int) -> bytes:
    """An EDF of zeros, of signals with so many samples a record, which has a second."""
    count = len(per_record)
    fixed = b"0".ljust(168) + b"01.01.2600.00.00" + str(256 * (1 + count)).encode().ljust(8) + bytes(44)
    fixed += str(records).encode().ljust(8) + b"1".ljust(8) + str(count).encode().ljust(4)
    fields = [b"uV".ljust(8), b"-1".ljust(8), b"1".ljust(8), b"-9".ljust(8), b"9".ljust(8)]
    names = b"".join(f"E{index}".encode().ljust(16) for index in range(count))
    lengths = b"".join(str(each).encode().ljust(8) for each in per_record)
    head = names + bytes(80 * count) + b"".join(field * count for field in fields) + bytes(80 * count) + lengths
    return fixed + head + bytes(32 * count) + bytes(2 * records * sum(per_record))


def npy_header(dtype: str, shape: str) -> bytes:
    """An array file without samples."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def npz(**arrays: ArrayLike) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **{name: np.asarray(array) for name, array in arrays.items()})
    return stream.getvalue()


def nrrd(sizes: str) -> bytes:
    return f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: {sizes}\nencoding: raw\n\n".encode()


def nifti(shape: tuple[int, int, int]) -> bytes:
    """The header of a volume of uint8."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h8f", header, 70, 2, 8, 0, *[1.0] * 7)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def gzip_of_empty_members(content: bytes, count: int) -> bytes:
    """The first and the second half of the content with empty members between them."""
    half = len(content) // 2
    parts = [gzip.compress(part, mtime=0) for part in (content[:half], b"", content[half:])]
    return parts[0] + parts[1] * count + parts[2]


def stack_of_shared_strips(pages: int, side: int) -> bytes:
    """A TIFF whose pages are all the same compressed strip."""
    strip = zlib.compress(np.random.default_rng(0).bytes(side * side))
    tags = [(256, 4, [side]), (257, 4, [side]), (258, 3, [8]), (259, 3, [8]), (262, 3, [1]), (278, 4, [side])]
    page = [*tags, (273, 4, [8]), (277, 3, [1]), (279, 4, [len(strip)])]
    return _pages(strip, page, pages)


def stack_of_shared_tables(pages: int, strips: int) -> bytes:
    """A TIFF whose pages share one table of strips of a byte."""
    table = struct.pack(f"<{2 * strips}I", *[8] * strips, *[1] * strips)
    tags = [(256, 4, [1]), (257, 4, [strips]), (258, 3, [8]), (259, 3, [1]), (262, 3, [1]), (278, 4, [1])]
    entries = struct.pack("<HHII", 273, 4, strips, 8) + struct.pack("<HHII", 279, 4, strips, 8 + 4 * strips)
    return _pages(table, [*tags, (277, 3, [1])], pages, entries)


def _pages(content: bytes, tags: list[tuple[int, int, list[int]]], count: int, more: bytes = b"") -> bytes:
    """Pages of the same tags, of one value each, after the content, which begins at byte 8; `more`: entries as they are."""
    entries = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", values[0]) for tag, kind, values in tags)
    directory = struct.pack("<H", (len(entries) + len(more)) // 12) + entries + more
    start = 8 + len(content) + len(content) % 2
    data = b"II*\0" + struct.pack("<I", start) + content.ljust(start - 8, b"\0")
    size = len(directory) + 4
    return data + b"".join(
        directory + struct.pack("<I", start + (index + 1) * size if index + 1 < count else 0) for index in range(count)
    )


def dicom(
    extra: bytes = b"", syntax: bytes = EXPLICIT, rows_tag: int = 0x10, pixels: bytes | None = None, index: int = 0
) -> bytes:
    """An image of 8 x 8, of 8 bits; slice `index` of a series."""

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += (b"\0" if kind == b"UI" else b" ") * (len(value) % 2)
        return struct.pack("<HH2sH", group, number, kind, len(value)) + value

    name = element(2, 0x10, b"UI", syntax)
    numbers = {2: 1, rows_tag: 8, 0x11: 8, 0x100: 8, 0x101: 8, 0x102: 7, 0x103: 0}
    image = element(0x20, 0xE, b"UI", b"1.2") + element(0x20, 0x32, b"DS", b"0\\0\\%d" % index)
    image += element(0x20, 0x37, b"DS", b"1\\0\\0\\0\\1\\0") + element(0x28, 4, b"CS", b"MONOCHROME2")
    image += b"".join(element(0x28, number, b"US", struct.pack("<H", value)) for number, value in numbers.items())
    image += element(0x28, 0x30, b"DS", b"1\\1")
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 64) + bytes(64) if pixels is None else pixels
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(name))) + name + extra + image + pixels


def slices_of_two_sizes() -> bytes:
    """A slice of 8 x 8 pixels, and one of 25 megapixels."""
    small, large = (make_png((side, side), 8, 0, bytes((1 + side) * side)) for side in (8, 5000))
    return zipped({"1.png": small, "2.png": large})


def sequence(items: int) -> bytes:
    """A sequence of empty items, of unstated length."""
    start, end = struct.pack("<HH2sHI", 9, 0x10, b"SQ", 0, 0xFFFFFFFF), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return start + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * items + end


def dicom_of_jpeg(side: int) -> bytes:
    """An image that states 8 x 8 pixels, and holds a JPEG of another size."""
    frame = resized_jpeg(encode_image(Image.new("L", (16, 16)), "JPEG"), side, side)
    frame += bytes(len(frame) % 2)
    parts = [struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF), struct.pack("<HHI", 0xFFFE, 0xE000, 0)]
    parts += [struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)), frame, struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)]
    return dicom(syntax=JPEG_BASELINE, pixels=b"".join(parts))
