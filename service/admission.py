"""The line before the engine: who may come in, who waits, and who is sent away at once.

An overloaded service that lets everybody wait answers nobody in time. Here a request is refused before its body is read
if, at the pace of the pictures before it, it would wait longer than the limit; the few whose turn comes later than
foreseen leave when the limit has passed.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Busy

# How much of the pace the last picture decides. The pace is foreseen from some ten pictures: enough for one large one not to
# close the door, and few enough to notice that all have become large.
NEWEST = 0.15

# Of the time that one may wait, what may be foreseen: pictures differ, and a promise that just fails costs both sides.
PRUDENCE = 0.9


class Line:
    """Who waits for an inference in this process. To be used from one event loop."""

    def __init__(self, turns: int, rooms: int, places: int, uploads: int, seconds: float) -> None:
        """Set the limits.

        Args:
            turns: inferences at once.
            rooms: pictures that hold their pixels at once: those that infer, and those that are decoded or encoded
                meanwhile. Others wait with their compressed bytes, a hundredth of that.
            places: pictures that may wait beside those.
            uploads: bodies that may come in at once.
            seconds: that a picture may wait, in all.
        """
        self.turns = asyncio.Semaphore(turns)
        self.rooms = asyncio.Semaphore(rooms)
        self.seconds = seconds
        self._turns = turns
        self._most = rooms + places
        self._uploads_left = uploads
        self._inside = 0
        self._pace = 0.0  # seconds of an inference; 0 before the first

    def admit(self) -> None:
        """Raises: Busy where a request that came now would be refused later."""
        if self._inside >= self._most:
            raise self._busy(f"{self._inside} pictures are being answered or wait already")
        if self.foreseen > PRUDENCE * self.seconds:
            raise self._busy(f"a picture that came now would wait for some {self.foreseen:.0f} seconds")
        if self._uploads_left <= 0:
            raise self._busy("as many bodies as may are coming in already")

    @property
    def foreseen(self) -> float:
        """The seconds that a picture would wait that came now."""
        return max(0, self._inside + 1 - self._turns) * self._pace / self._turns

    @contextmanager
    def upload(self) -> Iterator[None]:
        """Hold one of the places for bodies that come in. Raises: Busy."""
        self.admit()
        self._uploads_left -= 1
        try:
            yield
        finally:
            self._uploads_left += 1

    @contextmanager
    def place(self, pictures: int = 1) -> Iterator[None]:
        """Hold places in the line, for so many at once. Raises: Busy, where others were quicker to send their bodies."""
        if self._inside >= self._most:
            raise self._busy(f"{self._inside} pictures are being answered or wait already")
        self._inside += pictures
        try:
            yield
        finally:
            self._inside -= pictures

    def took(self, seconds: float) -> None:
        """Learn how long an inference took."""
        self._pace += (seconds - self._pace) * (NEWEST if self._pace else 1)

    async def wait(self, what: asyncio.Semaphore, patience: float) -> float:
        """Wait for a room or a turn; first come, first served. Returns: the seconds of patience that are left. Raises: Busy."""
        if not what.locked():
            await what.acquire()
            return patience
        began = time.monotonic()
        try:
            async with asyncio.timeout(None if math.isinf(patience) else patience):
                await what.acquire()
        except TimeoutError as error:
            raise self._busy(f"the picture has waited for the {self.seconds:g} seconds that it may") from error
        return max(0.0, patience - (time.monotonic() - began))

    def _busy(self, reason: str) -> Busy:
        after = max(1, math.ceil(min(self.foreseen, self.seconds)))
        return Busy(f"The service is busy: {reason}. Ask again in {after} s.", after)
