"""SegmentationService with a real bundle: requests that time out or are cancelled give their slots back, and their work ends."""

import asyncio
import io
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import CorruptImageError
from models.imaging.decode import decode_image
from models.outputs.options import OutputOptions
from models.outputs.pipeline import SegmentationPipeline
from service.admission import Stage
from service.errors import DeadlineExceededError, OverloadedError
from service.segmentation import SegmentationService, StageTimer
from service.settings import Settings
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image

Run = Callable[[Coroutine[Any, Any, Any]], Any]
IMAGE = encode_image(synthetic_image(60, 80), "PNG")
LARGE = encode_image(synthetic_image(3000, 3000), "JPEG")  # decoding alone takes longer than the time-outs here


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One event loop for all tests: a semaphore belongs to the loop that first waits for it."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def segmentation(small_bundle: Path, run: Run) -> Iterator[SegmentationService]:
    service = SegmentationService(Settings(bundle=small_bundle, queue_seconds=0.5, concurrency=2))
    run(service.start())
    deadline = time.monotonic() + 180
    while not service.registry.loaded_models() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield service
    service.stop()


async def segment(
    service: SegmentationService,
    data: bytes = IMAGE,
    seconds: float = 60,
    ignore_queue_timeout: bool = False,
    timer: StageTimer | None = None,
) -> bytes:
    model = service.registry.get()
    pipeline = SegmentationPipeline(model.segmenter, model.bundle.spec, "png", OutputOptions())
    deadline = asyncio.get_running_loop().time() + seconds
    async with service.admission.acquire("queue"):
        return await service.segment(data, pipeline, timer or StageTimer(), deadline, ignore_queue_timeout)


def free_slots(service: SegmentationService) -> dict[str, int]:
    return {stage: semaphore._value for stage, semaphore in service.admission._semaphores.items()}


async def wait_for_free_slots(service: SegmentationService, expected: dict[str, int]) -> None:
    for _ in range(600):
        if free_slots(service) == expected:
            break
        await asyncio.sleep(0.05)
    assert free_slots(service) == expected


def decode_mask(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)))


def test_stages_are_timed(segmentation: SegmentationService, run: Run) -> None:
    timer = StageTimer()
    body = run(segment(segmentation, timer=timer))
    expected = segmentation.registry.get().segmenter.segment(decode_image(IMAGE)).labels
    np.testing.assert_array_equal(decode_mask(body), expected)
    assert list(timer.milliseconds) == ["queue", "decode", "infer", "encode"]


def test_timeout_gives_the_slots_back_when_the_work_has_ended(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> None:
        free = free_slots(segmentation)
        for seconds in (-1.0, 0.0, 0.001, 0.02):
            with pytest.raises(DeadlineExceededError, match="60 seconds"):
                await segment(segmentation, LARGE, seconds)
        await wait_for_free_slots(segmentation, free)
        assert decode_mask(await segment(segmentation)).shape == (60, 80)

    run(work())


def test_cancelled_requests_give_their_slots_back(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> None:
        free = free_slots(segmentation)
        tasks = [asyncio.create_task(segment(segmentation, LARGE, ignore_queue_timeout=True)) for _ in range(4)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results
        await wait_for_free_slots(segmentation, free)
        await segment(segmentation)

    run(work())


def test_errors_give_the_slots_back(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> None:
        free = free_slots(segmentation)
        for _ in range(20):
            with pytest.raises(CorruptImageError):
                await segment(segmentation, IMAGE[:40])
        assert free_slots(segmentation) == free

    run(work())


def test_request_that_waits_too_long_is_rejected_but_not_a_batch(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> None:
        admission = segmentation.admission
        async with admission.acquire("inference", math.inf), admission.acquire("inference", math.inf):
            batch = asyncio.create_task(segment(segmentation, ignore_queue_timeout=True))
            with pytest.raises(OverloadedError, match=r"waited for the limit of 0\.5 seconds"):
                await segment(segmentation)
            assert not batch.done()
        await batch

    run(work())


def test_concurrent_requests_get_their_own_masks(segmentation: SegmentationService, run: Run) -> None:
    images = [encode_image(synthetic_image(40 + 10 * index, 90, seed=index), "PNG") for index in range(12)]

    async def work() -> list[bytes]:
        return await asyncio.gather(*(segment(segmentation, image, ignore_queue_timeout=True) for image in images))

    segmenter = segmentation.registry.get().segmenter
    for body, image in zip(run(work()), images, strict=True):
        np.testing.assert_array_equal(decode_mask(body), segmenter.segment(decode_image(image)).labels)


@pytest.mark.parametrize("stage", ["image", "decoder"])
def test_images_that_do_not_end_delay_others_no_longer_than_the_queue_time(
    segmentation: SegmentationService, run: Run, stage: Stage
) -> None:
    """They hold every slot and a thread each: others are rejected, not kept until the timeout."""
    release = threading.Event()

    async def stick() -> None:
        async with segmentation.admission.acquire(stage) as slot:
            await slot.run(segmentation._codec_pool, release.wait)

    async def send() -> None:
        free = free_slots(segmentation)
        stuck = [asyncio.create_task(stick()) for _ in range(free[stage] - 1)]
        await asyncio.sleep(0.05)
        assert decode_mask(await segment(segmentation, seconds=5)).shape == (60, 80)  # the last slot has a thread
        stuck.append(asyncio.create_task(stick()))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError):
            await segment(segmentation, seconds=5)
        release.set()
        await asyncio.gather(*stuck)
        await wait_for_free_slots(segmentation, free)

    run(send())
