"""The labeller with a real bundle: time-outs and callers that go give their turn back, and the work ends."""

import asyncio
import io
import math
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
from service.errors import DeadlineExceededError, OverloadedError
from service.segmentation import SegmentationService, StageTimer
from service.settings import Settings
from tests.fixtures_bundles import synthetic_image
from tests.service.test_app import encode_image

Run = Callable[[Coroutine[Any, Any, Any]], Any]
IMAGE = encode_image(synthetic_image(60, 80), "PNG")
LARGE = encode_image(synthetic_image(3000, 3000))  # by decoding alone it takes longer than the time-outs here


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One event loop for all: a line belongs to the loop that first waits in it."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def segmentation(tiny_bundle: Path) -> Iterator[SegmentationService]:
    labeller = SegmentationService(Settings(bundle=tiny_bundle, queue_seconds=0.5, concurrency=2))
    labeller.start()
    deadline = time.monotonic() + 180
    while not labeller.registry.loaded_models() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield labeller
    labeller.stop()


async def segment(
    labeller: SegmentationService, data: bytes = IMAGE, seconds: float = 60, ignore_queue_timeout: bool = False
) -> bytes:
    deadline = asyncio.get_running_loop().time() + seconds
    with labeller.admission.queue_slot():
        served = labeller.registry.get()
        return await labeller.segment(
            data, "png", OutputOptions(), served, StageTimer(), deadline, ignore_queue_timeout
        )


def free_slots(labeller: SegmentationService) -> tuple[int, int]:
    return labeller.admission.inference_slots._value, labeller.admission.image_slots._value


def test_an_image_goes_its_way_and_is_timed(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> tuple[bytes, StageTimer]:
        clock, served = StageTimer(), segmentation.registry.get()
        deadline = asyncio.get_running_loop().time() + 60
        return await segmentation.segment(IMAGE, "png", OutputOptions(), served, clock, deadline), clock

    body, clock = run(work())
    expected = segmentation.registry.get().segmenter.segment(decode_image(IMAGE)).labels
    np.testing.assert_array_equal(decode_mask(body), expected)
    assert list(clock.laps) == ["queue", "decode", "infer", "encode"]


def decode_mask(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)))


def test_a_time_out_gives_the_turn_back_when_the_work_has_ended(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> None:
        free = free_slots(segmentation)
        for seconds in (-1.0, 0.0, 0.001, 0.02):
            with pytest.raises(DeadlineExceededError, match="60 seconds"):
                await segment(segmentation, LARGE, seconds)
        for _ in range(600):
            if free_slots(segmentation) == free:
                break
            await asyncio.sleep(0.05)
        assert free_slots(segmentation) == free
        assert decode_mask(await segment(segmentation)).shape == (60, 80)

    run(work())


def test_a_caller_that_goes_leaves_nothing_behind(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> None:
        free = free_slots(segmentation)
        tasks = [asyncio.create_task(segment(segmentation, ignore_queue_timeout=True)) for _ in range(4)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended[2:]), ended  # the first two may be done
        for _ in range(600):
            if free_slots(segmentation) == free:
                break
            await asyncio.sleep(0.05)
        assert free_slots(segmentation) == free
        await segment(segmentation)

    run(work())


def test_errors_give_their_places_back(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> None:
        free = free_slots(segmentation)
        for _ in range(20):
            with pytest.raises(CorruptImageError):
                await segment(segmentation, IMAGE[:40])
        assert free_slots(segmentation) == free

    run(work())


def test_who_waits_longer_than_may_be_is_sent_away_but_not_a_batch(segmentation: SegmentationService, run: Run) -> None:
    async def work() -> None:
        line = segmentation.admission
        for _ in range(2):
            await line.acquire(line.inference_slots, math.inf)
        patient = asyncio.create_task(segment(segmentation, ignore_queue_timeout=True))
        with pytest.raises(OverloadedError, match=r"waited for the 0\.5 seconds"):
            await segment(segmentation)
        assert not patient.done()
        line.inference_slots.release()
        line.inference_slots.release()
        await patient

    run(work())


def test_images_answered_together_are_answered_right(segmentation: SegmentationService, run: Run) -> None:
    images = [encode_image(synthetic_image(40 + 10 * place, 90, seed=place), "PNG") for place in range(12)]

    async def work() -> list[bytes]:
        return await asyncio.gather(*(segment(segmentation, image, ignore_queue_timeout=True) for image in images))

    segmenter = segmentation.registry.get().segmenter
    for body, image in zip(run(work()), images, strict=True):
        np.testing.assert_array_equal(decode_mask(body), segmenter.segment(decode_image(image)).labels)
