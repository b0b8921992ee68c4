"""What small images cost to decode: seconds of CPU, memory, and how long Python's lock was held.

    python -m benchmarks.hostile [--code FOLDER] [--only WORD]     FOLDER: another checkout, to compare with

Each image is drawn here, has less than 1 MB, and is decoded in a process of its own, which is stopped after LIMIT_SECONDS
of CPU or at 6 GiB.
Writes benchmarks/results/hostile.json; with --only, the rows that were measured.
"""

import argparse
import gzip
import json
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests import hostile_images as hostile
from tests import hostile_samples as samples
from tests.fixtures_images import encode_image, jpeg_segment, make_png, png_chunk

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "hostile.json"
FLOAT_PREDICTOR = ((317, 3, [3]), (339, 3, [3]))  # tags of a TIFF
XMP_ID = b"http://ns.adobe.com/xap/1.0/\0"
LIMIT_SECONDS = 10  # of CPU, because the machine may be busy
# By format, the axes of what the readers of samples read; others are photographs.
SAMPLE_AXES = {"npy": "HW", "npz": "HW", "TIFF bands": "HW", "signal": "T", "volume": "DHW"}
SIDE = 7000  # 49 megapixels, below the service's limit

# Runs in the code that is measured. A thread that wants to run every millisecond notices when the lock is held.
MEASURE = """
import json, resource, sys, threading, time
from models.errors import MaskserveError
if sys.argv[3] != "photograph":
    import pydicom.pixels
    from models.readers import read_sample
    def decode_image(data, max_pixels): return read_sample(data, max_pixels, sys.argv[3]).values
else:
    from models.imaging.decode import decode_image
data, longest, done = open(sys.argv[1], "rb").read(), 0.0, False
def peak_mib():  # not ru_maxrss, which begins with the peak of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10
open("/proc/self/clear_refs", "w").write("5")
idle_mib, before = peak_mib(), resource.getrusage(resource.RUSAGE_SELF)
used = int(before.ru_utime + before.ru_stime) + 1
resource.setrlimit(resource.RLIMIT_CPU, (used + int(sys.argv[2]), resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
def watch():
    global longest
    last = time.perf_counter()
    while not done:
        time.sleep(0.001)
        now = time.perf_counter()
        longest = max(longest, now - last)
        last = now
thread = threading.Thread(target=watch); thread.start()
try: outcome = "x".join(map(str, decode_image(data, 50_000_000).shape[:3 if sys.argv[3] == "DHW" else 2]))
except Exception as error: outcome = type(error).__name__
done = True; thread.join()
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"outcome": outcome, "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
    "mib": peak_mib() - idle_mib, "lock_ms": round(longest * 1e3)}))
"""


def exif_of_rationals(count: int) -> bytes:
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x011A, 5, count, 26, 0) + struct.pack("<II", 1, 1) * count


def large_rows(bytes_per_row: int) -> bytes:
    return bytes((1 + bytes_per_row) * SIDE)


def jpeg_after(*segments: bytes) -> bytes:
    """A small JPEG with these segments before its own."""
    return b"\xff\xd8" + b"".join(segments) + encode_image(np.zeros((8, 8, 3), np.uint8), "JPEG")[2:]


def interlaced(png: bytes) -> bytes:
    """The same header with Adam7, and the zeros of its rows: they are a little more."""
    height = struct.unpack_from(">I", png, 20)[0]
    header = b"IHDR" + png[16:28] + b"\1"
    pixels = zlib.compress(bytes(6 * SIDE * SIDE + 16 * height), 9)
    return png[:8] + png_chunk(b"IHDR", header[4:]) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def cheap_chain_of_the_limit() -> bytes:
    return hostile.profile_with_curves(31, 5)


IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "ICC, 1 curve set of 32,000 segments": (
        "all",
        lambda: hostile.png_with_profile(hostile.profile_with_curves(1, 32_000)),
    ),
    "ICC, the longest chain that is read": ("all", lambda: hostile.png_with_profile(cheap_chain_of_the_limit())),
    "run-length BMP, 50 megapixels": ("BMP", lambda: hostile.run_length_bmp(50_000_000, 1, 8, b"\1\1\0\0")),
    "run-length BMP, 4 megapixels": ("BMP", lambda: hostile.run_length_bmp(1_000_000, 4, 8, b"\1\1\0\0" * 4)),
    "RGBA of 16 bits, 49 megapixels": ("PNG", lambda: make_png((SIDE, SIDE), 16, 6, large_rows(8 * SIDE))),
    "palette with transparency, 49 megapixels": (
        "PNG",
        lambda: make_png((SIDE, SIDE), 8, 3, large_rows(SIDE), png_chunk(b"PLTE", bytes(6)), png_chunk(b"tRNS", b"\1")),
    ),
    "interlaced, 16 bits, 49 megapixels": (
        "PNG",
        lambda: interlaced(make_png((SIDE, SIDE), 16, 2, large_rows(6 * SIDE))),
    ),
    "10,000 pieces of pixel data": (
        "PNG",
        lambda: make_png((8, 8), 8, 0, bytes(72), *[png_chunk(b"IDAT", b"")] * 9_000),
    ),
    "XMP of 1 MB": (
        "PNG",
        lambda: make_png(
            (8, 8),
            8,
            0,
            bytes(72),
            *[png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(1_000_000)))] * 60,
        ),
    ),
    "60 texts of 1 MB": (
        "PNG",
        lambda: make_png((8, 8), 8, 0, bytes(72), *[png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 60),
    ),
    "progressive, 100 scans, 10 megapixels": ("JPEG", lambda: hostile.jpeg_of_scans(3160, 3160, 90)),
    "progressive, 100 scans, 49 megapixels": ("JPEG", lambda: hostile.jpeg_of_scans(SIDE, SIDE, 90)),
    "progressive, 22 scans, 49 megapixels": ("JPEG", lambda: hostile.jpeg_of_scans(SIDE, SIDE, 12)),
    "450,000 restart markers": ("JPEG", lambda: hostile.jpeg_of_restart_markers(450_000, in_scan=False)),
    "arithmetic-coded, 49 megapixels": ("JPEG", lambda: hostile.arithmetic_jpeg(SIDE, SIDE, 900_000)),
    "arithmetic-coded, progressive, 20 scans, 49 megapixels": (
        "JPEG",
        lambda: hostile.arithmetic_jpeg(SIDE, SIDE, 2000, 20),
    ),
    "5,000 scans": ("JPEG", lambda: hostile.jpeg_of_scans(64, 64, 5000)),
    "255 components": ("JPEG", lambda: hostile.jpeg_of_components(255)),
    "CMYK, 49 megapixels": (
        "JPEG",
        lambda: hostile.resized_jpeg(encode_image(Image.new("CMYK", (16, 16)), "JPEG"), SIDE, SIDE),
    ),
    "900 KB of XMP": ("JPEG", lambda: jpeg_after(*[jpeg_segment(0xE1, XMP_ID + bytes(65_000))] * 13)),
    "14 profiles in pieces of 64 KB": (
        "JPEG",
        lambda: jpeg_after(
            *[jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 14]) + bytes(65_000)) for n in range(14)]
        ),
    ),
    "EXIF of 64 KB of fractions": (
        "JPEG",
        lambda: jpeg_after(jpeg_segment(0xE1, b"Exif\0\0" + exif_of_rationals(8000))),
    ),
    "65,536 sets of Huffman tables": ("WebP", hostile.webp_of_groups),
    "900 KB of XMP ": ("WebP", lambda: encode_image(np.zeros((8, 8, 3), np.uint8), "WEBP", xmp=bytes(900_000))),
    "lossless, 49 megapixels": (
        "WebP",
        lambda: encode_image(Image.new("RGB", (SIDE, SIDE)), "WEBP", lossless=True, method=0, quality=0),
    ),
    "160 frames of 2000 x 2000 in one item": ("AVIF", lambda: hostile.avif_of_frames(2000, 16, 10)),
    "an item of 3,000 times the file": (
        "AVIF",
        lambda: hostile.avif_file([(1, b"av01", bytes(900_000))], 8, extents=3000),
    ),
    "18,000 strips in one place": ("TIFF", lambda: hostile.tiff_of_shared_strips(18_000, 1 << 19)),
    "20,000 tiles of 4 megapixels": (
        "TIFF",
        lambda: hostile.tiff_of_shared_tiles(40_000_000, 2000, 8, zlib.compress(bytes(2000 * 2000), 9)),
    ),
    **{
        f"{name}, 49 megapixels": (
            "TIFF",
            lambda mode=mode, name=name: encode_image(Image.new(mode, (SIDE, SIDE)), "TIFF", compression=name),
        )
        for mode, name in (
            ("RGBA", "lzma"),
            ("RGBA", "zstd"),
            ("RGBA", "tiff_lzw"),
            ("RGBA", "packbits"),
            ("1", "group4"),
            ("RGB", "jpeg"),
        )
    },
    "float, 49 megapixels": (
        "TIFF",
        lambda: encode_image(Image.new("F", (SIDE, SIDE)), "TIFF", compression="tiff_adobe_deflate"),
    ),
    "64 bands, 49 million samples": (
        "TIFF bands",
        lambda: hostile.tiff_of_bands(875, 875, 64, 16),
    ),
    "1 pixel a tile, 100,000 tiles": (
        "TIFF bands",
        lambda: hostile.tiff_of_shared_tiles(316, 1, 8, zlib.compress(b"\0"), 316),
    ),
    "float predictor, 49 megapixels of float64": (
        "TIFF bands",
        lambda: hostile.tiff_of_bands(SIDE, SIDE, 1, 64, *FLOAT_PREDICTOR),
    ),
    "header of 300,000 brackets": ("npy", lambda: hostile.npy_file("(" * 300_000)),
    "an array of 900 megapixels": ("npz", lambda: hostile.npz_file((30_000, 30_000), 300_000_000)),
    "10,000 members in one place": ("npz", hostile.npz_of_overlapping_members),
    "LZMA": ("npz", lambda: hostile.npz_file((4000, 4000), 16_000_000, zipfile.ZIP_LZMA)),
    "49 megapixels of float64": ("npz", lambda: hostile.npz_file((SIDE, SIDE), 8 * SIDE * SIDE, dtype="<f8")),
    "a thumbnail of 200,000 strips": ("TIFF", lambda: hostile.tiff_after_a_thumbnail_of_strips(200_000)),
    "WFDB, 2,000 signals of two files in turn": (
        "signal",
        lambda: samples.wfdb(
            [f"{'ab'[index % 2]}.dat 80" for index in range(2000)], dict.fromkeys(("a.dat", "b.dat"), bytes(30 << 20))
        ),
    ),
    "WFDB, 50 million samples": (
        "signal", lambda: samples.wfdb(["a.dat 16", "a.dat 16"], {"a.dat": bytes(100_000_000)})
    ),
    "npz that states 400 bytes and holds 900 MB": (
        "signal", lambda: samples.lying_zip("values.npy", bytes(900_000_000), 400)
    ),
    "npz, 50 million names of channels": (
        "signal", lambda: samples.npz(values=np.zeros((4, 2)), channels=np.zeros(50_000_000, np.uint8))
    ),
    "npz, 50 million samples of float64": ("signal", lambda: samples.npz(values=np.zeros(50_000_000))),
    "CSV, a name of 100,000 brackets": ("signal", lambda: b"1," + b"(" * 100_000 + b"\n1,1\n2,1\n"),
    "CSV, a comment of 64 KB": ("signal", lambda: b"#1" + b"rate " * 13_000 + b"\n1\n2\n"),
    "CSV, 500,000 lines with a gap": ("signal", lambda: b"1\n" * 495_000 + b"-\n"),
    "EDF, 63 slow channels": ("signal", lambda: samples.edf([7001] + [997] * 63, 7)),
    "gzip of 45,000 members": ("volume", lambda: samples.gzip_of_empty_members(samples.nifti((8, 8, 8)), 45_000)),
    "NIfTI, 262 million voxels": (
        "volume", lambda: gzip.compress(samples.nifti((512, 512, 1000)) + bytes(512 * 512 * 1000))
    ),
    "zip of a text of 900 MB": ("volume", lambda: samples.zipped({"a.txt": bytes(900_000_000)})),
    "zip, a slice of 49 megapixels after one of 64": (
        "volume",
        lambda: samples.zipped({
            "1.png": make_png((8, 8), 8, 0, bytes(72)), "2.png": make_png((SIDE, SIDE), 16, 6, large_rows(8 * SIDE)),
        }),
    ),
    "zip of 4,000 DICOM images": (
        "volume", lambda: samples.zipped({str(index): samples.dicom(index=index) for index in range(4000)})
    ),
    "DICOM, 110,000 items": ("volume", lambda: samples.dicom(samples.sequence(110_000))),
    "DICOM, a JPEG of 100 megapixels in 64 pixels": ("volume", lambda: samples.dicom_of_jpeg(10_000)),
    "TIFF stack, 1,000 pages of one table": ("volume", lambda: samples.stack_of_shared_tables(1000, 60_000)),
}  # fmt: skip


def measure(file: Path, code: Path, format: str) -> dict[str, object]:
    command = [sys.executable, "-c", MEASURE, str(file), str(LIMIT_SECONDS), SAMPLE_AXES.get(format, "photograph")]
    done = subprocess.run(command, cwd=code, capture_output=True)
    if done.returncode == -signal.SIGXCPU:
        return {"outcome": f"stopped after {LIMIT_SECONDS} s of CPU"}
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"outcome": f"exit {done.returncode}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", type=Path, help="another checkout, to compare with")
    parser.add_argument("--only", default="", help="images whose format or name contains this; the other results stay")
    arguments = parser.parse_args()
    code = arguments.code
    rows = {row["image"]: row for row in json.loads(RESULTS.read_text())} if arguments.only else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (format, draw) in IMAGES.items():
            if arguments.only not in f"{format} {name}":
                continue
            file = Path(folder, "image")
            file.write_bytes(draw())
            before = {"before": measure(file, code, format)} if code else {}
            row = {"format": format, "image": name, "bytes": file.stat().st_size, "now": measure(file, ROOT, format)}
            rows[name] = rows.get(name, {}) | row | before
            print(json.dumps(rows[name]), flush=True)
    RESULTS.write_text(json.dumps([rows[name] for name in IMAGES if name in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
