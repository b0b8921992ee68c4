"""Start and stop of the service: errors before the start, output, and that no process is left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from starlette.testclient import TestClient

from benchmarks.processes import worker_pids
from models.bundle import CHECKSUM_FILE, file_sha256
from models.errors import BundleError, ConfigError
from service import server_process
from service.app import create_app
from service.errors import ServerStartError
from service.server_process import LOOPBACK, ROOT, background_server, free_port, serve
from service.settings import Settings
from tests.fixtures_bundles import synthetic_image
from tests.service.test_endurance import wait_until

# As sitecustomize.py on PYTHONPATH, this logs each connection and name look-up of every process of the service.
AUDIT_HOOK = """
import os, sys

def watch(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in (None, "127.0.0.1", "::1", "localhost", "0.0.0.0"):
        with open(os.environ["WATCHER_LOG"], "a") as log:
            log.write(f"{event} {arguments!r}\\n")

sys.addaudithook(watch)
with open(os.environ["WATCHER_LOG"] + ".on", "a") as log:
    log.write(" ".join(sys.argv) + "\\n")
"""


@pytest.fixture
def bad_probe_bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose probe has wrong labels, with matching checksums: only running the network shows it."""
    folder = tmp_path / "altered"
    shutil.copytree(small_bundle, folder)
    Image.fromarray(synthetic_image(120, 160)[:, :, 0]).save(folder / "probes" / "0.labels.png")
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in _checksum_names(folder)]
    (folder / CHECKSUM_FILE).write_text("".join(lines))
    return folder


def _checksum_names(folder: Path) -> list[str]:
    return [line.partition("  ")[2] for line in (folder / CHECKSUM_FILE).read_text().splitlines()]


def test_not_ready_until_the_probes_are_verified(bad_probe_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[httpx.Response] = []
    with TestClient(create_app(Settings(bundle=bad_probe_bundle)), base_url="http://service") as http:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and not (seen and "retry-after" not in seen[-1].headers):
            seen.append(http.get("/readyz"))
            time.sleep(0.02)
        rejected = http.post("/v1/segment", content=b"x")
        assert http.get("/v1/models").status_code == 503
    assert {response.status_code for response in seen} == {503}
    assert "retry-after" in seen[0].headers and "being loaded" in seen[0].text
    assert "probe" in seen[-1].text and "0.png" in seen[-1].text
    assert (rejected.status_code, rejected.headers["content-type"]) == (503, "application/problem+json")
    assert "probe" in rejected.json()["detail"]
    assert caplog.text.count("cannot be served") == 1


@pytest.mark.slow  # the test above is the same without a process
def test_background_server_says_why_it_is_not_ready(bad_probe_bundle: Path) -> None:
    with pytest.raises(ServerStartError, match="probe"), background_server(bad_probe_bundle):
        pass


def test_invalid_arguments_are_rejected_before_a_process_starts(tmp_path: Path, small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        serve(tmp_path, LOOPBACK, free_port())
    with pytest.raises(ConfigError, match="not an IP address"):
        serve(small_bundle, "example.org", 3000)


def test_port_in_use_is_named(small_bundle: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServerStartError, match=f"Port {port}"), background_server(small_bundle, port):
            pass


def test_address_of_another_machine_is_named() -> None:
    """The message is about the host, not about its port. 192.0.2.1 is for documentation (RFC 5737)."""
    with pytest.raises(
        ServerStartError, match=r"192\.0\.2\.1 is not an address of this machine. Choose another --host"
    ):
        server_process._check_port_free("192.0.2.1", free_port())


def test_unknown_setting_stops_bentoml_serve(small_bundle: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MASKSERVE_BUNDLE": str(small_bundle),
        "MASKSERVE_FOO": "1",
        "BENTOML_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "bentoml", "serve", "service.bento_service:Maskserve", "--port", str(free_port())]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "maskserve: Unknown environment variable MASKSERVE_FOO." in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def test_serve_runs_in_any_folder_and_a_second_stop_does_not_wait_for_running_requests(
    small_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()  # the caller's own package must not shadow ours
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the wrong models')")
    port = free_port()
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    start += "from pathlib import Path; from service.server_process import serve\n"
    start += f"sys.exit(serve(Path('bundle'), {LOOPBACK!r}, {port}))"
    (tmp_path / "bundle").symlink_to(small_bundle)
    with subprocess.Popen(
        [sys.executable, "-c", start], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as caller:
        try:
            assert caller.stdout is not None and caller.stderr is not None
            engine_line, url_line = caller.stdout.readline(), caller.stdout.readline()
            assert engine_line.startswith("small: openvino: ") and "f32" in engine_line
            assert url_line == f"Serving at http://{LOOPBACK}:{port} (Ctrl-C to stop)\n"
            assert httpx.get(f"http://{LOOPBACK}:{port}/readyz").status_code == 200
            with socket.create_connection((LOOPBACK, port)) as slow:
                slow.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nsome")
                time.sleep(0.5)  # it is accepted
                caller.send_signal(signal.SIGINT)
                with pytest.raises(subprocess.TimeoutExpired):
                    caller.wait(1)
                with pytest.raises(ConnectionRefusedError):  # so that a proxy asks another instance at once
                    socket.create_connection((LOOPBACK, port))
                caller.send_signal(signal.SIGINT)
                assert caller.wait(10) == 0
            assert (caller.stdout.read(), caller.stderr.read()) == ("", "")
        finally:
            caller.terminate()  # after a failure: the block waits for the process
    assert not remaining_processes(port)


def test_killed_service_leaves_neither_processes_nor_files(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no process of it connects to another host."""
    home, hook, log_file = (tmp_path / name for name in ("tmp", "hook", "log"))
    home.mkdir()
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(AUDIT_HOOK)
    for name, value in {"TMPDIR": home, "PYTHONPATH": hook, "WATCHER_LOG": hook / "connections"}.items():
        monkeypatch.setenv(name, str(value))
    port = free_port()
    words = [sys.executable, "-m", "maskserve", "serve", small_bundle, "--port", str(port)]
    with log_file.open("w") as log, subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log) as caller:
        try:
            wait_until(lambda: "Serving at" in log_file.read_text(), log_file.read_text)
            url = f"http://{LOOPBACK}:{port}/v1/models"
            assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
            assert httpx.get(url, headers={"Host": f"localhost:{port}"}).status_code == 200
            segment = f"http://{LOOPBACK}:{port}/v1/segment"
            assert httpx.post(segment, content=b"http://example.org/a.jpg").status_code == 415
            (folder,) = home.glob("maskserve-*")
            before = sorted((folder / "tmp").iterdir())
            (worker,) = worker_pids(psutil.Process(caller.pid).children()[0].pid)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: _responds(f"http://{LOOPBACK}:{port}/readyz"), log_file.read_text)
            assert sorted((folder / "tmp").iterdir()) == before
        finally:
            caller.kill()
    wait_until(lambda: not remaining_processes(port), log_file.read_text)
    assert list(home.iterdir()) == []
    assert "--service-name maskserve" in (hook / "connections.on").read_text()
    assert not (hook / "connections").exists(), (hook / "connections").read_text()


def _responds(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def remaining_processes(port: int) -> list[Path]:
    """The processes that still serve on this port."""
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if f"--port\0{port}".encode() in _read_file(path)]


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
