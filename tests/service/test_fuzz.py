"""Changed pictures against the decoder and against the real service: never a 5xx, never a hang, memory bounded.

FUZZ_PICTURES says how many (`make fuzz`: 20,000), FUZZ_START with which number to begin; FUZZ_START=n FUZZ_PICTURES=1
plays one again.
"""

import os
from collections import Counter
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

from models.errors import ImageError, TooLittleMemory
from models.imaging.decode import decode
from tests.image_mutations import mutated

START, COUNT = int(os.environ.get("FUZZ_START", "0")), int(os.environ.get("FUZZ_PICTURES", "300"))
PICTURES = range(START, START + COUNT)
PATIENCE = 60.0  # seconds: the slowest of them takes less than one on an idle machine
GROWTH = 400 << 20  # bytes that the service may hold more after a picture than it held after the first ones
WARM, EVERY = 50, 50  # pictures: before memory is first looked at, and between looks
ANSWERS = {200, 400, 413, 415, 422}

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # as the decoder's room has it, outside pytest


def fail(number: int, data: bytes, folder: Path, what: object) -> NoReturn:
    path = folder / f"{number}.picture"
    path.write_bytes(data)
    pytest.fail(f"picture {number}: {what}; it is {path}, and FUZZ_START={number} FUZZ_PICTURES=1 makes it again")


def test_the_decoder_raises_only_what_it_says(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for number in PICTURES:
        data = mutated(number)
        try:
            decode(data, 1_000_000)
            outcomes["decoded"] += 1
        except (ImageError, TooLittleMemory) as error:
            outcomes[type(error).__name__] += 1
        except BaseException as error:
            fail(number, data, tmp_path, repr(error))
    print(dict(outcomes))
    assert COUNT < 300 or min(outcomes["decoded"], outcomes["BrokenImage"], outcomes["NotAnImage"]) > 10


def test_the_service_answers_every_picture(service_url: str, tmp_path: Path) -> None:
    outcomes: Counter[int] = Counter()
    first = largest = 0
    with httpx.Client(base_url=service_url, timeout=PATIENCE) as client:
        for count, number in enumerate(PICTURES):
            data = mutated(number)
            try:
                answer = client.post("/v1/segment", content=data)
            except httpx.HTTPError as error:
                fail(number, data, tmp_path, repr(error))
            outcomes[answer.status_code] += 1
            if answer.status_code not in ANSWERS:
                fail(number, data, tmp_path, f"{answer.status_code} {answer.text[:500]}")
            if count >= WARM and count % EVERY == 0:
                held = memory(httpx.URL(service_url).port)
                first, largest = first or held, max(largest, held)
                if held - first > GROWTH:
                    fail(number, data, tmp_path, f"the service grew from {first:,} to {held:,} bytes")
        assert client.get("/readyz").status_code == 200
    print(dict(outcomes), f"memory {first >> 20} MiB after {WARM} pictures, {largest >> 20} MiB at most")
    assert COUNT < 300 or min(outcomes[200], outcomes[415], outcomes[422]) > 10


def memory(port: int | None) -> int:
    """Bytes that the service's processes hold in memory: the one that has the port, and all that it has started."""
    processes = list(Path("/proc").glob("[0-9]*"))
    parents = {path.name: _parent(path) for path in processes}
    family = {path.name for path in processes if f"--port\0{port}".encode() in _read(path / "cmdline")}
    assert family, f"no process has the port {port}"
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    pages = [_read(Path("/proc") / name / "statm").split()[1:2] for name in family]
    return sum(int(resident) for page in pages for resident in page) * os.sysconf("SC_PAGE_SIZE")


def _parent(process: Path) -> str:
    after_name = _read(process / "stat").rpartition(b")")[2].split()
    return after_name[1].decode() if len(after_name) > 1 else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
