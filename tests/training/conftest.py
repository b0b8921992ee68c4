"""A small data set, a run on it and its bundle, made once per session; and a function that imports ONNX graphs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle, open_bundle
from tests.fixtures_bundles import QUICK_TRAIN_OVERRIDES, QUIET_CONSOLE
from training.config_io import load_config
from training.data.synthetic import generate_dataset
from training.export import export
from training.freezing.onnx_import.graph_reader import UserHints
from training.import_model import import_onnx
from training.train import train


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_dataset(folder, counts={"train": 32, "val": 6, "test": 6})
    return folder


@pytest.fixture(scope="session")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        shapes,
        tmp_path_factory.mktemp("runs") / "first",
        load_config(None, QUICK_TRAIN_OVERRIDES),
        console=QUIET_CONSOLE,
    )


@pytest.fixture(scope="session")
def bundle(run: Path) -> Path:
    return export(run, console=QUIET_CONSOLE)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two small images, so that the parity check is fast."""
    folder = tmp_path_factory.mktemp("images")
    generate_dataset(folder / "shapes", counts={"train": 2}, size=(96, 128))
    return folder / "shapes" / "images"


@pytest.fixture
def import_bundle(images: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Import an ONNX graph into a bundle, and open it."""

    def import_graph(file: Path, classes: int = 4, input: str | None = None, **hints: Any) -> Bundle:
        names = tmp_path / "classes.csv"
        names.write_text("".join(f"class {label}\n" for label in range(classes)))
        return open_bundle(
            import_onnx(file, tmp_path / "b", str(names), UserHints.parse(**hints), input, images, QUIET_CONSOLE)
        )

    return import_graph
