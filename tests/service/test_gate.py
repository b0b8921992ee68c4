"""What the gate does to requests, without a server around it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from service.gate import Bodies, Checked, Net, not_found


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def fail(request: Request) -> Response:
    raise RuntimeError("the secret inside")


ROUTES = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/fail", fail)])
APP = ROUTES.router


def gate(limit: int = 10, seconds: float = 5) -> ASGIApp:
    return Net(Bodies(Net(APP), limit, seconds))


def ask(app: ASGIApp, method: str, path: str, content: bytes | AsyncIterator[bytes] = b"") -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(send())


def test_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "maskserve"):
        answer = ask(gate(), "GET", "/fail")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text and "log" in answer.json()["detail"]
    assert "the secret inside" in caplog.text


@pytest.mark.parametrize(("size", "status"), [(0, 200), (10, 200), (11, 413)])
def test_the_limit_is_the_last_size_let_through(size: int, status: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b"x"

    assert ask(gate(), "POST", "/echo", bytes(size)).status_code == status
    assert ask(gate(), "POST", "/echo", chunks()).status_code == status


def test_an_announced_size_is_refused_before_the_body_is_read() -> None:
    asked, sent = by_hand(
        gate(), [b"Content-Length: 11"], lambda: {"type": "http.request", "body": b"", "more_body": True}
    )
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert asked == 0 or sent[1]["body"]  # answered in full; then the sender is listened to for a while


@pytest.mark.parametrize(
    "header", [b"content-length: -1", b"content-length: 1_0", "content-length: ²".encode("latin-1")]
)
def test_odd_lengths_are_not_believed(header: bytes) -> None:
    messages = iter([{"type": "http.request", "body": b"abc", "more_body": False}])
    _, sent = by_hand(gate(), [header], lambda: next(messages))
    assert sent[0]["status"] == 200 and sent[1]["body"] == b"3"


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"some"
        await asyncio.sleep(60)
        yield b"more"

    answer = ask(gate(seconds=0.05), "POST", "/echo", never())
    assert answer.status_code == 408
    assert "0.05 seconds; 4 bytes of it did" in answer.json()["detail"]
    assert answer.headers["connection"] == "close"


def test_unknown_paths_do_not_pass() -> None:
    def check(path: str) -> None:
        if path != "/echo":
            raise not_found(path, ["/echo"])

    app = Net(Checked(APP, check))
    assert ask(app, "POST", "/echo", b"four").text == "4"
    answer = ask(app, "GET", "/fail")
    assert answer.status_code == 404 and "the routes are /echo" in answer.json()["detail"]
    assert len(ask(app, "GET", "/" + "x" * 5000).text) < 600


def by_hand(app: ASGIApp, headers: list[bytes], receive: Callable[[], Message]) -> tuple[int, list[Message]]:
    """What an app answers to a POST to /echo whose messages are made one by one, and how often it asked for one."""
    asked, sent = 0, []
    pairs = [tuple(part.strip() for part in header.lower().split(b":", 1)) for header in headers]
    scope = {"type": "http", "method": "POST", "path": "/echo", "query_string": b"", "headers": pairs}

    async def next_message() -> Message:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return receive() if asked < 100 else {"type": "http.disconnect"}

    async def keep(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, next_message, keep))
    return asked, sent
