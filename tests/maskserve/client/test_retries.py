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

from maskserve.client import AsyncClient, Busy, Client, NotReady, ServiceError, Unreachable, retries
from maskserve.client.transports import Blocking, finished
from service.server_process import free_port
from tests.fixtures_bundles import drawing
from tests.maskserve.fake_server import LOST, Scripted, answer, serving

GOOD = answer(200, b"[]", Content_Type="application/json")
MASK = answer(200, b"mask", X_Model="small@0")
PROXY = answer(503, b"<html><h1>Nobody is there</h1></html>", Content_Type="text/html")
FINAL = (301, 400, 401, 404, 408, 413, 415, 422, 500, 502, 504)
CUT = answer(200, b"[", missing=1)
HASH = "0" * 12
PROBLEM = {
    "type": "urn:problem-type:maskserve:not-ready", "title": "The service is not ready", "status": 503,
    "detail": "The bundle is bad.", "request_id": "a",
}  # fmt: skip


def busy(after: str) -> bytes:
    return answer(429, b"", Retry_After=after)


def not_ready(**headers: str) -> bytes:
    return answer(503, json.dumps(PROBLEM).encode(), Content_Type="application/problem+json", **headers)


def asked(kind: type[Client] | type[AsyncClient], url: str, call: str, *given: Any, **settings: Any) -> Any:
    """What a client of that kind gets."""
    if kind is Client:
        with Client(url, **settings) as client:
            return getattr(client, call)(*given)

    async def awaited() -> Any:
        async with AsyncClient(url, **settings) as client:
            return await getattr(client, call)(*given)

    return asyncio.run(awaited())


class Noting(Blocking):
    """A wire that notes how long it was told to wait, and does not."""

    waits: list[float]

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


def waits(server: Scripted, **settings: Any) -> list[float]:
    """How long a client would have waited between its attempts."""
    noting = type("Noting", (Noting,), {"waits": []})
    client = AsyncClient(server.url, wire=noting, **settings)
    try:
        finished(client.models())
    finally:
        finished(client.close())
    return noting.waits


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_one_answer_in_the_end(kind: type[Client] | type[AsyncClient]) -> None:
    with serving(LOST, busy("0"), PROXY, CUT, not_ready(Retry_After="0"), MASK) as server:
        assert asked(kind, server.url, "encoded", b"picture") == b"mask"
    assert len(server.requests) == 6
    assert {(request.line, request.body) for request in server.requests} == {
        ("POST /v1/segment HTTP/1.1", b"picture"),
    }
    assert len({request.headers["x-request-id"] for request in server.requests}) == 1


def test_a_batch_is_sent_whole_again() -> None:
    one, other = (json.dumps({"problem": {**PROBLEM, "detail": detail}}).encode() for detail in ("One.", "Other."))
    entries = answer(200, b"[" + one + b"," + other + b"]", X_Model=f"small@{HASH}")
    with serving(busy("0"), LOST, entries, serves("small")) as server, Client(server.url) as client:
        errors = client.segment_batch([b"one picture", b"another picture"])
    assert [error.detail for error in errors if isinstance(error, ServiceError)] == ["One.", "Other."]
    first, second, third, _ = server.requests
    assert b"one picture" in first.body and b"another picture" in first.body
    assert first.body == second.body == third.body


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_batch_of_none_is_not_sent(kind: type[Client] | type[AsyncClient]) -> None:
    with serving(GOOD) as server:
        assert asked(kind, server.url, "segment_batch", []) == []
    assert server.requests == []


def mask_by(model: str) -> bytes:
    """The answer of a model: one pixel."""
    buffer = io.BytesIO()
    Image.new("P", (1, 1)).save(buffer, "PNG")
    return answer(200, buffer.getvalue(), X_Model=f"{model}@{HASH}")


def serves(model: str) -> bytes:
    entry = {"name": model, "hash": HASH, "spec": {"classes": [{"name": f"class of {model}"}]}}
    return answer(200, json.dumps([entry]).encode())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_model_that_is_exchanged_after_its_mask(kind: type[Client] | type[AsyncClient]) -> None:
    """Of the one that has gone, nobody can say the classes."""
    with serving(mask_by("old"), serves("new"), mask_by("new")) as server:
        mask = asked(kind, server.url, "segment", b"picture")
    assert (mask.model, mask.classes) == (f"new@{HASH}", [{"name": "class of new"}])
    posted = [request for request in server.requests if request.line.startswith("POST")]
    assert len(server.requests) == 3 and [request.body for request in posted] == [b"picture"] * 2


def test_a_worker_that_has_not_exchanged_its_model_yet() -> None:
    with serving(mask_by("new"), serves("old"), mask_by("new"), serves("new")) as server, Client(server.url) as client:
        assert client.segment(b"picture").classes == [{"name": "class of new"}]


def test_a_model_that_is_exchanged_again_and_again() -> None:
    script = (mask_by("a"), serves("b"), mask_by("c"), serves("d"), mask_by("d"))
    with serving(*script) as server, Client(server.url) as client:
        assert (client.segment(b"picture").classes, len(server.requests)) == ([], 4)
        assert client.segment(b"picture").classes == [{"name": "class of d"}]


def test_as_late_as_the_service_says() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    with serving(busy("7"), busy(date), busy("0"), GOOD) as server:
        seven, twenty, soon = waits(server)
    assert 7 <= seven <= 7 * 1.25
    assert 15 < twenty <= 20 * 1.25
    assert 0 < soon < 1  # at once would be again and again


def test_a_service_that_says_no_time_is_asked_less_and_less() -> None:
    with serving(*[PROXY] * 10, GOOD) as server:
        waited = waits(server)
    longest = [min(5, 0.1 * 2**attempt) for attempt in range(10)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waited, longest, strict=True))


def test_patience_ends() -> None:
    with serving(busy("31")) as server:
        with Client(server.url) as client, pytest.raises(Busy) as caught:
            client.models()
        assert caught.value.retry_after == 31 and len(server.requests) == 1
    with serving(PROXY) as server, Client(server.url, patience=0.3) as client:
        with pytest.raises(NotReady, match="Nobody is there"):
            client.models()
        assert 2 <= len(server.requests) <= 6


@pytest.mark.parametrize(
    "once", [busy("0"), PROXY, LOST, CUT, not_ready(Retry_After="0")], ids=["busy", "proxy", "lost", "cut", "not ready"]
)
def test_no_patience_asks_once(once: bytes) -> None:
    with serving(once, GOOD) as server, Client(server.url, patience=0) as client:
        with pytest.raises((ServiceError, Unreachable)):
            client.models()
        assert len(server.requests) == 1


@pytest.mark.parametrize("final", [not_ready(), *map(answer, FINAL)], ids=["not ready", *map(str, FINAL)])
def test_what_is_final(final: bytes) -> None:
    with serving(final, GOOD) as server, Client(server.url) as client:
        with pytest.raises(ServiceError) as caught:
            client.models()
        assert len(server.requests) == 1
        assert f" {caught.value.status} ".encode() in final


def test_a_picture_that_takes_too_long_is_not_sent_again() -> None:
    with serving(0.5, GOOD) as server, Client(server.url, timeout=0.1) as client:
        with pytest.raises(Unreachable, match=r"no answer in time .*Raise `timeout`"):
            client.models()
        assert len(server.requests) == 1


def test_nobody_at_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """However patient: it may be the wrong one."""
    monkeypatch.setattr(retries, "STRANGER", 0.3)
    words = r"cannot be reached, asked [2-4] times: .*refused.* Is the service running"
    with Client(f"http://127.0.0.1:{free_port()}", patience=10) as client, pytest.raises(Unreachable, match=words):
        client.models()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_service_that_comes_late(kind: type[Client] | type[AsyncClient]) -> None:
    port, got = free_port(), []
    asking = Thread(target=lambda: got.append(asked(kind, f"http://127.0.0.1:{port}", "models")))
    asking.start()
    time.sleep(0.2)  # it has been refused by now
    with serving(GOOD, port=port):
        asking.join()
    assert got == [[]]


def test_an_overloaded_service_loses_no_picture(strict_url: str, key: str) -> None:
    """Eight threads at a service that lets nobody wait and takes one body at a time; it says that it has refused some."""
    picture = drawing(480, 640)

    def refused() -> float:
        lines = httpx.get(f"{strict_url}/metrics", headers={"X-API-Key": key}, trust_env=False).text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("maskserve_requests") and '"429"' in line
        )

    with Client(strict_url, key=key, patience=120) as client, ThreadPoolExecutor(8) as pool:
        alone, before = client.segment(picture), refused()
        masks = list(pool.map(lambda _: client.segment(picture), range(24)))
        assert refused() > before
    assert len(masks) == 24
    for mask in masks:
        np.testing.assert_array_equal(mask.labels, alone.labels)
