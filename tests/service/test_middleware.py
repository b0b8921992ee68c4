"""What the gate does to requests, without a server around it."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from service.middleware import BodyLimitMiddleware, ErrorMiddleware, RequestCheckMiddleware, unknown_path_error


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def fail(request: Request) -> Response:
    raise RuntimeError("the secret inside")


ROUTES = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/fail", fail)])
APP = ROUTES.router


def make_app(limit: int = 10, seconds: float = 5) -> ASGIApp:
    return ErrorMiddleware(BodyLimitMiddleware(ErrorMiddleware(APP), limit, seconds))


def send_request(app: ASGIApp, method: str, path: str, content: bytes | AsyncIterator[bytes] = b"") -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(send())


def test_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "maskserve"):
        answer = send_request(make_app(), "GET", "/fail")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text and "log" in answer.json()["detail"]
    assert "the secret inside" in caplog.text


@pytest.mark.parametrize(("size", "status"), [(0, 200), (10, 200), (11, 413)])
def test_the_limit_is_the_last_size_let_through(size: int, status: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b"x"

    assert send_request(make_app(), "POST", "/echo", bytes(size)).status_code == status
    assert send_request(make_app(), "POST", "/echo", chunks()).status_code == status


def test_an_announced_size_is_refused_before_the_body_is_read() -> None:
    more = {"type": "http.request", "body": b"", "more_body": True}
    asked, sent = run_asgi(make_app(), [b"Content-Length: 11"], lambda: more)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert (
        asked == [2] * 99
    )  # both parts of the answer were there before anything was asked for; then the sender is listened to


@pytest.mark.parametrize("length", [b"1" * 19, b"9" * 5000])
def test_a_number_that_no_body_has_is_no_error_of_ours(length: bytes) -> None:
    _, sent = run_asgi(make_app(), [b"Content-Length: " + length], lambda: {"type": "http.disconnect"})
    assert sent[0]["status"] == 413


def test_a_long_body_of_a_refused_request_ends_the_connection() -> None:
    def refuse(method: str, path: str) -> None:
        raise unknown_path_error(path, [])

    app = ErrorMiddleware(RequestCheckMiddleware(APP, refuse))
    for header, closed in (
        (b"Content-Length: 5", False),
        (b"Content-Length: 2000000", True),
        (b"Transfer-Encoding: chunked", True),
    ):
        _, sent = run_asgi(app, [header], lambda: {"type": "http.request", "body": b"x", "more_body": False})
        assert sent[0]["status"] == 404
        assert ((b"connection", b"close") in sent[0]["headers"]) == closed


def test_an_answer_goes_in_pieces_and_nobody_is_waited_for_who_takes_none(caplog: pytest.LogCaptureFixture) -> None:
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
    _, sent = run_asgi(app, [], lambda: {"type": "http.request"}, takes=2)
    assert len(sent) == 2 and "nothing was taken of the answer" in caplog.text


@pytest.mark.parametrize(
    "header", [b"content-length: -1", b"content-length: 1_0", "content-length: ²".encode("latin-1")]
)
def test_odd_lengths_are_not_believed(header: bytes) -> None:
    messages = iter([{"type": "http.request", "body": b"abc", "more_body": False}])
    _, sent = run_asgi(make_app(), [header], lambda: next(messages))
    assert sent[0]["status"] == 200 and sent[1]["body"] == b"3"


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"some"
        await asyncio.sleep(60)
        yield b"more"

    answer = send_request(make_app(seconds=0.05), "POST", "/echo", never())
    assert answer.status_code == 408
    assert "0.05 seconds; 4 bytes of it did" in answer.json()["detail"]
    assert answer.headers["connection"] == "close"


def test_unknown_paths_do_not_pass() -> None:
    def check(method: str, path: str) -> None:
        if path != "/echo":
            raise unknown_path_error(path, ["/echo"])

    app = ErrorMiddleware(RequestCheckMiddleware(APP, check))
    assert send_request(app, "POST", "/echo", b"four").text == "4"
    answer = send_request(app, "GET", "/fail")
    assert answer.status_code == 404 and "the routes are /echo" in answer.json()["detail"]
    assert len(send_request(app, "GET", "/" + "x" * 5000).text) < 600


def run_asgi(
    app: ASGIApp, headers: list[bytes], receive: Callable[[], Message], takes: float = math.inf
) -> tuple[list[int], list[Message]]:
    """What an app answers to a POST to /echo whose messages are made one by one: how much it had sent each time that it
    asked for one, and all that it sent; the caller takes so many messages."""
    asked: list[int] = []
    sent: list[Message] = []
    pairs = [tuple(part.strip() for part in header.lower().split(b":", 1)) for header in headers]
    scope = {"type": "http", "method": "POST", "path": "/echo", "query_string": b"", "headers": pairs}

    async def next_message() -> Message:
        asked.append(len(sent))
        await asyncio.sleep(0)
        return receive() if len(asked) < 99 else {"type": "http.disconnect"}

    async def keep(message: Message) -> None:
        if len(sent) >= takes:
            await asyncio.sleep(60)
        sent.append(message)

    asyncio.run(app(scope, next_message, keep))
    return asked, sent
