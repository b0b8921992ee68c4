"""Keeps the one open bundle of a process: opens it behind the server's back, says when it is ready, and infers.

Inference has threads of its own, as many as may infer at once: an engine holds buffers for each thread that
calls it, and the server's common pool would in time give forty threads their own.
"""

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.bundle import Bundle, open_bundle
from models.engines.choice import Choice
from models.errors import MaskserveError
from models.image import RGB
from models.segmenter import Prediction, Segmenter
from service.errors import NotReady
from service.settings import Settings

logger = logging.getLogger("maskserve")


@dataclass(frozen=True)
class Served:
    """A bundle that is open, verified, and has answered its probes on this machine."""

    bundle: Bundle
    segmenter: Segmenter
    choice: Choice


class Keeper:
    """Opens the bundle of `settings`, once, and runs its inferences."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="infer")
        # Requests that hold pixels: those that infer and, for each core, one that decodes or encodes meanwhile. The
        # others wait here with their compressed bytes, a hundredth of that.
        self.room = asyncio.Semaphore(settings.concurrency + (os.cpu_count() or 1))
        self._served: Served | None = None
        self._failure = ""

    def start(self) -> None:
        """Begin to open the bundle, on an inference thread: the probes then warm the buffers that requests will use."""
        self._threads.submit(self._open)

    def stop(self) -> None:
        """Let running inferences end."""
        self._threads.shutdown(cancel_futures=True)

    def served(self) -> Served:
        """What is served. Raises: NotReady, with the reason."""
        if self._served is not None:
            return self._served
        if self._failure:
            raise NotReady(self._failure, retry_after=None)
        raise NotReady("The bundle is being opened and its probes answered; try again in a moment.", retry_after=1)

    async def infer(
        self, segmenter: Segmenter, picture: RGB, confidence: bool = False
    ) -> tuple[Prediction, float, float]:
        """Segment RGB uint8 H x W x 3 when a thread is free.

        Returns: the prediction, the milliseconds spent waiting for a thread, and those spent inferring.
        """
        asked = time.perf_counter()

        def work() -> tuple[Prediction, float, float]:
            began = time.perf_counter()
            prediction = segmenter.segment(picture, confidence)
            return prediction, (began - asked) * 1e3, (time.perf_counter() - began) * 1e3

        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _open(self) -> None:
        settings = self.settings
        try:
            bundle = open_bundle(settings.bundle)
            asked = settings.engine, settings.precision, settings.device
            segmenter = Segmenter.load(bundle, *asked, settings.threads, probed=True)
            assert segmenter.choice is not None  # `load` made it
            self._served = Served(bundle, segmenter, segmenter.choice)
        except MaskserveError as error:
            self._failure = str(error)
            logger.error("the bundle cannot be served: %s", error)
        except Exception as error:  # a thread that dies in silence would leave the service "being opened" for ever
            self._failure = (
                f"{settings.bundle} could not be opened ({type(error).__name__}); the service's log holds the reason."
            )
            logger.exception("the bundle cannot be served")
