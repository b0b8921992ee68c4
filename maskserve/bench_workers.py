"""Ways to label images, each in a process of its own, asked in turn: what `maskserve bench` measures with.

A process of its own keeps memory apart, and a way that dies spoils no other. In turn, round by round, the ways share
whatever else the machine does; while one is asked the others sleep.
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

if TYPE_CHECKING:  # a worker opens the house's rooms on its own clock
    from models.imaging.decode import RGB, Labels

ROOT = Path(__file__).resolve().parent.parent
WARMUP_ROUNDS = 2  # rounds that are not counted
PASSES_PER_ROUND = (
    3  # counted passes over the images a turn, after one that fetches the way's memory back into the caches
)
PAUSE_SECONDS = 0.02  # seconds before a turn, in which the threads of the one before stop spinning
BOOTSTRAP_CODE = (
    "import sys; sys.path.insert(0, {root!r}); from maskserve.bench_workers import worker_main; worker_main()"
)


@dataclass(frozen=True)
class EngineConfig:
    """One way to label images."""

    engine: str
    device: str
    precision: str
    # "module:function"; the function takes (bundle folder, way, threads) and returns a callable: RGB -> labels.
    factory: str = "maskserve.bench_workers:open_segmenter"


@dataclass
class BenchResult:
    """What was measured of a way; all but `error` is empty where it failed."""

    config: EngineConfig
    first_prediction_s: float = 0.0  # seconds from before the imports to the first answer
    labels: list["Labels"] = field(default_factory=list)  # of each image
    times_ms: list[float] = field(default_factory=list)  # milliseconds an image, of each counted pass over the images
    memory_mb: float | None = None  # MB, the largest resident set of the process; None where the system does not tell
    error: str = ""  # one sentence


class WorkerError(Exception):
    """A worker that answers with an error, or not at all."""


def benchmark_engines(
    bundle: Path, ways: list[EngineConfig], images: list["RGB"], rounds: int, threads: int = 0,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[BenchResult]:  # fmt: skip
    """Open each way, then ask all of them in turn, `rounds` times; images are RGB uint8 H x W x 3.

    `tell(what, done, total)` is called between the steps. Every process has ended when this returns or raises.
    """
    total, done = len(ways) * (1 + WARMUP_ROUNDS + rounds), 0
    found = [BenchResult(way) for way in ways]
    with ExitStack() as stack:
        workers: list[tuple[BenchResult, BenchWorker]] = []
        for one in found:
            tell(f"opening {one.config.engine} {one.config.precision}", done, total)
            worker = BenchWorker()
            stack.callback(worker.stop)
            try:
                one.first_prediction_s, one.labels = worker.request((str(bundle), one.config, threads, images))
                workers.append((one, worker))
            except WorkerError as error:
                one.error = str(error)
                worker.stop()
            done += 1
        for turn in range(WARMUP_ROUNDS + rounds):
            random.Random(turn).shuffle(workers)  # nobody always comes after the same one
            for one, worker in [pair for pair in workers if not pair[0].error]:
                tell(
                    f"round {turn - WARMUP_ROUNDS + 1} of {rounds}" if turn >= WARMUP_ROUNDS else "warming up",
                    done,
                    total,
                )
                time.sleep(PAUSE_SECONDS)
                try:
                    seconds, one.memory_mb = worker.request(PASSES_PER_ROUND)
                    one.times_ms += [1000 * each / len(images) for each in seconds] if turn >= WARMUP_ROUNDS else []
                except WorkerError as error:
                    one.error = str(error)
                    worker.stop()
                done += 1
    return found


class BenchWorker:
    """The parent's end of a process that answers pickled messages."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        # -P: a folder `models` where the user stands is not ours.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", BOOTSTRAP_CODE.format(root=str(ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def request(self, message: Any) -> Any:
        """Send a message and wait for its answer. Raises: Died, with a sentence."""
        assert self.process.stdin and self.process.stdout  # both are pipes
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
            answer, error = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as lost:
            raise WorkerError(self._exit_message()) from lost
        if error:
            raise WorkerError(error)
        return answer

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            with suppress(OSError):  # what a dead process was still to be sent
                file.close()  # type: ignore[union-attr]

    def _exit_message(self) -> str:
        code = self.process.wait()
        if code < 0:
            hint = "; the memory may be too small" if code == -signal.SIGKILL else ""
            return f"Its process was ended by {signal.Signals(-code).name}{hint}."
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        return f"Its process ended with code {code}: {words[-1]}"


def worker_main() -> None:
    """The child's end: opens a way and labels each image once, then asks it as often as it is told, until EOF."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches children as well; the parent ends this one
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the answers
    job = _BenchTask(*pickle.load(questions))
    step: Callable[[], Any] = job.open
    with suppress(EOFError):  # the parent has ended
        while True:
            pickle.dump(_run_step(step), answers)
            answers.flush()
            step = functools.partial(job.run_passes, pickle.load(questions))


class _BenchTask:
    """A way and the images that it is asked about."""

    def __init__(self, folder: str, way: EngineConfig, threads: int, images: list["RGB"]) -> None:
        self.folder, self.config, self.threads, self.images = Path(folder), way, threads, images
        self.predict: Callable[[RGB], Labels] = lambda image: image  # until it is opened

    def open(self) -> tuple[float, list["Labels"]]:
        """Seconds from before the imports to the first answer, and the labels of each image."""
        start = time.perf_counter()
        module, _, function = self.config.factory.partition(":")
        self.predict = getattr(importlib.import_module(module), function)(self.folder, self.config, self.threads)
        first = self.predict(self.images[0])
        seconds = time.perf_counter() - start
        return seconds, [first, *map(self.predict, self.images[1:])]

    def run_passes(self, times: int) -> tuple[list[float], float | None]:
        """Seconds of each of some passes over the images, after one that is not counted; peak memory in MB."""
        return [self._time_pass() for _ in range(1 + times)][1:], peak_memory_mb()

    def _time_pass(self) -> float:
        start = time.perf_counter()
        for image in self.images:
            self.predict(image)
        return time.perf_counter() - start


def _run_step(step: Callable[[], Any]) -> tuple[Any, str]:
    """A step's answer, or the sentence of its error."""
    try:
        return step(), ""
    except MemoryError as error:
        return None, f"The memory is too small for it ({error})."
    except Exception as error:  # libraries raise what they meet
        from models.errors import MaskserveError, last_line

        return None, str(error) if isinstance(error, MaskserveError) else f"{type(error).__name__}: {last_line(error)}"


def open_segmenter(folder: Path, way: EngineConfig, threads: int) -> Callable[["RGB"], "Labels"]:
    """A bundle's Segmenter, as everywhere in the house. Raises: BundleError, EngineError."""
    from models.bundle import open_bundle
    from models.inference.segmenter import Segmenter

    loaded = Segmenter.load(open_bundle(folder), way.engine, way.precision, way.device, threads)
    return lambda image: loaded.segment(image).labels


def peak_memory_mb() -> float | None:
    """The largest resident set of this process so far, in MB (10^6 bytes); None where the system does not tell."""
    try:  # getrusage's, on Linux, begins with that of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes
