"""The functions that read files, in a child process: the same results, with the limits of the child."""

import io
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from models.imaging import sandbox
from models.imaging.call_decoder import call_decoder
from models.imaging.decode import decode_image, decode_mask, decode_stored_mask
from models.imaging.decoder_messages import FUNCTIONS, read_result, write_buffer
from models.imaging.file_header import read_header
from models.imaging.gif_mask import decode_gif_mask
from models.readers import read_input, read_sample
from models.readers.composite import decode_preview
from models.readers.npy import decode_npy_mask
from models.sample import Sample
from models.spec import InputRule, Scaling
from tests.fixtures_channels import draw_chip, encode_tiff
from tests.fixtures_images import encode_image, make_png

GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)
PALETTE = Image.fromarray(GRAY % 5).convert("P")
PALETTE.putpalette([7, 8, 9, 20, 30, 40, 1, 2, 3])
CHIP = draw_chip(0, 4, size=32)[0]
CHIP[3, 5] = 0  # nodata
PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
GEOTIFF = encode_tiff(CHIP, ("red", "green", "blue", "nir"), nodata=0, **PLACE)
RULE = InputRule(
    rule="native", channels=("nir", "red"), dtype="uint16", scaling=Scaling(kind="zscore", low=(), high=())
)


def encode_npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def sandboxed() -> Iterator[None]:
    sandbox.enable_sandbox(children=1)
    yield
    sandbox.disable_sandbox()


def test_results_are_the_same(sandboxed: None) -> None:
    cases = [
        (decode_image, encode_image(GRAY, "PNG")),
        (decode_mask, encode_image(PALETTE, "PNG")),
        (decode_gif_mask, encode_image(PALETTE, "GIF"), {"max_pixels": 99}),
        (read_header, encode_image(GRAY, "WEBP", lossless=True)),
        (read_sample, GEOTIFF),
        (read_input, GEOTIFF, {"rule": RULE}),
        (read_input, encode_image(GRAY, "PNG"), {"rule": InputRule(rule="native"), "max_pixels": 99}),
        (decode_preview, GEOTIFF),
        (decode_npy_mask, encode_npy(GRAY), {"max_pixels": 1000}),
        *[
            (decode_stored_mask, data)
            for data in (
                encode_image(PALETTE, "PNG"), encode_image(PALETTE, "PNG", transparency=1), make_png((8, 2), 1, 0, b"\0\x5a" * 2),
                make_png((8, 2), 2, 0, b"\0\x5a\xff" * 2), encode_image(GRAY.astype(np.uint16) * 999, "PNG"),
                encode_image(Image.fromarray(GRAY).convert("LA"), "PNG"), encode_image(GRAY.astype(np.int32), "TIFF"),
            )
        ],
    ]  # fmt: skip
    assert {function.__name__ for function, *_ in cases} == set(FUNCTIONS)
    for function, data, *more in cases:
        arguments = more[0] if more else {}
        expected, found = function(data, **arguments), call_decoder(function, data, **arguments)
        assert type(found) is type(expected) or isinstance(found, Image.Image)
        if isinstance(expected, Image.Image):
            assert (found.mode, found.size, found.getpalette()) == (expected.mode, expected.size, expected.getpalette())
        if isinstance(expected, Sample):
            assert vars(found).keys() == vars(expected).keys()
            for field, value in vars(expected).items():
                np.testing.assert_equal(getattr(found, field), value, err_msg=field)
            assert found.dtype == expected.dtype
        elif isinstance(expected, np.ndarray | Image.Image):
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        else:
            assert found == expected


def test_forked_process_has_its_own_children(sandboxed: None) -> None:
    """As the workers of a loader do: two processes on one connection would read each other's answers."""
    data = encode_image(GRAY, "PNG")
    call_decoder(decode_image, data)
    assert sandbox._pool is not None
    ours = sandbox._pool._idle[0].process.pid

    def decode(sent: multiprocessing.connection.Connection) -> None:
        call_decoder(decode_image, data)
        sent.send(sandbox._pool._idle[0].process.pid)  # type: ignore[union-attr]

    received, sent = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=decode, args=(sent,))
    worker.start()
    assert received.recv() != ours
    worker.join(30)


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "array", "bytes": -1, "shape": [1], "dtype": "|u1"},
        {"kind": "array", "bytes": 1 << 40, "shape": [1 << 40], "dtype": "|u1"},
        {"kind": "array", "bytes": 4, "shape": [9], "dtype": "|u1"},
        {"kind": "array", "bytes": 4, "shape": [-2, -2], "dtype": "|u1"},
        {"kind": "array", "bytes": 8, "shape": [1], "dtype": "|O"},
        {"kind": "array", "bytes": 99, "shape": [99], "dtype": "|u1"},
        {"kind": "image", "bytes": 4, "mode": "L", "size": [60_000, 60_000], "palette": None},
        {"kind": "image", "bytes": 4, "mode": "X", "size": [2, 2], "palette": None},
        {"kind": "sample", "bytes": 8, "shape": [2, 2, 2], "dtype": "|u1", "valid": None, "channels": ["a"], "nodata": None},
        {"kind": "eval", "bytes": 0, "values": ["1"]},
        {"bytes": 0},
    ],
    ids=["negative", "huge", "shape", "negative shape", "objects", "short", "size", "mode", "channels", "kind", "no kind"],
)  # fmt: skip
def test_what_a_child_says_is_not_trusted(message: dict[str, object]) -> None:
    buffer = os.memfd_create("image")
    write_buffer(buffer, bytes(8))
    with pytest.raises((OSError, EOFError, ValueError, LookupError, AttributeError, TypeError)):
        read_result(buffer, message, 1000)
    os.close(buffer)
