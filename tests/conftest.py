"""Fixtures for all tests: one small bundle and one running service per session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import fixtures_bundles


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one torch thread: on busy cores, two threads wait for each other at every operation (3 s instead of 20 ms)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cache compiled graphs in a folder of this session, also in the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small exported bundle with random weights."""
    return fixtures_bundles.tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def service_url(tiny_bundle: Path) -> Iterator[str]:
    """The URL of a running service with that bundle."""
    from service.server_process import background_server

    with background_server(tiny_bundle) as url:
        yield url
