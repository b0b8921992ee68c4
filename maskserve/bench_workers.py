"""Ways to label pictures, each in a process of its own, asked in turn: what `maskserve bench` measures with.

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
WARM = 2  # rounds that are not counted
ASKS = 3  # counted passes over the pictures a turn, after one that fetches the way's memory back into the caches
PAUSE = 0.02  # seconds before a turn, in which the threads of the one before stop spinning
START = "import sys; sys.path.insert(0, {root!r}); from maskserve.bench_workers import work; work()"


@dataclass(frozen=True)
class Way:
    """One way to label pictures."""

    engine: str
    device: str
    precision: str
    # "module:function"; the function takes (bundle folder, way, threads) and returns a callable: RGB -> labels.
    opener: str = "maskserve.bench_workers:segmenter"


@dataclass
class Measured:
    """What was measured of a way; all but `error` is empty where it failed."""

    way: Way
    first: float = 0.0  # seconds from before the imports to the first answer
    labels: list["Labels"] = field(default_factory=list)  # of each picture
    times: list[float] = field(default_factory=list)  # milliseconds a picture, of each counted pass over the pictures
    memory: float | None = None  # MB, the largest resident set of the process; None where the system does not tell
    error: str = ""  # one sentence


class Died(Exception):
    """A worker that answers with an error, or not at all."""


def race(
    bundle: Path, ways: list[Way], pictures: list["RGB"], rounds: int, threads: int = 0,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Measured]:  # fmt: skip
    """Open each way, then ask all of them in turn, `rounds` times; pictures are RGB uint8 H x W x 3.

    `tell(what, done, total)` is called between the steps. Every process has ended when this returns or raises.
    """
    total, done = len(ways) * (1 + WARM + rounds), 0
    found = [Measured(way) for way in ways]
    with ExitStack() as stack:
        workers: list[tuple[Measured, Worker]] = []
        for one in found:
            tell(f"opening {one.way.engine} {one.way.precision}", done, total)
            worker = Worker()
            stack.callback(worker.end)
            try:
                one.first, one.labels = worker.ask((str(bundle), one.way, threads, pictures))
                workers.append((one, worker))
            except Died as error:
                one.error = str(error)
                worker.end()
            done += 1
        for turn in range(WARM + rounds):
            random.Random(turn).shuffle(workers)  # nobody always comes after the same one
            for one, worker in [pair for pair in workers if not pair[0].error]:
                tell(f"round {turn - WARM + 1} of {rounds}" if turn >= WARM else "warming up", done, total)
                time.sleep(PAUSE)
                try:
                    seconds, one.memory = worker.ask(ASKS)
                    one.times += [1000 * each / len(pictures) for each in seconds] if turn >= WARM else []
                except Died as error:
                    one.error = str(error)
                    worker.end()
                done += 1
    return found


class Worker:
    """The parent's end of a process that answers pickled messages."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        # -P: a folder `models` where the user stands is not ours.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", START.format(root=str(ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def ask(self, message: Any) -> Any:
        """Send a message and wait for its answer. Raises: Died, with a sentence."""
        assert self.process.stdin and self.process.stdout  # both are pipes
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
            answer, error = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as lost:
            raise Died(self._last_words()) from lost
        if error:
            raise Died(error)
        return answer

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            with suppress(OSError):  # what a dead process was still to be sent
                file.close()  # type: ignore[union-attr]

    def _last_words(self) -> str:
        code = self.process.wait()
        if code < 0:
            hint = "; the memory may be too small" if code == -signal.SIGKILL else ""
            return f"Its process was ended by {signal.Signals(-code).name}{hint}."
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        return f"Its process ended with code {code}: {words[-1]}"


def work() -> None:
    """The child's end: opens a way and labels each picture once, then asks it as often as it is told, until EOF."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches children as well; the parent ends this one
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the answers
    job = _Job(*pickle.load(questions))
    step: Callable[[], Any] = job.open
    with suppress(EOFError):  # the parent has ended
        while True:
            pickle.dump(_outcome(step), answers)
            answers.flush()
            step = functools.partial(job.turn, pickle.load(questions))


class _Job:
    """A way and the pictures that it is asked about."""

    def __init__(self, folder: str, way: Way, threads: int, pictures: list["RGB"]) -> None:
        self.folder, self.way, self.threads, self.pictures = Path(folder), way, threads, pictures
        self.ask: Callable[[RGB], Labels] = lambda picture: picture  # until it is opened

    def open(self) -> tuple[float, list["Labels"]]:
        """Seconds from before the imports to the first answer, and the labels of each picture."""
        start = time.perf_counter()
        module, _, function = self.way.opener.partition(":")
        self.ask = getattr(importlib.import_module(module), function)(self.folder, self.way, self.threads)
        first = self.ask(self.pictures[0])
        seconds = time.perf_counter() - start
        return seconds, [first, *map(self.ask, self.pictures[1:])]

    def turn(self, times: int) -> tuple[list[float], float | None]:
        """Seconds of each of some passes over the pictures, after one that is not counted; peak memory in MB."""
        return [self._pass() for _ in range(1 + times)][1:], peak()

    def _pass(self) -> float:
        start = time.perf_counter()
        for picture in self.pictures:
            self.ask(picture)
        return time.perf_counter() - start


def _outcome(step: Callable[[], Any]) -> tuple[Any, str]:
    """A step's answer, or the sentence of its error."""
    try:
        return step(), ""
    except MemoryError as error:
        return None, f"The memory is too small for it ({error})."
    except Exception as error:  # libraries raise what they meet
        from models.errors import MaskserveError, last_line

        return None, str(error) if isinstance(error, MaskserveError) else f"{type(error).__name__}: {last_line(error)}"


def segmenter(folder: Path, way: Way, threads: int) -> Callable[["RGB"], "Labels"]:
    """A bundle's Segmenter, as everywhere in the house. Raises: BundleError, EngineError."""
    from models.bundle import open_bundle
    from models.inference.segmenter import Segmenter

    loaded = Segmenter.load(open_bundle(folder), way.engine, way.precision, way.device, threads)
    return lambda picture: loaded.segment(picture).labels


def peak() -> float | None:
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
