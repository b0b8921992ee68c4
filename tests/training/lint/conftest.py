"""A small valid data set, copied for each test that breaks it."""

import shutil
from pathlib import Path

import pytest

from training.data.synthetic import generate_dataset


@pytest.fixture(scope="session")
def valid_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes data set with 12, 6 and 6 images; read-only."""
    folder = tmp_path_factory.mktemp("valid") / "shapes"
    generate_dataset(folder, counts={"train": 12, "val": 6, "test": 6})
    return folder


@pytest.fixture
def dataset(valid_dataset: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(valid_dataset, tmp_path / "shapes")
