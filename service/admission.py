"""Admission control: rejects with 429 early instead of queueing without limit.

A service that queues every request answers none of them in time once it is overloaded. A request is therefore rejected
before its body is read if its expected wait, from the time of recent inferences, is longer than the limit. The few
requests whose wait turns out longer than expected are rejected when the limit has passed.

    upload      request bodies that are being received
    queue       images that are processed or wait; checked, like uploads, without waiting
    image       images that hold decoded pixels: decode, infer, encode. Other images wait with their compressed bytes, about
                a hundredth of that
    decoder     images that are decoded; others that hold a place as image wait, but no longer than for an inference
    inference   inferences that run

Work is counted in units: an image is one, a recording one for so many time steps as take about as long (`SignalPipeline.cost`), so
that an hour of recording in the queue is not taken for a single image.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, TypeVar, cast

from service.errors import NotReadyError, OverloadedError

Stage = Literal["upload", "queue", "image", "decoder", "inference"]
Result = TypeVar("Result")

# Weight of the latest inference in the moving average: about ten images decide, few enough to notice that all images have
# become large, and enough for one large image not to cause rejections.
EMA_WEIGHT = 0.15

# Fraction of the wait limit that an expected wait may reach: images differ, and a request that waits and is then rejected
# costs both sides.
WAIT_SAFETY_FACTOR = 0.9


class Slot:
    """Capacity that is held by one request, and by the work that it started, until both have ended."""

    def __init__(self, waited_seconds: float, max_hold_seconds: float = math.inf) -> None:
        self.waited_seconds = waited_seconds
        self.max_hold_seconds = max_hold_seconds
        self.start = time.monotonic()
        self.work_seconds = 0.0  # of the last work that ended without an error
        self._cancelled = threading.Event()
        self._abandoned_work: Future[Any] | None = None

    def is_cancelled(self) -> bool:
        """Whether the request has ended before its work. May be called from any thread."""
        return self._cancelled.is_set()

    async def run(self, pool: Executor, work: Callable[[], Result]) -> Result:
        """Run `work` on a thread of `pool`. If the request is cancelled meanwhile, the slot is held until the thread is done."""

        def timed() -> Result:
            start = time.perf_counter()
            try:
                result = work()
            except Exception:
                if not self.is_cancelled():
                    raise
                return cast(Result, None)  # nobody looks at the error, and its frames would hold the image
            self.work_seconds = time.perf_counter() - start
            return result

        future = pool.submit(timed)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:  # this has also cancelled the future, unless its thread has begun
            self._cancelled.set()
            self._abandoned_work = None if future.cancelled() else future
            raise
        finally:
            del future  # it holds the exception, whose traceback holds this frame

    def call_when_done(self, release: Callable[[], None]) -> None:
        """Call `release` in the event loop as soon as no work of this slot runs."""
        loop = asyncio.get_running_loop()

        def call_release(work: object) -> None:
            with suppress(RuntimeError):  # the loop was closed before the thread ended
                loop.call_soon_threadsafe(release)

        if self._abandoned_work is None:
            release()
        else:
            self._abandoned_work.add_done_callback(call_release)


class AdmissionController:
    """Limits what one process does at once. Use it from one event loop."""

    def __init__(
        self,
        inference_slots: int,
        image_slots: int,
        queue_size: int,
        max_uploads: int,
        queue_timeout_seconds: float,
        max_hold_seconds: float = math.inf,
        decoder_slots: int | None = None,
    ) -> None:
        """Set the limits.

        Args:
            inference_slots: concurrent inferences.
            image_slots: images with decoded pixels: those in inference, and those that are decoded or encoded meanwhile.
            queue_size: images that may wait, beside those.
            max_uploads: request bodies that may be received at once.
            queue_timeout_seconds: longest wait of an image, in all.
            max_hold_seconds: after which an image that still holds a slot is stuck.
            decoder_slots: images that are decoded at once; None is as many as may hold pixels.
        """
        self.queue_timeout_seconds = queue_timeout_seconds
        self._concurrency = inference_slots
        self._max_in_flight = image_slots + queue_size
        self._max_uploads = self._free_uploads = max_uploads
        self._in_flight = 0
        self._units_in_flight = 0.0
        self._last_use = time.monotonic()
        self.uses = 0  # uploads and images so far
        self._max_hold_seconds = max_hold_seconds
        sizes = {"image": image_slots, "decoder": decoder_slots or image_slots, "inference": inference_slots}
        self._semaphores = {stage: asyncio.Semaphore(size) for stage, size in sizes.items()}
        self._held: dict[str, set[Slot]] = {stage: set() for stage in sizes}
        self._unit_seconds = 0.0  # moving average of the inference; 0 before the first one

    def check_capacity(self, is_job: bool = False) -> None:
        """Check whether a request that arrives now would be processed in time; a job may wait for longer.

        Raises: OverloadedError, NotReadyError.
        """
        self.check_progress()
        self._check_queue()
        wait = 0.0 if is_job else self.expected_wait_seconds
        if wait > WAIT_SAFETY_FACTOR * self.queue_timeout_seconds:
            raise self._overloaded_error(f"an image would wait about {wait:.0f} seconds")
        if self._free_uploads <= 0:
            raise self._overloaded_error("too many request bodies are being uploaded")

    def check_progress(self) -> None:
        """Check that work ends. Raises: NotReadyError if images have held all slots of a stage for too long."""
        if self.stuck_seconds > 0:
            raise NotReadyError(
                "The images in work do not end; this worker will be replaced. Retry later.",
                math.ceil(self.queue_timeout_seconds),
            )

    @property
    def stuck_seconds(self) -> float:
        """For how long every slot of a stage has been held by an image that should have ended; 0 if none is so."""
        now, longest = time.monotonic(), 0.0
        for stage, held in self._held.items():
            if held and self._semaphores[stage].locked():
                longest = max(longest, min(now - slot.start - slot.max_hold_seconds for slot in held))
        return longest

    @property
    def idle_seconds(self) -> float:
        """For how long there has been no upload, no image and no work of a request that has ended; 0 if there is one."""
        if self._in_flight or self._free_uploads < self._max_uploads or any(self._held.values()):
            return 0.0
        return time.monotonic() - self._last_use

    @property
    def expected_wait_seconds(self) -> float:
        """Expected wait of an image that arrives now, in seconds."""
        return max(0, self._units_in_flight + 1 - self._concurrency) * self._unit_seconds / self._concurrency

    @asynccontextmanager
    async def acquire(
        self, stage: Stage, timeout: float = 0.0, count: int = 1, cost: float = 1.0, is_job: bool = False,
        max_hold_seconds: float | None = None,
    ) -> AsyncIterator[Slot]:  # fmt: skip
        """Hold a slot of `stage` while the block runs, and until work that it has started has ended.

        Args:
            stage: see the module.
            timeout: seconds to wait for an image, decoder or inference slot, first come, first served; may be infinite.
            count: images, for the queue. One free place admits them all.
            cost: of each, for the queue and an inference, in units.
            is_job: for an upload, as in `check_capacity`.
            max_hold_seconds: after which the slot counts as stuck; None is that of the controller.

        Raises: OverloadedError if no slot is free in time.
        """
        waited = 0.0
        if stage == "upload":
            self.check_capacity(is_job)
            self._free_uploads -= 1
        elif stage == "queue":
            self._check_queue()  # other requests may have received their bodies faster
            self._in_flight += count
            self._units_in_flight += count * cost
        else:
            waited = await self._wait(self._semaphores[stage], timeout)
        self.uses += 1
        slot = Slot(waited, self._max_hold_seconds if max_hold_seconds is None else max_hold_seconds)
        if stage in self._held:
            self._held[stage].add(slot)
        try:
            yield slot
        finally:
            slot.call_when_done(lambda: self._release(stage, count, cost, slot))

    def record_inference_time(self, seconds: float, cost: float = 1.0) -> None:
        """Update the moving average that predicts waits, by an inference of `cost` units."""
        self._unit_seconds += (seconds / cost - self._unit_seconds) * (EMA_WEIGHT if self._unit_seconds else 1)

    async def _wait(self, semaphore: asyncio.Semaphore, timeout: float) -> float:
        start = time.monotonic()
        if not semaphore.locked():
            await semaphore.acquire()
            return 0.0
        try:
            async with asyncio.timeout(None if math.isinf(timeout) else timeout):
                await semaphore.acquire()
        except TimeoutError as error:
            raise self._overloaded_error(
                f"the image has waited for the limit of {self.queue_timeout_seconds:g} seconds"
            ) from error
        return time.monotonic() - start

    def _release(self, stage: Stage, count: int, cost: float, slot: Slot) -> None:
        self._last_use = time.monotonic()
        if stage == "upload":
            self._free_uploads += 1
        elif stage == "queue":
            self._in_flight -= count
            self._units_in_flight -= count * cost
        else:
            self._held[stage].remove(slot)
            self._semaphores[stage].release()
        if stage == "inference" and slot.work_seconds:  # an inference that was cancelled says nothing about the time
            self.record_inference_time(slot.work_seconds, cost)

    def _check_queue(self) -> None:
        if self._in_flight >= self._max_in_flight:
            raise self._overloaded_error(f"{self._in_flight} images are processed or wait already")

    def _overloaded_error(self, reason: str) -> OverloadedError:
        after = max(1, math.ceil(min(self.expected_wait_seconds, self.queue_timeout_seconds)))
        return OverloadedError(f"The service is busy: {reason}. Retry in {after} s.", after)
