"""A data set, a run on it, and its bundle: the real thing in small, made once a session."""

from pathlib import Path

import pytest

from tests.bundles import SETTINGS, SILENT
from training.config import load_config
from training.data.shapes import draw
from training.export import export
from training.train import train


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw(folder, counts={"train": 32, "val": 6, "test": 6})
    return folder


@pytest.fixture(scope="session")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "first", load_config(None, SETTINGS), console=SILENT)


@pytest.fixture(scope="session")
def bundle(run: Path) -> Path:
    return export(run, console=SILENT)
