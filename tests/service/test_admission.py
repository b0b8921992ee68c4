"""The line before the engine: first come, first served, and who would wait too long is told at once."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import pytest

from service.admission import AdmissionController
from service.errors import OverloadedError


def make_admission(
    inference_slots: int = 1,
    image_slots: int = 2,
    queue_size: int = 2,
    max_uploads: int = 2,
    queue_timeout_seconds: float = 5.0,
) -> AdmissionController:
    return AdmissionController(inference_slots, image_slots, queue_size, max_uploads, queue_timeout_seconds)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_places_are_rooms_and_those_who_wait() -> None:
    full = make_admission(image_slots=2, queue_size=1)
    with full.queue_slot(), full.queue_slot(), full.queue_slot():
        with pytest.raises(OverloadedError, match="3 images are being answered or wait"):
            full.check_capacity()
        with pytest.raises(OverloadedError), full.queue_slot():
            pass
    full.check_capacity()


def test_a_batch_counts_for_as_many_as_it_has_in_work() -> None:
    slow = make_admission(inference_slots=1, image_slots=3, queue_size=30, queue_timeout_seconds=5)
    slow.record_inference_time(1.0)
    with slow.queue_slot(2):
        assert slow.expected_wait_seconds == 2
    assert slow.expected_wait_seconds == 0


def test_a_place_is_given_back_after_an_error() -> None:
    full = make_admission(image_slots=1, queue_size=0)
    with pytest.raises(ValueError, match="broken"), full.queue_slot():
        raise ValueError("broken")
    full.check_capacity()


def test_uploads_have_places_of_their_own() -> None:
    few = make_admission(max_uploads=1)
    with few.upload_slot():
        with pytest.raises(OverloadedError, match="bodies"):
            few.check_capacity()
        with few.queue_slot():  # who has sent a body does not wait for those who still send
            pass
    few.check_capacity()


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    slow = make_admission(inference_slots=1, image_slots=3, queue_size=30, queue_timeout_seconds=5)
    slow.record_inference_time(1.0)
    held = [slow.queue_slot() for _ in range(6)]
    for place in held[:4]:
        place.__enter__()
    slow.check_capacity()  # the fifth would wait for 4 s, of 4.5 that may be foreseen
    held[4].__enter__()
    with pytest.raises(OverloadedError, match="would wait for some 5 seconds") as caught:
        slow.check_capacity()
    assert caught.value.retry_after == 5
    assert slow.expected_wait_seconds == 5


def test_more_turns_shorten_the_wait() -> None:
    wide = make_admission(inference_slots=4, image_slots=8, queue_size=30)
    wide.record_inference_time(1.0)
    held = [wide.queue_slot() for _ in range(7)]
    for place in held:
        place.__enter__()
    assert wide.expected_wait_seconds == 1.0


def test_the_pace_follows_the_images_but_not_one_of_them() -> None:
    changing = make_admission(inference_slots=1, image_slots=1, queue_size=9)
    with changing.queue_slot():
        changing.record_inference_time(0.1)
        changing.record_inference_time(10.0)
        assert changing.expected_wait_seconds < 2
        for _ in range(30):
            changing.record_inference_time(10.0)
        assert changing.expected_wait_seconds > 9


def test_first_come_first_served() -> None:
    async def work() -> list[int]:
        queue, order = make_admission(), []

        async def one(number: int) -> None:
            await queue.acquire(queue.inference_slots, 5.0)
            order.append(number)
            await asyncio.sleep(0.001)
            queue.inference_slots.release()

        await asyncio.gather(*(one(number) for number in range(8)))
        return order

    assert run(work()) == list(range(8))


def test_patience_is_one_for_all_waits() -> None:
    async def work() -> tuple[float, float]:
        queue = make_admission()
        untouched = await queue.acquire(queue.inference_slots, 0.5)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, queue.inference_slots.release)
        return untouched, await queue.acquire(queue.inference_slots, 0.5)

    untouched, left = run(work())
    assert untouched == 0.5
    assert 0 < left <= 0.45


def test_patience_ends_and_the_turn_is_not_lost() -> None:
    async def work() -> None:
        queue = make_admission(queue_timeout_seconds=0.02)
        await queue.acquire(queue.inference_slots, 1)
        with pytest.raises(OverloadedError, match=r"waited for the 0\.02 seconds"):
            await queue.acquire(queue.inference_slots, 0.02)
        queue.inference_slots.release()
        await asyncio.wait_for(queue.acquire(queue.inference_slots, math.inf), 1)

    run(work())


def test_infinite_patience_waits() -> None:
    async def work() -> float:
        queue = make_admission(queue_timeout_seconds=0.01)
        await queue.acquire(queue.inference_slots, 1)
        asyncio.get_running_loop().call_later(0.1, queue.inference_slots.release)
        return await queue.acquire(queue.inference_slots, math.inf)

    assert run(work()) == math.inf
