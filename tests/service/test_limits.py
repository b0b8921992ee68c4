"""A real service with keys, small limits and a page of its own that may call it: each limit and what it answers."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.auth import generate_api_key
from service.server_process import background_server
from tests.service.test_app import JPEG, check_problem, decode_mask, encode_image

KEY, HASH = generate_api_key()
ORIGIN = "https://page.example"
LIMITS = {
    "API_KEYS": HASH, "CORS_ORIGINS": ORIGIN, "MAX_BODY_BYTES": "100000", "MAX_PIXELS": "100000", "BODY_SECONDS": "0.5",
    "MAX_IMAGES": "3", "MAX_UPLOADS": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITS.items():
            patch.setenv(f"MASKSERVE_{name}", value)
        with background_server(tiny_bundle) as url:
            yield url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60.0, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_no_key_no_answer_but_for_probes_and_the_documentation(url: str) -> None:
    with httpx.Client(base_url=url) as stranger:
        for request in (
            ("POST", "/v1/segment"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/v1/models/tiny"),
            ("GET", "/v1/models/nobody"),
        ):
            answer = stranger.request(*request)
            check_problem(answer, 401, "Authorization: Bearer", "X-API-Key")
            assert answer.headers["www-authenticate"] == 'Bearer realm="maskserve"'
        for path in ("/livez", "/readyz", "/v1/docs", "/v1/openapi.json", "/", "/static/main.js"):
            assert stranger.get(path).status_code == 200, path
        check_problem(stranger.get("/v1/models", headers={"X-API-Key": "wrong"}), 401, "does not open")
        assert stranger.get("/v1/models", headers={"X-API-Key": KEY}).status_code == 200


def test_a_stranger_is_refused_before_the_body_is_read(url: str) -> None:
    """Only the head of a request is sent: an answer can come of that alone."""
    with _open_partial_request(url, 50_000) as connection:
        assert connection.recv(4000).startswith(b"HTTP/1.1 401")


def test_pages_of_one_origin_may_call(url: str) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-request-id"}
    allowed = httpx.options(f"{url}/v1/segment", headers={"Origin": ORIGIN, **asked})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    other = httpx.options(f"{url}/v1/segment", headers={"Origin": "https://other.example", **asked})
    assert "access-control-allow-origin" not in other.headers
    refused = httpx.post(f"{url}/v1/segment", headers={"Origin": ORIGIN}, content=JPEG)  # without the key
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == ORIGIN
    assert "X-Request-ID" in refused.headers["access-control-expose-headers"]


def test_bytes_and_pixels(http: httpx.Client) -> None:
    decode_mask(http.post("/v1/segment", content=JPEG))
    check_problem(http.post("/v1/segment", content=JPEG + bytes(100_001 - len(JPEG))), 413, "100,001", "100,000")
    check_problem(http.post("/v1/segment", content=(bytes(50_000) for _ in range(3))), 413, "more than 100,000")
    noisy = encode_image(_blank_image(400, 251), "PNG")
    check_problem(http.post("/v1/segment", content=noisy), 413, "251 x 400 = 100,400", "100,000")
    decode_mask(http.post("/v1/segment", content=encode_image(_blank_image(400, 250), "PNG")))


def test_images_of_a_batch(http: httpx.Client) -> None:
    small = [("images", encode_image(_blank_image(4, 4), "PNG"))]
    assert http.post("/v1/segment/batch", files=small * 3).status_code == 200
    check_problem(http.post("/v1/segment/batch", files=small * 4), 400, "Maximum number of files is 3")


def test_a_body_that_does_not_come(url: str) -> None:
    with _open_partial_request(url, 50_000, KEY) as connection:
        answer = b"".join(iter(lambda: connection.recv(4000), b""))  # until it is closed
        assert answer.startswith(b"HTTP/1.1 408") and b"0.5 seconds" in answer


def test_many_slow_bodies_do_not_hold_up_others_for_long(http: httpx.Client, url: str) -> None:
    """Two bodies may come in at once: a third is told to come again, and does when they were given up."""
    with _open_partial_request(url, 50_000, KEY), _open_partial_request(url, 50_000, KEY):
        time.sleep(0.1)
        busy = http.post("/v1/segment", content=JPEG)
        check_problem(busy, 429, "bodies")
        assert int(busy.headers["retry-after"]) >= 1
        time.sleep(0.8)
        decode_mask(http.post("/v1/segment", content=JPEG))


def _open_partial_request(url: str, length: int, key: str = "") -> socket.socket:
    """A connection on which the head of a request and a little of its body were sent."""
    connection = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80), timeout=10)
    head = f"POST /v1/segment HTTP/1.1\r\nHost: here\r\nX-API-Key: {key}\r\nContent-Length: {length}\r\n\r\nsome"
    connection.sendall(head.encode())
    return connection


def _blank_image(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)
