"""The line before the engine: who may come in, who waits, and who is sent away at once.

An overloaded service that lets everybody wait answers nobody in time. Here a request is refused before its body is read
if, at the pace of the images before it, it would wait longer than the limit; the few whose turn comes later than
foreseen leave when the limit has passed.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import OverloadedError

# How much of the pace the last image decides. The pace is foreseen from some ten images: enough for one large one not to
# close the door, and few enough to notice that all have become large.
EMA_WEIGHT = 0.15

# Of the time that one may wait, what may be foreseen: images differ, and a promise that just fails costs both sides.
WAIT_SAFETY_FACTOR = 0.9


class AdmissionController:
    """Who waits for an inference in this process. To be used from one event loop."""

    def __init__(
        self, inference_slots: int, image_slots: int, queue_size: int, max_uploads: int, queue_timeout_seconds: float
    ) -> None:
        """Set the limits.

        Args:
            turns: inferences at once.
            rooms: images that hold their pixels at once: those that infer, and those that are decoded or encoded
                meanwhile. Others wait with their compressed bytes, a hundredth of that.
            places: images that may wait beside those.
            uploads: bodies that may come in at once.
            seconds: that an image may wait, in all.
        """
        self.inference_slots = asyncio.Semaphore(inference_slots)
        self.image_slots = asyncio.Semaphore(image_slots)
        self.queue_timeout_seconds = queue_timeout_seconds
        self._concurrency = inference_slots
        self._max_in_flight = image_slots + queue_size
        self._free_uploads = max_uploads
        self._in_flight = 0
        self._inference_seconds = 0.0  # seconds of an inference; 0 before the first

    def check_capacity(self) -> None:
        """Raises: Busy where a request that came now would be refused later."""
        if self._in_flight >= self._max_in_flight:
            raise self._overloaded_error(f"{self._in_flight} images are being answered or wait already")
        if self.expected_wait_seconds > WAIT_SAFETY_FACTOR * self.queue_timeout_seconds:
            raise self._overloaded_error(
                f"an image that came now would wait for some {self.expected_wait_seconds:.0f} seconds"
            )
        if self._free_uploads <= 0:
            raise self._overloaded_error("as many bodies as may are coming in already")

    @property
    def expected_wait_seconds(self) -> float:
        """The seconds that an image would wait that came now."""
        return max(0, self._in_flight + 1 - self._concurrency) * self._inference_seconds / self._concurrency

    @contextmanager
    def upload_slot(self) -> Iterator[None]:
        """Hold one of the places for bodies that come in. Raises: Busy."""
        self.check_capacity()
        self._free_uploads -= 1
        try:
            yield
        finally:
            self._free_uploads += 1

    @contextmanager
    def queue_slot(self, images: int = 1) -> Iterator[None]:
        """Hold places in the line, for so many at once. Raises: Busy, where others were quicker to send their bodies."""
        if self._in_flight >= self._max_in_flight:
            raise self._overloaded_error(f"{self._in_flight} images are being answered or wait already")
        self._in_flight += images
        try:
            yield
        finally:
            self._in_flight -= images

    def record_inference_time(self, seconds: float) -> None:
        """Learn how long an inference took."""
        self._inference_seconds += (seconds - self._inference_seconds) * (EMA_WEIGHT if self._inference_seconds else 1)

    async def acquire(self, what: asyncio.Semaphore, patience: float) -> float:
        """Wait for a room or a turn; first come, first served. Returns: the seconds of patience that are left. Raises: Busy."""
        if not what.locked():
            await what.acquire()
            return patience
        began = time.monotonic()
        try:
            async with asyncio.timeout(None if math.isinf(patience) else patience):
                await what.acquire()
        except TimeoutError as error:
            raise self._overloaded_error(
                f"the image has waited for the {self.queue_timeout_seconds:g} seconds that it may"
            ) from error
        return max(0.0, patience - (time.monotonic() - began))

    def _overloaded_error(self, reason: str) -> OverloadedError:
        after = max(1, math.ceil(min(self.expected_wait_seconds, self.queue_timeout_seconds)))
        return OverloadedError(f"The service is busy: {reason}. Ask again in {after} s.", after)
