"""Responses of a broken or malicious server: each ends in one of the client's errors, in bounded memory."""

import gzip
import io
import json
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskserve.client import Client, InvalidResponseError, ServiceError, TooManyRequestsError, response_body
from tests.maskserve.fake_server import http_response, run_fake_server

MODEL = {"name": "m", "hash": "0" * 64, "spec": {"classes": [{"name": name, "rgb": [0, 0, 0]} for name in "ab"]}}
MODELS = http_response(200, json.dumps([MODEL]).encode())
DEEP = b"[" * 200_000


def mask_png(size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.zeros(size, np.uint8))
    image.putpalette(bytes(768))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mask_response(content: bytes, **headers: str) -> bytes:
    return http_response(200, content, X_Model=f"m@{'0' * 12}", **headers)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(response_body, "MAX_BODY_BYTES", 1 << 20)
    return 1 << 20


def segment(*responses: bytes) -> Any:
    with run_fake_server(*responses) as server, Client(server.url, retry_timeout=0) as client:
        return client.segment(b"image")


@pytest.mark.parametrize("value", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "9" * 400])
def test_an_absurd_retry_after(value: str) -> None:
    with pytest.raises(TooManyRequestsError) as caught:
        segment(http_response(429, b"{}", Retry_After=value))
    assert caught.value.retry_after in (None, 1e9)


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        b'{"status": Infinity, "type": "a"}',
        b'{"status": 500, "type": "a", "title": [], "detail": 1}',
        b"\xff\xfe",
    ],
)
def test_an_absurd_problem(body: bytes) -> None:
    with pytest.raises(ServiceError) as caught:
        segment(http_response(500, body, Content_Type="application/problem+json; charset=zlib"))
    assert caught.value.status == 500 and len(str(caught.value)) < 500


def test_an_absurd_timing_is_left_out() -> None:
    mask = segment(mask_response(mask_png(), Server_Timing="read;dur=1.2.3, infer;dur=2.5"), MODELS)
    assert mask.timing == {"infer": 2.5} and mask.labels.shape == (4, 4)


@pytest.mark.parametrize("size", [1 << 24, 4])
def test_a_compressed_response(size: int, small_limit: int) -> None:
    """Gzip is read, since a proxy may compress, up to the limit: these 16 MB of zeros come as 16 kB."""
    png = mask_png((size // 4, 4)) if size < small_limit else bytes(size)
    response = mask_response(gzip.compress(png), Content_Encoding="gzip")
    if size < small_limit:
        assert segment(response, MODELS).labels.size == size
        return
    with pytest.raises(InvalidResponseError, match="more than 1 MiB long"):
        segment(response)


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        (zlib.compress(b"a"), "deflate", "compressed with 'deflate', which was not requested"),
        (b"no gzip", "gzip", "not valid gzip"),
        (gzip.compress(mask_png())[:-9], "gzip", "incomplete gzip"),
    ],
    ids=["deflate", "no gzip", "truncated"],  # gzip's bytes have a time, and all processes must collect the same tests
)
def test_an_unknown_or_broken_compression(body: bytes, encoding: str, message: str) -> None:
    with pytest.raises(InvalidResponseError, match=message):
        segment(mask_response(body, Content_Encoding=encoding))


def test_the_length_of_a_response_is_limited(small_limit: int) -> None:
    with pytest.raises(InvalidResponseError, match="more than 1 MiB long"):
        segment(mask_response(b"a" * (small_limit + 1)))
    with pytest.raises(ServiceError, match="aaaa"):  # of an error the beginning is enough
        segment(http_response(500, b"a" * (response_body.MAX_ERROR_BYTES + 1)))


@pytest.mark.parametrize(
    "content",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", mask_png()[:40], mask_png()[:-24], b"\x89PNG\r\n\x1a\n" + bytes(30)],
    ids=["eps", "gif", "header only", "cut off", "no chunks"],
)
def test_a_mask_in_another_format_raises(content: bytes) -> None:
    with pytest.raises(InvalidResponseError, match="not a response of maskserve"):
        segment(mask_response(content), MODELS)


@pytest.mark.parametrize("format", ["png", "overlay", "confidence", "npy", "json"])
def test_the_bytes_of_another_format_raise(format: str) -> None:
    with (
        run_fake_server(mask_response(b"%!PS-Adobe")) as server,
        Client(server.url) as client,
        pytest.raises(InvalidResponseError, match=f"expected the format {format}"),
    ):
        client.segment_bytes(b"image", format)


@pytest.mark.parametrize("body", [DEEP, b'{"height": "4"}', b"[[1, 2]]", b'{"height": 1, "width": 1, "classes": [1]}'])
def test_an_absurd_json_raises(body: bytes) -> None:
    with run_fake_server(mask_response(body)) as server, Client(server.url) as client:
        for call in (client.models, lambda: client.model("m"), lambda: client.segment_json(b"image")):
            with pytest.raises(InvalidResponseError, match="not a response of maskserve"):
                call()
