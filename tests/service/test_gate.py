"""What the gate does where the routes fail, without a server around it."""

import asyncio
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from service.gate import Gate, KnownPaths


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def fail(request: Request) -> Response:
    raise RuntimeError("the secret inside")


APP = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/fail", fail)])


def ask(app: ASGIApp, method: str, path: str, content: bytes = b"") -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(send())


def test_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "maskserve"):
        answer = ask(Gate(APP.router, lambda: 10), "GET", "/fail")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text and "log" in answer.json()["detail"]
    assert "the secret inside" in caplog.text


@pytest.mark.parametrize(("size", "status"), [(0, 200), (10, 200), (11, 413)])
def test_the_limit_is_the_last_size_let_through(size: int, status: int) -> None:
    assert ask(Gate(APP.router, lambda: 10), "POST", "/echo", bytes(size)).status_code == status


def test_unknown_paths_do_not_pass() -> None:
    app = KnownPaths(APP, ["/echo"])
    assert ask(app, "POST", "/echo", b"four").text == "4"
    assert ask(app, "GET", "/fail").status_code == 404
