"""A small data set, a run on it and its bundle, made once per session; and a function that imports ONNX graphs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import training.export
from models.architectures.base import Network
from models.bundle import MODEL_FILE, WEIGHTS_FILE, Bundle, open_bundle
from tests.conftest import BuildOnce
from tests.fixtures_bundles import QUICK_TRAIN_OVERRIDES, QUIET_CONSOLE
from training.config_io import load_config
from training.data.synthetic import generate_dataset
from training.export import export
from training.freezing.onnx_import.graph_reader import UserHints
from training.import_model import import_onnx
from training.train import train


@pytest.fixture(scope="session")
def shapes(build_once: BuildOnce) -> Path:
    """A drawn data set of 44 images."""
    return build_once("shapes", lambda folder: generate_dataset(folder, counts={"train": 32, "val": 6, "test": 6}))


@pytest.fixture(scope="session")
def run(shapes: Path, build_once: BuildOnce) -> Path:
    """A training of two epochs on `shapes`."""
    config = load_config(None, QUICK_TRAIN_OVERRIDES)
    return build_once("runs", lambda folder: train(shapes, folder / "first", config, console=QUIET_CONSOLE)) / "first"


@pytest.fixture(scope="session")
def bundle(run: Path, build_once: BuildOnce) -> Path:
    """The bundle of `run`, in the folder of the run. After two epochs int8 may cost more than a user would accept."""
    build_once("exported", lambda _: export(run, int8_limit=100, console=QUIET_CONSOLE))
    return run / "bundle"


@pytest.fixture
def reused_graph(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of `run` copy the graph and the weights of its bundle, because torch's exporter takes many seconds."""

    def copy_graph(network: Network, folder: Path) -> None:
        for name in (MODEL_FILE, WEIGHTS_FILE):
            shutil.copy(bundle / name, folder)

    monkeypatch.setattr(training.export, "export_network", copy_graph)


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
