"""Starts the service as a process of its own: for the command line (`serve`) and for demos and tests (`running`).

Needs neither bentoml nor FastAPI in the caller's process.
"""

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
from models.errors import ConfigError
from service.errors import ServerStartError
from service.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
READY_TIMEOUT_SECONDS = (
    180.0  # a bundle of some hundred MB is summed, compiled and probed on two slow cores in a third of that
)
LOG_TAIL_CHARS = 4000  # characters


def serve(bundle: Path, host: str, port: int) -> int:
    """Serve a bundle, or a folder of bundles, until Ctrl-C or SIGTERM; prints what runs it, and the address, once it is ready.

    What was accepted is answered before it ends; a second Ctrl-C or SIGTERM does not wait for that.
    Returns: the exit code, 0 after a stop that was asked for.
    Raises: BundleError, ConfigError, StartError: each says in a sentence why nothing is served.
    """
    check_bundle_folder(bundle)
    stop = False
    with launch_server(bundle, host, port, log=None) as server:

        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            nonlocal stop
            if stop:
                _kill(server.process)
            stop = True
            server.process.terminate()

        previous = {number: signal.signal(number, ask_to_stop) for number in _stop_signals()}
        try:
            _wait_until_ready(server)
            if not stop:
                for line in _describe_engines(server):
                    print(line)
                print(f"maskserve answers at {server.url} (Ctrl-C stops it)", flush=True)
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
    """Serve a bundle on the loopback address while the block runs; yields the URL once the service is ready.

    Raises: BundleError, ConfigError, StartError with the end of the log where the process dies or cannot get ready.
    """
    check_bundle_folder(bundle)
    with tempfile.TemporaryFile() as log, launch_server(bundle, LOOPBACK, port or free_port(), log) as server:
        _wait_until_ready(server)
        yield server.url


def check_bundle_folder(folder: Path) -> None:
    """Raises: BundleError where there is neither a bundle nor a folder that holds one: here it costs a sentence."""
    inside = [path for path in folder.iterdir() if (path / CHECKSUM_FILE).is_file()] if folder.is_dir() else []
    if not inside or (folder / CHECKSUM_FILE).exists():
        open_bundle(folder)


@dataclass(frozen=True)
class ServiceProcess:
    """A server process that was started; it need not be ready."""

    process: subprocess.Popen[bytes]
    url: str
    log: IO[bytes] | None

    def log_tail(self) -> str:
        """The end of what the process has written, where it writes into a file of ours."""
        if self.log is None:
            return ""
        end = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, end - LOG_TAIL_CHARS))
        return self.log.read().decode(errors="replace").strip()


@contextmanager
def launch_server(bundle: Path, host: str, port: int, log: IO[bytes] | None) -> Iterator[ServiceProcess]:
    """Start the server and yield at once; at the end of the block it and all its children are stopped.

    `log` takes what it writes; None is the caller's own output. Raises: ConfigError, StartError.
    """
    settings = read_settings(bundle)  # here it costs a sentence; in the child, an exit code and a log
    address = _parse_address(host)
    _check_port_free(address, port)
    home = tempfile.mkdtemp(prefix="maskserve-")  # BentoML writes metrics there; the caller's home stays as it is
    environment = {"BENTOML_HOME": home, **os.environ, **TELEMETRY_OPT_OUT, "MASKSERVE_BUNDLE": str(bundle.resolve())}
    environment.pop("PYTHONSAFEPATH", None)  # our rooms are found because Python puts the working directory first
    # Quiet takes away BentoML's chatter and a line for each request; errors come through.
    command = [sys.executable, "-m", "bentoml", "serve", "service.app:Maskserve", "--working-dir", str(ROOT), "--quiet"]
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
    """A port on the loopback address that nothing listens to."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: ServiceProcess) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    reason = "it did not answer"
    with httpx.Client(base_url=server.url, trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                raise ServerStartError(
                    _append_log_tail(
                        f"The server stopped with code {server.process.returncode} before it was ready", server
                    )
                )
            try:
                answer = client.get("/readyz")
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                return
            reason = answer.text.strip()
            if "retry-after" not in answer.headers:
                raise ServerStartError(f"The bundle cannot be served: {reason}")
            time.sleep(0.05)
    raise ServerStartError(
        _append_log_tail(f"The server was not ready after {READY_TIMEOUT_SECONDS:.0f} seconds: {reason}", server)
    )


def _describe_engines(server: ServiceProcess) -> list[str]:
    """What the service says that it runs on, and why; nothing where it asks for a key."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=5.0) as client:
        answer = client.get("/v1/models")
    served = answer.json() if answer.status_code == 200 else []
    return [f"{model['name']} runs on {model['why']}" for model in served]


def _stop_signals() -> list[signal.Signals]:
    """The signals that ask for a stop: a closed terminal's too, unless `nohup` has it ignored."""
    asked = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    return asked


def _append_log_tail(sentence: str, server: ServiceProcess) -> str:
    tail = server.log_tail()
    return f"{sentence}; its log ends:\n{tail}" if tail else f"{sentence}."


def _parse_address(host: str) -> str:
    """BentoML binds to addresses alone."""
    try:
        return str(ipaddress.ip_address(LOOPBACK if host == "localhost" else host))
    except ValueError as error:
        raise ConfigError(
            f"The host {host!r} is no IP address; use 127.0.0.1, or 0.0.0.0 for every interface."
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
            raise ServerStartError(
                f"Port {port} of {address} cannot be had ({error}); choose another --port."
            ) from error


def _stop(child: subprocess.Popen[bytes], patience: int) -> None:
    """End the process and its workers: by asking, and after so many seconds by force."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(patience + 5)
    except subprocess.TimeoutExpired:
        _kill(child)
        child.wait()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End it and its workers, which are in sessions of their own, at once."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(child.pid)
        for one in (parent, *parent.children(recursive=True)):  # the parent first: it would start others
            with suppress(psutil.NoSuchProcess):
                one.kill()
