"""Fixtures of the tests of clients and batch prediction."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.auth import generate_api_key
from service.server_process import background_server
from tests.service.tiny_bundle import write_tiny_bundle

KEY, HASH = generate_api_key()


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a network that takes a millisecond."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="session")
def strict_url(small_bundle: Path) -> Iterator[str]:
    """The URL of a service that requires an API key, has no queue, and accepts one upload at a time."""
    with ExitStack() as stack:
        with (
            pytest.MonkeyPatch.context() as patch
        ):  # only until it has started: other tests start services without a key
            for name, value in {"API_KEYS": HASH, "QUEUE": "0", "MAX_UPLOADS": "1"}.items():
                patch.setenv(f"MASKSERVE_{name}", value)
            url = stack.enter_context(background_server(small_bundle))
        yield url


@pytest.fixture(scope="session")
def api_key() -> str:
    """The key of `strict_url`."""
    return KEY
