"""What tests share: one tiny bundle a run, and one real service on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import bundles


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small real bundle with random weights."""
    return bundles.tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def service_url(tiny_bundle: Path) -> Iterator[str]:
    """The address of a real service on that bundle."""
    from service.launch import running

    with running(tiny_bundle) as url:
        yield url
