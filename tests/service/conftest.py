"""What the tests of the service share."""

from pathlib import Path

import pytest

from tests.service.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes milliseconds to write and to load."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "small")
