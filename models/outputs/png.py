"""The format `png`: an indexed PNG whose samples are the labels, with the classes' colors as palette; 255 is transparent."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.imaging.decode import Labels
from models.inference.segmenter import Prediction
from models.outputs.options import OutputOptions
from models.spec import IGNORE_INDEX, BundleSpec, ClassInfo, palette

MEDIA_TYPE = "image/png"
SUFFIX = ".png"
NEEDS_CONFIDENCE = False

GRAY, INDEXED = 0, 3  # color types in the PNG specification, 11.2.1
FILTER_UP = 2  # the filter (9.2) that stores each sample as its difference from the one above


def encode(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode uint8 labels H x W as an 8-bit palette PNG of the same size; the label 255 is transparent."""
    colors = np.array(spec.palette(), np.uint8)
    opacity = np.full(256, 255, np.uint8)
    opacity[IGNORE_INDEX] = 0
    return encode_png(prediction.labels, INDEXED, (b"PLTE", colors.tobytes()), (b"tRNS", opacity.tobytes()))


def encode_png(samples: NDArray[np.uint8], color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Encode samples uint8 H x W as a PNG, with these chunks (name, data) before the pixels.

    Pillow tries every filter on every row, and searches for any repetition. Predictions are smooth: the difference from
    the row above is mostly 0, so that run-length encoding is enough. Compared with Pillow's level 3, for street scenes of
    320x240 to 4000x3000: masks take 0.6 to 0.9 of the time and 0.2 to 0.85 of the bytes, confidence a quarter of the time
    and as many bytes.
    """
    height, width = samples.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = FILTER_UP
    rows[0, 1:] = samples[0]
    np.subtract(samples[1:], samples[:-1], out=rows[1:, 1:])
    compressor = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    pixels = compressor.compress(rows.data) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    all_chunks = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in all_chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def to_palette_image(labels: Labels, classes: list[ClassInfo]) -> Image.Image:
    """Convert labels uint8 H x W to a palette image in the classes' colors."""
    image = Image.fromarray(labels)
    image.putpalette([channel for color in palette(classes) for channel in color])
    return image
