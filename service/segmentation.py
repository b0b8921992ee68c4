"""The way of an image through a worker: its bytes are decoded, labelled and encoded, each step in its turn.

Inference has threads of its own, as many as may infer at once: an engine holds buffers for each thread that calls it.
Decoding and encoding have a thread a core: they go on for the next image and the last one while one is inferred.
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
from models.cpu_quota import threads_per_inference, usable_cores
from models.errors import InsufficientMemoryError
from models.imaging.decode import decode_image
from models.inference.segmenter import Segmenter
from models.outputs import encode, needs_confidence
from models.outputs.options import OutputOptions
from service.admission import AdmissionController
from service.errors import DeadlineExceededError
from service.model_registry import LoadedModel, ModelRegistry
from service.settings import Settings

Result = TypeVar("Result")

# What each new bundle labels on each thread before it serves, so that no caller pays for buffers and kernels.
WARMUP_SIZE = (480, 640)  # height, width in pixels


class StageTimer:
    """Milliseconds by stage, in the order in which they came."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book what has passed since the last lap on a stage."""
        now = time.perf_counter()
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + (now - self.last) * 1e3
        self.last = now


class _ImageSlot:
    """A room of the line that has been waited for; it is given back when the work in it has ended, whoever has gone."""

    def __init__(self, rooms: asyncio.Semaphore) -> None:
        self.semaphore = rooms
        self.abandoned_work: Future[Any] | None = None  # what goes on without anybody waiting for it

    async def run(self, work: "Future[Result]") -> Result:
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:  # which has reached what had not begun
            self.abandoned_work = None if work.cancelled() else work
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        loop = asyncio.get_running_loop()

        def give_back(work: object) -> None:
            with suppress(RuntimeError):  # the loop has ended before the thread
                loop.call_soon_threadsafe(self.semaphore.release)

        if self.abandoned_work is None:
            self.semaphore.release()
        else:
            self.abandoned_work.add_done_callback(give_back)


class SegmentationService:
    """Opens the bundles of `settings` and labels images with them."""

    def __init__(self, settings: Settings) -> None:
        cores = usable_cores()
        self.settings = settings
        # Alone, an engine knows best: of two threads that share a core it takes one.
        alone = settings.workers * settings.concurrency == 1
        self.threads = settings.threads or (
            0 if alone else threads_per_inference(settings.workers, settings.concurrency)
        )
        self.admission = AdmissionController(
            inference_slots=settings.concurrency,
            image_slots=settings.concurrency + cores,
            queue_size=settings.share(settings.queue),
            max_uploads=settings.share(settings.max_uploads),
            queue_timeout_seconds=settings.queue_seconds,
        )
        self._inference_pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="infer")
        self._codec_pool = ThreadPoolExecutor(cores, thread_name_prefix="hand")
        self.registry = ModelRegistry(
            settings.bundle, self._load, self._warm_up, settings.reload_seconds, settings.default_model
        )

    def start(self) -> None:
        """Begin to open the bundles."""
        self.registry.start()

    def stop(self) -> None:
        """Let what runs come to its end."""
        self.registry.stop()
        self._inference_pool.shutdown(cancel_futures=True)
        self._codec_pool.shutdown(cancel_futures=True)

    async def segment(
        self,
        data: bytes,
        format: str,
        options: OutputOptions,
        served: LoadedModel,
        clock: StageTimer,
        deadline: float,
        ignore_queue_timeout: bool = False,
    ) -> bytes:
        """From an image's bytes to the bytes of the answer.

        Args:
            data: the image's file.
            format, options: of the answer, as in `models/outputs`.
            served: the bundle that labels it.
            clock: gets the stages queue, decode, infer and encode.
            deadline: when the answer must be there, by the clock of the event loop.
            patient: whether it may wait for its turn for longer than the line's limit.

        Raises: ImageError, TooLittleMemory, Busy, TimedOut.
        """
        line, confidence = self.admission, needs_confidence(format, options)
        try:
            async with asyncio.timeout_at(deadline):
                left = await line.acquire(
                    line.image_slots, math.inf if ignore_queue_timeout else line.queue_timeout_seconds
                )
                async with _ImageSlot(line.image_slots) as room:
                    clock.lap("queue")
                    image = await room.run(self._codec_pool.submit(decode_image, data, self.settings.max_pixels))
                    clock.lap("decode")
                    await line.acquire(line.inference_slots, left)
                    clock.lap("queue")
                    prediction = await self._infer(lambda stopped: served.segmenter.segment(image, confidence, stopped))
                    clock.lap("infer")
                    body = await room.run(
                        self._codec_pool.submit(encode, format, prediction, served.bundle.spec, options)
                    )
                    clock.lap("encode")
                    return body
        except MemoryError as error:
            raise InsufficientMemoryError(
                "The memory is too small for this image's answer; send a smaller one."
            ) from error
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"The answer was not there within {self.settings.timeout_seconds:g} seconds. Send a smaller image, "
                "or ask again when there is less to do."
            ) from error

    async def run_in_thread(self, work: Callable[[], Result]) -> Result:
        """Do what would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._codec_pool, work)

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
                    loop.call_soon_threadsafe(self._finish_inference, took)

        try:
            future = loop.run_in_executor(self._inference_pool, timed)
        except BaseException:
            self.admission.inference_slots.release()
            raise
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            gone.set()
            future.add_done_callback(lambda done: done.exception())  # nobody else asks how it ended
            raise

    def _finish_inference(self, seconds: float) -> None:
        """`seconds`: what it took; 0 for one that did not come to its end, which tells nothing of the pace."""
        self.admission.inference_slots.release()
        if seconds:
            self.admission.record_inference_time(seconds)

    def _load(self, bundle: Bundle) -> Segmenter:
        asked = self.settings.engine, self.settings.precision, self.settings.device
        return Segmenter.load(bundle, *asked, self.threads, verify_probes=True, concurrency=self.settings.concurrency)

    def _warm_up(self, segmenter: Segmenter) -> None:
        """Label a blank image on each of the threads."""
        meeting = threading.Barrier(self.settings.concurrency)

        def once() -> None:
            with suppress(threading.BrokenBarrierError):
                meeting.wait(2)  # else one quick thread might take all of them
            segmenter.segment(np.zeros((*WARMUP_SIZE, 3), np.uint8))

        for future in [self._inference_pool.submit(once) for _ in range(self.settings.concurrency)]:
            future.result()
