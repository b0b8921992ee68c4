"""Changed images against the decoder and against the real service: never a 5xx, never a hang, memory bounded.

FUZZ_IMAGES says how many (`make fuzz`: 20,000), FUZZ_START with which number to begin; FUZZ_START=n FUZZ_IMAGES=1
plays one again.
"""

import os
from collections import Counter
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

from models.errors import ImageError, InsufficientMemoryError
from models.imaging.decode import decode_image
from tests.image_mutations import make_mutation

START, COUNT = int(os.environ.get("FUZZ_START", "0")), int(os.environ.get("FUZZ_IMAGES", "300"))
IMAGES = range(START, START + COUNT)
TIMEOUT_SECONDS = 60.0  # seconds: the slowest of them takes less than one on an idle machine
MAX_GROWTH_BYTES = 400 << 20  # bytes that the service may hold more after an image than it held after the first ones
WARMUP_COUNT, CHECK_INTERVAL = 50, 50  # images: before memory is first looked at, and between looks
ALLOWED_STATUSES = {200, 400, 413, 415, 422}

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # as the decoder's room has it, outside pytest


def fail_with_file(number: int, data: bytes, folder: Path, what: object) -> NoReturn:
    path = folder / f"{number}.image"
    path.write_bytes(data)
    pytest.fail(f"image {number}: {what}; it is {path}, and FUZZ_START={number} FUZZ_IMAGES=1 makes it again")


def test_the_decoder_raises_only_what_it_says(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for number in IMAGES:
        data = make_mutation(number)
        try:
            decode_image(data, 1_000_000)
            outcomes["decoded"] += 1
        except (ImageError, InsufficientMemoryError) as error:
            outcomes[type(error).__name__] += 1
        except BaseException as error:
            fail_with_file(number, data, tmp_path, repr(error))
    print(dict(outcomes))
    assert COUNT < 300 or min(outcomes["decoded"], outcomes["BrokenImage"], outcomes["NotAnImage"]) > 10


def test_the_service_answers_every_image(service_url: str, tmp_path: Path) -> None:
    outcomes: Counter[int] = Counter()
    first = largest = 0
    with httpx.Client(base_url=service_url, timeout=TIMEOUT_SECONDS) as client:
        for count, number in enumerate(IMAGES):
            data = make_mutation(number)
            try:
                answer = client.post("/v1/segment", content=data)
            except httpx.HTTPError as error:
                fail_with_file(number, data, tmp_path, repr(error))
            outcomes[answer.status_code] += 1
            if answer.status_code not in ALLOWED_STATUSES:
                fail_with_file(number, data, tmp_path, f"{answer.status_code} {answer.text[:500]}")
            if count >= WARMUP_COUNT and count % CHECK_INTERVAL == 0:
                held = resident_bytes(httpx.URL(service_url).port)
                first, largest = first or held, max(largest, held)
                if held - first > MAX_GROWTH_BYTES:
                    fail_with_file(number, data, tmp_path, f"the service grew from {first:,} to {held:,} bytes")
        assert client.get("/readyz").status_code == 200
    print(dict(outcomes), f"memory {first >> 20} MiB after {WARMUP_COUNT} images, {largest >> 20} MiB at most")
    assert COUNT < 300 or min(outcomes[200], outcomes[415], outcomes[422]) > 10


def resident_bytes(port: int | None) -> int:
    """Bytes that the service's processes hold in memory: the one that has the port, and all that it has started."""
    processes = list(Path("/proc").glob("[0-9]*"))
    parents = {path.name: _parent_pid(path) for path in processes}
    family = {path.name for path in processes if f"--port\0{port}".encode() in _read_file(path / "cmdline")}
    assert family, f"no process has the port {port}"
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    pages = [_read_file(Path("/proc") / name / "statm").split()[1:2] for name in family]
    return sum(int(resident) for page in pages for resident in page) * os.sysconf("SC_PAGE_SIZE")


def _parent_pid(process: Path) -> str:
    after_name = _read_file(process / "stat").rpartition(b")")[2].split()
    return after_name[1].decode() if len(after_name) > 1 else ""


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
