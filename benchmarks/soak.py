"""Thousands of good and bad images of random sizes: `python -m benchmarks.soak [REQUESTS] [BUNDLE]`.

Eight requests at a time, 20,000 in all by default, to the service on a small FCN-8s (random weights, input rule native) or on
BUNDLE. No request may be lost, each must get an expected status, none a 5xx or, because all may wait long enough, a 429. The
memory of the service must stay constant: the mean of the last quarter within 3% of that of the second, and an idle minute after the
last request within 10% of an idle minute after the first hundred, of all processes and of the worker alone. Prints a table, writes
benchmarks/results/soak.json, and exits with 1 on a failure.
"""

import io
import json
import os
import random
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.inference import MODELS, RESULTS, make_bundle, temporary_cache
from benchmarks.load import closed_loop, post_request
from benchmarks.processes import BenchServer, start_service
from benchmarks.usage import print_help_if_requested
from models.engines.host_info import host_info

REQUESTS, CONCURRENCY, IMAGES, CHUNKS = 20_000, 8, 1000, 100
MAX_PIXELS = 2_000_000  # pixels of a good image
MAX_BODY_BYTES = 8 * 2**20  # bytes: the service's limit here, so that a body over it is quickly sent
MAX_MEMORY_GROWTH = 0.03
IDLE_SECONDS, MAX_IDLE_GROWTH = 60, 0.10
QUEUE_SECONDS, TIMEOUT_SECONDS = 120, 240  # 8 images may take longer than the service's own limits on a busy machine
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")


@dataclass(frozen=True)
class SoakRequest:
    """A request, and its expected statuses."""

    kind: str
    body: bytes
    expected_statuses: tuple[int, ...]
    chunked: bool = False

    def to_bytes(self, url: str) -> bytes:
        """The bytes of the HTTP request."""
        if not self.chunked:
            return post_request(url, self.body)
        head, _, _ = post_request(url, b"").partition(b"Content-Length")
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(self.body) + self.body + b"\r\n0\r\n\r\n"


def main(count: int, bundle: Path) -> int:
    chance = random.Random(0)
    images = [random_request(chance, index) for index in range(IMAGES)]
    settings = {
        "max_body_bytes": MAX_BODY_BYTES, "queue_seconds": QUEUE_SECONDS, "timeout_seconds": TIMEOUT_SECONDS,
    }  # fmt: skip
    with temporary_cache(), start_service("soak", bundle, **settings) as server:
        closed_loop(server.url, (one.to_bytes(server.url) for one in images[:100]), CONCURRENCY)
        before = idle_memory_mb(server)
        result = run_soak(server, images, count, chance)
        after = idle_memory_mb(server)
    grown = {
        "idle_growth": sum(after.values()) / sum(before.values()) - 1,
        "idle_growth_of_worker": after["workers"] / before["workers"] - 1,
    }
    result |= {key: round(fraction, 4) for key, fraction in grown.items()}
    result["failures"] += [
        f"{key} is {fraction:.1%}; {MAX_IDLE_GROWTH:.0%} is allowed"
        for key, fraction in grown.items()
        if fraction > MAX_IDLE_GROWTH
    ]
    result["idle_mb"] = [round(sum(each.values()), 1) for each in (before, after)]
    result["idle_by_role_mb"] = [{role: round(mb, 1) for role, mb in each.items()} for each in (before, after)]
    result = {"machine": host_info(), "requests": count, "concurrency": CONCURRENCY, **result}
    result["load_at_end"] = os.getloadavg()[0]
    RESULTS.joinpath("soak.json").write_text(json.dumps(result, indent=2) + "\n")
    for kind, found in sorted(result["kinds"].items()):
        print(f"{kind:18} {found}")
    print(f"{result['seconds']} s, {result['per_second']}/s; memory by quarters {result['quarters_mb']} MB")
    print(f"idle before and after {result['idle_mb']} MB, {result['idle_by_role_mb']}")
    for failure in result["failures"]:
        print("FAILED:", failure)
    return int(bool(result["failures"]))


def idle_memory_mb(server: BenchServer) -> dict[str, float]:
    """Resident megabytes of the service's processes by role, after a minute without requests."""
    time.sleep(IDLE_SECONDS)
    return server.memory_by_role_mb()


def run_soak(server: BenchServer, images: list[SoakRequest], count: int, chance: random.Random) -> dict[str, Any]:
    """Send `count` random images, in chunks between which the memory is measured."""
    kinds: dict[str, Counter[str]] = {}
    memory, answered, wrong, start = [], 0, Counter[str](), time.perf_counter()
    for _ in range(CHUNKS):
        indices = [chance.randrange(len(images)) for _ in range(count // CHUNKS)]
        responses = closed_loop(
            server.url, (images[index].to_bytes(server.url) for index in indices), CONCURRENCY
        ).responses
        for response in responses:
            request = images[indices[response.index]]
            status = str(response.status or "lost")
            kinds.setdefault(request.kind, Counter())[status] += 1
            if response.status not in request.expected_statuses:
                wrong[f"{request.kind}: {status} instead of {' or '.join(map(str, request.expected_statuses))}"] += 1
        answered += len(responses)
        memory.append(server.memory_mb())
        if sys.stderr.isatty():
            print(f"{answered:6} of {count}  {memory[-1]:6.0f} MB", end="\r", file=sys.stderr)
    quarter = CHUNKS // 4
    quarters = [statistics.fmean(memory[index : index + quarter]) for index in range(0, CHUNKS, quarter)]
    failures = [f"{failure}, {times} times" for failure, times in sorted(wrong.items())]
    if answered != (due := CHUNKS * (count // CHUNKS)):
        failures.append(f"{due - answered} of {due} requests were lost")
    if (grown := quarters[3] / quarters[1] - 1) > MAX_MEMORY_GROWTH:
        failures.append(
            f"the memory grew by {grown:.1%} from the second quarter to the last; {MAX_MEMORY_GROWTH:.0%} is allowed"
        )
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds), "per_second": round(answered / seconds, 1), "answered": answered,
        "kinds": {kind: dict(found) for kind, found in kinds.items()},
        "quarters_mb": [round(each, 1) for each in quarters], "growth": round(grown, 4),
        "memory_mb": [round(each) for each in memory], "failures": failures,
    }  # fmt: skip


def random_request(chance: random.Random, index: int) -> SoakRequest:
    """A random request: 70% with a good image, the others with anything else."""
    if chance.random() < 0.7:
        kind = FORMATS[index % len(FORMATS)]
        return SoakRequest(f"good {kind}", random_image(chance, kind), (200,))
    name = chance.choice(list(BAD_REQUESTS))
    return BAD_REQUESTS[name](chance, name)


def random_image(chance: random.Random, kind: str) -> bytes:
    """An image with soft shapes; the logarithms of its sides are uniform, from a pixel to a few megapixels."""
    width, height = (max(1, round(2 ** chance.uniform(0, 11.5))) for _ in range(2))
    shrink = min(1.0, (MAX_PIXELS / (width * height)) ** 0.5)
    if shrink == 1.0 and chance.random() < 0.1:
        width, height = chance.choice([(1, 1), (1, height), (width, 1)])
    size = max(1, int(width * shrink)), max(1, int(height * shrink))
    coarse = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    options = {"speed": 10} if kind == "AVIF" else {}
    Image.fromarray(np.asarray(cv2.resize(coarse, size), np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def make_truncated(chance: random.Random, name: str) -> SoakRequest:
    """An image cut anywhere: corrupt, or not recognized as an image if its first bytes are incomplete."""
    whole = random_image(chance, chance.choice(FORMATS[:3]))
    return SoakRequest(name, whole[: max(1, int(len(whole) * chance.uniform(0.02, 0.8)))], (415, 422))


def make_bomb(chance: random.Random, name: str) -> SoakRequest:
    """A PNG whose header claims 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    return SoakRequest(name, b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + b"\0\0\0\0IDAT", (413,))


def make_garbage(chance: random.Random, name: str) -> SoakRequest:
    """Random bytes."""
    return SoakRequest(name, chance.randbytes(chance.randrange(1, 200_000)), (415,))


def make_mutated(chance: random.Random, name: str) -> SoakRequest:
    """An image with some bytes changed; it may still be valid."""
    whole = bytearray(random_image(chance, chance.choice(FORMATS)))
    for _ in range(chance.randrange(1, 20)):
        whole[chance.randrange(len(whole))] = chance.randrange(256)
    return SoakRequest(name, bytes(whole), (200, 400, 413, 415, 422))


OVERSIZED_BODY = bytes(MAX_BODY_BYTES + 1)  # shared by all such requests: each copy would have 8 MiB
BAD_REQUESTS: dict[str, Callable[[random.Random, str], SoakRequest]] = {
    "truncated": make_truncated,
    "bomb": make_bomb,
    "garbage": make_garbage,
    "mutated": make_mutated,
    "empty": lambda chance, name: SoakRequest(name, b"", (400,)),
    "text": lambda chance, name: SoakRequest(name, b"http://example.org/a.jpg", (415,)),
    "GIF": lambda chance, name: SoakRequest(name, b"GIF89a" + chance.randbytes(200), (415,)),
    "body too large": lambda chance, name: SoakRequest(name, OVERSIZED_BODY, (413,)),
    "chunked too large": lambda chance, name: SoakRequest(name, OVERSIZED_BODY, (413,), chunked=True),
}


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    number = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    if len(sys.argv) > 2:
        sys.exit(main(number, Path(sys.argv[2])))
    with tempfile.TemporaryDirectory() as scratch:
        make_bundle(Path(scratch) / "small", MODELS["FCN-8s, ResNet-18"])
        sys.exit(main(number, Path(scratch) / "small"))
