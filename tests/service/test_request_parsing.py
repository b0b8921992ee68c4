"""Parsing of request bodies, without a server."""

import asyncio
import tempfile
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from service import request_parsing

LIMIT = 8 * 2**20


def make_request(form: httpx.Request) -> Request:
    async def body() -> AsyncIterator[Message]:
        data = form.read()
        for start in range(0, len(data), 65536):
            yield {"type": "http.request", "body": data[start : start + 65536], "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    messages = body()
    headers = [(name.lower(), value) for name, value in form.headers.raw]
    return Request({"type": "http", "method": "POST", "headers": headers}, messages.__anext__)


def make_form(**parts: object) -> httpx.Request:
    return httpx.Request("POST", "http://here/", **parts)  # type: ignore[arg-type]


def test_images_are_never_written_to_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a temporary file was opened")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # a spooled file becomes one when it is large
    data = bytes(range(256)) * 2**14  # 4 MiB; Starlette keeps 1 MiB in memory by default
    image, _ = asyncio.run(request_parsing.parse_image_request(make_request(make_form(files={"image": data})), LIMIT))
    assert image == data
    batch, _ = asyncio.run(
        request_parsing.parse_batch_request(make_request(make_form(files=[("images", data)] * 2)), 2 * LIMIT, 3)
    )
    assert batch.images == [data, data] and batch.names == ["upload", "upload"]


@pytest.mark.parametrize("charset", ["undefined", "utf-7", "idna", "no-such", "x" * 500, "rot13"])
def test_charset_of_the_caller_is_ignored(charset: str) -> None:
    """`undefined` is a codec that rejects everything, and `idna` one that took 23 seconds for a megabyte."""
    model = "xn--" + "é" * 20_000
    form = make_form(files={"image": b"bytes"}, data={"model": model})
    form.headers["content-type"] += f"; charset={charset}"
    image, parameters = asyncio.run(request_parsing.parse_image_request(make_request(form), LIMIT))
    assert image == b"bytes" and parameters == [("model", model)]
