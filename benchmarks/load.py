"""A load generator: one process, asyncio, keep-alive connections, HTTP/1.1 by hand.

`closed_loop` keeps a number of requests running: each response triggers the next request. `open_loop` sends at a fixed rate,
whatever the responses, and counts each latency from the time at which the request was scheduled: if a server stalls for a
second, every request that was due in it is late, not only the one that a closed loop would have sent.

It costs about 0.2 core-milliseconds per request (`python -m benchmarks.load`), so it may share a machine with the server.
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

from benchmarks.usage import print_help_if_requested

LOST_STATUS = 0  # the status of a request whose connection ended before the response
REFUSED_STATUS = -1  # of one whose connection was refused, as by a service that stops
SERVER_TIMING = re.compile(r"([\w-]+);dur=([\d.]+)")


@dataclass(frozen=True)
class LoadResponse:
    """The response to a request."""

    index: int  # of the request, in the order of sending
    status: int  # LOST_STATUS without a response, REFUSED_STATUS without a connection
    latency_s: float  # from the scheduled time of the request to the last byte of the response
    headers: str  # the head of the response, unparsed
    size: int  # bytes of the body

    def stages(self) -> dict[str, float]:
        """Milliseconds by stage, from the header Server-Timing."""
        line = self.header("server-timing")
        return {name: float(ms) for name, ms in SERVER_TIMING.findall(line)}

    def header(self, name: str) -> str:
        """The value of a header; empty if it is missing."""
        found = re.search(rf"^{name}: *(.*?)\r?$", self.headers, re.IGNORECASE | re.MULTILINE)
        return found.group(1) if found else ""


@dataclass
class LoadResult:
    """The responses of a run, and its times."""

    responses: list[LoadResponse] = field(default_factory=list)
    seconds: float = 0.0  # from the first request to the last response
    generator_cpu_seconds: float = 0.0  # CPU time of the generator

    def status_counts(self) -> dict[str, int]:
        """Responses by status; `lost` without a response, `refused` without a connection."""
        names = {LOST_STATUS: "lost", REFUSED_STATUS: "refused"}
        counts = Counter(one.status for one in self.responses)
        return {names.get(status, str(status)): count for status, count in sorted(counts.items())}

    def latencies_ms(self, status: int = 200) -> list[float]:
        """Latencies of the responses with this status in milliseconds, ascending."""
        return sorted(1000 * one.latency_s for one in self.responses if one.status == status)

    def responses_per_second(self, status: int = 200) -> float:
        """Responses with this status per second."""
        return sum(one.status == status for one in self.responses) / self.seconds if self.seconds else 0.0

    def stages(self) -> dict[str, float]:
        """Mean milliseconds by stage of the responses with status 200."""
        timed = [response.stages() for response in self.responses if response.status == 200]
        return {name: round(statistics.fmean(one[name] for one in timed), 3) for name in (timed[0] if timed else {})}

    def merge(self, other: "LoadResult") -> None:
        """Add another run against the same server; the times add up too."""
        self.responses += other.responses
        self.seconds += other.seconds
        self.generator_cpu_seconds += other.generator_cpu_seconds


def percentile(ascending: list[float], percent: float) -> float | None:
    """The percentile by nearest rank; None without values."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))] if ascending else None


def post_request(url: str, body: bytes, kind: str = "image/jpeg", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """The bytes of a POST request."""
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
    """Send `requests`, `concurrency` at a time, until they end or the time is up, and wait for the running ones.

    `timeout`: seconds after which a response counts as lost.
    """
    return asyncio.run(_closed_loop(url, requests, concurrency, seconds, timeout))


def open_loop(url: str, request: bytes, rate: float, seconds: float, seed: int = 0, timeout: float = 120) -> LoadResult:
    """Send `rate` requests per second on average, at random (Poisson) times, whatever the responses."""
    return asyncio.run(_open_loop(url, request, rate, seconds, seed, timeout))


async def _closed_loop(
    url: str, requests: Iterator[bytes], concurrency: int, seconds: float, limit: float
) -> LoadResult:
    load, start, spent, pool = LoadResult(), time.perf_counter(), time.process_time(), ConnectionPool(url, limit)
    numbered = enumerate(requests)

    async def client() -> None:
        for index, request in numbered:
            load.responses.append(await pool.request(index, request, time.perf_counter()))
            if time.perf_counter() - start > seconds:
                return

    await asyncio.gather(*(client() for _ in range(concurrency)))
    pool.close()
    load.seconds, load.generator_cpu_seconds = time.perf_counter() - start, time.process_time() - spent
    return load


async def _open_loop(url: str, request: bytes, rate: float, seconds: float, seed: int, limit: float) -> LoadResult:
    load, start, spent, pool = LoadResult(), time.perf_counter(), time.process_time(), ConnectionPool(url, limit)
    chance, due, index, running = random.Random(seed), start, 0, set[asyncio.Task[None]]()

    async def send(index: int, due: float) -> None:
        load.responses.append(await pool.request(index, request, due))

    while (due := due + chance.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0, due - time.perf_counter()))  # if late, this still lets responses be processed
        task = asyncio.create_task(send(index, due))
        index += 1
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    pool.close()
    load.seconds, load.generator_cpu_seconds = time.perf_counter() - start, time.process_time() - spent
    return load


class ConnectionPool:
    """Connections to one server: idle ones are reused."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout`: seconds after which a response counts as lost."""
        self.host, self.port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self.timeout = timeout
        self.idle: list[_Connection] = []

    async def request(self, index: int, request: bytes, due: float) -> LoadResponse:
        """Send a request and wait for its response; `due` is its scheduled time, by time.perf_counter."""
        connection, missing = None, LOST_STATUS
        try:
            async with asyncio.timeout(self.timeout):
                connection = await self._get_connection()
                status, head, size = await connection.request(request)
            if connection.is_reusable():
                self.idle.append(connection)
            else:
                connection.close()
            return LoadResponse(index, status, time.perf_counter() - due, head, size)
        except ConnectionRefusedError:
            missing = REFUSED_STATUS
        except (OSError, TimeoutError):
            pass
        if connection:
            connection.close()
        return LoadResponse(index, missing, time.perf_counter() - due, "", 0)

    async def _get_connection(self) -> "_Connection":
        while self.idle:
            if (connection := self.idle.pop()).is_reusable():
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, self.host, self.port))[1]

    def close(self) -> None:
        """Close idle connections."""
        for connection in self.idle:
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. Cheaper than streams: no task and no lock per read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received, self.response = transport, bytearray(), None
        self.is_closed = self.server_closes = False

    async def request(self, request: bytes) -> tuple[int, str, int]:
        """Status, head and size of the body. Raises: ConnectionError if the connection ends before."""
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
            self.response.exception()  # it may have timed out, so that nobody reads it

    def is_reusable(self) -> bool:
        """Whether another request may be sent."""
        unsent = self.transport.get_write_buffer_size()  # a response may arrive before the whole body is sent
        return not (self.is_closed or self.server_closes or unsent or self.transport.is_closing())

    def close(self) -> None:
        self.transport.abort()

    def _parse_head(self, head: str) -> None:
        self.head, small = head, head.lower()
        match = re.search(r"\r\ncontent-length: *(\d+)", small)
        self.content_length = int(match.group(1)) if match else -1
        self.server_closes = "\r\nconnection: close" in small

    def _is_complete(self) -> bool:
        if self.content_length >= 0:
            return len(self.received) >= self.content_length
        return self.received.endswith(b"0\r\n\r\n")  # chunked; the bodies here contain this only at their end


def measure_generator_cost(count: int = 4000) -> float:
    """Core-milliseconds per request of this generator, with bodies of 100 kB and a stub server."""
    command = [sys.executable, "-c", "import benchmarks.load; benchmarks.load.run_stub_server()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        url = f"http://127.0.0.1:{int(child.stdout.readline())}/"
        load = closed_loop(url, iter([post_request(url, bytes(100_000))] * count), 4)
        child.terminate()
    assert load.status_counts() == {"200": count}, load.status_counts()
    return 1000 * load.generator_cpu_seconds / count


def run_stub_server() -> None:
    """A server that responds with 200 to every request; prints its port."""

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
    print_help_if_requested(__doc__)
    print(f"{measure_generator_cost():.3f} core-milliseconds per request")
