"""Requests with `Prefer: respond-async`: jobs of images, signals and volumes, and the store of their results."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import jobs
from service.auth import generate_api_key
from service.errors import OverloadedError, ResponseTooLargeError, UnknownJobError
from service.jobs import JobRunner, JobStore, prefers_async, process_key
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.models.readers.make_volumes import nifti_bytes
from tests.service.in_process import start_app
from tests.service.signal_bundle import npz_bytes, signal, write_signal_bundle
from tests.service.tiny_bundle import write_tiny_bundle
from tests.service.volume_bundle import AFFINE, phantom, write_volume_bundle

PREFER = {"Prefer": "respond-async, wait=5"}
BODIES = {
    "images": encode_image(synthetic_image(60, 80), "PNG"),
    "signals": npz_bytes(values=signal()[:, None], rate=100.0),
    "volumes": nifti_bytes(phantom(), AFFINE, compress=True),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_volume_bundle(folder / "volumes")
    write_signal_bundle(folder / "signals")
    write_tiny_bundle(folder / "images", "images")
    return folder


@pytest.fixture(scope="module")
def client(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with start_app(bundles, job_folder=tmp_path_factory.mktemp("jobs"), root_path="/tools") as client:
        yield client


def submit(client: TestClient, model: str, body: bytes = b"", **options: Any) -> str:
    """The path of the new job."""
    response = client.post(
        f"/v1/segment?model={model}",
        content=body or BODIES[model],
        headers=PREFER | options.pop("headers", {}),
        **options,
    )
    assert response.status_code == 202, response.text
    assert response.headers["preference-applied"] == "respond-async" and response.json()["state"] == "running"
    return response.headers["location"]


def fetch(client: TestClient, path: str, **options: Any) -> Any:
    deadline = time.monotonic() + 60
    while (response := client.get(path, **options)).status_code == 202:
        assert response.json()["state"] == "running" and int(response.headers["retry-after"]) == 1
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return response


@pytest.mark.parametrize("model", list(BODIES))
def test_result_is_the_response_of_the_request(client: TestClient, model: str) -> None:
    path = submit(client, model)
    assert path.startswith("/tools/v1/jobs/")  # as the caller sees it
    found, expected = fetch(client, path), client.post(f"/v1/segment?model={model}", content=BODIES[model])
    assert (found.status_code, found.content) == (200, expected.content)
    for name in ("content-type", "x-model"):
        assert found.headers[name] == expected.headers[name]
    assert "infer;dur=" in found.headers["server-timing"]
    assert client.get(path).content == expected.content  # until it is deleted
    assert client.delete(path).status_code == 204
    gone = client.get(path)
    assert gone.status_code == 404 and "was deleted" in gone.json()["detail"]


def test_error_is_the_error_of_the_request(client: TestClient) -> None:
    response = fetch(client, submit(client, "volumes", BODIES["images"]))
    assert response.status_code == 415 and "a PNG image" in response.json()["detail"]
    assert response.headers["content-type"] == "application/problem+json"
    bad = client.post("/v1/segment?model=volumes&alpha=1", content=BODIES["volumes"], headers=PREFER)
    assert bad.status_code == 400  # what the request itself shows is said at once
    assert client.post("/v1/jobs/x").headers["allow"] == "GET, DELETE"
    for unknown in ("x", "a" * 22, "../etc/passwd"):
        assert client.get(f"/v1/jobs/{unknown}").status_code == 404


def test_only_the_key_that_sent_it_reads_it_through_any_worker(bundles: Path, tmp_path: Path) -> None:
    (mine, mine_hash), (other, other_hash) = generate_api_key(), generate_api_key()
    settings = {"api_keys": (mine_hash, other_hash), "job_folder": tmp_path}
    with start_app(bundles / "volumes", **settings) as first, start_app(bundles / "volumes", **settings) as second:
        path = submit(first, "volumes", headers={"X-API-Key": mine})
        assert fetch(second, path, headers={"X-API-Key": mine}).status_code == 200
        assert second.get(path, headers={"X-API-Key": other}).status_code == 404
        assert second.delete(path, headers={"X-API-Key": other}).status_code == 404
        assert second.get(path).status_code == 401
        assert first.get(path, headers={"Authorization": f"Bearer {mine}"}).status_code == 200


def test_without_a_store_requests_wait(bundles: Path) -> None:
    with start_app(bundles / "volumes", job_store_bytes=0) as client:
        assert client.post("/v1/segment", content=BODIES["volumes"], headers=PREFER).status_code == 200
        assert client.get("/v1/jobs/x").status_code == 404


def make_store(folder: Path, max_bytes: int = 100, ttl_seconds: float = 60) -> JobStore:
    store = JobStore(folder, max_bytes, ttl_seconds)
    store.open()
    return store


def test_store_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    job = store.create("", "r")
    store.finish(job, bytes(60), "a/b", {})
    second = store.create("", "r")
    with pytest.raises(ResponseTooLargeError, match="60 bytes"):
        store.finish(second, bytes(60), "a/b", {})
    store.finish(second, bytes(40), "a/b", {})
    with pytest.raises(OverloadedError, match="full: 2 jobs"):
        store.create("", "r")
    store.delete(job)
    store.create("", "r")
    monkeypatch.setattr(jobs, "MAX_JOBS", 2)
    with pytest.raises(OverloadedError):
        store.create("", "r")


def test_results_end_with_their_time_their_worker_and_their_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, ttl_seconds=60)
    job, running = store.create("me", "r"), store.create("me", "r")
    store.finish(job, b"result", "a/b", {})
    assert store.read(job.id, "me")[1] == b"result" and store.read(running.id, "me")[0].state == "running"
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "is_alive", lambda process: process[0] != os.getpid())  # this worker is killed
        with pytest.raises(UnknownJobError, match="worker that ran this job has ended"):
            store.read(running.id, "me")
        assert store.read(job.id, "me")[1] == b"result"
    with monkeypatch.context() as patch:
        patch.setattr(jobs.time, "time", lambda: job.created + 3600)
        with pytest.raises(UnknownJobError, match="expired"):
            store.read(job.id, "me")
        store.sweep()
    assert not (store.folder / job.id).exists() and (store.folder / running.id).exists()
    with (
        monkeypatch.context() as patch
    ):  # another server: of its own folder, which removes that of the one that has ended
        patch.setattr(jobs.os, "getppid", lambda: os.getpid())
        patch.setattr(jobs, "is_alive", lambda process: process == process_key(os.getpid()))
        with pytest.raises(UnknownJobError, match="restart"):
            make_store(tmp_path).read(running.id, "me")
    assert not store.folder.exists()


def test_a_job_that_is_deleted_or_whose_worker_stops_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "WATCH_SECONDS", 0.01)
    store = make_store(tmp_path)

    async def run_in_thread(work: Any) -> Any:
        return work()

    async def scenario() -> list[str]:
        cancelled: list[str] = []
        runner = JobRunner(store, run_in_thread)

        def start() -> Any:
            job = store.create("", "r")

            async def work() -> None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    cancelled.append(job.id)
                    raise

            runner.start(job, work)
            return job

        first, second = start(), start()
        await asyncio.sleep(0.02)
        store.delete(first)
        while first.id not in cancelled:
            await asyncio.sleep(0.01)
        assert cancelled == [first.id] and store.exists(second)
        await runner.stop()
        assert not store.exists(second)
        return cancelled

    assert len(asyncio.run(scenario())) == 2


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("respond-async", True),
        ("wait=10, Respond-Async", True),
        ("respond-async;x=1", True),
        ("", False),
        ("wait=10", False),
    ],
)
def test_prefer(header: str, expected: bool) -> None:
    assert prefers_async(header) is expected
