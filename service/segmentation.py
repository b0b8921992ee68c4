"""The way of a picture through a worker: its bytes are decoded, labelled and encoded, each step in its turn.

Inference has threads of its own, as many as may infer at once: an engine holds buffers for each thread that calls it.
Decoding and encoding have a thread a core: they go on for the next picture and the last one while one is inferred.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self, TypeVar

import numpy as np

from models.bundle import Bundle
from models.cpu_quota import threads_for, usable_cores
from models.errors import TooLittleMemory
from models.imaging.decode import decode
from models.inference.segmenter import Segmenter
from models.outputs import encode, needs_confidence
from models.outputs.options import Options
from service.admission import Line
from service.errors import TimedOut
from service.model_registry import Served, Shelf
from service.settings import Settings

Result = TypeVar("Result")

# What each new bundle labels on each thread before it serves, so that no caller pays for buffers and kernels.
WARM_SIZE = (480, 640)  # height, width in pixels


class Clock:
    """Milliseconds by stage, in the order in which they came."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book what has passed since the last lap on a stage."""
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + (now - self.last) * 1e3
        self.last = now


class _Room:
    """A room of the line that has been waited for; it is given back when the work in it has ended, whoever has gone."""

    def __init__(self, rooms: asyncio.Semaphore) -> None:
        self.rooms = rooms
        self.left: Future[Any] | None = None  # what goes on without anybody waiting for it

    async def kept_by(self, work: "Future[Result]") -> Result:
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:  # which has reached what had not begun
            self.left = None if work.cancelled() else work
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        loop = asyncio.get_running_loop()

        def give_back(work: object) -> None:
            with suppress(RuntimeError):  # the loop has ended before the thread
                loop.call_soon_threadsafe(self.rooms.release)

        if self.left is None:
            self.rooms.release()
        else:
            self.left.add_done_callback(give_back)


class Labeller:
    """Opens the bundles of `settings` and labels pictures with them."""

    def __init__(self, settings: Settings) -> None:
        cores = usable_cores()
        self.settings = settings
        # Alone, an engine knows best: of two threads that share a core it takes one.
        alone = settings.workers * settings.concurrency == 1
        self.threads = settings.threads or (0 if alone else threads_for(settings.workers, settings.concurrency))
        self.line = Line(
            turns=settings.concurrency,
            rooms=settings.concurrency + cores,
            places=settings.share(settings.queue),
            uploads=settings.share(settings.max_uploads),
            seconds=settings.queue_seconds,
        )
        self._engine_threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="infer")
        self._hands = ThreadPoolExecutor(cores, thread_name_prefix="hand")
        self.shelf = Shelf(settings.bundle, self._load, self._warm, settings.reload_seconds, settings.default_model)

    def start(self) -> None:
        """Begin to open the bundles."""
        self.shelf.start()

    def stop(self) -> None:
        """Let what runs come to its end."""
        self.shelf.stop()
        self._engine_threads.shutdown(cancel_futures=True)
        self._hands.shutdown(cancel_futures=True)

    async def label(
        self, data: bytes, format: str, options: Options, served: Served, clock: Clock, deadline: float, patient: bool = False
    ) -> bytes:  # fmt: skip
        """From a picture's bytes to the bytes of the answer.

        Args:
            data: the picture's file.
            format, options: of the answer, as in `models/outputs`.
            served: the bundle that labels it.
            clock: gets the stages queue, decode, infer and encode.
            deadline: when the answer must be there, by the clock of the event loop.
            patient: whether it may wait for its turn for longer than the line's limit.

        Raises: ImageError, TooLittleMemory, Busy, TimedOut.
        """
        line, confidence = self.line, needs_confidence(format, options)
        try:
            async with asyncio.timeout_at(deadline):
                left = await line.wait(line.rooms, math.inf if patient else line.seconds)
                async with _Room(line.rooms) as room:
                    clock.lap("queue")
                    picture = await room.kept_by(self._hands.submit(decode, data, self.settings.max_pixels))
                    clock.lap("decode")
                    await line.wait(line.turns, left)
                    clock.lap("queue")
                    prediction = await self._infer(
                        lambda stopped: served.segmenter.segment(picture, confidence, stopped)
                    )
                    clock.lap("infer")
                    body = await room.kept_by(
                        self._hands.submit(encode, format, prediction, served.bundle.spec, options)
                    )
                    clock.lap("encode")
                    return body
        except MemoryError as error:
            raise TooLittleMemory("The memory is too small for this picture's answer; send a smaller one.") from error
        except TimeoutError as error:
            raise TimedOut(
                f"The answer was not there within {self.settings.timeout_seconds:g} seconds. Send a smaller picture, "
                "or ask again when there is less to do."
            ) from error

    async def by_hand(self, work: Callable[[], Result]) -> Result:
        """Do what would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._hands, work)

    async def _infer(self, work: Callable[[Callable[[], bool]], Result]) -> Result:
        """Run an inference whose turn has been waited for, and give the turn back when the thread is done.

        Who asked may go before that, by a time-out or a lost connection. The work then ends before its next tile, and until it
        has there is no other in its place.
        """
        loop = asyncio.get_running_loop()
        gone = threading.Event()

        def timed() -> Result:
            began, took = time.perf_counter(), 0.0
            try:
                result = work(gone.is_set)
                took = time.perf_counter() - began
                return result
            finally:
                with suppress(RuntimeError):  # the loop has ended before the thread
                    loop.call_soon_threadsafe(self._ended, took)

        try:
            future = loop.run_in_executor(self._engine_threads, timed)
        except BaseException:
            self.line.turns.release()
            raise
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            gone.set()
            future.add_done_callback(lambda done: done.exception())  # nobody else asks how it ended
            raise

    def _ended(self, seconds: float) -> None:
        """`seconds`: what it took; 0 for one that did not come to its end, which tells nothing of the pace."""
        self.line.turns.release()
        if seconds:
            self.line.took(seconds)

    def _load(self, bundle: Bundle) -> Segmenter:
        asked = self.settings.engine, self.settings.precision, self.settings.device
        return Segmenter.load(bundle, *asked, self.threads, probed=True, at_once=self.settings.concurrency)

    def _warm(self, segmenter: Segmenter) -> None:
        """Label a blank picture on each of the threads."""
        meeting = threading.Barrier(self.settings.concurrency)

        def once() -> None:
            with suppress(threading.BrokenBarrierError):
                meeting.wait(2)  # else one quick thread might take all of them
            segmenter.segment(np.zeros((*WARM_SIZE, 3), np.uint8))

        for future in [self._engine_threads.submit(once) for _ in range(self.settings.concurrency)]:
            future.result()
