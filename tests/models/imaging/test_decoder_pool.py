"""Decoding in child processes: the same pixels and errors, and children that are killed and replaced."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from models.errors import (
    CorruptImageError,
    EmptyImageError,
    ImageTooLargeError,
    InsufficientMemoryError,
    UnsupportedFormatError,
)
from models.imaging import decoder_pool, decoder_process
from models.imaging.decode import decode_image
from models.imaging.decoder_pool import DecoderPool
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image, make_png

ROOT = Path(__file__).parents[3]
PNG = encode_image(synthetic_image(24, 32), "PNG")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(2, max_pixels=4_000_000)
    pool.decode(PNG)
    yield pool
    pool.close()


@pytest.fixture
def stopped() -> Iterator[tuple[DecoderPool, int]]:
    """A pool, and its only idle child, which decodes nothing any more, like one that is in an endless loop."""
    pool = DecoderPool(2, eager=0)
    pool.decode(PNG)
    pid = pool._idle[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    yield pool, pid
    pool.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("size", [(1, 1), (1999, 2000), (480, 640)], ids=str)
def test_pixels_are_those_of_the_decoder(pool: DecoderPool, size: tuple[int, int]) -> None:
    """Also when a large image, after which the buffer is cut, comes before a small one."""
    data = encode_image(np.resize(synthetic_image(99, 99), (*size, 3)), "BMP")
    np.testing.assert_array_equal(pool.decode(data).values, decode_image(data))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyImageError), (b"text", UnsupportedFormatError), (PNG[:90], CorruptImageError),
        (make_png((5000, 5000), 8, 2, b""), ImageTooLargeError),
    ],
    ids=["empty", "text", "cut", "large"],
)  # fmt: skip
def test_errors_are_those_of_the_decoder(pool: DecoderPool, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error) as expected:
        decode_image(data, 4_000_000)
    with pytest.raises(error) as found:
        pool.decode(data)
    assert (type(found.value), str(found.value)) == (type(expected.value), str(expected.value))


def test_limit_of_a_request_may_be_lower(pool: DecoderPool) -> None:
    with pytest.raises(ImageTooLargeError, match="limit is 700"):
        pool.decode(PNG, 700)


def test_child_is_killed_at_the_deadline_and_replaced(stopped: tuple[DecoderPool, int]) -> None:
    pool, child = stopped
    with pytest.raises(CorruptImageError, match="took too long"):
        pool.decode(PNG, timeout_seconds=0.05)
    assert not is_running(child)
    assert pool.decode(PNG).values.shape == (24, 32, 3)


def test_child_is_killed_when_the_caller_has_gone(
    stopped: tuple[DecoderPool, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, child = stopped
    monkeypatch.setattr(decoder_pool, "GRACE_SECONDS", 0.02)
    with pytest.raises(CorruptImageError):
        pool.decode(PNG, is_cancelled=lambda: True)
    assert not is_running(child)


def test_others_are_served_while_an_image_hangs(stopped: tuple[DecoderPool, int]) -> None:
    pool, child = stopped
    failed: list[BaseException] = []

    def hang() -> None:
        try:
            pool.decode(PNG, timeout_seconds=20)
        except CorruptImageError as error:
            failed.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    wait_until(lambda: not pool._idle)
    for _ in range(3):
        assert pool.decode(PNG).values.shape == (24, 32, 3)
    assert not failed
    os.kill(child, signal.SIGKILL)  # a crash is noticed at once
    thread.join(10)
    assert "crashed its decoder" in str(failed[0])


def test_child_that_was_killed_while_idle_is_replaced(stopped: tuple[DecoderPool, int]) -> None:
    pool, child = stopped
    os.kill(child, signal.SIGKILL)
    pool._idle[0].process.wait()
    assert pool.decode(PNG).values.shape == (24, 32, 3)


def test_child_has_limits_and_imports_no_engine(pool: DecoderPool) -> None:
    pool.decode(PNG)
    pid = pool._idle[0].process.pid
    limits = {line[:26].strip(): line[26:].split()[0] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    assert int(limits["Max address space"]) < 2 << 30
    assert int(limits["Max open files"]) == decoder_process.MAX_OPEN_FILES
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert "_imaging" in mapped
    assert not [name for name in ("torch", "openvino", "onnxruntime", "cv2", "bentoml") if f"/{name}/" in mapped]


def test_image_that_needs_too_much_memory_is_refused() -> None:
    """As many pixels as no request may have, in a process whose limit is made for small images."""
    pool = DecoderPool(1, eager=0)
    try:
        pool._put(decoder_pool._Child((64 << 20) - decoder_process.RESERVED_BYTES))
        with pytest.raises(InsufficientMemoryError):
            pool.decode(make_png((6000, 6000), 1, 0, bytes(751 * 6000)))
        assert pool.decode(PNG).values.shape == (24, 32, 3)
    finally:
        pool.close()


def test_children_end_with_their_parent() -> None:
    """Also when it is killed and cannot end them."""
    code = (
        "import sys, time\n"
        "from models.imaging.decoder_pool import DecoderPool\n"
        "pool = DecoderPool(1)\n"
        "pool.decode(sys.stdin.buffer.read())\n"
        "print(pool._idle[0].process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write(PNG)
    parent.stdin.close()
    child = int(parent.stdout.readline())
    os.kill(child, signal.SIGSTOP)  # it does not notice that the connection is closed
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not is_running(child))


def test_close_ends_all_children() -> None:
    pool = DecoderPool(2)
    pool.decode(PNG)
    pids = [child.process.pid for child in pool._idle]
    pool.close()
    assert pids and not [pid for pid in pids if is_running(pid)]


def test_child_that_ends_while_it_starts_is_replaced() -> None:
    """The image is not to blame: it is decoded by the next child."""
    pool = DecoderPool(1, eager=0)
    child = decoder_pool._Child(pool._address_bytes)
    pool._put(child)
    child.process.kill()
    try:
        assert pool.decode(PNG).values.shape == (24, 32, 3)
    finally:
        pool.close()


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    pool, files = DecoderPool(1, eager=0), len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(InsufficientMemoryError, match="temporarily unavailable"):
        pool.decode(PNG)
    assert len(os.listdir("/proc/self/fd")) == files
    pool.close()


def test_child_whose_parent_has_closed_the_connection_ends_in_silence() -> None:
    """As when a worker is killed while its decoder starts."""
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "models.imaging.decoder_process", str(os.getpid()), str(other.fileno()), "0", "0"]
    child = subprocess.Popen(command, cwd=ROOT, pass_fds=[other.fileno()], stderr=subprocess.PIPE)
    ours.close()
    other.close()
    assert child.communicate(timeout=60)[1] == b""
    assert child.returncode == 0


def test_budget_of_cpu_time_grows_with_bytes_and_pixels() -> None:
    """The kernel ends a process that has spent it; here the seconds are small."""
    code = (
        "import sys, time\n"
        "from models.imaging import cpu_budget\n"
        "cpu_budget.BASE_SECONDS = 0.05\n"
        "start = time.process_time()\n"
        "cpu_budget.start_budget(int(sys.argv[1]))\n"
        "cpu_budget.allow_pixels(int(sys.argv[2]))\n"
        "print(flush=True)\n"
        "while time.process_time() < start + 0.25: pass\n"
    )
    for arguments, status in (("0", "0"), -signal.SIGPROF), (("1000000", "0"), 0), (("0", "1000000"), 0):
        assert subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT).returncode == status
