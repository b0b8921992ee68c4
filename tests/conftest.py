"""Fixtures for all tests: one small bundle and one running service per session.

torch is imported in the fixtures: the process that only hands out the tests starts some seconds earlier.
"""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one torch thread: on busy cores, two threads wait for each other at every operation (3 s instead of 20 ms)."""
    import torch

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


BuildOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> BuildOnce:
    """`build_once(name, build)`: a folder that `build(folder)` has filled. All processes of this run share it: the first
    one that needs it builds it, the others wait. Tests must not change it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "built-once"
    shared.mkdir(exist_ok=True)

    def folder(name: str, build: Callable[[Path], object]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / f"{name}.built").exists():
                (shared / name).mkdir()
                build(shared / name)
                (shared / f"{name}.built").touch()
        return shared / name

    return folder


@pytest.fixture(scope="session")
def tiny_bundle(build_once: BuildOnce) -> Path:
    """The folder of a small exported bundle with random weights."""
    from tests import fixtures_bundles

    return build_once("tiny", fixtures_bundles.tiny_bundle) / "tiny"


@pytest.fixture(scope="session")
def service_url(tiny_bundle: Path) -> Iterator[str]:
    """The URL of a running service with that bundle."""
    from service.server_process import background_server

    with background_server(tiny_bundle) as url:
        yield url
