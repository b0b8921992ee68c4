"""Sends every hostile image, and good ones between them, from several clients at once.

python -m tests.deploy.hostile_load URL SECONDS
"""

import itertools
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

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


if __name__ == "__main__":
    found = send_hostile_load(sys.argv[1], float(sys.argv[2]))
    for key, number in sorted(found.items()):
        print(*key, number)
    print("unexpected:", unexpected(found))
