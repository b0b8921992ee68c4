"""Sends every hostile image, and good ones between them, from several clients at once.

python -m tests.deploy.hostile_load URL SECONDS

HOSTILE_LOAD_SECONDS=300 HOSTILE_LOAD_RESULTS=benchmarks/results/container.json make container     the whole load, recorded
"""

import itertools
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.hostile_images import HOSTILE_IMAGES

CLIENTS = 8
SECONDS = float(os.environ.get("HOSTILE_LOAD_SECONDS", "30"))  # 300 for the whole load
BUSY, TIMED_OUT = 429, 504
GOOD = "good"


def send_hostile_load(url: str, seconds: float = SECONDS, clients: int = CLIENTS) -> Counter[tuple[str, int]]:
    """Send images for some seconds. Returns: how often each image, by name, got each status; 0 is a lost connection."""
    drawn = {name: draw() for name, (draw, _) in HOSTILE_IMAGES.items()}
    good = encode_image(synthetic_image(120, 160), "JPEG")
    end = time.monotonic() + seconds

    def send(client: int) -> Counter[tuple[str, int]]:
        outcomes: Counter[tuple[str, int]] = Counter()
        names = list(drawn)
        order = itertools.cycle(names[client % len(names) :] + names[: client % len(names)])
        with httpx.Client(trust_env=False, timeout=120) as http:
            while time.monotonic() < end:
                hostile = next(order)
                for name, data in ((hostile, drawn[hostile]), (GOOD, good)):
                    try:
                        status = http.post(f"{url}/v1/segment", content=data).status_code
                    except httpx.TransportError:
                        status = 0
                    outcomes[name, status] += 1
        return outcomes

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(send, range(clients)), Counter[tuple[str, int]]())


def unexpected(outcomes: Counter[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """The outcomes that no service within its limits has. A busy one may refuse any image, and may run into its deadline."""
    wrong = {}
    for (name, status), count in outcomes.items():
        allowed = {200, BUSY} if name == GOOD else {HOSTILE_IMAGES[name][1], BUSY, TIMED_OUT}
        if status not in allowed:
            wrong[name, status] = count
    return wrong


def record(outcomes: Counter[tuple[str, int]], peak_kib: int, seconds: float = SECONDS) -> None:
    """Write the outcomes and the sum of all processes' peaks to HOSTILE_LOAD_RESULTS, if that is set."""
    if path := os.environ.get("HOSTILE_LOAD_RESULTS"):
        by_name: dict[str, dict[str, int]] = {}
        for (name, status), count in sorted(outcomes.items()):
            by_name.setdefault(name, {})[str(status or "lost")] = count
        result = {"seconds": seconds, "clients": CLIENTS, "peak_mib": peak_kib >> 10, "responses": by_name}
        Path(path).write_text(json.dumps(result | {"unexpected": len(unexpected(outcomes))}, indent=2) + "\n")


if __name__ == "__main__":
    found = send_hostile_load(sys.argv[1], float(sys.argv[2]))
    for key, number in sorted(found.items()):
        print(*key, number)
    print("unexpected:", unexpected(found))
