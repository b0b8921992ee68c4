"""Fixtures of the tests of clients and batch prediction."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.app import create_app
from service.auth import generate_api_key
from service.settings import Settings
from tests.service.in_process import serve_in_thread
from tests.service.tiny_bundle import write_tiny_bundle

KEY, HASH = generate_api_key()


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a network that takes a millisecond."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="module")
def strict_url(small_bundle: Path) -> Iterator[str]:
    """The URL of a service that requires an API key, has no queue, and accepts one upload at a time."""
    settings = Settings(bundle=small_bundle, api_keys=(HASH,), queue=0, max_uploads=1, access_log=False)
    with serve_in_thread(create_app(settings), settings) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="session")
def api_key() -> str:
    """The key of `strict_url`."""
    return KEY
