"""Runs images through the models of one worker: decode, infer and encode, each when admission control lets it.

Inference has its own threads, one for each concurrent inference, because an engine holds buffers for each thread that calls
it. Decoding and encoding work on the next and the previous image during an inference. Images are decoded in child processes,
so that an image which takes too long can be stopped (`models/imaging/decoder_pool.py`).
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import numpy as np
from starlette.datastructures import Headers

from models.bundle import Bundle
from models.cgroup_limits import threads_per_inference, usable_cores
from models.imaging.decoder_pool import GRACE_SECONDS, IS_SUPPORTED, DecoderPool
from models.inference.segmenter import Segmenter
from models.malloc import trim_heap
from models.outputs.pipeline import SegmentationPipeline
from models.sample import Sample
from service.admission import AdmissionController, Slot
from service.errors import DeadlineExceededError, NotReadyError
from service.jobs import JobRunner, JobStore, prefers_async
from service.model_registry import ModelRegistry
from service.settings import Settings

Result = TypeVar("Result")

# Each new bundle segments a sample of this size (pixels, time steps, voxels) on each thread before it serves, so that no request
# waits for buffers and kernels.
WARMUP_SIZES = {"HW": (480, 640), "T": (5000,), "DHW": (32, 64, 64)}  # by axes

STARTUP_WAIT_SECONDS = 60.0  # how long a worker among several accepts no connection while it loads its bundles


class StageTimer:
    """Milliseconds by stage, in the order in which the stages occurred."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = time.perf_counter()
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + (now - self.last) * 1e3
        self.last = now


class SegmentationService:
    """The models, threads and limits of one worker."""

    def __init__(self, settings: Settings) -> None:
        cores = usable_cores()
        self.settings = settings
        # A single inference at a time: the engine chooses best. Of two hardware threads on one core it uses one.
        single = settings.workers * settings.concurrency == 1
        self.threads = settings.threads or (
            0 if single else threads_per_inference(settings.workers, settings.concurrency)
        )
        image_slots = settings.concurrency + cores
        self.admission = AdmissionController(
            inference_slots=settings.concurrency,
            image_slots=image_slots,
            queue_size=settings.per_worker(settings.queue),
            max_uploads=settings.per_worker(settings.max_uploads),
            queue_timeout_seconds=settings.queue_seconds,
            max_hold_seconds=settings.timeout_seconds + (settings.stuck_seconds or math.inf),
            decoder_slots=cores,
        )
        self._inference_pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="infer")
        # Enough threads that nothing waits for one: QUEUE_SECONDS limits only the waits for slots.
        self._codec_pool = ThreadPoolExecutor(image_slots + cores, thread_name_prefix="codec")
        self._decoders = None
        if settings.sandbox and IS_SUPPORTED:
            self._decoders = DecoderPool(cores, settings.max_pixels, max_voxels=settings.max_voxels)
        self.jobs: JobRunner | None = None
        if settings.job_store_bytes:
            store = JobStore(settings.job_folder, settings.job_store_bytes, settings.job_ttl_seconds)
            self.jobs = JobRunner(store, self.run_in_thread)
        self.registry = ModelRegistry(
            settings.bundle, self._load, self._warm_up, settings.reload_seconds, settings.default_model
        )

    async def start(self) -> None:
        """Start to load the bundles. With several workers, wait until one is loaded.

        A single worker responds "not ready" meanwhile, so that a probe can tell a slow start from a dead process. A worker
        that is restarted after a crash would respond it to callers whom the other workers can serve.
        """
        if self.jobs is not None:
            self.jobs.store.open()
        self.registry.start()
        deadline = time.monotonic() + (STARTUP_WAIT_SECONDS if self.settings.workers > 1 else 0)
        while time.monotonic() < deadline:
            try:
                return self.registry.check_ready()
            except NotReadyError as error:
                if error.retry_after is None:
                    return
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Wait for running work to end."""
        self.registry.stop()
        self._inference_pool.shutdown(cancel_futures=True)
        self._codec_pool.shutdown(cancel_futures=True)
        if self._decoders is not None:
            self._decoders.close()

    def is_job(self, headers: Headers) -> bool:
        """Whether a request is to be a job: its caller prefers it, and this service has jobs."""
        return self.jobs is not None and prefers_async(headers.get("prefer", ""))

    async def segment(
        self,
        data: bytes,
        pipeline: SegmentationPipeline,
        timer: StageTimer,
        deadline: float,
        ignore_queue_timeout: bool = False,
        is_job: bool = False,
    ) -> bytes:
        """Turn an image file into an encoded mask.

        Args:
            data: the bytes of the image file.
            pipeline: model, output format and options.
            timer: gets the stages queue, decode, infer and encode.
            deadline: when the mask must be ready, in the event loop's time.
            ignore_queue_timeout: whether the image may wait until the deadline.
            is_job: whether it is a job: the deadline may be far, and an image that is not done until then is stuck.

        Raises: ImageError, InsufficientMemoryError, OverloadedError, DeadlineExceededError.
        """
        admission, now = self.admission, asyncio.get_running_loop().time
        patience = math.inf if ignore_queue_timeout or is_job else admission.queue_timeout_seconds
        allowed = self.settings.job_timeout_seconds if is_job else self.settings.timeout_seconds
        hold = allowed + (self.settings.stuck_seconds or math.inf)
        try:
            async with (
                asyncio.timeout_at(deadline),
                admission.acquire("image", patience, max_hold_seconds=hold) as slot,
            ):
                timer.lap("queue")
                async with admission.acquire(
                    "decoder", patience - slot.waited_seconds, max_hold_seconds=hold
                ) as decoder:
                    timer.lap("queue")
                    image = await decoder.run(
                        self._codec_pool, lambda: self._decode(data, pipeline, decoder, deadline - now())
                    )
                timer.lap("decode")
                waited = slot.waited_seconds + decoder.waited_seconds
                cost = pipeline.cost(image)
                async with admission.acquire(
                    "inference", patience - waited, cost=cost, max_hold_seconds=hold
                ) as engine:
                    timer.lap("queue")
                    prediction = await engine.run(
                        self._inference_pool, lambda: pipeline.infer(image, engine.is_cancelled)
                    )
                timer.lap("infer")
                mask = await slot.run(self._codec_pool, lambda: pipeline.encode(prediction))
                timer.lap("encode")
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"The image was not processed within {allowed:g} seconds. Send a smaller image, or retry when the service is less "
                f"busy{'' if is_job or self.jobs is None else ', or as a job (Prefer: respond-async)'}."
            ) from error
        assert mask.data is not None  # the pipeline has a format
        return mask.data

    def _decode(self, data: bytes, pipeline: SegmentationPipeline, slot: Slot, seconds: float) -> Sample:
        """Decode an image within some seconds. Raises: ImageError, InsufficientMemoryError."""
        if self._decoders is None:
            return pipeline.decode(data)
        # The caller gets its 504 at the deadline; the child has a second more, as if the caller had gone.
        return pipeline.decode_in_child(data, self._decoders, seconds + GRACE_SECONDS, slot.is_cancelled)

    def release_memory(self) -> None:
        """Give back what the engines keep between images, and the free pages of the heap. Not while an image is processed."""
        for model in self.registry.loaded_models():
            model.segmenter.release_memory()
        trim_heap()

    async def run_in_thread(self, work: Callable[[], Result]) -> Result:
        """Run work that would block the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._codec_pool, work)

    def _load(self, bundle: Bundle) -> Segmenter:
        settings = self.settings
        return Segmenter.load(
            bundle, settings.engine, settings.precision, settings.device, self.threads, verify_probes=True,
            concurrency=settings.concurrency,
        )  # fmt: skip

    def _warm_up(self, segmenter: Segmenter) -> None:
        """Segment a blank sample on each of the inference threads."""
        barrier = threading.Barrier(self.settings.concurrency)

        def segment_blank() -> None:
            with suppress(threading.BrokenBarrierError):
                barrier.wait(2)  # otherwise one quick thread may take all of the work
            rule = segmenter.rule
            segmenter.segment(np.zeros((*WARMUP_SIZES[rule.axes], len(rule.channels)), rule.dtype))

        for future in [self._inference_pool.submit(segment_blank) for _ in range(self.settings.concurrency)]:
            future.result()
