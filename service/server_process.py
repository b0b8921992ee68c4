"""Starts the service as a separate process: for the command line (`serve`), and for demos and tests (`background_server`).

The caller's process imports neither bentoml nor FastAPI.
"""

import errno
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import httpx
import psutil

from models import TELEMETRY_OPT_OUT
from models.bundle import CHECKSUM_FILE, open_bundle
from models.errors import ConfigError, escape_control_characters, quoted
from models.malloc import MALLOC_SETTINGS
from service.errors import ServerStartError
from service.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
READY_TIMEOUT_SECONDS = 180.0  # three times what a bundle of a few hundred MB takes on two slow cores
LOG_TAIL_CHARS = 4000


def serve(bundle: Path, host: str, port: int) -> int:
    """Serve a bundle, or a folder of bundles, until Ctrl-C or SIGTERM. Prints engine and address once it is ready.

    Accepted requests are completed before the end; a second Ctrl-C or SIGTERM does not wait for them.
    Returns: the exit code, 0 after a requested stop.
    Raises: BundleError, ConfigError, ServerStartError.
    """
    check_bundle_folder(bundle)
    stop = False
    with launch_server(bundle, host, port, log=None) as server:

        def request_stop(number: int, frame: FrameType | None) -> None:
            nonlocal stop
            if stop:
                _kill(server.process)
            stop = True
            server.process.terminate()

        previous = {number: signal.signal(number, request_stop) for number in _stop_signals()}
        try:
            _wait_until_ready(server)
            if not stop:
                for line in _describe_engines(server):
                    print(line)
                print(f"Serving at {server.url} (Ctrl-C to stop)", flush=True)
            code = server.process.wait()
        except ServerStartError:
            if not stop:
                raise
            code = 0
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    return 0 if stop else code


@contextmanager
def background_server(bundle: Path, port: int | None = None) -> Iterator[str]:
    """Serve a bundle on the loopback address while the block runs. Yields the URL once the service is ready.

    Raises: BundleError, ConfigError; ServerStartError, with the end of the log, if the process dies or does not get ready.
    """
    check_bundle_folder(bundle)
    with tempfile.TemporaryFile() as log, launch_server(bundle, LOOPBACK, port or free_port(), log) as server:
        _wait_until_ready(server)
        yield server.url


def check_bundle_folder(folder: Path) -> None:
    """Check before the start of a process. Raises: BundleError if there is neither a bundle nor a folder with one."""
    inside = [path for path in folder.iterdir() if (path / CHECKSUM_FILE).is_file()] if folder.is_dir() else []
    if not inside or (folder / CHECKSUM_FILE).exists():
        open_bundle(folder)


@dataclass(frozen=True)
class ServiceProcess:
    """A server process that was started; it may not be ready yet."""

    process: subprocess.Popen[bytes]
    url: str
    log: IO[bytes] | None

    def log_tail(self) -> str:
        """The end of its log; empty if it writes to the caller's output."""
        if self.log is None:
            return ""
        end = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, end - LOG_TAIL_CHARS))
        return self.log.read().decode(errors="replace").strip()


@contextmanager
def launch_server(bundle: Path, host: str, port: int, log: IO[bytes] | None) -> Iterator[ServiceProcess]:
    """Start the server and yield immediately. At the end of the block the server and all its children are stopped.

    `log`: the file for its output; None is the caller's own output. Raises: ConfigError, ServerStartError.
    """
    settings = read_settings(bundle)  # checked here: from the child, an error would be an exit code and a log
    address = _parse_address(host)
    _check_port_free(address, port)
    home = tempfile.mkdtemp(prefix="maskserve-")  # BentoML writes metrics there, not into the caller's home
    temporary = Path(home, "tmp")  # so that a killed process leaves nothing behind
    temporary.mkdir()
    environment = {"BENTOML_HOME": home, **MALLOC_SETTINGS, **os.environ, **TELEMETRY_OPT_OUT}
    environment["MASKSERVE_BUNDLE"] = str(bundle.resolve())
    environment["TMPDIR"] = str(temporary)
    if not settings.allowed_hosts and ipaddress.ip_address(address).is_loopback:
        # A web page whose name resolves to this address (DNS rebinding) could otherwise read what the service responds.
        environment["MASKSERVE_ALLOWED_HOSTS"] = address
    environment.pop("PYTHONSAFEPATH", None)  # our packages are found because Python puts the working directory first
    # --quiet drops BentoML's banner and its line per request, but not errors.
    command = [
        sys.executable,
        "-m",
        "service.process_watch",
        str(os.getpid()),
        home,
        "serve",
        "service.bento_service:Maskserve",
        "--working-dir",
        str(ROOT),
        "--quiet",
    ]
    command += ["--host", address, "--port", str(port), "--timeout-graceful-shutdown", str(settings.stop_seconds)]
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield ServiceProcess(child, _url(address, port), log)
    finally:
        _stop(child, settings.stop_seconds)
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    """A port on the loopback address that is not in use."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: ServiceProcess) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    reason = "no response"
    with httpx.Client(base_url=server.url, trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                message = f"The server exited with code {server.process.returncode} before it was ready"
                raise ServerStartError(_append_log_tail(message, server))
            try:
                response = client.get("/readyz")
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if response.status_code == 200:
                return
            reason = response.text.strip()
            if "retry-after" not in response.headers:
                raise ServerStartError(f"The bundle cannot be served: {reason}")
            time.sleep(0.05)
    raise ServerStartError(
        _append_log_tail(f"The server was not ready after {READY_TIMEOUT_SECONDS:.0f} seconds: {reason}", server)
    )


def _describe_engines(server: ServiceProcess) -> list[str]:
    """A line about each model: engine, device, precision and why. None if the service requires an API key."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=5.0) as client:
        response = client.get("/v1/models")
    models = response.json() if response.status_code == 200 else []
    return [escape_control_characters(f"{model['name']}: {model['reason']}") for model in models]


def _stop_signals() -> list[signal.Signals]:
    """The signals that request a stop, including that of a closed terminal, unless `nohup` makes the process ignore it."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def _append_log_tail(message: str, server: ServiceProcess) -> str:
    tail = server.log_tail()
    return f"{message}. The end of its log:\n{tail}" if tail else f"{message}."


def _parse_address(host: str) -> str:
    """BentoML binds to addresses only, not to names."""
    try:
        return str(ipaddress.ip_address(LOOPBACK if host == "localhost" else host))
    except ValueError as error:
        raise ConfigError(
            f"The host {quoted(host)} is not an IP address. Use 127.0.0.1, or 0.0.0.0 for every interface."
        ) from error


def _url(address: str, port: int) -> str:
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        ip = ipaddress.ip_address("::1" if ip.version == 6 else LOOPBACK)
    return f"http://[{ip}]:{port}" if ip.version == 6 else f"http://{ip}:{port}"


def _check_port_free(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
                raise ServerStartError(
                    f"{address} is not an address of this machine. Choose another --host: 127.0.0.1 for this machine only, "
                    "or 0.0.0.0 for its whole network."
                ) from error
            raise ServerStartError(
                f"Port {port} of {address} is not available ({error}). Choose another --port."
            ) from error


def _stop(child: subprocess.Popen[bytes], timeout_seconds: int) -> None:
    """Terminate the process and its workers, and kill them after a timeout."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(timeout_seconds + 5)
    except subprocess.TimeoutExpired:
        _kill(child)
        child.wait()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the process and its workers, which are in sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(child.pid)
        for process in (parent, *parent.children(recursive=True)):  # the parent first: it would restart workers
            with suppress(psutil.NoSuchProcess):
                process.kill()
