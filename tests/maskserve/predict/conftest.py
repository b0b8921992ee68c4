"""Fixtures of the tests of batch prediction."""

from pathlib import Path

import pytest

from tests.maskserve.predict_helpers import write_images


@pytest.fixture(scope="session")
def bundle(small_bundle: Path) -> Path:
    """The bundle that segments."""
    return small_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of six images."""
    write_images(tmp_path / "in", 6)
    return tmp_path / "in"
