"""The service in the test's own process: all of it except BentoML, which adds /livez, /healthz and /metrics."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from service.app import create_app
from service.http_protocol import HTTPProtocol
from service.settings import Settings


@contextmanager
def start_app(bundle: Path, **settings: Any) -> Iterator[TestClient]:
    """A client of a service that is ready, with these settings."""
    with TestClient(create_app(Settings(bundle=bundle, **settings)), base_url="http://service") as client:
        deadline = time.monotonic() + 60
        while (response := client.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline, response.text
            time.sleep(0.02)
        yield client


@contextmanager
def serve_in_thread(app: ASGIApp, settings: Settings) -> Iterator[tuple[str, int]]:
    """Serve an app on a socket, by uvicorn with our protocol. Yields its address."""
    protocol = type("Protocol", (HTTPProtocol,), {"settings": settings})
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()
