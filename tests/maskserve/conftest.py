"""A service that asks for a key and lets nobody wait, for what clients meet of both."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from service.auth import generate_api_key
from service.server_process import background_server
from tests.service.tiny_bundle import write_tiny_bundle

KEY, HASH = generate_api_key()


@pytest.fixture(scope="session")
def strict_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real service with a key, no places to wait, and one for bodies that come in."""
    with ExitStack() as started:
        with pytest.MonkeyPatch.context() as patch:  # until it has started: other tests start services without a key
            for name, value in {"API_KEYS": HASH, "QUEUE": "0", "MAX_UPLOADS": "1"}.items():
                patch.setenv(f"MASKSERVE_{name}", value)
            url = started.enter_context(
                background_server(write_tiny_bundle(tmp_path_factory.mktemp("strict") / "small"))
            )
        yield url


@pytest.fixture(scope="session")
def api_key() -> str:
    """What opens it."""
    return KEY
