"""What the service keeps of its word when a worker is killed, when it is stopped, and when too much comes at once."""

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

from benchmarks.load import LoadResult, closed_loop, post_request
from benchmarks.processes import process_command, process_tree, suspend_processes, worker_pids
from service.server_process import LOOPBACK, ServiceProcess, free_port, launch_server
from tests.fixtures_bundles import synthetic_image

# Seconds after which a test gives up, also on a machine that does much else; benchmarks/serving.py measures how long a
# worker that was killed is gone.
TIMEOUT_SECONDS = 120


def encode_jpeg(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(synthetic_image(height, width)).save(buffer, "JPEG")
    return buffer.getvalue()


SMALL, LARGE = encode_jpeg(120, 160), encode_jpeg(1100, 1500)  # the large one takes a tenth of a second and more


@contextmanager
def launch_service(bundle: Path, log: Path, **settings: int) -> Iterator[ServiceProcess]:
    """A ready service of its own, with `MASKSERVE_<NAME>` set."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"MASKSERVE_{name.upper()}", str(value))
        with log.open("w+b") as file, launch_server(bundle, LOOPBACK, free_port(), file) as server:
            wait_until(lambda: is_ready(server), lambda: f"not ready: {server.log_tail()}")
            for pid in worker_pids(server.process.pid):  # who is ready answers, though the others may not be
                with suspend_processes(worker_pids(server.process.pid) - {pid}):
                    wait_until(lambda: is_ready(server), lambda: f"one worker is not ready: {server.log_tail()}")
            yield server


def is_ready(server: ServiceProcess) -> bool:
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        try:
            return http.get("/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def wait_until(done: Callable[[], bool], why: Callable[[], str]) -> None:
    """Wait for `done`; the test fails with `why` where it does not come in time."""
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < TIMEOUT_SECONDS, why()
        time.sleep(0.05)


def count_sockets(pid: int) -> int:
    """How many it holds: who has more is who was given the clients' connections."""
    return sum(os.readlink(link).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())


class RetryingClient:
    """A client that asks again on 429, 503 and lost connections, and keeps what it was answered in the end."""

    def __init__(self, url: str, body: bytes) -> None:
        self.url, self.body = f"{url}/v1/segment", body
        self.statuses: list[int] = []
        self.lost_connections = 0

    def send(self, times: int) -> None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            for _ in range(times):
                self.statuses.append(self._send_until_answered(http))

    def _send_until_answered(self, http: httpx.Client) -> int:
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


@pytest.mark.slow
def test_a_killed_worker_costs_a_patient_client_nothing_and_is_back(tiny_bundle: Path, tmp_path: Path) -> None:
    with launch_service(tiny_bundle, tmp_path / "log", workers=2) as server:
        before = worker_pids(server.process.pid)
        assert len(before) == 2
        clients = [RetryingClient(server.url, LARGE) for _ in range(6)]
        with ThreadPoolExecutor(len(clients)) as pool:
            asked = [pool.submit(client.send, 12) for client in clients]
            wait_until(lambda: all(client.statuses for client in clients), lambda: "not everybody was answered")
            other, victim = sorted(before, key=count_sockets)
            os.kill(victim, signal.SIGKILL)
            answered = sum(len(client.statuses) for client in clients)
            wait_until(
                lambda: len(worker_pids(server.process.pid) - {victim}) == 2, lambda: f"no new one: {server.log_tail()}"
            )
            meanwhile = sum(len(client.statuses) for client in clients) - answered
            for one in asked:
                one.result()
        with suspend_processes({other}):  # what is answered now, the new worker answers
            wait_until(lambda: is_ready(server), lambda: f"the new worker is not ready: {server.log_tail()}")
            assert closed_loop(
                server.url, iter([post_request(f"{server.url}/v1/segment", SMALL)]), 1
            ).status_counts() == {"200": 1}
    assert [status for client in clients for status in client.statuses] == [200] * 72
    assert sum(client.lost_connections for client in clients) > 0, "nothing was under way on the worker that was killed"
    assert meanwhile > 0, "the other worker did not answer while its neighbour was gone"


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stop_answers_all_that_was_accepted_and_leaves_nothing(tiny_bundle: Path, tmp_path: Path, count: int) -> None:
    with launch_service(tiny_bundle, tmp_path / "log", workers=count) as server:
        clients = [httpx.Client(base_url=server.url, trust_env=False, timeout=60) for _ in range(8)]
        with ThreadPoolExecutor(len(clients)) as pool:
            for client in clients:
                client.get("/livez")  # its connection is accepted now, and kept
            asked = [pool.submit(client.post, "/v1/segment", content=LARGE) for client in clients]
            wait_until(lambda: any(one.done() for one in asked), lambda: "nothing was answered")
            left = process_tree(server.process.pid)
            os.kill(server.process.pid, signal.SIGTERM)
            statuses = [one.result().status_code for one in asked]
        for client in clients:
            client.close()
        assert statuses == [200] * len(clients), server.log_tail()
        assert server.process.wait(30) == 0
        assert not [pid for pid in left if b"bentoml" in process_command(pid)]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez", trust_env=False)
        assert "Traceback" not in server.log_tail()


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_more_at_once_than_there_are_places_is_answered_or_told_when_to_come_again(
    tiny_bundle: Path, tmp_path: Path, count: int
) -> None:
    with launch_service(tiny_bundle, tmp_path / "log", workers=count, concurrency=count, queue=2) as server:
        load = send_burst(server, LARGE, 16)
        again = closed_loop(server.url, iter([post_request(f"{server.url}/v1/segment", SMALL)] * 4), 1)
    assert load.status_counts().keys() == {"200", "429"}, load.status_counts()
    refused = [one for one in load.responses if one.status == 429]
    assert all(one.header("retry-after").isdecimal() and int(one.header("retry-after")) > 0 for one in refused)
    assert {one.header("content-type") for one in refused} == {"application/problem+json"}
    assert again.status_counts() == {"200": 4}  # what was refused holds no place


def test_who_waited_too_long_is_refused_as_well(tiny_bundle: Path, tmp_path: Path) -> None:
    with launch_service(tiny_bundle, tmp_path / "log", workers=1, queue=100, queue_seconds=1) as server:
        load = send_burst(server, LARGE, 40)
    assert load.status_counts().keys() == {"200", "429"}, load.status_counts()
    assert all(one.header("retry-after") for one in load.responses if one.status == 429)


def send_burst(server: ServiceProcess, body: bytes, count: int) -> LoadResult:
    """So many requests at once."""
    return closed_loop(server.url, iter([post_request(f"{server.url}/v1/segment", body)] * count), count)
