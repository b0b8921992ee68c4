"""Times engine configurations, each in a process of its own, in turn: the measurements of `maskserve bench`.

Separate processes keep memory figures apart, and one that crashes does not affect the others. Measured in turn, round by
round, all are affected alike by other load on the machine; while one runs the others sleep.
"""

import functools
import importlib
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the time that a worker takes to import these is measured
    from models.imaging.decode import RGB, Labels

ROOT = Path(__file__).resolve().parent.parent
WARMUP_ROUNDS = 2  # rounds that are not counted
PASSES_PER_ROUND = 3  # counted passes over the images, after one that loads the worker's memory into the caches again
PAUSE_SECONDS = 0.02  # seconds before a worker's turn, in which the threads of the previous worker stop spinning
BOOTSTRAP_CODE = (
    "import sys; sys.path.insert(0, {root!r}); from maskserve.bench_workers import worker_main; worker_main()"
)


def ignore_progress(step: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class EngineConfig:
    """One way to run a bundle."""

    engine: str
    device: str
    precision: str
    # "module:function"; the function takes (bundle folder, EngineConfig, threads) and returns a callable: RGB -> labels.
    factory: str = "maskserve.bench_workers:open_segmenter"


@dataclass
class BenchResult:
    """The measurements of a configuration; if it failed, only `error` is set."""

    config: EngineConfig
    first_prediction_s: float = 0.0  # seconds from before the imports to the first prediction
    labels: list["Labels"] = field(default_factory=list)  # of each image
    times_ms: list[float] = field(default_factory=list)  # milliseconds per image, for each counted pass over the images
    memory_mb: float | None = None  # peak resident memory in MB; None if the operating system does not report it
    error: str = ""


class WorkerError(Exception):
    """A worker reported an error, or its process has ended."""


def benchmark_engines(
    bundle: Path, configs: list[EngineConfig], images: list["RGB"], rounds: int, threads: int = 0,
    on_progress: Callable[[str, int, int], None] = ignore_progress,
) -> list[BenchResult]:  # fmt: skip
    """Load each configuration in a process of its own, then time all of them in turn, `rounds` times.

    `images`: RGB uint8 H x W x 3. `on_progress(step, done, total)` is called between the steps. Every process has ended when
    this returns or raises.
    """
    total, done = len(configs) * (1 + WARMUP_ROUNDS + rounds), 0
    results = [BenchResult(config) for config in configs]
    with ExitStack() as stack:
        workers: list[tuple[BenchResult, BenchWorker]] = []
        for result in results:
            on_progress(f"loading {result.config.engine} {result.config.precision}", done, total)
            worker = BenchWorker()
            stack.callback(worker.stop)
            try:
                result.first_prediction_s, result.labels = worker.request((str(bundle), result.config, threads, images))
                workers.append((result, worker))
            except WorkerError as error:
                result.error = str(error)
                worker.stop()
            done += 1
        for turn in range(WARMUP_ROUNDS + rounds):
            counted = turn >= WARMUP_ROUNDS
            step = f"round {turn - WARMUP_ROUNDS + 1} of {rounds}" if counted else "warming up"
            random.Random(turn).shuffle(workers)  # so that none always follows the same one
            for result, worker in [pair for pair in workers if not pair[0].error]:
                on_progress(step, done, total)
                time.sleep(PAUSE_SECONDS)
                try:
                    seconds, result.memory_mb = worker.request(PASSES_PER_ROUND)
                    result.times_ms += [1000 * each / len(images) for each in seconds] if counted else []
                except WorkerError as error:
                    result.error = str(error)
                    worker.stop()
                done += 1
    return results


class BenchWorker:
    """The parent's side of a worker process, which exchanges pickled messages with it."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        # -P: do not import a folder `models` in the current directory.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", BOOTSTRAP_CODE.format(root=str(ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def request(self, message: Any) -> Any:
        """Send a message and wait for the response. Raises: WorkerError."""
        assert self.process.stdin and self.process.stdout  # both are pipes
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
            response, error = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as lost:
            raise WorkerError(self._exit_message()) from lost
        if error:
            raise WorkerError(error)
        return response

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            with suppress(OSError):  # unsent data of a dead process
                file.close()  # type: ignore[union-attr]

    def _exit_message(self) -> str:
        code = self.process.wait()
        if code < 0:
            hint = "; there may be too little memory" if code == -signal.SIGKILL else ""
            return f"Its process was ended by {signal.Signals(-code).name}{hint}."
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"]
        return f"Its process ended with code {code}: {lines[-1]}"


def worker_main() -> None:
    """The worker's side: loads a configuration and segments each image once, then times as many passes as requested, until EOF."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches children as well; the parent ends this one
    requests, responses = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps the output of libraries out of the responses
    task = _BenchTask(*pickle.load(requests))
    step: Callable[[], Any] = task.open
    with suppress(EOFError):  # the parent has ended
        while True:
            pickle.dump(_run_step(step), responses)
            responses.flush()
            step = functools.partial(task.run_passes, pickle.load(requests))


class _BenchTask:
    """A configuration and the images that it is timed on."""

    def __init__(self, folder: str, config: EngineConfig, threads: int, images: list["RGB"]) -> None:
        self.folder, self.config, self.threads, self.images = Path(folder), config, threads, images
        self.predict: Callable[[RGB], Labels] = lambda image: image  # until `open`

    def open(self) -> tuple[float, list["Labels"]]:
        """Load it. Returns: seconds from before the imports to the first prediction, and the labels of each image."""
        start = time.perf_counter()
        module, _, function = self.config.factory.partition(":")
        self.predict = getattr(importlib.import_module(module), function)(self.folder, self.config, self.threads)
        first = self.predict(self.images[0])
        seconds = time.perf_counter() - start
        return seconds, [first, *map(self.predict, self.images[1:])]

    def run_passes(self, times: int) -> tuple[list[float], float | None]:
        """Seconds of each of `times` passes over the images, after one that is not counted; peak memory in MB."""
        return [self._time_pass() for _ in range(1 + times)][1:], peak_memory_mb()

    def _time_pass(self) -> float:
        start = time.perf_counter()
        for image in self.images:
            self.predict(image)
        return time.perf_counter() - start


def _run_step(step: Callable[[], Any]) -> tuple[Any, str]:
    """The result of a step, or its error message."""
    try:
        return step(), ""
    except MemoryError as error:
        return None, f"There is not enough memory ({error})."
    except Exception as error:  # engines raise many types
        from models.errors import MaskserveError, last_line

        return None, str(error) if isinstance(error, MaskserveError) else f"{type(error).__name__}: {last_line(error)}"


def open_segmenter(folder: Path, config: EngineConfig, threads: int) -> Callable[["RGB"], "Labels"]:
    """Load a bundle's Segmenter. Raises: BundleError, EngineError."""
    from models.bundle import open_bundle
    from models.inference.segmenter import Segmenter

    segmenter = Segmenter.load(open_bundle(folder), config.engine, config.precision, config.device, threads)
    return lambda image: segmenter.segment(image).labels


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process in MB (10^6 bytes); None if the operating system does not report it."""
    try:  # on Linux, getrusage starts with the peak of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # in bytes on macOS
