"""The load generator of benchmarks/load.py, with stub servers."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from benchmarks.load import (
    LOST_STATUS,
    LoadResult,
    closed_loop,
    form_request,
    measure_generator_cost,
    open_loop,
    percentile,
    post_request,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer-Timing: read;dur=0.5, infer;dur=2.25\r\n\r\nok"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 0\r\nretry-after: 3\r\n\r\n"
CHUNKED = b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
EARLY = b"HTTP/1.1 100 Continue\r\n\r\n" + OK
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"


@contextmanager
def serve_responses(respond: Callable[[int], Awaitable[bytes]]) -> Iterator[str]:
    """A server on the loopback address; `respond` gets the number of the request, and an empty response closes the connection."""
    loop, numbers, tasks = asyncio.new_event_loop(), iter(range(10**6)), set[asyncio.Task[None]]()

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError), closing(writer):
            response = OK
            while response and b"close" not in response and response != SHORT:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split()[0]))
                response = await respond(next(numbers))
                writer.write(response)

    async def end() -> None:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports close in the next iteration of the loop
        loop.stop()

    server = loop.run_until_complete(asyncio.start_server(each, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/segment?format=png"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join()
        loop.close()


@pytest.mark.parametrize(
    ("wire", "status", "size"),
    [(OK, 200, 2), (BUSY, 429, 0), (CHUNKED, 413, 13), (EARLY, 200, 2), (SHORT, LOST_STATUS, 0), (b"", LOST_STATUS, 0)]
)  # fmt: skip
def test_kinds_of_responses(wire: bytes, status: int, size: int) -> None:
    async def respond(number: int) -> bytes:
        return wire

    with serve_responses(respond) as url:
        load = closed_loop(url, iter([post_request(url, b"x" * 100)] * 10), 3)
    assert [(one.status, one.size) for one in load.responses] == [(status, size)] * 10
    assert sorted(one.index for one in load.responses) == list(range(10))
    assert load.status_counts() == {str(status or "lost"): 10}


def test_headers_and_stages_are_read() -> None:
    async def respond(number: int) -> bytes:
        return OK if number % 2 else BUSY

    with serve_responses(respond) as url:
        load = closed_loop(url, iter([form_request(url, b"x")] * 4), 1)
    assert load.stages() == {"read": 0.5, "infer": 2.25}
    assert [one.header("Retry-After") for one in load.responses if one.status == 429] == ["3", "3"]
    assert all(one.header("retry") == "" for one in load.responses)


def test_closed_loop_keeps_the_concurrency_and_stops_in_time() -> None:
    now, most = 0, 0

    async def respond(number: int) -> bytes:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return OK

    with serve_responses(respond) as url:
        request = post_request(url, b"x")
        load = closed_loop(url, iter(lambda: request, b""), 4, seconds=0.2)
    assert most == 4
    assert load.status_counts().keys() == {"200"} and load.generator_cpu_seconds < load.seconds


def test_response_that_never_arrives_is_lost() -> None:
    async def respond(number: int) -> bytes:
        await asyncio.sleep(60 if number == 1 else 0)
        return OK

    with serve_responses(respond) as url:
        load = closed_loop(url, iter([post_request(url, b"x")] * 4), 1, timeout=0.3)
    assert [one.status for one in load.responses] == [200, LOST_STATUS, 200, 200]


def test_open_loop_counts_all_requests_that_a_stall_delays() -> None:
    """A stall of one second at 50 requests per second delays about fifty; a closed loop would see one."""
    stalled = asyncio.Event()

    async def respond(number: int) -> bytes:
        if number == 20:
            await asyncio.sleep(1)
            stalled.set()
        if number > 20:
            await stalled.wait()
        return OK

    with serve_responses(respond) as url:
        load = open_loop(url, post_request(url, b"x"), rate=50, seconds=2)
    assert load.status_counts().keys() == {"200"} and len(load.responses) > 50
    assert sum(each > 500 for each in load.latencies_ms()) > 10


def test_percentiles_and_sums() -> None:
    assert [percentile([1, 2, 3, 4], percent) for percent in (0, 50, 99, 100)] == [1, 3, 4, 4]
    assert percentile([], 50) is None
    whole = LoadResult()
    whole.merge(LoadResult(seconds=2, generator_cpu_seconds=1))
    assert (whole.seconds, whole.generator_cpu_seconds, whole.responses_per_second(), whole.stages()) == (2, 1, 0, {})


def test_generator_measures_its_own_cost() -> None:
    assert measure_generator_cost(200) > 0
