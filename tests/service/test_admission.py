"""Admission control: first come, first served; requests that would wait too long are rejected immediately."""

import asyncio
import math
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
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


def test_queue_admits_image_slots_and_waiting_images() -> None:
    async def work() -> None:
        admission = make_admission(image_slots=2, queue_size=1)
        async with AsyncExitStack() as held:
            for _ in range(3):
                await held.enter_async_context(admission.acquire("queue"))
            with pytest.raises(OverloadedError, match="3 images are processed or wait"):
                admission.check_capacity()
            with pytest.raises(OverloadedError):
                await held.enter_async_context(admission.acquire("queue"))
        admission.check_capacity()

    run(work())


def test_batch_counts_for_the_images_that_it_processes_at_once() -> None:
    async def work() -> None:
        admission = make_admission(inference_slots=1, image_slots=3, queue_size=30, queue_timeout_seconds=5)
        admission.record_inference_time(1.0)
        async with admission.acquire("queue", count=2):
            assert admission.expected_wait_seconds == 2
        assert admission.expected_wait_seconds == 0

    run(work())


@pytest.mark.parametrize("stage", ["upload", "queue", "image", "inference"])
def test_slot_is_released_after_an_error(stage: Any) -> None:
    async def work() -> None:
        admission = make_admission(image_slots=1, queue_size=0, max_uploads=1)
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                async with admission.acquire(stage):
                    raise ValueError("broken")
        admission.check_capacity()

    run(work())


def test_uploads_have_their_own_limit() -> None:
    async def work() -> None:
        admission = make_admission(max_uploads=1)
        async with admission.acquire("upload"):
            with pytest.raises(OverloadedError, match="bodies"):
                admission.check_capacity()
            async with admission.acquire("queue"):  # a complete request does not wait for uploads
                pass
        admission.check_capacity()

    run(work())


def test_request_that_would_wait_too_long_is_rejected_immediately() -> None:
    async def work() -> None:
        admission = make_admission(inference_slots=1, image_slots=3, queue_size=30, queue_timeout_seconds=5)
        admission.record_inference_time(1.0)
        async with AsyncExitStack() as held:
            for _ in range(4):
                await held.enter_async_context(admission.acquire("queue"))
            admission.check_capacity()  # the fifth would wait 4 s; 4.5 s are allowed
            await held.enter_async_context(admission.acquire("queue"))
            with pytest.raises(OverloadedError, match="would wait about 5 seconds") as caught:
                admission.check_capacity()
            assert caught.value.retry_after == 5
            assert admission.expected_wait_seconds == 5

    run(work())


def test_concurrent_inferences_shorten_the_wait() -> None:
    async def work() -> None:
        admission = make_admission(inference_slots=4, image_slots=8, queue_size=30)
        admission.record_inference_time(1.0)
        async with admission.acquire("queue", count=7):
            assert admission.expected_wait_seconds == 1.0

    run(work())


def test_expected_wait_follows_recent_images_but_not_a_single_one() -> None:
    async def work() -> None:
        admission = make_admission(inference_slots=1, image_slots=1, queue_size=9)
        async with admission.acquire("queue"):
            admission.record_inference_time(0.1)
            admission.record_inference_time(10.0)
            assert admission.expected_wait_seconds < 2
            for _ in range(30):
                admission.record_inference_time(10.0)
            assert admission.expected_wait_seconds > 9

    run(work())


def test_first_come_first_served() -> None:
    async def work() -> list[int]:
        admission, order = make_admission(), []

        async def process(number: int) -> None:
            async with admission.acquire("inference", 5.0):
                order.append(number)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(process(number) for number in range(8)))
        return order

    assert run(work()) == list(range(8))


async def hold(admission: AdmissionController, seconds: float) -> None:
    async with admission.acquire("inference"):
        await asyncio.sleep(seconds)


def test_slot_tells_how_long_the_request_waited() -> None:
    async def work() -> tuple[float, float]:
        admission = make_admission()
        async with admission.acquire("inference", 0.5) as first:
            pass
        holder = asyncio.create_task(hold(admission, 0.05))
        await asyncio.sleep(0)
        async with admission.acquire("inference", 0.5) as second:
            await holder
            return first.waited_seconds, second.waited_seconds

    first, second = run(work())
    assert first == 0
    assert 0.04 <= second < 0.5


def test_wait_times_out_and_the_slot_is_not_lost() -> None:
    async def work() -> None:
        admission = make_admission(queue_timeout_seconds=0.02)
        holder = asyncio.create_task(hold(admission, 0.1))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=r"waited for the limit of 0\.02 seconds"):
            async with admission.acquire("inference", 0.02):
                pass
        async with admission.acquire("inference", math.inf) as slot:
            assert slot.waited_seconds > 0.05
        await holder

    run(work())


def test_cancelled_request_holds_its_slot_until_its_thread_is_done() -> None:
    def block(is_cancelled: Any) -> None:
        while not is_cancelled():
            time.sleep(0.001)
        time.sleep(0.05)

    async def work() -> None:
        admission = make_admission()
        with ThreadPoolExecutor(1) as pool:

            async def infer() -> None:
                async with admission.acquire("inference") as slot:
                    await slot.run(pool, lambda: block(slot.is_cancelled))

            task = asyncio.create_task(infer())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with admission.acquire("inference", 5.0) as slot:
                assert slot.waited_seconds > 0.02

    run(work())


def test_times_of_inferences_are_recorded_but_not_of_failed_ones() -> None:
    def fail() -> None:
        raise ValueError("broken")

    async def work() -> None:
        admission = make_admission(inference_slots=1, image_slots=1)
        with ThreadPoolExecutor(1) as pool:
            async with admission.acquire("queue"):
                for stage, function, expected in (
                    ("inference", fail, False), ("image", lambda: time.sleep(0.01), False),
                    ("inference", lambda: time.sleep(0.01), True),
                ):  # fmt: skip
                    try:
                        async with admission.acquire(stage) as slot:
                            await slot.run(pool, function)
                    except ValueError:
                        pass
                    assert (admission.expected_wait_seconds >= 0.01) == expected

    run(work())
