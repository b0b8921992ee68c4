"""Servers and engines as processes to measure: start, stop, CPU time and memory (Linux, from /proc)."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
from PIL import Image

from benchmarks.load import form_request, post_request
from maskserve.bench_workers import BenchWorker, EngineConfig
from models import TELEMETRY_OPT_OUT
from models.imaging.decode import RGB
from service.server_process import LOOPBACK, ROOT, free_port, launch_server

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")  # bytes
READY_SECONDS = 180
TUTORIAL_SERVERS = {
    "FastAPI": ("fastapi", "benchmarks.servers.fastapi_tutorial", "{port}"),
    "LitServe": ("litserve", "benchmarks.servers.litserve_tutorial", "{port}"),
    "BentoML": (
        "bentoml", "bentoml", "serve", "benchmarks.servers.bentoml_tutorial:Segment", "--host", "127.0.0.1",
        "--port", "{port}",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class BenchServer:
    """A running server."""

    name: str
    url: str  # of its route for images
    pid: int
    multipart: bool = False  # whether it only accepts forms

    def request(self, image: bytes) -> bytes:
        """The HTTP request for one image."""
        return form_request(self.url, image) if self.multipart else post_request(self.url, image)

    def cpu_seconds(self) -> float:
        """Seconds of CPU time of the process tree, including processes that have ended."""
        return sum(process_cpu_seconds(pid) for pid in process_tree(self.pid))

    def memory_mb(self) -> float:
        """Resident megabytes (10^6 bytes) of the process tree; shared memory is counted for each process."""
        return sum(self.memory_by_role_mb().values())

    def memory_by_role_mb(self) -> dict[str, float]:
        """`memory_mb` of the workers, of the processes that decode images, and of the others."""
        memory = {"workers": 0.0, "decoders": 0.0, "others": 0.0}
        for pid in process_tree(self.pid):
            command = process_command(pid)
            is_worker, is_decoder = b"\0--worker-id\0" in command, b"decoder_process" in command
            memory["workers" if is_worker else "decoders" if is_decoder else "others"] += _resident_bytes(pid) / 1e6
        return memory


@contextmanager
def start_service(name: str, bundle: Path, **settings: object) -> Iterator[BenchServer]:
    """The service on a bundle; each of `settings` becomes MASKSERVE_<NAME>."""
    variables = {f"MASKSERVE_{key.upper()}": str(value) for key, value in settings.items()}
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        with tempfile.TemporaryFile() as log, launch_server(bundle, LOOPBACK, free_port(), log) as server:
            wait_until_ready(server.process, lambda client: client.get(f"{server.url}/readyz"))
            yield BenchServer(name, f"{server.url}/v1/segment", server.process.pid)
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


@contextmanager
def start_tutorial_server(name: str, *words: str, **environment: str) -> Iterator[BenchServer]:
    """A server of benchmarks/servers/. `words` follow `python -m`; `{port}` in them is replaced by its port."""
    port = free_port()
    command = [sys.executable, "-m", *(word.format(port=port) for word in words)]
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        known = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        child = subprocess.Popen(
            command, cwd=home, env={"BENTOML_HOME": home, **os.environ, **TELEMETRY_OPT_OUT, **known, **environment},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            url, dot = f"http://{LOOPBACK}:{port}/segment", io.BytesIO()
            Image.new("RGB", (64, 64)).save(dot, "JPEG")
            wait_until_ready(
                child, lambda client: client.post(url, files={"image": ("a.jpg", dot.getvalue(), "image/jpeg")})
            )
            yield BenchServer(name, url, child.pid, multipart=True)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its children are in its process group
            child.wait()


def missing_servers() -> list[str]:
    """Tutorial servers whose package is not installed."""
    missing = [
        f"{name}: {package} is not installed"
        for name, (package, *_) in TUTORIAL_SERVERS.items()
        if not find_spec(package)
    ]
    for line in missing:
        print(f"skipped: {line}")
    return missing


def start_tutorial_servers(stack: ExitStack, **environment: str) -> list[BenchServer]:
    """Start the tutorial servers whose packages are installed."""
    return [
        stack.enter_context(start_tutorial_server(name, *words, **environment))
        for name, (package, *words) in TUTORIAL_SERVERS.items()
        if find_spec(package)
    ]


class BenchEngine:
    """The Segmenter of a bundle in a separate process without a server."""

    def __init__(self, bundle: Path, precision: str, image: RGB, threads: int = 0) -> None:
        """`image`: RGB uint8 H x W x 3. `threads`: 0 for all cores."""
        self.worker = BenchWorker()
        self.worker.request((str(bundle), EngineConfig("openvino", "cpu", precision), threads, [image]))
        self.time_segment(3)

    def stop(self) -> None:
        """Stop its process."""
        self.worker.stop()

    def time_segment(self, times: int) -> tuple[list[float], float]:
        """Milliseconds of each of `times` passes, and core-milliseconds per pass."""
        before = process_cpu_seconds(self.worker.process.pid)
        seconds, _ = self.worker.request(times)
        spent = process_cpu_seconds(self.worker.process.pid) - before
        return [1000 * one for one in seconds], 1000 * spent / (1 + times)  # one pass is not counted in `seconds`


def wait_until_ready(
    child: subprocess.Popen[bytes] | None, ready: Callable[[httpx.Client], httpx.Response], timeout: float = 10
) -> None:
    """Wait until `ready` returns a 200; `timeout`: seconds of one request."""
    deadline, last = time.monotonic() + READY_SECONDS, "nothing"
    with httpx.Client(trust_env=False, timeout=timeout) as client:
        while time.monotonic() < deadline:
            if child and child.poll() is not None:
                raise RuntimeError(f"{child.args!r} ended with code {child.returncode}")
            with suppress(httpx.TransportError):
                if (response := ready(client)).status_code == 200:
                    return
                last = response.text[:300]
                if response.status_code == 503 and "retry-after" not in response.headers:
                    break  # our service omits it if waiting does not help
            time.sleep(0.1)
    raise RuntimeError(f"{child and child.args} did not get ready. Its last response: {last}")


def process_cpu_seconds(pid: int) -> float:
    """Seconds of CPU time of a process, and of its children that have ended."""
    return sum(_read_stat(pid)[11:15]) / TICKS_PER_SECOND


def process_tree(root: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            children.setdefault(_read_stat(int(folder.name))[1], []).append(int(folder.name))
    found = [root]
    for pid in found:  # grows as it is walked
        found += children.get(pid, [])
    return found


def process_command(pid: int) -> bytes:
    """The command line of a process, each argument followed by a zero byte; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def worker_pids(root: int) -> set[int]:
    """The worker processes of the service whose first process is `root`."""
    return {pid for pid in process_tree(root) if b"\0--worker-id\0" in process_command(pid)}


@contextmanager
def suspend_processes(pids: set[int]) -> Iterator[None]:
    """Suspend processes while the block runs: others respond meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def kill_worker(server: BenchServer) -> float:
    """Kill a worker of the service. Returns: the seconds until a new one is ready."""
    before, start = worker_pids(server.pid), time.monotonic()
    os.kill(min(before), signal.SIGKILL)
    while not worker_pids(server.pid) - before:
        time.sleep(0.05)
    with suspend_processes(before - {min(before)}):
        wait_until_ready(None, lambda client: client.get(f"{server.url.rpartition('/v1')[0]}/readyz"), 1)
    return round(time.monotonic() - start, 1)


def _read_stat(pid: int) -> list[int]:
    """The numbers after the name in /proc/PID/stat, with 0 for the state; empty if the process has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []
    return [0, *map(int, words[1:])]


def _resident_bytes(pid: int) -> int:
    """Resident bytes; zero if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0
