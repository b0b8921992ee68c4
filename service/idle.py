"""Gives memory back to the system when no request has come for a while.

An engine keeps the buffers of the largest images, and the heap the pages of freed blocks. Both cost nothing while requests come.
Without them the first image after a pause takes a few milliseconds longer.
"""

import asyncio
from collections.abc import Callable

from service.admission import AdmissionController

IDLE_SECONDS = 10.0
CHECK_SECONDS = 1.0


async def release_memory_when_idle(
    admission: AdmissionController, release: Callable[[], None], idle_seconds: float = IDLE_SECONDS
) -> None:
    """Call `release` once each time that requests have come and none has for `idle_seconds`. Runs until it is cancelled.

    In the event loop, so that no request can begin meanwhile.
    """
    released_at = -1  # the first time after the warm-up
    while True:
        await asyncio.sleep(min(CHECK_SECONDS, idle_seconds))
        if admission.uses != released_at and admission.idle_seconds >= idle_seconds:
            released_at = admission.uses
            release()
