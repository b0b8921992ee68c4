"""What the client asks again for, and when: against a server that answers by a script, and a real one that is overloaded."""

import asyncio
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Thread
from typing import Any

import httpx
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
from service.server_process import free_port
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.fake_server import DROPPED, FakeServer, http_response, run_fake_server

OK_RESPONSE = http_response(200, b"[]", Content_Type="application/json")
MASK_RESPONSE = http_response(200, b"mask", X_Model="small@0")
PROXY_ERROR = http_response(503, b"<html><h1>Nobody is there</h1></html>", Content_Type="text/html")
FINAL_STATUSES = (301, 400, 401, 404, 408, 413, 415, 422, 500, 502, 504)
TRUNCATED_RESPONSE = http_response(200, b"[", missing=1)
HASH = "0" * 12
PROBLEM = {
    "type": "urn:problem-type:maskserve:not-ready", "title": "The service is not ready", "status": 503,
    "detail": "The bundle is bad.", "request_id": "a",
}  # fmt: skip


def busy_response(after: str) -> bytes:
    return http_response(429, b"", Retry_After=after)


def not_ready_response(**headers: str) -> bytes:
    return http_response(503, json.dumps(PROBLEM).encode(), Content_Type="application/problem+json", **headers)


def call_client(kind: type[Client] | type[AsyncClient], url: str, call: str, *given: Any, **settings: Any) -> Any:
    """What a client of that kind gets."""
    if kind is Client:
        with Client(url, **settings) as client:
            return getattr(client, call)(*given)

    async def awaited() -> Any:
        async with AsyncClient(url, **settings) as client:
            return await getattr(client, call)(*given)

    return asyncio.run(awaited())


class RecordingTransport(SyncTransport):
    """A wire that notes how long it was told to wait, and does not."""

    waits: list[float]

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


def retry_waits(server: FakeServer, **settings: Any) -> list[float]:
    """How long a client would have waited between its attempts."""
    noting = type("Noting", (RecordingTransport,), {"waits": []})
    client = AsyncClient(server.url, transport=noting, **settings)
    try:
        run_sync(client.models())
    finally:
        run_sync(client.close())
    return noting.waits


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_one_answer_in_the_end(kind: type[Client] | type[AsyncClient]) -> None:
    with run_fake_server(
        DROPPED, busy_response("0"), PROXY_ERROR, TRUNCATED_RESPONSE, not_ready_response(Retry_After="0"), MASK_RESPONSE
    ) as server:
        assert call_client(kind, server.url, "encoded", b"image") == b"mask"
    assert len(server.requests) == 6
    assert {(request.line, request.body) for request in server.requests} == {
        ("POST /v1/segment HTTP/1.1", b"image"),
    }
    assert len({request.headers["x-request-id"] for request in server.requests}) == 1


def test_a_batch_is_sent_whole_again() -> None:
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
def test_a_batch_of_none_is_not_sent(kind: type[Client] | type[AsyncClient]) -> None:
    with run_fake_server(OK_RESPONSE) as server:
        assert call_client(kind, server.url, "segment_batch", []) == []
    assert server.requests == []


def mask_response(model: str) -> bytes:
    """The answer of a model: one pixel."""
    buffer = io.BytesIO()
    Image.new("P", (1, 1)).save(buffer, "PNG")
    return http_response(200, buffer.getvalue(), X_Model=f"{model}@{HASH}")


def models_response(model: str) -> bytes:
    entry = {"name": model, "hash": HASH, "spec": {"classes": [{"name": f"class of {model}"}]}}
    return http_response(200, json.dumps([entry]).encode())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_model_that_is_exchanged_after_its_mask(kind: type[Client] | type[AsyncClient]) -> None:
    """Of the one that has gone, nobody can say the classes."""
    with run_fake_server(mask_response("old"), models_response("new"), mask_response("new")) as server:
        mask = call_client(kind, server.url, "segment", b"image")
    assert (mask.model, mask.classes) == (f"new@{HASH}", [{"name": "class of new"}])
    posted = [request for request in server.requests if request.line.startswith("POST")]
    assert len(server.requests) == 3 and [request.body for request in posted] == [b"image"] * 2


def test_a_worker_that_has_not_exchanged_its_model_yet() -> None:
    with (
        run_fake_server(
            mask_response("new"), models_response("old"), mask_response("new"), models_response("new")
        ) as server,
        Client(server.url) as client,
    ):
        assert client.segment(b"image").classes == [{"name": "class of new"}]


def test_a_model_that_is_exchanged_again_and_again() -> None:
    script = (mask_response("a"), models_response("b"), mask_response("c"), models_response("d"), mask_response("d"))
    with run_fake_server(*script) as server, Client(server.url) as client:
        assert (client.segment(b"image").classes, len(server.requests)) == ([], 4)
        assert client.segment(b"image").classes == [{"name": "class of d"}]


def test_as_late_as_the_service_says() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    with run_fake_server(busy_response("7"), busy_response(date), busy_response("0"), OK_RESPONSE) as server:
        seven, twenty, soon = retry_waits(server)
    assert 7 <= seven <= 7 * 1.25
    assert 15 < twenty <= 20 * 1.25
    assert 0 < soon < 1  # at once would be again and again


def test_a_service_that_says_no_time_is_asked_less_and_less() -> None:
    with run_fake_server(*[PROXY_ERROR] * 10, OK_RESPONSE) as server:
        waited = retry_waits(server)
    longest = [min(5, 0.1 * 2**attempt) for attempt in range(10)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waited, longest, strict=True))


def test_patience_ends() -> None:
    with run_fake_server(busy_response("31")) as server:
        with Client(server.url) as client, pytest.raises(TooManyRequestsError) as caught:
            client.models()
        assert caught.value.retry_after == 31 and len(server.requests) == 1
    with run_fake_server(PROXY_ERROR) as server, Client(server.url, retry_timeout=0.3) as client:
        with pytest.raises(ServiceUnavailableError, match="Nobody is there"):
            client.models()
        assert 2 <= len(server.requests) <= 6


@pytest.mark.parametrize(
    "once",
    [busy_response("0"), PROXY_ERROR, DROPPED, TRUNCATED_RESPONSE, not_ready_response(Retry_After="0")],
    ids=["busy", "proxy", "lost", "cut", "not ready"],
)
def test_no_patience_asks_once(once: bytes) -> None:
    with run_fake_server(once, OK_RESPONSE) as server, Client(server.url, retry_timeout=0) as client:
        with pytest.raises((ServiceError, UnreachableError)):
            client.models()
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "final", [not_ready_response(), *map(http_response, FINAL_STATUSES)], ids=["not ready", *map(str, FINAL_STATUSES)]
)
def test_what_is_final(final: bytes) -> None:
    with run_fake_server(final, OK_RESPONSE) as server, Client(server.url) as client:
        with pytest.raises(ServiceError) as caught:
            client.models()
        assert len(server.requests) == 1
        assert f" {caught.value.status} ".encode() in final


def test_an_image_that_takes_too_long_is_not_sent_again() -> None:
    with run_fake_server(0.5, OK_RESPONSE) as server, Client(server.url, timeout=0.1) as client:
        with pytest.raises(UnreachableError, match=r"no answer in time .*Raise `timeout`"):
            client.models()
        assert len(server.requests) == 1


def test_nobody_at_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """However patient: it may be the wrong one."""
    monkeypatch.setattr(retries, "FIRST_CONTACT_TIMEOUT", 0.3)
    words = r"cannot be reached, asked [2-4] times: .*refused.* Is the service running"
    with (
        Client(f"http://127.0.0.1:{free_port()}", retry_timeout=10) as client,
        pytest.raises(UnreachableError, match=words),
    ):
        client.models()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_service_that_comes_late(kind: type[Client] | type[AsyncClient]) -> None:
    port, got = free_port(), []
    asking = Thread(target=lambda: got.append(call_client(kind, f"http://127.0.0.1:{port}", "models")))
    asking.start()
    time.sleep(0.2)  # it has been refused by now
    with run_fake_server(OK_RESPONSE, port=port):
        asking.join()
    assert got == [[]]


def test_an_overloaded_service_loses_no_image(strict_url: str, api_key: str) -> None:
    """Eight threads at a service that lets nobody wait and takes one body at a time; it says that it has refused some."""
    image = synthetic_image(480, 640)

    def refused() -> float:
        lines = httpx.get(f"{strict_url}/metrics", headers={"X-API-Key": api_key}, trust_env=False).text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("maskserve_requests") and '"429"' in line
        )

    with Client(strict_url, api_key=api_key, retry_timeout=120) as client, ThreadPoolExecutor(8) as pool:
        alone, before = client.segment(image), refused()
        masks = list(pool.map(lambda _: client.segment(image), range(24)))
        assert refused() > before
    assert len(masks) == 24
    for mask in masks:
        np.testing.assert_array_equal(mask.labels, alone.labels)
