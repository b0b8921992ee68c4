"""The service when a worker is killed, when it is stopped, and when it is overloaded."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.load import closed_loop, post_request
from benchmarks.processes import process_command, process_tree, suspend_processes, worker_pids
from service.server_process import LOOPBACK, ServiceProcess, free_port, launch_server
from tests.fixtures_bundles import synthetic_image
from tests.service.in_process import start_app

# Seconds after which a test fails, also on a busy machine; benchmarks/serving.py measures how long a killed worker is gone.
TIMEOUT_SECONDS = 120


def encode_jpeg(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(synthetic_image(height, width)).save(buffer, "JPEG")
    return buffer.getvalue()


SMALL, LARGE = encode_jpeg(120, 160), encode_jpeg(1100, 1500)  # the large one takes a tenth of a second and more


@contextmanager
def launch_service(bundle: Path, log: Path, **settings: int) -> Iterator[ServiceProcess]:
    """A service of which all workers are ready, with `MASKSERVE_<NAME>` set."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"MASKSERVE_{name.upper()}", str(value))
        with log.open("w+b") as file, launch_server(bundle, LOOPBACK, free_port(), file) as server:
            wait_until(lambda: is_ready(server), lambda: f"not ready: {server.log_tail()}")
            for pid in worker_pids(server.process.pid):  # a ready worker responds even if others are not ready
                with suspend_processes(worker_pids(server.process.pid) - {pid}):
                    wait_until(lambda: is_ready(server), lambda: f"one worker is not ready: {server.log_tail()}")
            yield server


def is_ready(server: ServiceProcess) -> bool:
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        try:
            return http.get("/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def wait_until(done: Callable[[], bool], describe: Callable[[], str]) -> None:
    """Wait for `done`; after a timeout, fail with the text of `describe`."""
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < TIMEOUT_SECONDS, describe()
        time.sleep(0.05)


def count_sockets(pid: int) -> int:
    """The sockets of a process: the worker with more of them has the clients' connections."""
    return sum(os.readlink(link).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())


class RetryingClient:
    """A client that retries on 429, 503 and lost connections, and records the final statuses."""

    def __init__(self, url: str, body: bytes) -> None:
        self.url, self.body = f"{url}/v1/segment", body
        self.statuses: list[int] = []
        self.lost_connections = 0

    def send(self, times: int) -> None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            for _ in range(times):
                self.statuses.append(self._send_with_retries(http))

    def _send_with_retries(self, http: httpx.Client) -> int:
        deadline, status = time.monotonic() + TIMEOUT_SECONDS, 0
        while time.monotonic() < deadline:
            try:
                status = http.post(self.url, content=self.body).status_code
            except httpx.TransportError:
                self.lost_connections += 1
                status = 0
            if status not in (0, 429, 503):
                return status
            time.sleep(0.1)
        return status


def check_stop(server: ServiceProcess) -> None:
    """Stop the service: it completes accepted requests, refuses connections, and leaves no process."""
    clients = [httpx.Client(base_url=server.url, trust_env=False, timeout=60) for _ in range(8)]
    with ThreadPoolExecutor(len(clients)) as pool:
        for client in clients:
            client.get("/livez")  # the connection is accepted now, and kept open
        futures = [pool.submit(client.post, "/v1/segment", content=LARGE) for client in clients]
        wait_until(lambda: any(future.done() for future in futures), lambda: "no response")
        processes = process_tree(server.process.pid)
        os.kill(server.process.pid, signal.SIGTERM)
        statuses = [future.result().status_code for future in futures]
    for client in clients:
        client.close()
    assert statuses == [200] * len(clients), server.log_tail()
    assert server.process.wait(30) == 0
    assert not [pid for pid in processes if b"bentoml" in process_command(pid)]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/livez", trust_env=False)
    assert "Traceback" not in server.log_tail()


def test_stop_completes_accepted_requests_and_leaves_no_process(tiny_bundle: Path, tmp_path: Path) -> None:
    with launch_service(tiny_bundle, tmp_path / "log", workers=1) as server:
        check_stop(server)


@pytest.mark.slow
def test_killed_worker_is_replaced_and_retries_succeed(tiny_bundle: Path, tmp_path: Path) -> None:
    with launch_service(tiny_bundle, tmp_path / "log", workers=2) as server:
        before = worker_pids(server.process.pid)
        assert len(before) == 2
        clients = [RetryingClient(server.url, LARGE) for _ in range(6)]
        with ThreadPoolExecutor(len(clients)) as pool:
            futures = [pool.submit(client.send, 12) for client in clients]
            wait_until(lambda: all(client.statuses for client in clients), lambda: "some clients got no response")
            other, victim = sorted(before, key=count_sockets)
            os.kill(victim, signal.SIGKILL)
            answered = sum(len(client.statuses) for client in clients)
            wait_until(
                lambda: len(worker_pids(server.process.pid) - {victim}) == 2,
                lambda: f"no new worker: {server.log_tail()}",
            )
            meanwhile = sum(len(client.statuses) for client in clients) - answered
            for future in futures:
                future.result()
        with suspend_processes({other}):  # now only the new worker responds
            wait_until(lambda: is_ready(server), lambda: f"the new worker is not ready: {server.log_tail()}")
            assert closed_loop(
                server.url, iter([post_request(f"{server.url}/v1/segment", SMALL)]), 1
            ).status_counts() == {"200": 1}
        check_stop(server)
    assert [status for client in clients for status in client.statuses] == [200] * 72
    assert sum(client.lost_connections for client in clients) > 0, "no request was running on the killed worker"
    assert meanwhile > 0, "the other worker did not respond meanwhile"


@pytest.mark.slow
def test_overloaded_workers_respond_or_reject_with_retry_after(tiny_bundle: Path, tmp_path: Path) -> None:
    with launch_service(tiny_bundle, tmp_path / "log", workers=2, concurrency=2, queue=2) as server:
        request = post_request(f"{server.url}/v1/segment", LARGE)
        load = closed_loop(server.url, iter([request] * 16), 16)
        small = post_request(f"{server.url}/v1/segment", SMALL)
        afterwards = closed_loop(server.url, iter([small] * 4), 1)
    assert load.status_counts().keys() == {"200", "429"}, load.status_counts()
    rejected = [response for response in load.responses if response.status == 429]
    assert all(int(response.header("retry-after")) > 0 for response in rejected)
    assert {response.header("content-type") for response in rejected} == {"application/problem+json"}
    assert afterwards.status_counts() == {"200": 4}  # rejected requests hold no slots


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"queue": 2}, 16), ({"queue": 100, "queue_seconds": 0.3}, 30)],
    ids=["full queue", "long wait"],
)
def test_overloaded_service_responds_or_rejects_with_retry_after(
    small_bundle: Path, settings: dict[str, float], count: int
) -> None:
    with start_app(small_bundle, **settings) as client, ThreadPoolExecutor(count) as pool:
        responses = list(pool.map(lambda _: client.post("/v1/segment", content=LARGE), range(count)))
        assert client.post("/v1/segment", content=SMALL).status_code == 200  # rejected requests hold no slots
    assert {response.status_code for response in responses} == {200, 429}
    rejected = [response for response in responses if response.status_code == 429]
    assert all(int(response.headers["retry-after"]) > 0 for response in rejected)
    assert {response.headers["content-type"] for response in rejected} == {"application/problem+json"}
