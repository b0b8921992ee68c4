"""A load generator: one process, asyncio, keep-alive connections, HTTP/1.1 by hand.

`closed` keeps a number of requests under way: each answer lets the next one go. `offered` sends at a given rate whatever
comes back, and counts each latency from the moment the request was meant to be sent: a server that stands still for a
second is then late for everything that was due in it, not for the one request that a closed loop would have had there.

On its own it costs some 0.2 core-milliseconds a request (`python -m benchmarks.load`), so that it may share its
machine with the server.
"""

import asyncio
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LOST_STATUS = 0  # the status of a request whose connection ended before its answer
SERVER_TIMING = re.compile(r"([\w-]+);dur=([\d.]+)")


@dataclass(frozen=True)
class LoadResponse:
    """What came back of a request."""

    index: int  # of the request, in the order of sending
    status: int  # LOST where nothing did
    latency_s: float  # from the moment it was meant to be sent to its answer's last byte
    headers: str  # the head of the answer, as it came
    size: int  # bytes of the body

    def stages(self) -> dict[str, float]:
        """Milliseconds by stage, as the header Server-Timing tells."""
        line = self.header("server-timing")
        return {name: float(took) for name, took in SERVER_TIMING.findall(line)}

    def header(self, name: str) -> str:
        """A header's value, empty where it is not there."""
        found = re.search(rf"^{name}: *(.*?)\r?$", self.headers, re.IGNORECASE | re.MULTILINE)
        return found.group(1) if found else ""


@dataclass
class LoadResult:
    """What was asked of a server, and what it answered."""

    responses: list[LoadResponse] = field(default_factory=list)
    seconds: float = 0.0  # from the first request to the last answer
    generator_cpu_seconds: float = 0.0  # processor time of the generator

    def status_counts(self) -> dict[str, int]:
        """Answers by status, `lost` for those that never came."""
        return {str(status or "lost"): n for status, n in sorted(Counter(one.status for one in self.responses).items())}

    def latencies_ms(self, status: int = 200) -> list[float]:
        """Milliseconds of the answers of that status, ascending."""
        return sorted(1000 * one.latency_s for one in self.responses if one.status == status)

    def responses_per_second(self, status: int = 200) -> float:
        """Answers of that status a second."""
        return sum(one.status == status for one in self.responses) / self.seconds if self.seconds else 0.0

    def stages(self) -> dict[str, float]:
        """Mean milliseconds by stage, of the good answers."""
        told = [one.stages() for one in self.responses if one.status == 200]
        return {name: round(statistics.fmean(one[name] for one in told), 3) for name in (told[0] if told else {})}

    def merge(self, other: "LoadResult") -> None:
        """Another run against the same server: the times add up as well."""
        self.responses += other.responses
        self.seconds += other.seconds
        self.generator_cpu_seconds += other.generator_cpu_seconds


def percentile(ascending: list[float], percent: float) -> float | None:
    """The value that so many percent of the values do not exceed, by nearest rank; None of nothing."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))] if ascending else None


def post_request(url: str, body: bytes, kind: str = "image/jpeg", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A whole POST request, as the bytes that go over the connection."""
    target = urlsplit(url)
    path = target.path + (f"?{target.query}" if target.query else "")
    lines = [f"POST {path} HTTP/1.1", f"Host: {target.netloc}", f"Content-Type: {kind}"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def form_request(url: str, image: bytes) -> bytes:
    """A POST request of a form with the file `image`."""
    head = (
        b'--mask\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return post_request(url, head + image + b"\r\n--mask--\r\n", "multipart/form-data; boundary=mask")


def closed_loop(
    url: str, requests: Iterator[bytes], concurrency: int, seconds: float = float("inf"), timeout: float = 120
) -> LoadResult:
    """Send `requests`, `concurrency` at a time, until they end or the time is up; what is under way is waited for.

    `limit`: seconds after which an answer counts as lost.
    """
    return asyncio.run(_closed_loop(url, requests, concurrency, seconds, timeout))


def open_loop(url: str, request: bytes, rate: float, seconds: float, seed: int = 0, timeout: float = 120) -> LoadResult:
    """Send `rate` requests a second on average, at random (Poisson) moments, whatever comes back, for so many seconds."""
    return asyncio.run(_open_loop(url, request, rate, seconds, seed, timeout))


async def _closed_loop(
    url: str, requests: Iterator[bytes], concurrency: int, seconds: float, limit: float
) -> LoadResult:
    load, start, spent, pool = LoadResult(), time.perf_counter(), time.process_time(), ConnectionPool(url, limit)
    numbered = enumerate(requests)

    async def client() -> None:
        for place, request in numbered:
            load.responses.append(await pool.request(place, request, time.perf_counter()))
            if time.perf_counter() - start > seconds:
                return

    await asyncio.gather(*(client() for _ in range(concurrency)))
    pool.close()
    load.seconds, load.generator_cpu_seconds = time.perf_counter() - start, time.process_time() - spent
    return load


async def _open_loop(url: str, request: bytes, rate: float, seconds: float, seed: int, limit: float) -> LoadResult:
    load, start, spent, pool = LoadResult(), time.perf_counter(), time.process_time(), ConnectionPool(url, limit)
    chance, due, place, under_way = random.Random(seed), start, 0, set[asyncio.Task[None]]()

    async def one(place: int, due: float) -> None:
        load.responses.append(await pool.request(place, request, due))

    while (due := due + chance.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0, due - time.perf_counter()))  # where we are late, the answers still get their turn
        task = asyncio.create_task(one(place, due))
        place += 1
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    pool.close()
    load.seconds, load.generator_cpu_seconds = time.perf_counter() - start, time.process_time() - spent
    return load


class ConnectionPool:
    """Connections to one server: an idle one is used again, else a new one opened."""

    def __init__(self, url: str, limit: float) -> None:
        """`limit`: seconds after which an answer counts as lost."""
        self.host, self.port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self.timeout = limit
        self.idle: list[_Connection] = []

    async def request(self, place: int, request: bytes, due: float) -> LoadResponse:
        """Send a request and wait for its answer; `due` is when it was meant to be sent, by time.perf_counter."""
        connection: _Connection | None = None
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self.timeout):
                connection = await self._get_connection()
                status, head, size = await connection.request(request)
            if connection.is_reusable():
                self.idle.append(connection)
            else:
                connection.close()
            return LoadResponse(place, status, time.perf_counter() - due, head, size)
        if connection:
            connection.close()
        return LoadResponse(place, LOST_STATUS, time.perf_counter() - due, "", 0)

    async def _get_connection(self) -> "_Connection":
        while self.idle:
            if (connection := self.idle.pop()).is_reusable():
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, self.host, self.port))[1]

    def close(self) -> None:
        """Close what is idle."""
        for connection in self.idle:
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. Less than streams: no task and no lock for each read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received, self.response = transport, bytearray(), None
        self.is_closed = self.server_closes = False

    async def request(self, request: bytes) -> tuple[int, str, int]:
        """Status, head and the body's size. Raises: ConnectionError where the connection ends before them."""
        self.received.clear()
        self.head, self.content_length = "", -1
        self.response = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.response

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.response is None or self.response.done():
            return
        while not self.head:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.received[:end].decode("latin-1")
            del self.received[: end + 4]
            if head[9:12] != "100":
                self._parse_head(head)
        if self._is_complete():
            self.response.set_result((int(self.head[9:12]), self.head, len(self.received)))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if self.response is not None and not self.response.done():
            self.response.set_exception(error if isinstance(error, OSError) else ConnectionResetError("closed"))
            self.response.exception()  # who gave up on it does not ask

    def is_reusable(self) -> bool:
        """Whether another request may be sent."""
        unsent = self.transport.get_write_buffer_size()  # an answer may come before the whole body is sent
        return not (self.is_closed or self.server_closes or unsent or self.transport.is_closing())

    def close(self) -> None:
        self.transport.abort()

    def _parse_head(self, head: str) -> None:
        self.head, small = head, head.lower()
        told = re.search(r"\r\ncontent-length: *(\d+)", small)
        self.content_length = int(told.group(1)) if told else -1
        self.server_closes = "\r\nconnection: close" in small

    def _is_complete(self) -> bool:
        if self.content_length >= 0:
            return len(self.received) >= self.content_length
        return self.received.endswith(b"0\r\n\r\n")  # chunked; our bodies do not end like that before their end


def measure_generator_cost(count: int = 4000) -> float:
    """Core-milliseconds that a request costs this generator, by one of 100 kB to a server that only answers."""
    command = [sys.executable, "-c", "import benchmarks.load; benchmarks.load.run_stub_server()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        url = f"http://127.0.0.1:{int(child.stdout.readline())}/"
        load = closed_loop(url, iter([post_request(url, bytes(100_000))] * count), 4)
        child.terminate()
    assert load.status_counts() == {"200": count}, load.status_counts()
    return 1000 * load.generator_cpu_seconds / count


def run_stub_server() -> None:
    """A server that answers each request with 200 once it has come; prints its port."""

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nserver-timing: infer;dur=1.5\r\n\r\nok")

    async def serve() -> None:
        async with await asyncio.start_server(each, "127.0.0.1", 0) as server:
            print(server.sockets[0].getsockname()[1], flush=True)
            await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    print(f"{measure_generator_cost():.3f} core-milliseconds a request")
