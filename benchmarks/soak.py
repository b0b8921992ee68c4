"""Thousands of good and bad pictures of random sizes: `python -m benchmarks.soak [REQUESTS] [BUNDLE]`.

Eight requests at a time, 20,000 in all unless said otherwise, to the service on a small FCN-8s (random weights, the
pictures as they come) or on BUNDLE. None may be lost, each gets the status that its kind deserves, none a 5xx, and the
memory of the service's processes stays flat: the last quarter's mean within 3% of the second's. Prints a table, writes
benchmarks/results/soak.json, and ends with 1 where one of that fails.
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

from benchmarks.inference import MODELS, RESULTS, cache, make
from benchmarks.load import closed, post
from benchmarks.processes import Server, ours
from maskserve.host_info import machine

REQUESTS, CONCURRENCY, PICTURES, CHUNKS = 20_000, 8, 1000, 100
LARGEST = 2_000_000  # pixels of a good picture
BODY = 8 * 2**20  # bytes: the service's limit here, so that a body over it is quickly sent
FLAT = 0.03
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")


@dataclass(frozen=True)
class Asked:
    """A request, and what it deserves."""

    kind: str
    body: bytes
    statuses: tuple[int, ...]
    chunked: bool = False

    def request(self, url: str) -> bytes:
        """As it goes over the connection."""
        if not self.chunked:
            return post(url, self.body)
        head, _, _ = post(url, b"").partition(b"Content-Length")
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(self.body) + self.body + b"\r\n0\r\n\r\n"


def main(count: int, bundle: Path) -> int:
    chance = random.Random(0)
    pictures = [draw(chance, place) for place in range(PICTURES)]
    with cache(), ours("soak", bundle, max_body_bytes=BODY) as server:
        closed(server.url, (one.request(server.url) for one in pictures[:50]), CONCURRENCY)
        result = soaked(server, pictures, count, chance)
    result = {"machine": machine(), "requests": count, "concurrency": CONCURRENCY, **result}
    result["load_at_end"] = os.getloadavg()[0]
    RESULTS.joinpath("soak.json").write_text(json.dumps(result, indent=2) + "\n")
    for kind, found in sorted(result["kinds"].items()):
        print(f"{kind:18} {found}")
    print(f"{result['seconds']} s, {result['per_second']}/s; memory by quarters {result['quarters_mb']} MB")
    for sentence in result["failures"]:
        print("FAILED:", sentence)
    return int(bool(result["failures"]))


def soaked(server: Server, pictures: list[Asked], count: int, chance: random.Random) -> dict[str, Any]:
    """Send `count` of the pictures by chance, in chunks between which the memory is looked at."""
    kinds: dict[str, Counter[str]] = {}
    memory, answered, wrong, start = [], 0, Counter[str](), time.perf_counter()
    for _ in range(CHUNKS):
        places = [chance.randrange(len(pictures)) for _ in range(count // CHUNKS)]
        answers = closed(server.url, (pictures[place].request(server.url) for place in places), CONCURRENCY).answers
        for answer in answers:
            asked = pictures[places[answer.place]]
            status = str(answer.status or "lost")
            kinds.setdefault(asked.kind, Counter())[status] += 1
            if answer.status not in asked.statuses:
                wrong[f"{asked.kind}: {status} in place of {' or '.join(map(str, asked.statuses))}"] += 1
        answered += len(answers)
        memory.append(server.memory())
        if sys.stderr.isatty():
            print(f"{answered:6} of {count}  {memory[-1]:6.0f} MB", end="\r", file=sys.stderr)
    quarter = CHUNKS // 4
    quarters = [statistics.fmean(memory[place : place + quarter]) for place in range(0, CHUNKS, quarter)]
    failures = [f"{sentence}, {times} times" for sentence, times in sorted(wrong.items())]
    if answered != (due := CHUNKS * (count // CHUNKS)):
        failures.append(f"{due - answered} of {due} requests were lost")
    if (grown := quarters[3] / quarters[1] - 1) > FLAT:
        failures.append(f"the memory grew by {grown:.1%} from the second quarter to the last; {FLAT:.0%} is allowed")
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds), "per_second": round(answered / seconds, 1), "answered": answered,
        "kinds": {kind: dict(found) for kind, found in kinds.items()},
        "quarters_mb": [round(each, 1) for each in quarters], "growth": round(grown, 4),
        "memory_mb": [round(each) for each in memory], "failures": failures,
    }  # fmt: skip


def draw(chance: random.Random, place: int) -> Asked:
    """A request by chance: seven of ten bring a good picture, the others everything else."""
    if chance.random() < 0.7:
        kind = FORMATS[place % len(FORMATS)]
        return Asked(f"good {kind}", picture(chance, kind), (200,))
    name = chance.choice(list(BAD))
    return BAD[name](chance, name)


def picture(chance: random.Random, kind: str) -> bytes:
    """A picture with soft shapes; its sides are equal by their logarithms, from a pixel to some megapixels."""
    width, height = (max(1, round(2 ** chance.uniform(0, 11.5))) for _ in range(2))
    shrink = min(1.0, (LARGEST / (width * height)) ** 0.5)
    if shrink == 1.0 and chance.random() < 0.1:
        width, height = chance.choice([(1, 1), (1, height), (width, 1)])
    size = max(1, int(width * shrink)), max(1, int(height * shrink))
    coarse = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    options = {"speed": 10} if kind == "AVIF" else {}
    Image.fromarray(np.asarray(cv2.resize(coarse, size), np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def truncated(chance: random.Random, name: str) -> Asked:
    """Cut anywhere: what has lost its first bytes' meaning is no picture, the rest is a broken one."""
    whole = picture(chance, chance.choice(FORMATS[:3]))
    return Asked(name, whole[: max(1, int(len(whole) * chance.uniform(0.02, 0.8)))], (415, 422))


def bomb(chance: random.Random, name: str) -> Asked:
    """A PNG whose header claims 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    return Asked(name, b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + b"\0\0\0\0IDAT", (413,))


def garbage(chance: random.Random, name: str) -> Asked:
    """Bytes by chance."""
    return Asked(name, chance.randbytes(chance.randrange(1, 200_000)), (415,))


def mutated(chance: random.Random, name: str) -> Asked:
    """A picture with some bytes changed: it may still be one."""
    whole = bytearray(picture(chance, chance.choice(FORMATS)))
    for _ in range(chance.randrange(1, 20)):
        whole[chance.randrange(len(whole))] = chance.randrange(256)
    return Asked(name, bytes(whole), (200, 400, 413, 415, 422))


OVER = bytes(BODY + 1)  # shared by all requests that are too large: each copy would be one of 8 MiB
BAD: dict[str, Callable[[random.Random, str], Asked]] = {
    "truncated": truncated,
    "bomb": bomb,
    "garbage": garbage,
    "mutated": mutated,
    "empty": lambda chance, name: Asked(name, b"", (400,)),
    "text": lambda chance, name: Asked(name, b"http://example.org/a.jpg", (415,)),
    "GIF": lambda chance, name: Asked(name, b"GIF89a" + chance.randbytes(200), (415,)),
    "body too large": lambda chance, name: Asked(name, OVER, (413,)),
    "chunked too large": lambda chance, name: Asked(name, OVER, (413,), chunked=True),
}


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    if len(sys.argv) > 2:
        sys.exit(main(number, Path(sys.argv[2])))
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch) / "small", MODELS["FCN-8s, ResNet-18"])
        sys.exit(main(number, Path(scratch) / "small"))
