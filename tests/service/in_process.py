"""The service in the test's own process: all of it except BentoML, which adds /livez, /healthz and /metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from service.app import create_app
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
