"""The overhead of maskserve.client: `python -m benchmarks.client`.

calls      a call of the client minus the same request over a bare socket (http.client, one kept connection), at 640x480, in
           turn; both use the same service, with the small network of the tests
encodings  an array in each encoding: milliseconds to encode it, to encode and send it over loopback, and its bytes
pieces     core-milliseconds of other operations on a mask

Figures are medians; `added` ones are of paired differences. `core` is CPU time of this process, which other load affects less.
The client runs on one core and the service on another. Writes benchmarks/results/client.json.
"""

import asyncio
import http.client
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from benchmarks.inference import draw_image
from benchmarks.processes import start_service
from benchmarks.usage import print_help_if_requested
from maskserve.client import AsyncClient, Client, Mask
from models.engines.host_info import host_info
from models.imaging.decode import RGB
from tests.service.tiny_bundle import write_tiny_bundle

RESULTS = Path(__file__).parent / "results" / "client.json"
WIDTH, HEIGHT = 640, 480
ROUNDS, WARMUP_ROUNDS = 150, 20  # WARMUP_ROUNDS are not counted
ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "BMP": ("BMP", {}), "PNG, level 1": ("PNG", {"compress_level": 1}), "PNG, level 0": ("PNG", {"compress_level": 0}),
    "TIFF": ("TIFF", {}), "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "WebP, lossless": ("WEBP", {"lossless": True, "method": 0, "quality": 0}),
}  # fmt: skip
CONFIDENCE_PATH = "/v1/segment?format=json&masks=png&confidence=true"


def main() -> None:
    rgb = draw_image(0)
    jpeg, bmp = encode(rgb, "JPEG", quality=90), encode(rgb, "BMP")
    with (
        tempfile.TemporaryDirectory() as folder,
        start_service("small", write_tiny_bundle(Path(folder) / "small")) as server,
    ):
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(server.pid, cores[1:] or cores)
            os.sched_setaffinity(0, cores[:1])
        url = server.url.removesuffix("/v1/segment")
        socket, file = RawConnection(url), Path(folder) / "a.jpg"
        file.write_bytes(jpeg)
        with Client(url) as client, httpx.Client(base_url=url, trust_env=False) as bare:
            calls = {
                "segment(jpeg bytes)": measure_overhead(lambda: client.segment(jpeg), lambda: socket.post(jpeg)),
                "segment(path)": measure_overhead(lambda: client.segment(file), lambda: socket.post(jpeg)),
                "segment(array)": measure_overhead(lambda: client.segment(rgb), lambda: socket.post(bmp)),
                "segment(jpeg bytes, confidence=True)": measure_overhead(
                    lambda: client.segment(jpeg, confidence=True), lambda: socket.post(jpeg, CONFIDENCE_PATH)
                ),
                "segment_bytes(jpeg bytes)": measure_overhead(
                    lambda: client.segment_bytes(jpeg), lambda: socket.post(jpeg)
                ),
                "httpx alone": measure_overhead(
                    lambda: bare.post("/v1/segment", content=jpeg), lambda: socket.post(jpeg)
                ),
            }
            png, confidence = client.segment_bytes(jpeg), client.segment_bytes(jpeg, "confidence")
            mask = client.segment(jpeg)
        calls |= asyncio.run(measure_async_overhead(url, jpeg, socket))
        encodings = measure_encodings(rgb, socket)
    pieces = {
        "Mask.from_png(png)": core_ms(lambda: Mask.from_png(png, classes=[], model="")),
        "Mask.from_png(png, confidence)": core_ms(lambda: Mask.from_png(png, confidence, classes=[], model="")),
        "a notebook's overlay": core_ms(mask._repr_png_), "class_fractions()": core_ms(mask.class_fractions),
    }  # fmt: skip
    packages = ("httpx", "httpcore", "pillow", "numpy")
    result = host_info() | {"versions": {package: version(package) for package in packages}}
    result |= {
        "image_size": [WIDTH, HEIGHT], "jpeg_bytes": len(jpeg), "rounds": ROUNDS, "calls": calls,
        "encodings": encodings, "pieces_core_ms": pieces,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for name, figures in {**calls, **encodings}.items():
        print(f"{name:45}", "  ".join(f"{key} {value:,}" for key, value in figures.items()))
    print(pieces)


class RawConnection:
    """One connection with the least work per request."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def post(self, body: bytes, path: str = "/v1/segment") -> bytes:
        self.connection.request("POST", path, body)
        response = self.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(content.decode())
        return content


Times = tuple[float, float]  # wall-clock and CPU seconds


def measure_overhead(call: Callable[[], object], socket: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of a call, of the same request over a bare socket, and of their difference."""
    return summarize([(time_call(call), time_call(socket)) for _ in range(WARMUP_ROUNDS + ROUNDS)])


async def measure_async_overhead(url: str, jpeg: bytes, socket: RawConnection) -> dict[str, dict[str, float]]:
    """The same for the async client, in turn."""
    async with AsyncClient(url) as client, httpx.AsyncClient(base_url=url, trust_env=False) as bare:
        calls: dict[str, tuple[Callable[[], Awaitable[object]], str]] = {
            "await segment(jpeg bytes)": (lambda: client.segment(jpeg), "/v1/segment"),
            "await segment(jpeg bytes, confidence=True)": (
                lambda: client.segment(jpeg, confidence=True),
                CONFIDENCE_PATH,
            ),
            "httpx alone, awaited": (lambda: bare.post("/v1/segment", content=jpeg), "/v1/segment"),
        }
        pairs: dict[str, list[tuple[Times, Times]]] = {name: [] for name in calls}
        for _ in range(WARMUP_ROUNDS + ROUNDS):
            for name, (call, path) in calls.items():
                start = read_clocks()
                await call()
                pairs[name].append((elapsed(start), time_call(partial(socket.post, jpeg, path))))
    return {name: summarize(of) for name, of in pairs.items()}


def summarize(pairs: list[tuple[Times, Times]]) -> dict[str, float]:
    counted = pairs[WARMUP_ROUNDS:]
    columns = {
        "call_ms": [call[0] for call, _ in counted], "socket_ms": [socket[0] for _, socket in counted],
        "added_ms": [call[0] - socket[0] for call, socket in counted],
        "added_core_ms": [call[1] - socket[1] for call, socket in counted],
    }  # fmt: skip
    return {name: round(1000 * statistics.median(values), 2) for name, values in columns.items()}


def measure_encodings(rgb: RGB, socket: RawConnection) -> dict[str, dict[str, float]]:
    """An array in each encoding, in turn: milliseconds to encode it, to encode and send it, and its bytes."""
    encoders = {name: partial(encode, rgb, format, **options) for name, (format, options) in ENCODINGS.items()}
    times: dict[str, list[tuple[Times, Times]]] = {name: [] for name in encoders}
    for _ in range(ROUNDS // 5):
        for name, encoder in encoders.items():
            times[name].append((time_call(encoder), time_call(lambda encoder=encoder: socket.post(encoder()))))  # type: ignore[misc]
    return {
        name: {
            "encode_core_ms": median_ms(encode_times[1] for encode_times, _ in times[name]),
            "whole_ms": median_ms(whole_times[0] for _, whole_times in times[name]),
            "bytes": len(encoder()),
        }
        for name, encoder in encoders.items()
    }


def encode(rgb: RGB, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(rgb)).save(buffer, format, **options)
    return buffer.getvalue()


def median_ms(seconds: Iterable[float]) -> float:
    return round(1000 * statistics.median(seconds), 2)


def core_ms(function: Callable[[], object]) -> float:
    """Core-milliseconds of a function."""
    return median_ms([time_call(function)[1] for _ in range(WARMUP_ROUNDS + ROUNDS)][WARMUP_ROUNDS:])


def time_call(function: Callable[[], object]) -> Times:
    start = read_clocks()
    function()
    return elapsed(start)


def read_clocks() -> Times:
    return time.perf_counter(), time.process_time()


def elapsed(start: Times) -> Times:
    end = read_clocks()
    return end[0] - start[0], end[1] - start[1]


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    main()
