"""The protocol of a connection, on a socket: limits on heads and connections, refusals that reach their callers."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from service import http_protocol
from service.http_protocol import max_connections
from service.middleware import AccessLogMiddleware, ErrorMiddleware, RequestCheckMiddleware, RouteTable
from service.segmentation import SegmentationService
from service.settings import Settings
from tests.service.in_process import serve_in_thread

DISCONNECTED = threading.Event()


async def wait(request: Request) -> Response:
    await request.body()
    await asyncio.sleep(0.5)
    return PlainTextResponse("waited")


async def wait_for_disconnect(request: Request) -> Response:
    await request.body()
    if (await asyncio.wait_for(request.receive(), 10))["type"] == "http.disconnect":
        DISCONNECTED.set()
    return PlainTextResponse("")


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


@contextmanager
def run_server(bundle: Path, **limits: Any) -> Iterator[tuple[str, int]]:
    """uvicorn with our protocol and the check of heads, in a thread. Yields its address."""
    settings = Settings(bundle=bundle, access_log=False, sandbox=False, **limits)
    router = Router(
        [
            Route("/", hello),
            Route("/wait", wait, methods=["POST"]),
            Route("/gone", wait_for_disconnect, methods=["POST"]),
        ]
    )
    table = RouteTable({"/": "GET", "/wait": "POST", "/gone": "POST"}, frozenset())
    checked = ErrorMiddleware(RequestCheckMiddleware(router, SegmentationService(settings), table))
    app = AccessLogMiddleware(checked, False, lambda path, status, seconds: None)
    with serve_in_thread(app, settings) as address:
        yield address


def ask(address: tuple[str, int], data: bytes) -> bytes:
    """Send bytes and read until the server closes the connection."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(data)
        return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def check_problem(response: bytes, status: int, word: str) -> None:
    head, _, body = response.partition(b"\r\n\r\n")
    problem, lines = json.loads(body), head.decode().lower().split("\r\n")
    assert problem["status"] == status and word in problem["detail"]
    assert lines[0].startswith(f"http/1.1 {status} ") and len(lines[0]) > len("http/1.1 400 ")
    assert "content-type: application/problem+json" in lines and "connection: close" in lines
    assert f"x-request-id: {problem['request_id']}" in lines and "x-content-type-options: nosniff" in lines


def test_what_is_not_http_gets_a_problem(tmp_path: Path) -> None:
    with run_server(tmp_path) as address:
        check_problem(ask(address, b"some\x1b[31m\r\n\r\n"), 400, "illegal request line.")
        check_problem(ask(address, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 600_000 + b"\r\n\r\n"), 431, "too")
        bad_chunk = b"POST /wait HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        check_problem(ask(address, bad_chunk), 400, "chunk")
        assert ask(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").endswith(b"hello")


@pytest.mark.parametrize("second", [b"Content-Length: 4", b"content-length: 5"])
def test_length_and_transfer_encoding_together_are_rejected(tmp_path: Path, second: bytes) -> None:
    both = b"POST /wait HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + second + b"\r\n\r\n0\r\n\r\n"
    with run_server(tmp_path) as address:
        check_problem(ask(address, both + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400, "Transfer-Encoding")
        old = b"POST /wait HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        check_problem(ask(address, old), 400, "HTTP/1.0")


def test_time_of_a_head_is_limited(tmp_path: Path) -> None:
    with run_server(tmp_path, head_seconds=0.15) as address:
        check_problem(ask(address, b"GET / HTTP/1.1\r\nHo"), 408, "0.15 seconds")
        assert ask(address, b"") == b""
        second = ask(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT")
        assert b"hello" in second and second.count(b"HTTP/1.1 ") == 2 and b"408" in second
        slow_body = b"POST /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"
        assert ask(address, slow_body).endswith(b"waited")  # it takes longer than a head may


def test_new_connection_replaces_an_idle_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MIN_IDLE_SECONDS", 0.05)
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with run_server(tmp_path, max_connections=3) as address:
        idle = []
        for _ in range(3):
            idle.append(socket.create_connection(address, timeout=5))
            time.sleep(0.06)
        assert ask(address, request).endswith(b"hello")
        assert idle[0].recv(1) == b""  # the oldest
        idle[1].sendall(request)
        assert read_to_end(idle[1]).endswith(b"hello")
        for connection in idle:
            connection.close()


def test_new_connection_is_rejected_if_all_are_busy(tmp_path: Path) -> None:
    request = b"POST /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"
    with run_server(tmp_path, max_connections=2) as address:
        busy = [socket.create_connection(address, timeout=5) for _ in range(2)]
        for connection in busy:
            connection.sendall(request)
        time.sleep(0.1)
        response = ask(address, b"")
        check_problem(response, 503, "MASKSERVE_MAX_CONNECTIONS")
        assert b"retry-after: 1" in response
        for connection in busy:
            assert read_to_end(connection).endswith(b"waited")
            connection.close()


def test_default_limit_of_connections_leaves_files_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(bundle=tmp_path)
    for files, expected in ((300, 200), (50, 16), (10**6, 1000)):
        monkeypatch.setattr("os.sysconf", lambda name, files=files: files)
        assert max_connections(settings) == expected
    assert max_connections(Settings(bundle=tmp_path, max_connections=7)) == 7


@pytest.mark.parametrize("head", [b"HTTP/1.1\r\nHost: a\r\nConnection: close", b"HTTP/1.0"])
def test_refusal_reaches_a_caller_that_closes(tmp_path: Path, head: bytes) -> None:
    """Without reading the rest of the body, the connection would be reset while the caller sends."""
    size = 300_000
    with run_server(tmp_path) as address, socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"POST /nothing " + head + b"\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 15_000):
            connection.sendall(bytes(15_000))
            time.sleep(0.002)
        assert b" 404 " in read_to_end(connection)


POST = b"POST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize("requests", [1, 2])
def test_caller_that_sends_no_more_gets_its_responses(tmp_path: Path, requests: int) -> None:
    """As of `nc -N`. Two requests may be in the same packet."""
    with run_server(tmp_path) as address, socket.create_connection(address, timeout=10) as connection:
        connection.sendall((POST + b"body") * requests)
        connection.shutdown(socket.SHUT_WR)
        response = read_to_end(connection)  # the server closes the connection afterwards
    assert response.startswith(b"HTTP/1.1 200 ") and response.count(b"waited") == requests


def test_interim_response_tells_whether_the_caller_still_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "PROBE_SECONDS", 0.05)
    with run_server(tmp_path) as address:
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(POST + b"body")
            connection.shutdown(socket.SHUT_WR)
            response = read_to_end(connection)
        assert response.startswith(b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 ") and response.endswith(b"waited")
        DISCONNECTED.clear()
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(POST.replace(b"/wait", b"/gone") + b"body")
        assert DISCONNECTED.wait(5)


def test_half_of_a_body_is_no_request(tmp_path: Path) -> None:
    with run_server(tmp_path) as address, socket.create_connection(address, timeout=10) as connection:
        connection.sendall(POST + b"bo")
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""


def test_stop_loses_no_request_on_a_kept_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "STOP_IDLE_SECONDS", 0.4)
    get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with ExitStack() as server, ThreadPoolExecutor(1) as pool:
        address = server.enter_context(run_server(tmp_path))
        kept = [socket.create_connection(address, timeout=5) for _ in range(5)]
        for connection in kept:
            connection.sendall(get)
            assert connection.recv(65536).endswith(b"hello")
        running, later, rejected, begun, idle = kept
        running.sendall(POST + b"body")
        begun.sendall(get[:20])
        time.sleep(0.05)
        start = time.monotonic()
        stop = pool.submit(server.close)
        time.sleep(0.2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        later.sendall(get.replace(b"Host", b"Connection: keep-alive\r\nHost") + get)
        rejected.sendall(POST.replace(b"/wait", b"/nothing"))
        time.sleep(0.05)
        rejected.sendall(b"body")  # which is read, so that no reset overtakes the response
        for connection, status, end in [(later, 200, b"hello"), (rejected, 404, b"}"), (running, 200, b"waited")]:
            response = read_to_end(connection)
            assert response.startswith(b"HTTP/1.1 %d " % status) and response.endswith(end)
            assert response.lower().count(b"\r\nconnection: close\r\n") == 1
        check_problem(read_to_end(begun), 503, "new connection")
        assert idle.recv(1) == b"" and time.monotonic() - start >= 0.4
        for connection in kept:
            connection.close()
        stop.result(timeout=5)
    assert time.monotonic() - start < 3
