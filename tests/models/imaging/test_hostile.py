"""Pictures that phones, scanners, satellites and attackers send, each with what must come of it."""

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
    BrokenImage,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    SeveralPictures,
    TooLittleMemory,
)
from models.imaging import decode as room
from models.imaging import png_limits as png_room
from models.imaging.decode import decode
from tests.fixtures_bundles import drawing
from tests.fixtures_images import box, chunk, encoded, grey_page, plain, png, segment, tiff

ROOT = Path(__file__).parents[3]
HOSTILE = ROOT.parent / "shared" / "data" / "hostile"

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # as the room itself has it, outside pytest

Outcome = type[ImageError] | tuple[int, int]  # the error, or the decoded picture's (height, width)

FILES: dict[str, Outcome] = {
    "libvips__17000x17000.avif": ImageTooLarge,
    "libvips__1bit.tif": (4, 256),
    "libvips__indexed.png": (442, 290),
    "libvips__logo.svg": NotAnImage,
    "libvips__multi-channel-z-series.ome.tif": SeveralPictures,
    "libvips__rgba.png": (128, 128),
    "libvips__rotation_3.jpg": (410, 308),
    "libvips__rotation_6.jpg": (308, 231),
    "libvips__sample-xyb.jpg": (442, 290),
    "libvips__sample.hdr": NotAnImage,
    "libvips__sample.tif": (442, 290),
    "libvips__truncated.gif": NotAnImage,
    "pillow__10ct_32bit_128.tiff": (128, 128),
    "pillow__16bit.deflate.tif": (64, 64),
    "pillow__app13-multiple.jpg": (160, 256),
    "pillow__avif_hopper.avif": (128, 128),
    "pillow__broken_data_stream.png": BrokenImage,
    "pillow__decompression_bomb.gif": NotAnImage,
    "pillow__decompression_bomb.ico": NotAnImage,
    "pillow__exif_imagemagick_orientation.png": (512, 512),
    "pillow__exif_typeerror.jpg": (531, 800),
    "pillow__hopper.Lab.tif": (128, 128),
    "pillow__hopper.bmp": (128, 128),
    "pillow__hopper.gif": NotAnImage,
    "pillow__hopper.jpg": (128, 128),
    "pillow__hopper.ppm": NotAnImage,
    "pillow__hopper_bad_exif.jpg": (500, 500),
    "pillow__hopper_gray_4bpp.tif": (128, 128),
    "pillow__hopper_idat_after_image_end.png": (128, 128),
    "pillow__hopper_orientation_6.webp": (128, 128),
    "pillow__icc_profile_big.jpg": (250, 425),
    "pillow__iss634.gif": NotAnImage,
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
    "pillow__truncated_end_chunk.png": BrokenImage,
    "pillow__truncated_image.png": BrokenImage,
    "pillow__truncated_jpeg.jpg": BrokenImage,
    "pillow__xmp_tags_orientation.png": (268, 326),
    "pillow__zero_width.gif": NotAnImage,
}
PRESENT = pytest.mark.skipif(not HOSTILE.is_dir(), reason=f"the hostile pictures are not at {HOSTILE}")


def check(data: bytes, outcome: Outcome, max_pixels: int = room.MAX_PIXELS) -> None:
    if isinstance(outcome, tuple):
        decoded = decode(data, max_pixels)
        assert (decoded.shape, decoded.dtype) == ((*outcome, 3), np.uint8)
        return
    with pytest.raises(ImageError) as refused:
        decode(data, max_pixels)
    assert type(refused.value) is outcome, refused.value


@PRESENT
@pytest.mark.parametrize("file", FILES)
def test_hostile_files(file: str) -> None:
    check((HOSTILE / "files" / file).read_bytes(), FILES[file])


@PRESENT
def test_every_hostile_file_has_its_row() -> None:
    assert {path.name for path in (HOSTILE / "files").iterdir()} == set(FILES)


@PRESENT
def test_lab_comes_out_in_its_colours() -> None:
    """Against CIE's own formulas, and against the same photograph as a JPEG."""
    decoded = decode((HOSTILE / "files" / "pillow__hopper.Lab.tif").read_bytes()).astype(int)
    with Image.open(HOSTILE / "files" / "pillow__hopper.Lab.tif") as opened:
        stored = np.frombuffer(opened.tobytes(), np.uint8).reshape(128, 128, 3)
    lightness, a, b = stored[..., 0] * (100 / 255), stored[..., 1].view(np.int8), stored[..., 2].view(np.int8)
    y = (lightness + 16) / 116
    cubed = [np.where(v > 6 / 29, v**3, 3 * (6 / 29) ** 2 * (v - 4 / 29)) for v in (y + a / 500, y, y - b / 200)]
    xyz = np.stack(cubed, axis=-1) * (0.9642, 1.0, 0.8249)
    from_xyz = np.array([[3.13386, -1.61687, -0.49061], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]])
    light = (xyz @ from_xyz.T).clip(0, 1)
    expected = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(decoded - expected).mean() < 1
    assert np.abs(decoded - decode((HOSTILE / "files" / "pillow__hopper.jpg").read_bytes())).mean() < 4


@pytest.mark.parametrize("interlace", [0, 1], ids=["plain", "interlaced"])
@pytest.mark.parametrize("height", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("width", [1, 5, 9])
@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (4, 3), (16, 0), (8, 2), (8, 4), (16, 6)], ids=str)
def test_a_black_png_is_whole_or_not(width: int, height: int, bits: int, colour: int, interlace: int) -> None:
    """Black is what Pillow leaves where rows are missing."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"PLTE", bytes(3)) if colour == 3 else b"")
    rows = bytes(png_room._unpacked_size(start))
    check(start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""), (height, width))
    cut = zlib.compress(rows[:-1])
    check(start + chunk(b"IDAT", cut[:5]) + chunk(b"IDAT", cut[5:]) + chunk(b"IEND", b""), BrokenImage)


def webp(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes((flags, 0, 0, 0)) + sides


def vp8(side: int) -> tuple[bytes, bytes]:
    data = encoded(drawing(side, side), "WEBP")
    return b"VP8 ", data[20:]


def lying_avif(told: tuple[int, int], coded: int) -> bytes:
    """An AVIF of coded x coded pixels whose boxes tell another (width, height)."""
    data = encoded(drawing(coded, coded), "AVIF")
    honest = b"ispe" + bytes(4) + struct.pack(">II", coded, coded)
    assert honest in data
    return data.replace(honest, b"ispe" + bytes(4) + struct.pack(">II", *told))


JPEG = encoded(drawing(24, 32), "JPEG")
PROGRESSIVE = encoded(drawing(24, 32), "JPEG", progressive=True)
ROWS = b"".join(b"\0" + bytes(24) for _ in range(8))
PNG = png((8, 8), 8, 2, ROWS)
TEXT = zlib.compress(b"\xff" * 900_000, 9)


def jpeg_with(extra: bytes, place: int = 2) -> bytes:
    return JPEG[:place] + extra + JPEG[place:]


def last_scan(data: bytes) -> bytes:
    return data[data.rindex(b"\xff\xda") : -2]


def exif_of(count: int) -> bytes:
    """EXIF of one tag, the resolution, with so many fractions."""
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x011A, 5, count, 26, 0) + struct.pack("<II", 1, 1) * count


def bmp_in_runs(data: bytes, width: int = 16, height: int = 8) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + header + bytes(1024) + data


def tiled(tile: int, side: int = 16) -> bytes:
    pixels = zlib.compress(bytes(min(tile * tile, 1 << 20)))
    tags = [
        (256, 4, [side]), (257, 4, [side]), (258, 3, [8]), (259, 3, [8]), (262, 3, [1]), (277, 3, [1]),
        (322, 4, [tile]), (323, 4, [tile]), (324, 4, [8 + 2 + 12 * 10 + 4]), (325, 4, [len(pixels)]),
    ]  # fmt: skip
    return tiff((tags, pixels))


# Made here: a name, the bytes, what must come of them.
LIMIT = 10_000  # pixels
MADE: dict[str, tuple[bytes, Outcome]] = {
    "png over the limit": (png((20_000, 20_000), 8, 2, b""), ImageTooLarge),
    "png of 2^31 columns": (png((2**31 - 1, 1), 8, 0, b""), ImageTooLarge),
    "png without width": (png((0, 5), 8, 2, b""), BrokenImage),
    "png of impossible bits": (png((5, 5), 3, 2, ROWS), BrokenImage),
    "png whose data goes on after the picture": (png((8, 8), 8, 2, bytes(1 << 20)), (8, 8)),
    "png with too little data": (png((8, 9), 8, 2, ROWS), BrokenImage),
    "png with a wrong sum": (PNG.replace(b"IHDR\0\0\0\x08", b"IHDR\0\0\0\x09"), BrokenImage),
    "png in text mode": (PNG.replace(b"\r\n", b"\n"), BrokenImage),
    "png with compressed texts": (png((8, 8), 8, 2, ROWS, *[chunk(b"zTXt", b"k\0\0" + TEXT)] * 3), (8, 8)),
    "png bomb of texts": (png((8, 8), 8, 2, ROWS, *[chunk(b"iTXt", b"k\0\1\0\0\0" + TEXT)] * 200), BrokenImage),
    "png bomb of profiles": (png((8, 8), 8, 2, ROWS, *[chunk(b"iCCP", b"k\0\0" + TEXT)] * 200), BrokenImage),
    "png bomb of texts at the end": (
        PNG[:-12] + chunk(b"iTXt", b"k\0\1\0\0\0" + TEXT) * 200 + PNG[-12:], BrokenImage,
    ),
    "png of empty chunks": (png((8, 8), 8, 2, ROWS, chunk(b"abCd", b"") * 40_000), BrokenImage),
    "png of empty data chunks": (png((8, 8), 8, 2, ROWS, chunk(b"IDAT", b"") * 40_000), BrokenImage),
    "png text of 900 kB": (png((8, 8), 8, 2, ROWS, chunk(b"zTXt", b"k\0\0" + TEXT)), (8, 8)),
    "png with an EXIF bomb": (png((8, 8), 8, 2, ROWS, chunk(b"eXIf", exif_of(200_000))), (8, 8)),
    "png that says animation of one frame": (
        png((8, 8), 8, 2, ROWS, chunk(b"acTL", struct.pack(">II", 1, 0))), SeveralPictures,
    ),
    "png that says animation of nothing": (
        png((8, 8), 8, 2, ROWS, chunk(b"acTL", struct.pack(">II", 0, 0))), (8, 8),
    ),
    "jpeg with progressive scans": (PROGRESSIVE, (24, 32)),
    "jpeg bomb of scans": (PROGRESSIVE[:-2] + last_scan(PROGRESSIVE) * 200 + PROGRESSIVE[-2:], BrokenImage),
    "jpeg with scans in what follows it": (JPEG + PROGRESSIVE * 30, (24, 32)),
    "jpeg bomb of comments": (jpeg_with(b"\xff\xfe\0\2" * 20_000), BrokenImage),
    "jpeg with some comments": (jpeg_with(segment(0xFE, b"hello") * 50), (24, 32)),
    "jpeg with some junk": (jpeg_with(bytes(5000), 20), (24, 32)),
    "jpeg bomb of junk": (jpeg_with(bytes(3 << 20), 20), BrokenImage),
    "jpeg bomb of fillers": (jpeg_with(b"\xff" * (3 << 20), 20), BrokenImage),
    "jpeg bomb of EXIF": (jpeg_with(segment(0xE1, b"Exif\0\0" + exif_of(8000)) * 9), BrokenImage),
    "jpeg with much EXIF": (jpeg_with(segment(0xE1, b"Exif\0\0" + exif_of(8000))), (24, 32)),
    "jpeg with a broken index of pictures": (jpeg_with(segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff")), (24, 32)),
    "jpeg with an index of 2^32 pictures": (
        jpeg_with(segment(0xE2, b"MPF\0" + tiff([(0xB001, 4, [2**32 - 1]), (0xB002, 4, [1])]))), (24, 32),
    ),
    "jpeg of 65535 x 65535": (JPEG.replace(b"\xff\xc0\0\x11\x08\0\x18\0\x20", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff"),
                              ImageTooLarge),
    "jpeg of no rows": (JPEG.replace(b"\xff\xc0\0\x11\x08\0\x18", b"\xff\xc0\0\x11\x08\0\0"), BrokenImage),
    "jpeg of 12 bits": (JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), BrokenImage),
    "jpeg with two frames": (JPEG.replace(b"\xff\xc0", segment(0xC0, b"\x08\0\1\0\1\1\1\x11\0") + b"\xff\xc0"), BrokenImage),
    "jpeg of tables alone": (JPEG[: JPEG.index(b"\xff\xc0")] + b"\xff\xd9", BrokenImage),
    "webp canvas over the limit": (webp([vp8x(16_000, 16_000), vp8(16)]), ImageTooLarge),
    "webp animation on a canvas over the limit": (webp([vp8x(60_000, 60_000, 2), vp8(16)]), ImageTooLarge),
    "webp canvas larger than its frame": (webp([vp8x(90, 90), vp8(16)]), BrokenImage),
    "webp canvas smaller than its frame": (webp([vp8x(8, 8), vp8(200)]), BrokenImage),
    "webp of a frame over the limit": (webp([vp8(200)]), ImageTooLarge),
    "webp lossless over the limit": (encoded(drawing(200, 200), "WEBP", lossless=True), ImageTooLarge),
    "webp without a picture": (webp([vp8x(8, 8)]), BrokenImage),
    "webp with an EXIF bomb": (encoded(drawing(8, 8), "WEBP", exif=exif_of(200_000)), (8, 8)),
    "avif that tells too much": (lying_avif((5000, 5000), 16), ImageTooLarge),
    "avif that tells more than libavif takes": (lying_avif((60_000, 60_000), 16), ImageTooLarge),
    "avif that tells too little": (lying_avif((2, 2), 160), ImageTooLarge),
    "avif with an EXIF bomb": (encoded(drawing(8, 8), "AVIF", exif=exif_of(100_000)), BrokenImage),
    "avif bomb of boxes": (box(b"ftyp", b"avif", bytes(4), b"mif1") + box(b"free") * 20_000, BrokenImage),
    "avif of nothing": (box(b"ftyp", b"avif", bytes(4), b"avif"), BrokenImage),
    "avif of boxes in boxes": (
        box(b"ftyp", b"avif", bytes(4), b"avif") + struct.pack(">I4s", 0, b"moov") * 3000, BrokenImage,
    ),
    "tiff over the limit": (tiff(plain(20_000, 20_000, [8], 1)), ImageTooLarge),
    "tiff of large tiles": (tiled(1024), (16, 16)),
    "tiff of monstrous tiles": (tiled(40_000), ImageTooLarge),
    "tiff bomb of strips": (tiff(([*plain(1, 8, [8], 1)[:5], (273, 4, [0] * 500_000)], bytes(8))), BrokenImage),
    "tiff bomb of samples": (tiff(([*plain(8, 8, [8], 1)[:2], (258, 3, [8] * 500_000)], b"")), BrokenImage),
    "tiff bomb of tags": (tiff([(tag, 3, [1]) for tag in range(256, 4000)]), BrokenImage),
    "tiff of 65,535 strips": (
        tiff(([*plain(1, 3000, [8], 1)[:5], (277, 3, [1]), (278, 4, [1]), (279, 4, [1] * 3000), (324, 4, [1])], b"")),
        BrokenImage,
    ),
    "tiff without its strips": (tiff((plain(2, 1, [8] * 3, 2, (284, 3, [2])), bytes(6))), BrokenImage),
    "tiff with its pixels beyond the end": (tiff(grey_page(16, 8))[:-20], BrokenImage),
    "tiff with its directory beyond the end": (b"II*\0" + struct.pack("<I", 5000) + bytes(100), BrokenImage),
    "tiff without a directory": (b"II*\0\0\0\0\0" + bytes(100), BrokenImage),
    "tiff with an EXIF beyond the end": (tiff(grey_page(16, 8, (34665, 4, [99_999]))), (8, 16)),
    "tiff with an EXIF that is itself": (tiff(grey_page(16, 8, (34665, 4, [8]))), (8, 16)),
    "tiff of 13 bands": (tiff((plain(2, 2, [16] * 13, 1, (338, 3, [0] * 12)), bytes(104))), BrokenImage),
    "bmp in runs": (bmp_in_runs(b"\x10\x05\0\0" * 8 + b"\0\1"), (8, 16)),
    "bmp bomb of runs": (bmp_in_runs(b"\0\0" * (3 << 20)), ImageTooLarge),
    "bmp of no size": (bmp_in_runs(b"", 0, 0), BrokenImage),
    "bmp over the limit": (bmp_in_runs(b"", 30_000, 30_000), ImageTooLarge),
}  # fmt: skip


@pytest.mark.parametrize(("data", "outcome"), MADE.values(), ids=MADE)
def test_made_pictures(data: bytes, outcome: Outcome) -> None:
    check(data, outcome, LIMIT)


@pytest.mark.parametrize("stage", ["open", "load", "transpose"])
def test_too_little_memory_is_told(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may take all of a machine's memory; only the moment is made up."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(drawing(8, 8), "PNG", exif=exif)
    place = {
        "open": (room.PngImageFile, "_open"),
        "load": (room.PngImageFile, "load"),
        "transpose": (Image.Image, "transpose"),
    }
    monkeypatch.setattr(*place[stage], fail)
    with pytest.raises(TooLittleMemory, match="free memory"):
        decode(data)


def test_memory_stays_within_what_the_limit_allows() -> None:
    """Each bomb in one process whose address space is bounded: what is refused must not have been made."""
    bombs = [data for data, outcome in MADE.values() if outcome is not NotAnImage]
    code = (
        "import resource, sys, struct\n"
        "from models.imaging.decode import decode\n"
        "from models.errors import ImageError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "while head := sys.stdin.buffer.read(4):\n"
        "    data = sys.stdin.buffer.read(struct.unpack('<I', head)[0])\n"
        "    try: decode(data, 10_000)\n"
        "    except ImageError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    sent = b"".join(struct.pack("<I", len(data)) + data for data in bombs)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=sent, capture_output=True, check=True)
    assert done.stderr == b""
    assert int(done.stdout) < 100_000  # KiB; the largest file is of 6 MB


def test_libraries_leave_stderr_alone() -> None:
    """libtiff and Pillow's logger write there of themselves."""
    code = (
        "import sys, struct\n"
        "from models.imaging.decode import decode\n"
        "while head := sys.stdin.buffer.read(4):\n"
        "    try: decode(sys.stdin.buffer.read(struct.unpack('<I', head)[0]))\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    random, sent = np.random.default_rng(0), b""
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "lzma"):
        data = encoded(drawing(40, 40), "TIFF", compression=compression)
        for place in random.integers(8, len(data) - 8, 25):
            bad = data[:place] + bytes(random.integers(0, 256, 8, dtype=np.uint8)) + data[place + 8 :]
            sent += struct.pack("<I", len(bad)) + bad
    bands, _ = MADE["tiff of 13 bands"]
    sent += struct.pack("<I", len(bands)) + bands
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=sent, capture_output=True, check=True)
    assert done.stderr == b""
    assert set(done.stdout.split()) <= {b"BrokenImage", b"SeveralPictures", b"ImageTooLarge", b"NotAnImage"}
    assert done.stdout.count(b"BrokenImage") > 20


def test_threads_decode_at_once() -> None:
    pictures = [data for data, _ in list(MADE.values())[:40] if len(data) < 100_000]
    expected, seen = [], []

    def outcome(data: bytes) -> object:
        try:
            return decode(data, LIMIT).tobytes()
        except ImageError as error:
            return str(error)

    expected = [outcome(data) for data in pictures]
    threads = [threading.Thread(target=lambda: seen.append([outcome(data) for data in pictures])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert seen == [expected] * 6
