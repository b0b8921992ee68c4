"""The mask as an indexed PNG: each pixel is its label, the palette shows the classes' colours, void is transparent."""

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

GREY, INDEXED = 0, 3  # the colour types of the PNG specification, 11.2.1
FILTER_UP = 2  # its filter (9.2) that writes each sample as its difference to the one above


def encode(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode uint8 labels H x W as an 8-bit palette PNG of the same size; the label 255 is transparent."""
    colours = np.array(spec.palette(), np.uint8)
    opacity = np.full(256, 255, np.uint8)
    opacity[IGNORE_INDEX] = 0
    return encode_png(prediction.labels, INDEXED, (b"PLTE", colours.tobytes()), (b"tRNS", opacity.tobytes()))


def encode_png(samples: NDArray[np.uint8], colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Samples uint8 H x W as a PNG, with these chunks (name, data) before the pixels.

    Pillow tries every filter on every row, and then searches for repeats of any kind. What a network says is smooth: the
    difference to the row above is mostly 0, and runs of it are all there is to find. Against Pillow's level 3, street
    scenes of 320x240 to 4000x3000: masks in 0.6 to 0.9 of the time and 0.2 to 0.85 of the bytes, confidence in a quarter
    of the time and as many bytes.
    """
    height, width = samples.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = FILTER_UP
    rows[0, 1:] = samples[0]
    np.subtract(samples[1:], samples[:-1], out=rows[1:, 1:])
    packer = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    pixels = packer.compress(rows.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in every)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def to_palette_image(labels: Labels, classes: list[ClassInfo]) -> Image.Image:
    """Uint8 labels H x W as a palette image."""
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in palette(classes) for channel in colour])
    return image
