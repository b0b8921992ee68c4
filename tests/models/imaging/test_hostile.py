"""Images from phones, scanners, satellites and attackers, each with its expected size or error."""

import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import (
    CorruptImageError,
    ImageError,
    ImageTooLargeError,
    InsufficientMemoryError,
    MultiFrameImageError,
    UnsupportedFormatError,
)
from models.imaging import decode, png_limits
from models.imaging.decode import decode_image
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import (
    encode_image,
    grey_page,
    isobmff_box,
    jpeg_segment,
    make_png,
    make_tiff,
    png_chunk,
    uncompressed_tags,
)

ROOT = Path(__file__).parents[3]
HOSTILE_FOLDER = ROOT.parent / "shared" / "data" / "hostile"

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # as models/imaging/decode.py filters them outside pytest

Outcome = type[ImageError] | tuple[int, int]  # the error, or the (height, width) of the decoded image

EXPECTED_OUTCOMES: dict[str, Outcome] = {
    "libvips__17000x17000.avif": ImageTooLargeError,
    "libvips__1bit.tif": (4, 256),
    "libvips__indexed.png": (442, 290),
    "libvips__logo.svg": UnsupportedFormatError,
    "libvips__multi-channel-z-series.ome.tif": MultiFrameImageError,
    "libvips__rgba.png": (128, 128),
    "libvips__rotation_3.jpg": (410, 308),
    "libvips__rotation_6.jpg": (308, 231),
    "libvips__sample-xyb.jpg": (442, 290),
    "libvips__sample.hdr": UnsupportedFormatError,
    "libvips__sample.tif": (442, 290),
    "libvips__truncated.gif": UnsupportedFormatError,
    "pillow__10ct_32bit_128.tiff": (128, 128),
    "pillow__16bit.deflate.tif": (64, 64),
    "pillow__app13-multiple.jpg": (160, 256),
    "pillow__avif_hopper.avif": (128, 128),
    "pillow__broken_data_stream.png": CorruptImageError,
    "pillow__decompression_bomb.gif": UnsupportedFormatError,
    "pillow__decompression_bomb.ico": UnsupportedFormatError,
    "pillow__exif_imagemagick_orientation.png": (512, 512),
    "pillow__exif_typeerror.jpg": (531, 800),
    "pillow__hopper.Lab.tif": (128, 128),
    "pillow__hopper.bmp": (128, 128),
    "pillow__hopper.gif": UnsupportedFormatError,
    "pillow__hopper.jpg": (128, 128),
    "pillow__hopper.ppm": UnsupportedFormatError,
    "pillow__hopper_bad_exif.jpg": (500, 500),
    "pillow__hopper_gray_4bpp.tif": (128, 128),
    "pillow__hopper_idat_after_image_end.png": (128, 128),
    "pillow__hopper_orientation_6.webp": (128, 128),
    "pillow__icc_profile_big.jpg": (250, 425),
    "pillow__iss634.gif": UnsupportedFormatError,
    "pillow__jpeg_ff00_header.jpg": (225, 300),
    "pillow__junk_jpeg_header.jpg": (768, 1024),
    "pillow__old-style-jpeg-compression.tif": (870, 4160),
    "pillow__pil123p.png": (150, 162),
    "pillow__pil_sample_cmyk.jpg": (100, 100),
    "pillow__tiff_16bit_RGB.tiff": (40, 100),
    "pillow__tiff_16bit_RGBa.tiff": (40, 100),
    "pillow__tiff_strip_cmyk_jpeg.tif": (100, 100),
    "pillow__tiff_tiled_planar_lzw.tiff": (374, 278),
    "pillow__transparent.png": (150, 200),
    "pillow__truncated_end_chunk.png": CorruptImageError,
    "pillow__truncated_image.png": CorruptImageError,
    "pillow__truncated_jpeg.jpg": CorruptImageError,
    "pillow__xmp_tags_orientation.png": (268, 326),
    "pillow__zero_width.gif": UnsupportedFormatError,
}
NEEDS_HOSTILE_FILES = pytest.mark.skipif(
    not HOSTILE_FOLDER.is_dir(), reason=f"the hostile images are not at {HOSTILE_FOLDER}"
)


def check_outcome(data: bytes, outcome: Outcome, max_pixels: int = decode.MAX_PIXELS) -> None:
    if isinstance(outcome, tuple):
        decoded = decode_image(data, max_pixels)
        assert (decoded.shape, decoded.dtype) == ((*outcome, 3), np.uint8)
        return
    with pytest.raises(ImageError) as refused:
        decode_image(data, max_pixels)
    assert type(refused.value) is outcome, refused.value


@NEEDS_HOSTILE_FILES
@pytest.mark.parametrize("file", EXPECTED_OUTCOMES)
def test_hostile_files(file: str) -> None:
    check_outcome((HOSTILE_FOLDER / "files" / file).read_bytes(), EXPECTED_OUTCOMES[file])


@NEEDS_HOSTILE_FILES
def test_every_hostile_file_is_listed() -> None:
    assert {path.name for path in (HOSTILE_FOLDER / "files").iterdir()} == set(EXPECTED_OUTCOMES)


@NEEDS_HOSTILE_FILES
def test_lab_is_converted_by_the_cie_formulas() -> None:
    """Compared with CIE's formulas, and with the same photograph as a JPEG."""
    decoded = decode_image((HOSTILE_FOLDER / "files" / "pillow__hopper.Lab.tif").read_bytes()).astype(int)
    with Image.open(HOSTILE_FOLDER / "files" / "pillow__hopper.Lab.tif") as opened:
        stored = np.frombuffer(opened.tobytes(), np.uint8).reshape(128, 128, 3)
    lightness, a, b = stored[..., 0] * (100 / 255), stored[..., 1].view(np.int8), stored[..., 2].view(np.int8)
    y = (lightness + 16) / 116
    cubed = [np.where(v > 6 / 29, v**3, 3 * (6 / 29) ** 2 * (v - 4 / 29)) for v in (y + a / 500, y, y - b / 200)]
    xyz = np.stack(cubed, axis=-1) * (0.9642, 1.0, 0.8249)
    from_xyz = np.array([[3.13386, -1.61687, -0.49061], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]])
    light = (xyz @ from_xyz.T).clip(0, 1)
    expected = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(decoded - expected).mean() < 1
    assert np.abs(decoded - decode_image((HOSTILE_FOLDER / "files" / "pillow__hopper.jpg").read_bytes())).mean() < 4


@pytest.mark.parametrize("interlace", [0, 1], ids=["plain", "interlaced"])
@pytest.mark.parametrize("height", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("width", [1, 5, 9])
@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (4, 3), (16, 0), (8, 2), (8, 4), (16, 6)], ids=str)
def test_a_truncated_black_png_is_detected(width: int, height: int, bits: int, colour: int, interlace: int) -> None:
    """Pillow leaves missing rows black."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + (png_chunk(b"PLTE", bytes(3)) if colour == 3 else b"")
    rows = bytes(png_limits._decompressed_size(start))
    check_outcome(start + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b""), (height, width))
    cut = zlib.compress(rows[:-1])
    check_outcome(
        start + png_chunk(b"IDAT", cut[:5]) + png_chunk(b"IDAT", cut[5:]) + png_chunk(b"IEND", b""), CorruptImageError
    )


def make_webp(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def vp8x_chunk(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes((flags, 0, 0, 0)) + sides


def vp8_chunk(side: int) -> tuple[bytes, bytes]:
    data = encode_image(synthetic_image(side, side), "WEBP")
    return b"VP8 ", data[20:]


def avif_with_wrong_ispe(declared: tuple[int, int], coded: int) -> bytes:
    """An AVIF of coded x coded pixels whose boxes declare another (width, height)."""
    data = encode_image(synthetic_image(coded, coded), "AVIF")
    correct = b"ispe" + bytes(4) + struct.pack(">II", coded, coded)
    assert correct in data
    return data.replace(correct, b"ispe" + bytes(4) + struct.pack(">II", *declared))


JPEG = encode_image(synthetic_image(24, 32), "JPEG")
PROGRESSIVE = encode_image(synthetic_image(24, 32), "JPEG", progressive=True)
ROWS = b"".join(b"\0" + bytes(24) for _ in range(8))
PNG = make_png((8, 8), 8, 2, ROWS)
TEXT = zlib.compress(b"\xff" * 900_000, 9)


def jpeg_with_inserted(extra: bytes, offset: int = 2) -> bytes:
    return JPEG[:offset] + extra + JPEG[offset:]


def last_scan(data: bytes) -> bytes:
    return data[data.rindex(b"\xff\xda") : -2]


def exif_with_rationals(count: int) -> bytes:
    """EXIF with one tag, the resolution, of `count` fractions."""
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x011A, 5, count, 26, 0) + struct.pack("<II", 1, 1) * count


def make_rle_bmp(data: bytes, width: int = 16, height: int = 8) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + header + bytes(1024) + data


def make_tiled_tiff(tile: int, side: int = 16) -> bytes:
    pixels = zlib.compress(bytes(min(tile * tile, 1 << 20)))
    tags = [
        (256, 4, [side]), (257, 4, [side]), (258, 3, [8]), (259, 3, [8]), (262, 3, [1]), (277, 3, [1]),
        (322, 4, [tile]), (323, 4, [tile]), (324, 4, [8 + 2 + 12 * 10 + 4]), (325, 4, [len(pixels)]),
    ]  # fmt: skip
    return make_tiff((tags, pixels))


# Name -> bytes, and the expected size or error.
PIXEL_LIMIT = 10_000  # pixels
CRAFTED_CASES: dict[str, tuple[bytes, Outcome]] = {
    "png over the limit": (make_png((20_000, 20_000), 8, 2, b""), ImageTooLargeError),
    "png of 2^31 columns": (make_png((2**31 - 1, 1), 8, 0, b""), ImageTooLargeError),
    "png without width": (make_png((0, 5), 8, 2, b""), CorruptImageError),
    "png of impossible bits": (make_png((5, 5), 3, 2, ROWS), CorruptImageError),
    "png whose data continues after the image": (make_png((8, 8), 8, 2, bytes(1 << 20)), (8, 8)),
    "png with too little data": (make_png((8, 9), 8, 2, ROWS), CorruptImageError),
    "png with a wrong sum": (PNG.replace(b"IHDR\0\0\0\x08", b"IHDR\0\0\0\x09"), CorruptImageError),
    "png in text mode": (PNG.replace(b"\r\n", b"\n"), CorruptImageError),
    "png with compressed texts": (make_png((8, 8), 8, 2, ROWS, *[png_chunk(b"zTXt", b"k\0\0" + TEXT)] * 3), (8, 8)),
    "png bomb of texts": (
        make_png((8, 8), 8, 2, ROWS, *[png_chunk(b"iTXt", b"k\0\1\0\0\0" + TEXT)] * 200),
        CorruptImageError,
    ),
    "png bomb of profiles": (
        make_png((8, 8), 8, 2, ROWS, *[png_chunk(b"iCCP", b"k\0\0" + TEXT)] * 200),
        CorruptImageError,
    ),
    "png bomb of texts at the end": (
        PNG[:-12] + png_chunk(b"iTXt", b"k\0\1\0\0\0" + TEXT) * 200 + PNG[-12:],
        CorruptImageError,
    ),
    "png of empty chunks": (make_png((8, 8), 8, 2, ROWS, png_chunk(b"abCd", b"") * 40_000), CorruptImageError),
    "png of empty data chunks": (make_png((8, 8), 8, 2, ROWS, png_chunk(b"IDAT", b"") * 40_000), CorruptImageError),
    "png text of 900 kB": (make_png((8, 8), 8, 2, ROWS, png_chunk(b"zTXt", b"k\0\0" + TEXT)), (8, 8)),
    "png with an EXIF bomb": (make_png((8, 8), 8, 2, ROWS, png_chunk(b"eXIf", exif_with_rationals(200_000))), (8, 8)),
    "png that declares an animation of one frame": (
        make_png((8, 8), 8, 2, ROWS, png_chunk(b"acTL", struct.pack(">II", 1, 0))),
        MultiFrameImageError,
    ),
    "png that declares an animation of no frames": (
        make_png((8, 8), 8, 2, ROWS, png_chunk(b"acTL", struct.pack(">II", 0, 0))),
        (8, 8),
    ),
    "jpeg with progressive scans": (PROGRESSIVE, (24, 32)),
    "jpeg bomb of scans": (PROGRESSIVE[:-2] + last_scan(PROGRESSIVE) * 200 + PROGRESSIVE[-2:], CorruptImageError),
    "jpeg with scans in what follows it": (JPEG + PROGRESSIVE * 30, (24, 32)),
    "jpeg bomb of comments": (jpeg_with_inserted(b"\xff\xfe\0\2" * 20_000), CorruptImageError),
    "jpeg with some comments": (jpeg_with_inserted(jpeg_segment(0xFE, b"hello") * 50), (24, 32)),
    "jpeg with some junk": (jpeg_with_inserted(bytes(5000), 20), (24, 32)),
    "jpeg bomb of junk": (jpeg_with_inserted(bytes(3 << 20), 20), CorruptImageError),
    "jpeg bomb of fillers": (jpeg_with_inserted(b"\xff" * (3 << 20), 20), CorruptImageError),
    "jpeg bomb of EXIF": (
        jpeg_with_inserted(jpeg_segment(0xE1, b"Exif\0\0" + exif_with_rationals(8000)) * 9),
        CorruptImageError,
    ),
    "jpeg with much EXIF": (jpeg_with_inserted(jpeg_segment(0xE1, b"Exif\0\0" + exif_with_rationals(8000))), (24, 32)),
    "jpeg with a broken index of images": (
        jpeg_with_inserted(jpeg_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff")),
        (24, 32),
    ),
    "jpeg with an index of 2^32 images": (
        jpeg_with_inserted(jpeg_segment(0xE2, b"MPF\0" + make_tiff([(0xB001, 4, [2**32 - 1]), (0xB002, 4, [1])]))),
        (24, 32),
    ),
    "jpeg of 65535 x 65535": (
        JPEG.replace(b"\xff\xc0\0\x11\x08\0\x18\0\x20", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff"),
        ImageTooLargeError,
    ),
    "jpeg of no rows": (JPEG.replace(b"\xff\xc0\0\x11\x08\0\x18", b"\xff\xc0\0\x11\x08\0\0"), CorruptImageError),
    "jpeg of 12 bits": (JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), CorruptImageError),
    "jpeg with two frames": (
        JPEG.replace(b"\xff\xc0", jpeg_segment(0xC0, b"\x08\0\1\0\1\1\1\x11\0") + b"\xff\xc0"),
        CorruptImageError,
    ),
    "jpeg with only tables": (JPEG[: JPEG.index(b"\xff\xc0")] + b"\xff\xd9", CorruptImageError),
    "webp canvas over the limit": (make_webp([vp8x_chunk(16_000, 16_000), vp8_chunk(16)]), ImageTooLargeError),
    "webp animation on a canvas over the limit": (
        make_webp([vp8x_chunk(60_000, 60_000, 2), vp8_chunk(16)]),
        ImageTooLargeError,
    ),
    "webp canvas larger than its frame": (make_webp([vp8x_chunk(90, 90), vp8_chunk(16)]), CorruptImageError),
    "webp canvas smaller than its frame": (make_webp([vp8x_chunk(8, 8), vp8_chunk(200)]), CorruptImageError),
    "webp of a frame over the limit": (make_webp([vp8_chunk(200)]), ImageTooLargeError),
    "webp lossless over the limit": (
        encode_image(synthetic_image(200, 200), "WEBP", lossless=True),
        ImageTooLargeError,
    ),
    "webp without an image": (make_webp([vp8x_chunk(8, 8)]), CorruptImageError),
    "webp with an EXIF bomb": (encode_image(synthetic_image(8, 8), "WEBP", exif=exif_with_rationals(200_000)), (8, 8)),
    "avif that declares too large a size": (avif_with_wrong_ispe((5000, 5000), 16), ImageTooLargeError),
    "avif that declares more than libavif decodes": (avif_with_wrong_ispe((60_000, 60_000), 16), ImageTooLargeError),
    "avif that declares too small a size": (avif_with_wrong_ispe((2, 2), 160), ImageTooLargeError),
    "avif with an EXIF bomb": (
        encode_image(synthetic_image(8, 8), "AVIF", exif=exif_with_rationals(100_000)),
        CorruptImageError,
    ),
    "avif bomb of boxes": (
        isobmff_box(b"ftyp", b"avif", bytes(4), b"mif1") + isobmff_box(b"free") * 20_000,
        CorruptImageError,
    ),
    "avif without an image": (isobmff_box(b"ftyp", b"avif", bytes(4), b"avif"), CorruptImageError),
    "avif of boxes in boxes": (
        isobmff_box(b"ftyp", b"avif", bytes(4), b"avif") + struct.pack(">I4s", 0, b"moov") * 3000,
        CorruptImageError,
    ),
    "tiff over the limit": (make_tiff(uncompressed_tags(20_000, 20_000, [8], 1)), ImageTooLargeError),
    "tiff of large tiles": (make_tiled_tiff(1024), (16, 16)),
    "tiff of huge tiles": (make_tiled_tiff(40_000), ImageTooLargeError),
    "tiff bomb of strips": (
        make_tiff(([*uncompressed_tags(1, 8, [8], 1)[:5], (273, 4, [0] * 500_000)], bytes(8))),
        CorruptImageError,
    ),
    "tiff bomb of samples": (
        make_tiff(([*uncompressed_tags(8, 8, [8], 1)[:2], (258, 3, [8] * 500_000)], b"")),
        CorruptImageError,
    ),
    "tiff bomb of tags": (make_tiff([(tag, 3, [1]) for tag in range(256, 4000)]), CorruptImageError),
    "tiff of 65,535 strips": (
        make_tiff(
            (
                [
                    *uncompressed_tags(1, 3000, [8], 1)[:5],
                    (277, 3, [1]),
                    (278, 4, [1]),
                    (279, 4, [1] * 3000),
                    (324, 4, [1]),
                ],
                b"",
            )
        ),
        CorruptImageError,
    ),
    "tiff without its strips": (
        make_tiff((uncompressed_tags(2, 1, [8] * 3, 2, (284, 3, [2])), bytes(6))),
        CorruptImageError,
    ),
    "tiff with its pixels beyond the end": (make_tiff(grey_page(16, 8))[:-20], CorruptImageError),
    "tiff with its directory beyond the end": (b"II*\0" + struct.pack("<I", 5000) + bytes(100), CorruptImageError),
    "tiff without a directory": (b"II*\0\0\0\0\0" + bytes(100), CorruptImageError),
    "tiff with an EXIF beyond the end": (make_tiff(grey_page(16, 8, (34665, 4, [99_999]))), (8, 16)),
    "tiff with an EXIF that is itself": (make_tiff(grey_page(16, 8, (34665, 4, [8]))), (8, 16)),
    "tiff of 13 bands": (
        make_tiff((uncompressed_tags(2, 2, [16] * 13, 1, (338, 3, [0] * 12)), bytes(104))),
        UnsupportedFormatError,
    ),
    "bmp in runs": (make_rle_bmp(b"\x10\x05\0\0" * 8 + b"\0\1"), (8, 16)),
    "bmp bomb of runs": (make_rle_bmp(b"\0\0" * (3 << 20)), ImageTooLargeError),
    "bmp of no size": (make_rle_bmp(b"", 0, 0), CorruptImageError),
    "bmp over the limit": (make_rle_bmp(b"", 30_000, 30_000), ImageTooLargeError),
}


@pytest.mark.parametrize(("data", "outcome"), CRAFTED_CASES.values(), ids=CRAFTED_CASES)
def test_crafted_images(data: bytes, outcome: Outcome) -> None:
    check_outcome(data, outcome, PIXEL_LIMIT)


@pytest.mark.parametrize("stage", ["open", "load", "transpose"])
def test_insufficient_memory_is_reported(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MemoryError is simulated, because a test must not use up the machine's memory."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode_image(synthetic_image(8, 8), "PNG", exif=exif)
    method = {
        "open": (decode.PngImageFile, "_open"),
        "load": (decode.PngImageFile, "load"),
        "transpose": (Image.Image, "transpose"),
    }
    monkeypatch.setattr(*method[stage], fail)
    with pytest.raises(InsufficientMemoryError, match="free memory"):
        decode_image(data)


def test_refused_images_use_little_memory() -> None:
    """Decodes every crafted image in one process: refused ones must not be decoded first."""
    bombs = [data for data, outcome in CRAFTED_CASES.values() if outcome is not UnsupportedFormatError]
    code = (
        "import resource, sys, struct\n"
        "from models.imaging.decode import decode_image\n"
        "from models.errors import ImageError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "while head := sys.stdin.buffer.read(4):\n"
        "    data = sys.stdin.buffer.read(struct.unpack('<I', head)[0])\n"
        "    try: decode_image(data, 10_000)\n"
        "    except ImageError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    sent = b"".join(struct.pack("<I", len(data)) + data for data in bombs)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=sent, capture_output=True, check=True)
    assert done.stderr == b""
    assert int(done.stdout) < 100_000  # KiB; the largest file is of 6 MB


def test_libraries_write_nothing_to_stderr() -> None:
    """libtiff and Pillow's logger would."""
    code = (
        "import sys, struct\n"
        "from models.imaging.decode import decode_image\n"
        "while head := sys.stdin.buffer.read(4):\n"
        "    try: decode_image(sys.stdin.buffer.read(struct.unpack('<I', head)[0]))\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    random, sent = np.random.default_rng(0), b""
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "lzma"):
        data = encode_image(synthetic_image(40, 40), "TIFF", compression=compression)
        for offset in random.integers(8, len(data) - 8, 25):
            bad = data[:offset] + bytes(random.integers(0, 256, 8, dtype=np.uint8)) + data[offset + 8 :]
            sent += struct.pack("<I", len(bad)) + bad
    bands, _ = CRAFTED_CASES["tiff of 13 bands"]
    exif = Image.Exif()
    exif[0x0112] = 6
    cut_exif = encode_image(synthetic_image(16, 24), "JPEG", exif=exif.tobytes()[:-4])
    for data in (bands, cut_exif):
        sent += struct.pack("<I", len(data)) + data
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=sent, capture_output=True, check=True)
    assert done.stderr == b""
    assert set(done.stdout.split()) <= {
        b"CorruptImageError",
        b"MultiFrameImageError",
        b"ImageTooLargeError",
        b"UnsupportedFormatError",
    }
    assert done.stdout.count(b"CorruptImageError") > 20


def test_threads_decode_the_same() -> None:
    images = [data for data, _ in list(CRAFTED_CASES.values())[:40] if len(data) < 100_000]
    expected, seen = [], []

    def outcome(data: bytes) -> object:
        try:
            return decode_image(data, PIXEL_LIMIT).tobytes()
        except ImageError as error:
            return str(error)

    expected = [outcome(data) for data in images]
    threads = [threading.Thread(target=lambda: seen.append([outcome(data) for data in images])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert seen == [expected] * 6
