"""What tests share: one tiny bundle a run, and one real service on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import fixtures_bundles


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Beside another busy process two threads wait for each other at every operation: 3 s in place of 20 ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled graphs go into a folder of this run's, also those of the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small real bundle with random weights."""
    return fixtures_bundles.tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def service_url(tiny_bundle: Path) -> Iterator[str]:
    """The address of a real service on that bundle."""
    from service.server_process import background_server

    with background_server(tiny_bundle) as url:
        yield url
