"""Which requests the client retries, and when: against a fake server, and an overloaded real one."""

import asyncio
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskserve.client import (
    AsyncClient,
    Client,
    ServiceError,
    ServiceUnavailableError,
    TooManyRequestsError,
    UnreachableError,
    retries,
)
from maskserve.client.transports import SyncTransport, run_sync
from service.metrics import Metrics
from service.server_process import free_port
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.fake_server import DROPPED, FakeServer, http_response, run_fake_server

OK_RESPONSE = http_response(200, b"[]", Content_Type="application/json")
MASK = b"\x89PNG\r\n\x1a\n"
MASK_RESPONSE = http_response(200, MASK, X_Model="small@0")
PROXY_ERROR = http_response(503, b"<html><h1>No backend</h1></html>", Content_Type="text/html")
FINAL_STATUSES = (301, 400, 401, 404, 408, 413, 415, 422, 500, 502, 504)
TRUNCATED_RESPONSE = http_response(200, b"[", missing=1)
HASH = "0" * 12
PROBLEM = {
    "type": "urn:problem-type:maskserve:not-ready", "title": "The service is not ready", "status": 503,
    "detail": "The bundle is bad.", "request_id": "a",
}  # fmt: skip


def busy_response(retry_after: str) -> bytes:
    return http_response(429, b"", Retry_After=retry_after)


def not_ready_response(**headers: str) -> bytes:
    return http_response(503, json.dumps(PROBLEM).encode(), Content_Type="application/problem+json", **headers)


def call_client(kind: type[Client] | type[AsyncClient], url: str, method: str, *arguments: Any, **settings: Any) -> Any:
    """The result of a method of a client of that class."""
    if kind is Client:
        with Client(url, **settings) as client:
            return getattr(client, method)(*arguments)

    async def call() -> Any:
        async with AsyncClient(url, **settings) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(call())


class RecordingTransport(SyncTransport):
    """A transport that records the waits instead of waiting."""

    waits: list[float]

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


def retry_waits(server: FakeServer, **settings: Any) -> list[float]:
    """The seconds that a client would have waited between its attempts."""
    transport = type("Transport", (RecordingTransport,), {"waits": []})
    client = AsyncClient(server.url, transport=transport, **settings)
    try:
        run_sync(client.models())
    finally:
        run_sync(client.close())
    return transport.waits


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_request_is_retried_until_it_succeeds(kind: type[Client] | type[AsyncClient]) -> None:
    with run_fake_server(
        DROPPED, busy_response("0"), PROXY_ERROR, TRUNCATED_RESPONSE, not_ready_response(Retry_After="0"), MASK_RESPONSE
    ) as server:
        assert call_client(kind, server.url, "segment_bytes", b"image") == MASK
    assert len(server.requests) == 6
    assert {(request.line, request.body) for request in server.requests} == {
        ("POST /v1/segment?format=png HTTP/1.1", b"image"),
    }
    assert len({request.headers["x-request-id"] for request in server.requests}) == 1


def test_a_batch_is_retried_as_a_whole() -> None:
    one, other = (json.dumps({"problem": {**PROBLEM, "detail": detail}}).encode() for detail in ("One.", "Other."))
    entries = http_response(200, b"[" + one + b"," + other + b"]", X_Model=f"small@{HASH}")
    with (
        run_fake_server(busy_response("0"), DROPPED, entries, models_response("small")) as server,
        Client(server.url) as client,
    ):
        errors = client.segment_batch([b"one image", b"another image"])
    assert [error.detail for error in errors if isinstance(error, ServiceError)] == ["One.", "Other."]
    first, second, third, _ = server.requests
    assert b"one image" in first.body and b"another image" in first.body
    assert first.body == second.body == third.body


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_empty_batch_is_not_sent(kind: type[Client] | type[AsyncClient]) -> None:
    with run_fake_server(OK_RESPONSE) as server:
        assert call_client(kind, server.url, "segment_batch", []) == []
    assert server.requests == []


def mask_response(model: str) -> bytes:
    """A mask of one pixel from a model."""
    buffer = io.BytesIO()
    Image.new("P", (1, 1)).save(buffer, "PNG")
    return http_response(200, buffer.getvalue(), X_Model=f"{model}@{HASH}")


def models_response(model: str) -> bytes:
    entry = {"name": model, "hash": HASH, "spec": {"classes": [{"name": f"class of {model}"}]}}
    return http_response(200, json.dumps([entry]).encode())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_model_is_replaced_after_its_mask(kind: type[Client] | type[AsyncClient]) -> None:
    """The classes of the old one are not available any more."""
    with run_fake_server(mask_response("old"), models_response("new"), mask_response("new")) as server:
        mask = call_client(kind, server.url, "segment", b"image")
    assert (mask.model, mask.classes) == (f"new@{HASH}", [{"name": "class of new"}])
    posted = [request for request in server.requests if request.line.startswith("POST")]
    assert len(server.requests) == 3 and [request.body for request in posted] == [b"image"] * 2


def test_a_worker_has_not_loaded_the_new_model_yet() -> None:
    with (
        run_fake_server(
            mask_response("new"), models_response("old"), mask_response("new"), models_response("new")
        ) as server,
        Client(server.url) as client,
    ):
        assert client.segment(b"image").classes == [{"name": "class of new"}]


def test_a_model_is_replaced_twice() -> None:
    responses = (mask_response("a"), models_response("b"), mask_response("c"), models_response("d"), mask_response("d"))
    with run_fake_server(*responses) as server, Client(server.url) as client:
        assert (client.segment(b"image").classes, len(server.requests)) == ([], 4)
        assert client.segment(b"image").classes == [{"name": "class of d"}]


def test_retry_after_is_respected() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    with run_fake_server(busy_response("7"), busy_response(date), busy_response("0"), OK_RESPONSE) as server:
        seven, twenty, soon = retry_waits(server)
    assert 7 <= seven <= 7 * 1.25
    assert 15 < twenty <= 20 * 1.25
    assert 0 < soon < 1  # not at once


def test_without_retry_after_the_waits_double() -> None:
    with run_fake_server(*[PROXY_ERROR] * 10, OK_RESPONSE) as server:
        waits = retry_waits(server)
    longest = [min(5, 0.1 * 2**attempt) for attempt in range(10)]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, longest, strict=True))


def test_retries_end_with_the_retry_timeout() -> None:
    with run_fake_server(busy_response("31")) as server:
        with Client(server.url) as client, pytest.raises(TooManyRequestsError) as caught:
            client.models()
        assert caught.value.retry_after == 31 and len(server.requests) == 1
    with run_fake_server(PROXY_ERROR) as server, Client(server.url, retry_timeout=0.3) as client:
        with pytest.raises(ServiceUnavailableError, match="No backend"):
            client.models()
        assert 2 <= len(server.requests) <= 6


@pytest.mark.parametrize(
    "response",
    [busy_response("0"), PROXY_ERROR, DROPPED, TRUNCATED_RESPONSE, not_ready_response(Retry_After="0")],
    ids=["busy", "proxy", "dropped", "truncated", "not ready"],
)
def test_a_retry_timeout_of_0_disables_retries(response: bytes) -> None:
    with run_fake_server(response, OK_RESPONSE) as server, Client(server.url, retry_timeout=0) as client:
        with pytest.raises((ServiceError, UnreachableError)):
            client.models()
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "response",
    [not_ready_response(), *map(http_response, FINAL_STATUSES)],
    ids=["not ready", *map(str, FINAL_STATUSES)],
)
def test_other_statuses_are_final(response: bytes) -> None:
    with run_fake_server(response, OK_RESPONSE) as server, Client(server.url) as client:
        with pytest.raises(ServiceError) as caught:
            client.models()
        assert len(server.requests) == 1
        assert f" {caught.value.status} ".encode() in response


def test_a_read_timeout_is_not_retried() -> None:
    with run_fake_server(0.3, OK_RESPONSE) as server, Client(server.url, timeout=0.1) as client:
        with pytest.raises(UnreachableError, match=r"no response in time .*Increase `timeout`"):
            client.models()
        assert len(server.requests) == 1


def test_a_new_address_is_retried_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regardless of `retry_timeout`: the address may be wrong."""
    monkeypatch.setattr(retries, "FIRST_CONTACT_TIMEOUT", 0.3)
    message = r"cannot be reached \([2-4] attempts\): .*refused.* Is the service running"
    with (
        Client(f"http://127.0.0.1:{free_port()}", retry_timeout=10) as client,
        pytest.raises(UnreachableError, match=message),
    ):
        client.models()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_service_that_starts_late_is_reached(kind: type[Client] | type[AsyncClient]) -> None:
    port, results = free_port(), []
    caller = Thread(target=lambda: results.append(call_client(kind, f"http://127.0.0.1:{port}", "models")))
    caller.start()
    time.sleep(0.2)  # it has been refused by now
    with run_fake_server(OK_RESPONSE, port=port):
        caller.join()
    assert results == [[]]


def test_an_overloaded_service_loses_no_image(strict_url: str, api_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six threads call a service without a queue that accepts one upload at a time."""
    image, statuses = synthetic_image(480, 640), []
    monkeypatch.setattr(Metrics, "count_request", lambda _, route, status, seconds: statuses.append(status))
    with Client(strict_url, api_key=api_key, retry_timeout=120) as client, ThreadPoolExecutor(6) as pool:
        expected = client.segment(image)
        masks = list(pool.map(lambda _: client.segment(image), range(12)))
    assert 429 in statuses
    assert len(masks) == 12
    for mask in masks:
        np.testing.assert_array_equal(mask.labels, expected.labels)
