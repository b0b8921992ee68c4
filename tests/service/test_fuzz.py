"""Mutated images sent to the decoder and to the real service: no 5xx, no hang, bounded memory.

FUZZ_IMAGES is their number (`make fuzz`: 20,000), FUZZ_START the first. FUZZ_START=n FUZZ_IMAGES=1 repeats image n.
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
TIMEOUT_SECONDS = 60.0  # the slowest image takes less than one second on an idle machine
MAX_GROWTH_BYTES = 400 << 20  # by which the memory of the service may grow after the first images
WARMUP_COUNT, CHECK_INTERVAL = 50, 50  # images before the first measurement of memory, and between measurements
ALLOWED_STATUSES = {200, 400, 413, 415, 422}

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # as models/imaging does outside pytest


def fail_with_file(number: int, data: bytes, folder: Path, reason: object) -> NoReturn:
    path = folder / f"{number}.image"
    path.write_bytes(data)
    pytest.fail(f"image {number}: {reason}; written to {path}. FUZZ_START={number} FUZZ_IMAGES=1 repeats it.")


def test_decoder_raises_only_documented_errors(tmp_path: Path) -> None:
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
    assert (
        COUNT < 300 or min(outcomes["decoded"], outcomes["CorruptImageError"], outcomes["UnsupportedFormatError"]) > 10
    )


def test_service_responds_to_every_image(service_url: str, tmp_path: Path) -> None:
    outcomes: Counter[int] = Counter()
    first = largest = 0
    with httpx.Client(base_url=service_url, timeout=TIMEOUT_SECONDS) as client:
        for count, number in enumerate(IMAGES):
            data = make_mutation(number)
            try:
                response = client.post("/v1/segment", content=data)
            except httpx.HTTPError as error:
                fail_with_file(number, data, tmp_path, repr(error))
            outcomes[response.status_code] += 1
            if response.status_code not in ALLOWED_STATUSES:
                fail_with_file(number, data, tmp_path, f"{response.status_code} {response.text[:500]}")
            if count >= WARMUP_COUNT and count % CHECK_INTERVAL == 0:
                resident = resident_bytes(httpx.URL(service_url).port)
                first, largest = first or resident, max(largest, resident)
                if resident - first > MAX_GROWTH_BYTES:
                    fail_with_file(number, data, tmp_path, f"the service grew from {first:,} to {resident:,} bytes")
        assert client.get("/readyz").status_code == 200
    print(dict(outcomes), f"memory {first >> 20} MiB after {WARMUP_COUNT} images, {largest >> 20} MiB at most")
    assert COUNT < 300 or min(outcomes[200], outcomes[415], outcomes[422]) > 10


def resident_bytes(port: int | None) -> int:
    """Resident bytes of the service: the process with this port, and all its descendants."""
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
