"""Image files built byte by byte, so that their defects are known."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

TiffTag = tuple[int, int, list[int]]  # number, type (3 has 16 bits, 4 has 32), values


def encode_image(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    copy = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)  # saving changes an image
    buffer = io.BytesIO()
    copy.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, bits: int = 8, color_type: int = 2) -> bytes:
    """Signature and header of a PNG; of 8-bit RGB by default."""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))


def make_png(size: tuple[int, int], bits: int, color_type: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of (width, height); `rows` with their filter bytes, `chunks` before the pixels."""
    header = png_header(*size, bits, color_type)
    return header + b"".join(chunks) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def isobmff_box(kind: bytes, *content: bytes) -> bytes:
    """A box of an AVIF."""
    inside = b"".join(content)
    return struct.pack(">I", 8 + len(inside)) + kind + inside


def make_tiff(*pages: list[TiffTag] | tuple[list[TiffTag], bytes], order: str = "<", loop: bool = False) -> bytes:
    """A TIFF of pages, each its tags and its pixels. Tag 273 (with any value) is set to the offset of the pixels."""
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8))
    for index, page in enumerate(pages):
        tags, pixels = page if isinstance(page, tuple) else (page, b"")
        after = len(out) + 2 + 12 * len(tags) + 4
        entries, values = b"", b""
        for tag, kind, numbers in sorted(tags):
            packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
            if tag == 273:
                packed = b"here"
            elif len(packed) > 4:
                values += packed
                packed = struct.pack(order + "I", after + len(values) - len(packed))
            entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
        entries = entries.replace(b"here", struct.pack(order + "I", after + len(values)))
        end = after + len(values) + len(pixels)
        next_page = (8 if loop else 0) if index == len(pages) - 1 else end
        out += struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", next_page) + values + pixels
    return bytes(out)


def uncompressed_tags(width: int, height: int, bits: list[int], photometric: int, *more: TiffTag) -> list[TiffTag]:
    """The tags of an uncompressed page in one strip."""
    length = width * height * sum(bits) // 8
    return [
        (256, 4, [width]), (257, 4, [height]), (258, 3, bits), (259, 3, [1]), (262, 3, [photometric]), (273, 4, [0]),
        (277, 3, [len(bits)]), (278, 4, [height]), (279, 4, [length]), *more,
    ]  # fmt: skip


def grey_page(width: int, height: int, *more: TiffTag) -> tuple[list[TiffTag], bytes]:
    """An uncompressed page of 8-bit grey."""
    return uncompressed_tags(width, height, [8], 1, *more), bytes(width * height)
