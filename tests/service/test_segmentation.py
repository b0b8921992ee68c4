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

from models.errors import BrokenImage
from models.imaging.decode import decode
from models.outputs.options import Options
from service.errors import Busy, TimedOut
from service.segmentation import Clock, Labeller
from service.settings import Settings
from tests.fixtures_bundles import drawing
from tests.service.test_app import encoded

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PICTURE = encoded(drawing(60, 80), "PNG")
LARGE = encoded(drawing(3000, 3000))  # by decoding alone it takes longer than the time-outs here


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One event loop for all: a line belongs to the loop that first waits in it."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def labeller(tiny_bundle: Path) -> Iterator[Labeller]:
    labeller = Labeller(Settings(bundle=tiny_bundle, queue_seconds=0.5, concurrency=2))
    labeller.start()
    deadline = time.monotonic() + 180
    while not labeller.shelf.all() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield labeller
    labeller.stop()


async def label(labeller: Labeller, data: bytes = PICTURE, seconds: float = 60, patient: bool = False) -> bytes:
    deadline = asyncio.get_running_loop().time() + seconds
    with labeller.line.place():
        served = labeller.shelf.get()
        return await labeller.label(data, "png", Options(), served, Clock(), deadline, patient)


def turns_left(labeller: Labeller) -> tuple[int, int]:
    return labeller.line.turns._value, labeller.line.rooms._value


def test_a_picture_goes_its_way_and_is_timed(labeller: Labeller, run: Run) -> None:
    async def work() -> tuple[bytes, Clock]:
        clock, served = Clock(), labeller.shelf.get()
        deadline = asyncio.get_running_loop().time() + 60
        return await labeller.label(PICTURE, "png", Options(), served, clock, deadline), clock

    body, clock = run(work())
    expected = labeller.shelf.get().segmenter.segment(decode(PICTURE)).labels
    np.testing.assert_array_equal(decode_labels(body), expected)
    assert list(clock.laps) == ["queue", "decode", "infer", "encode"]


def decode_labels(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)))


def test_a_time_out_gives_the_turn_back_when_the_work_has_ended(labeller: Labeller, run: Run) -> None:
    async def work() -> None:
        free = turns_left(labeller)
        for seconds in (-1.0, 0.0, 0.001, 0.02):
            with pytest.raises(TimedOut, match="60 seconds"):
                await label(labeller, LARGE, seconds)
        for _ in range(600):
            if turns_left(labeller) == free:
                break
            await asyncio.sleep(0.05)
        assert turns_left(labeller) == free
        assert decode_labels(await label(labeller)).shape == (60, 80)

    run(work())


def test_a_caller_that_goes_leaves_nothing_behind(labeller: Labeller, run: Run) -> None:
    async def work() -> None:
        free = turns_left(labeller)
        tasks = [asyncio.create_task(label(labeller, patient=True)) for _ in range(4)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended[2:]), ended  # the first two may be done
        for _ in range(600):
            if turns_left(labeller) == free:
                break
            await asyncio.sleep(0.05)
        assert turns_left(labeller) == free
        await label(labeller)

    run(work())


def test_errors_give_their_places_back(labeller: Labeller, run: Run) -> None:
    async def work() -> None:
        free = turns_left(labeller)
        for _ in range(20):
            with pytest.raises(BrokenImage):
                await label(labeller, PICTURE[:40])
        assert turns_left(labeller) == free

    run(work())


def test_who_waits_longer_than_may_be_is_sent_away_but_not_a_batch(labeller: Labeller, run: Run) -> None:
    async def work() -> None:
        line = labeller.line
        for _ in range(2):
            await line.wait(line.turns, math.inf)
        patient = asyncio.create_task(label(labeller, patient=True))
        with pytest.raises(Busy, match=r"waited for the 0\.5 seconds"):
            await label(labeller)
        assert not patient.done()
        line.turns.release()
        line.turns.release()
        await patient

    run(work())


def test_pictures_answered_together_are_answered_right(labeller: Labeller, run: Run) -> None:
    pictures = [encoded(drawing(40 + 10 * place, 90, seed=place), "PNG") for place in range(12)]

    async def work() -> list[bytes]:
        return await asyncio.gather(*(label(labeller, picture, patient=True) for picture in pictures))

    segmenter = labeller.shelf.get().segmenter
    for body, picture in zip(run(work()), pictures, strict=True):
        np.testing.assert_array_equal(decode_labels(body), segmenter.segment(decode(picture)).labels)
