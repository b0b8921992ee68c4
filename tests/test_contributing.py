"""The examples in CONTRIBUTING.md work: each is loaded, added to its dict for the test, and used."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from models import architectures, engines, outputs, readers
from models.bundle import open_bundle
from models.inference.segmenter import Prediction, Segmenter
from models.outputs.options import OutputOptions
from models.outputs.pipeline import SegmentationPipeline
from tests.fixtures_bundles import synthetic_image
from training import data, loss_spec
from training.engine import losses

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
DICTS = {
    "ARCHITECTURES": architectures,
    "ENGINES": engines,
    "READERS": readers,
    "OUTPUT_FORMATS": outputs,
    "LOSSES": losses,
    "FORMATS": data,
}


def load_example(path: str, folder: Path) -> ModuleType:
    """Write an example to `folder`, and import it from there."""
    file = folder / Path(path).name
    file.write_text(EXAMPLES[path])
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_of_extension_points_is_complete() -> None:
    rows = re.findall(r"^\| .* \| `(\w+)` in `([\w/.]+)` \|$", TEXT, re.MULTILINE)
    assert {name: ROOT / file for name, file in rows} == {name: Path(str(it.__file__)) for name, it in DICTS.items()}
    assert len(EXAMPLES) == len(rows)
    for path, code in EXAMPLES.items():
        assert (ROOT / path).parent.is_dir()
        assert len([line for line in code.splitlines() if line.strip()]) <= 16, path


def test_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(readers.READERS, "pgm", load_example("models/readers/pgm.py", tmp_path))
    values = np.random.default_rng(0).integers(0, 4096, (5, 7, 1)).astype(np.uint16)
    sample = readers.read_sample(b"P5\n7 5\n4095\n" + values.astype(">u2").tobytes())
    assert sample.channels == ("gray",) and np.array_equal(sample.values, values)


def test_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_example("models/architectures/plain.py", tmp_path)
    monkeypatch.setitem(architectures.ARCHITECTURES, "plain", module.build)
    network = architectures.build("plain", 3, width=8)
    labels, logits = network(torch.zeros(2, 20, 28, 3, dtype=torch.uint8))
    assert (labels.shape, logits.shape) == ((2, 20, 28), (2, 3, 5, 7))
    again = architectures.build("plain", 3, **network.architecture.options)
    assert again.load_state_dict(network.state_dict())


def test_engine(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_example("models/engines/coreml_engine.py", tmp_path)
    monkeypatch.setitem(engines.ENGINES, "coreml", module)
    bundle, image = open_bundle(tiny_bundle), synthetic_image(60, 80)
    segmenter = Segmenter.load(bundle, engine="coreml", device="cpu")
    assert segmenter.choice
    assert segmenter.choice.engine == "coreml"
    expected = Segmenter.load(bundle, engine="onnxruntime", device="cpu").segment(image, confidence=True)
    prediction = segmenter.segment(image, confidence=True)
    np.testing.assert_array_equal(prediction.labels, expected.labels)
    np.testing.assert_allclose(prediction.confidence, expected.confidence, atol=1e-5)


def test_output_format(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_example("models/outputs/areas.py", tmp_path)
    monkeypatch.setitem(outputs.OUTPUT_FORMATS["HW"], "areas", module)
    bundle = open_bundle(tiny_bundle)
    spec = bundle.spec
    labels = np.array([[0, 0, 1], [1, 1, 255]], np.uint8)
    prediction = Prediction(np.zeros((2, 3, 3), np.uint8), labels)
    name = spec.classes[1].name
    pipeline = SegmentationPipeline(Segmenter.load(bundle), spec, "areas", OutputOptions(classes=(name,)))
    content = pipeline.encode(prediction).data
    assert content is not None
    lines = content.decode().splitlines()
    assert lines[0] == "class,pixels"
    assert f"{name},3" in lines
    assert f"{spec.classes[0].name},0" in lines
    assert not outputs.needs_confidence("areas", OutputOptions())


def test_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = dict(vars(losses))
    exec(EXAMPLES["training/engine/losses.py"], namespace)
    monkeypatch.setitem(losses.LOSSES, "brier", namespace["brier"])
    monkeypatch.setattr(loss_spec, "LOSS_NAMES", (*loss_spec.LOSS_NAMES, "brier"))
    labels = torch.tensor([[[0, 1], [1, 255]]], dtype=torch.uint8)
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    loss = losses.Criterion("2*brier")(logits, labels)
    assert loss.item() == pytest.approx(2 * 0.5**2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[..., 1, 1].abs().sum() == 0  # the ignored pixel
    assert (logits.grad[..., 0, :].abs().sum(dim=0) > 0).all()


def test_data_set_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_example("training/data/formats/pairs.py", tmp_path)
    monkeypatch.setitem(data.FORMATS, "pairs", module)
    root = tmp_path / "data"
    labels = np.zeros((8, 12), np.uint8)
    labels[:4] = 1
    for name in ("train/a", "train/b", "val/c"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(synthetic_image(8, 12)).save(file.with_suffix(".jpg"))
        Image.fromarray(labels).save(file.with_suffix(".mask"), "PNG")
    assert data.resolve_format(root) == "pairs"
    assert [data.has_split(root, split) for split in ("train", "val", "test")] == [True, True, False]
    splits = data.load_splits(root, ("train", "val"))
    assert [pair.name for pair in splits["train"].pairs] == ["train/a", "train/b"]
    assert len(splits["val"].classes) == 2
    np.testing.assert_array_equal(splits["val"].labels(0), labels)
    assert splits["val"].image(0).shape == (8, 12, 3)
