"""The middleware, without a server."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from service.middleware import BodyLimitMiddleware, ErrorMiddleware, RequestCheckMiddleware, RouteTable
from service.segmentation import SegmentationService
from service.settings import Settings


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def fail(request: Request) -> Response:
    raise RuntimeError("the secret inside")


ROUTES = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/fail", fail)])
APP = ROUTES.router
LAST_CHUNK = {"type": "http.request", "body": b"x", "more_body": False}


def make_app(max_bytes: int = 10, timeout_seconds: float = 5) -> ASGIApp:
    return ErrorMiddleware(BodyLimitMiddleware(ErrorMiddleware(APP), max_bytes, timeout_seconds))


@pytest.fixture
def checked_app(tmp_path: Path) -> ASGIApp:
    """An app behind the check of the request's head."""
    routes = RouteTable({"/echo": "POST", "/fail": "GET"}, frozenset())
    return ErrorMiddleware(
        RequestCheckMiddleware(APP, SegmentationService(Settings(bundle=tmp_path, sandbox=False)), routes)
    )


def send_request(app: ASGIApp, method: str, path: str, content: bytes | AsyncIterator[bytes] = b"") -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://middleware") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(send())


def test_unexpected_error_is_logged_but_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "maskserve"):
        response = send_request(make_app(), "GET", "/fail")
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in response.text and "log" in response.json()["detail"]
    assert "the secret inside" in caplog.text


@pytest.mark.parametrize(("size", "status"), [(0, 200), (10, 200), (11, 413)])
def test_body_of_the_limit_is_accepted(size: int, status: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b"x"

    assert send_request(make_app(), "POST", "/echo", bytes(size)).status_code == status
    assert send_request(make_app(), "POST", "/echo", chunks()).status_code == status


def test_announced_size_is_rejected_before_the_body_is_read() -> None:
    more = {"type": "http.request", "body": b"", "more_body": True}
    sent_at_receive, sent = run_asgi(make_app(), [b"Content-Length: 11"], lambda: more)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert sent_at_receive == [2] * 99  # the whole response is sent before the rest of the body is read


@pytest.mark.parametrize("length", [b"1" * 19, b"9" * 5000])
def test_impossible_content_length_is_too_large(length: bytes) -> None:
    _, sent = run_asgi(make_app(), [b"Content-Length: " + length], lambda: {"type": "http.disconnect"})
    assert sent[0]["status"] == 413


def test_rejected_request_with_a_long_body_closes_the_connection(checked_app: ASGIApp) -> None:
    for header, closed in (
        (b"Content-Length: 5", False),
        (b"Content-Length: 2000000", True),
        (b"Transfer-Encoding: chunked", True),
    ):
        _, sent = run_asgi(checked_app, [header], lambda: LAST_CHUNK, path="/nothing")
        assert sent[0]["status"] == 404
        assert ((b"connection", b"close") in sent[0]["headers"]) == closed


def test_response_is_sent_in_chunks_with_a_timeout(caplog: pytest.LogCaptureFixture) -> None:
    body = bytes(range(256)) * 4000

    async def large(request: Request) -> Response:
        return Response(body)

    app = ErrorMiddleware(
        BodyLimitMiddleware(
            ErrorMiddleware(Starlette(routes=[Route("/echo", large, methods=["POST"])]).router), 10, 0.05
        )
    )
    _, sent = run_asgi(app, [], lambda: {"type": "http.request"})
    assert b"".join(message.get("body", b"") for message in sent) == body and len(sent) > 3
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
    caplog.set_level(logging.WARNING, "maskserve")
    _, sent = run_asgi(app, [], lambda: {"type": "http.request"}, max_messages=2)
    assert len(sent) == 2 and "The caller received nothing of the response" in caplog.text


@pytest.mark.parametrize(
    "header", [b"content-length: -1", b"content-length: 1_0", "content-length: ²".encode("latin-1")]
)
def test_invalid_content_length_is_ignored(header: bytes) -> None:
    _, sent = run_asgi(make_app(), [header], lambda: LAST_CHUNK)
    assert sent[0]["status"] == 200 and sent[1]["body"] == b"1"


def test_body_that_does_not_arrive_times_out() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"some"
        await asyncio.sleep(60)
        yield b"more"

    response = send_request(make_app(timeout_seconds=0.05), "POST", "/echo", never())
    assert response.status_code == 408
    assert "0.05 seconds; 4 bytes of it did" in response.json()["detail"]
    assert response.headers["connection"] == "close"


def test_unknown_paths_and_wrong_methods_are_rejected(checked_app: ASGIApp) -> None:
    assert send_request(checked_app, "POST", "/echo", b"four").text == "4"
    response = send_request(checked_app, "GET", "/nothing")
    assert response.status_code == 404 and "The routes are /metrics" in response.json()["detail"]
    assert len(send_request(checked_app, "GET", "/" + "x" * 5000).text) < 600
    response = send_request(checked_app, "GET", "/echo")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def run_asgi(
    app: ASGIApp,
    headers: list[bytes],
    receive: Callable[[], Message],
    path: str = "/echo",
    max_messages: float = math.inf,
) -> tuple[list[int], list[Message]]:
    """Send a POST to an app, with a message from `receive` each time that it asks for one.

    `max_messages`: how many messages of the response the caller receives.
    Returns: how many messages the app had sent each time that it asked for one, and all that it sent.
    """
    sent_at_receive: list[int] = []
    sent: list[Message] = []
    pairs = [tuple(part.strip() for part in header.lower().split(b":", 1)) for header in headers]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": pairs}

    async def next_message() -> Message:
        sent_at_receive.append(len(sent))
        await asyncio.sleep(0)
        return receive() if len(sent_at_receive) < 99 else {"type": "http.disconnect"}

    async def keep(message: Message) -> None:
        if len(sent) >= max_messages:
            await asyncio.sleep(60)
        sent.append(message)

    asyncio.run(app(scope, next_message, keep))
    return sent_at_receive, sent
