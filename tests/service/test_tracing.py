"""Tracing by OpenTelemetry's middleware, which fails at some bytes in headers."""

import asyncio

import pytest
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.middleware import Middleware
from starlette.types import Message, Receive, Scope, Send

from service.tracing import TracingMiddleware

HEADERS = [(b"host", b"a"), (b"user-agent", b"\x89\\"), (b"x-other", b"text")]


async def send_request(app: object) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "scheme": "http", "headers": HEADERS}
    await app(scope | {"server": ("a", 80), "client": ("b", 1), "http_version": "1.1"}, receive, send)  # type: ignore[operator]
    return sent


async def echo_headers(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": scope["headers"]})
    await send({"type": "http.response.body", "body": b""})


def test_app_gets_every_header() -> None:
    app = TracingMiddleware(echo_headers, Middleware(OpenTelemetryMiddleware))
    sent = asyncio.run(send_request(app))
    assert sent[0]["status"] == 200 and sent[0]["headers"][: len(HEADERS)] == HEADERS


def test_the_middleware_itself_fails() -> None:
    """If this fails, `TracingMiddleware` is not needed any more."""
    with pytest.raises(UnicodeDecodeError):
        asyncio.run(send_request(OpenTelemetryMiddleware(echo_headers)))
