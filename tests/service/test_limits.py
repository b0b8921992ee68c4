"""A service with API keys, small limits and CORS, in process: each limit and its response."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

from service import responses
from service.auth import generate_api_key
from tests.fixtures_images import encode_image
from tests.service.in_process import start_app
from tests.service.test_app import JPEG, check_problem, decode_mask

KEY, HASH = generate_api_key()
ORIGIN = "https://page.example"


@pytest.fixture(scope="module")
def visitor(small_bundle: Path) -> Iterator[TestClient]:
    """A client without a key."""
    with pytest.MonkeyPatch.context() as patch, start_app(
            small_bundle, api_keys=(HASH,), cors_origins=(ORIGIN,), max_body_bytes=100_000, max_pixels=100_000, body_seconds=0.5,
        max_images=3, max_uploads=2,
    ) as client:  # fmt: skip
        patch.setattr(responses, "LINGER_SECONDS", 0.1)
        yield client


@pytest.fixture(scope="module")
def http(visitor: TestClient) -> TestClient:
    """A client with a key."""
    client = TestClient(visitor.app, base_url="http://service", headers={"Authorization": f"Bearer {KEY}"})
    client.portal = visitor.portal  # the event loop in which the service has started
    return client


def test_only_probes_page_and_documentation_need_no_key(visitor: TestClient) -> None:
    for request in (
        ("POST", "/v1/segment"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/v1/models/small"),
        ("GET", "/v1/models/nobody"),
        ("GET", "/nothing"),
    ):
        response = visitor.request(*request)
        check_problem(response, 401, "Authorization: Bearer", "X-API-Key")
        assert response.headers["www-authenticate"] == 'Bearer realm="maskserve"'
    for path in ("/readyz", "/v1/docs", "/v1/openapi.json", "/", "/static/main.js"):
        assert visitor.get(path).status_code == 200, path
    assert (
        len(visitor.get("/v1/openapi.json").json()["security"]) == 2
    )  # /v1/docs shows that a key is needed, and takes it
    check_problem(visitor.get("/v1/models", headers={"X-API-Key": "wrong"}), 401, "not valid")
    assert visitor.get("/v1/models", headers={"X-API-Key": KEY}).status_code == 200


def test_page_of_the_allowed_origin_may_call(visitor: TestClient) -> None:
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-request-id",
    }
    allowed = visitor.options("/v1/segment", headers={"Origin": ORIGIN, **preflight})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    other = visitor.options("/v1/segment", headers={"Origin": "https://other.example", **preflight})
    assert "access-control-allow-origin" not in other.headers
    rejected = visitor.post("/v1/segment", headers={"Origin": ORIGIN}, content=JPEG)  # without a key
    assert rejected.status_code == 401 and rejected.headers["access-control-allow-origin"] == ORIGIN
    assert "X-Request-ID" in rejected.headers["access-control-expose-headers"]


def test_bytes_and_pixels(http: TestClient) -> None:
    decode_mask(http.post("/v1/segment", content=JPEG))
    check_problem(http.post("/v1/segment", content=JPEG + bytes(100_001 - len(JPEG))), 413, "100,001", "100,000")
    check_problem(
        http.post("/v1/segment", content=encode_image(blank_image(400, 251), "PNG")),
        413, "251 x 400 = 100,400", "100,000",
    )  # fmt: skip
    decode_mask(http.post("/v1/segment", content=encode_image(blank_image(400, 250), "PNG")))


def test_images_of_a_batch(http: TestClient) -> None:
    small = [("images", encode_image(blank_image(4, 4), "PNG"))]
    assert http.post("/v1/segment/batch", files=small * 3).status_code == 200
    check_problem(http.post("/v1/segment/batch", files=small * 4), 400, "Maximum number of files is 3")


class SlowUpload:
    """A request with a key whose body does not arrive completely."""

    def __init__(self, client: TestClient, chunks: list[bytes], key: str = KEY) -> None:
        self.sent: list[Message] = []
        self._chunks = iter(chunks)
        assert client.portal is not None
        self._task = client.portal.start_task_soon(self._run, client.app, key)

    async def _run(self, app: ASGIApp, key: str) -> None:
        headers = [(b"x-api-key", key.encode()), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "path": "/v1/segment", "query_string": b"", "headers": headers}
        await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        for chunk in self._chunks:
            return {"type": "http.request", "body": chunk, "more_body": True}
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    def _send(self, message: Message) -> Awaitable[None]:
        self.sent.append(message)
        return asyncio.sleep(0)

    def response(self) -> tuple[int, bytes]:
        """Wait for the status and the body of the response."""
        self._task.result(30)
        return self.sent[0]["status"], b"".join(message.get("body", b"") for message in self.sent)


def test_request_without_a_key_is_rejected_before_its_body_is_read(visitor: TestClient) -> None:
    start = time.monotonic()
    upload = SlowUpload(visitor, [], key="")
    while len(upload.sent) < 2:
        assert time.monotonic() < start + 30
        time.sleep(0.001)
    assert upload.sent[0]["status"] == 401


def test_body_that_is_too_long_without_saying_so(http: TestClient) -> None:
    status, body = SlowUpload(http, [bytes(50_000)] * 3).response()
    assert status == 413 and b"more than 100,000" in body


def test_body_that_does_not_arrive(http: TestClient) -> None:
    status, body = SlowUpload(http, [b"some"]).response()
    assert status == 408 and b"0.5 seconds" in body


def test_slow_uploads_block_others_only_for_a_while(http: TestClient) -> None:
    """Two bodies may arrive at once: a third request is rejected, and succeeds after the two have timed out."""
    uploads = [SlowUpload(http, [b"some"]) for _ in range(2)]
    time.sleep(0.1)
    busy = http.post("/v1/segment", content=JPEG)
    check_problem(busy, 429, "bodies")
    assert int(busy.headers["retry-after"]) >= 1
    assert [upload.response()[0] for upload in uploads] == [408, 408]
    decode_mask(http.post("/v1/segment", content=JPEG))


def blank_image(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_bodies_of_refused_requests_are_released_at_once(http: TestClient) -> None:
    """Without the cycle collector: their exceptions hold them, and futures hold the exceptions."""
    body = b"\x89PNG" + bytes(90_000)

    def send() -> None:
        check_problem(http.post("/v1/segment", content=body), 422)

    send()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        send()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(8):
            send()
        assert tracemalloc.get_traced_memory()[0] - before < 3 * len(body)
    finally:
        tracemalloc.stop()
        gc.enable()
