"""The line before the engine: first come, first served, and who would wait too long is told at once."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import pytest

from service.admission import Line
from service.errors import Busy


def line(turns: int = 1, rooms: int = 2, places: int = 2, uploads: int = 2, seconds: float = 5.0) -> Line:
    return Line(turns, rooms, places, uploads, seconds)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_places_are_rooms_and_those_who_wait() -> None:
    full = line(rooms=2, places=1)
    with full.place(), full.place(), full.place():
        with pytest.raises(Busy, match="3 pictures are being answered or wait"):
            full.admit()
        with pytest.raises(Busy), full.place():
            pass
    full.admit()


def test_a_batch_counts_for_as_many_as_it_has_in_work() -> None:
    slow = line(turns=1, rooms=3, places=30, seconds=5)
    slow.took(1.0)
    with slow.place(2):
        assert slow.foreseen == 2
    assert slow.foreseen == 0


def test_a_place_is_given_back_after_an_error() -> None:
    full = line(rooms=1, places=0)
    with pytest.raises(ValueError, match="broken"), full.place():
        raise ValueError("broken")
    full.admit()


def test_uploads_have_places_of_their_own() -> None:
    few = line(uploads=1)
    with few.upload():
        with pytest.raises(Busy, match="bodies"):
            few.admit()
        with few.place():  # who has sent a body does not wait for those who still send
            pass
    few.admit()


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    slow = line(turns=1, rooms=3, places=30, seconds=5)
    slow.took(1.0)
    held = [slow.place() for _ in range(6)]
    for place in held[:4]:
        place.__enter__()
    slow.admit()  # the fifth would wait for 4 s, of 4.5 that may be foreseen
    held[4].__enter__()
    with pytest.raises(Busy, match="would wait for some 5 seconds") as caught:
        slow.admit()
    assert caught.value.retry_after == 5
    assert slow.foreseen == 5


def test_more_turns_shorten_the_wait() -> None:
    wide = line(turns=4, rooms=8, places=30)
    wide.took(1.0)
    held = [wide.place() for _ in range(7)]
    for place in held:
        place.__enter__()
    assert wide.foreseen == 1.0


def test_the_pace_follows_the_pictures_but_not_one_of_them() -> None:
    changing = line(turns=1, rooms=1, places=9)
    with changing.place():
        changing.took(0.1)
        changing.took(10.0)
        assert changing.foreseen < 2
        for _ in range(30):
            changing.took(10.0)
        assert changing.foreseen > 9


def test_first_come_first_served() -> None:
    async def work() -> list[int]:
        queue, order = line(), []

        async def one(number: int) -> None:
            await queue.wait(queue.turns, 5.0)
            order.append(number)
            await asyncio.sleep(0.001)
            queue.turns.release()

        await asyncio.gather(*(one(number) for number in range(8)))
        return order

    assert run(work()) == list(range(8))


def test_patience_is_one_for_all_waits() -> None:
    async def work() -> tuple[float, float]:
        queue = line()
        untouched = await queue.wait(queue.turns, 0.5)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, queue.turns.release)
        return untouched, await queue.wait(queue.turns, 0.5)

    untouched, left = run(work())
    assert untouched == 0.5
    assert 0 < left <= 0.45


def test_patience_ends_and_the_turn_is_not_lost() -> None:
    async def work() -> None:
        queue = line(seconds=0.02)
        await queue.wait(queue.turns, 1)
        with pytest.raises(Busy, match=r"waited for the 0\.02 seconds"):
            await queue.wait(queue.turns, 0.02)
        queue.turns.release()
        await asyncio.wait_for(queue.wait(queue.turns, math.inf), 1)

    run(work())


def test_infinite_patience_waits() -> None:
    async def work() -> float:
        queue = line(seconds=0.01)
        await queue.wait(queue.turns, 1)
        asyncio.get_running_loop().call_later(0.1, queue.turns.release)
        return await queue.wait(queue.turns, math.inf)

    assert run(work()) == math.inf
