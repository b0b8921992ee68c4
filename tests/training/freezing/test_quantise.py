"""int8: the IR has the same inputs and outputs, and making it is quiet and repeatable, with clear errors."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maskserve.cli.export import export
from models.bundle import MODEL_FILE
from models.engines.base import graph_inputs
from models.engines.openvino_engine import get_core
from models.errors import BundleError, CorruptImageError, DataError, EngineError
from models.imaging.decode import RGB
from models.inference.segmenter import agreement
from models.spec import ClassInfo
from tests.fixtures_bundles import CLASSES, synthetic_image
from tests.test_no_telemetry import AUDIT_HOOK
from training.freezing import quantise as quantise_module
from training.freezing.quantise import MAX_MIOU_DROP, miou_drop_message, quantise
from training.metrics.confusion import ConfusionMatrix

ROOT = Path(__file__).parents[3]
NAMES = ["sky", "road", "car", "pole"]
CLASS_INFOS = [ClassInfo(name=name, rgb=(label, 0, 0)) for label, name in enumerate(NAMES)]
InferFunction = Callable[[NDArray[np.uint8]], Any]


def calibration_images(count: int = 4) -> Iterator[RGB]:
    return (synthetic_image(128, 192, seed) for seed in range(count))


def compile_model(model: Path) -> InferFunction:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = get_core().compile_model(model, "CPU", settings)
    return lambda images: compiled({"images": images})


@pytest.fixture(scope="module")
def int8_model(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int8") / "model.int8.xml"
    quantise(tiny_bundle / MODEL_FILE, calibration_images(), target)
    return target


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 192, 128), (3, 128, 192)])
def test_ir_runs_at_any_size_and_batch(shape: tuple[int, int, int], int8_model: Path) -> None:
    batch, height, width = shape
    outputs = compile_model(int8_model)(np.stack([synthetic_image(height, width, seed) for seed in range(batch)]))

    labels, logits = outputs["labels"], outputs["logits"]
    assert labels.dtype == np.uint8 and labels.shape == shape
    assert logits.dtype == np.float32 and logits.shape == (batch, CLASSES, height // 8, width // 8)


def test_inputs_and_outputs_equal_those_of_the_float_graph(int8_model: Path, tiny_bundle: Path) -> None:
    def ports(path: Path) -> list[tuple[str, str, str]]:
        graph = get_core().read_model(path)
        tensors = [*graph.inputs, *graph.outputs]
        return [(tensor.any_name, str(tensor.element_type), str(tensor.partial_shape)) for tensor in tensors]

    assert ports(int8_model) == ports(tiny_bundle / MODEL_FILE)


def test_most_labels_equal_those_of_float(int8_model: Path, tiny_bundle: Path) -> None:
    image = synthetic_image(192, 256, seed=99)[None]
    expected, got = (compile_model(path)(image) for path in (tiny_bundle / MODEL_FILE, int8_model))

    # Random weights are the hard case, because their scores are close to each other. A trained network kept 99.8%.
    assert agreement(got["labels"][0], expected["labels"][0]) > 0.9
    spread = float(np.std(expected["logits"]))
    assert float(np.abs(got["logits"] - expected["logits"]).mean()) < 0.1 * spread


def test_convolutions_have_8_bit_weights(int8_model: Path, tiny_bundle: Path) -> None:
    nodes = get_core().read_model(int8_model).get_ops()
    wide = [
        node.get_friendly_name()
        for node in nodes
        if node.get_type_name() == "Constant"
        and len(node.shape) == 4
        and node.get_element_type() == openvino.Type.f32
        and int(np.prod(node.shape)) > 10_000
    ]

    assert wide == []  # biases and scales stay float
    assert sum(node.get_element_type() == openvino.Type.i8 for node in nodes if node.get_type_name() == "Constant") > 15
    assert int8_model.with_suffix(".bin").stat().st_size < 0.3 * (tiny_bundle / MODEL_FILE).stat().st_size


def test_same_images_give_the_same_bytes(int8_model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.xml"
    quantise(tiny_bundle / MODEL_FILE, calibration_images(), again)

    assert again.read_bytes() == int8_model.read_bytes()
    assert again.with_suffix(".bin").read_bytes() == int8_model.with_suffix(".bin").read_bytes()


def test_ir_contains_no_path(int8_model: Path, tiny_bundle: Path) -> None:
    text = int8_model.read_text()

    for folder in (tiny_bundle, int8_model.parent, ROOT, Path.home(), Path(sys.prefix)):
        assert str(folder) not in text
    assert MODEL_FILE not in text


def test_only_the_needed_images_are_read(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise_module, "NUM_CALIBRATION_IMAGES", 2)
    images = calibration_images(5)
    quantise(tiny_bundle / MODEL_FILE, images, tmp_path / "few.xml")

    assert len(list(images)) == 3


def test_quantising_is_silent_and_survives_signals(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "from pathlib import Path\n"
        "from training.freezing.quantise import quantise\n"
        "import numpy as np\n"
        f"quantise(Path({str(tiny_bundle / MODEL_FILE)!r}), [np.zeros((64, 64, 3), np.uint8)], Path('model.int8.xml'))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "signal.raise_signal(signal.SIGUSR1)\n"  # kills a process that closed two of OpenVINO's cores in the wrong order
    )
    (tmp_path / "sitecustomize.py").write_text(AUDIT_HOOK)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "model.int8.bin").is_file()


def test_no_calibration_image_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs images to calibrate on"):
        quantise(tiny_bundle / MODEL_FILE, [], tmp_path / "none.xml")


def test_error_of_an_image_is_passed_on(tiny_bundle: Path, tmp_path: Path) -> None:
    def images() -> Iterator[RGB]:
        yield synthetic_image(64, 64)
        raise CorruptImageError("the second")

    with pytest.raises(CorruptImageError, match="the second"):
        quantise(tiny_bundle / MODEL_FILE, images(), tmp_path / "none.xml")


def test_graph_with_nothing_to_quantise_is_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["images"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["images"], ["labels"], axes=[3], keepdims=0),
    ]
    sides = ["N", "H", "W"]
    graph = helper.make_graph(
        nodes,
        "empty",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [*sides, 3])],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, sides),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*sides, 3]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "empty.onnx")

    with pytest.raises(BundleError, match=r"empty\.onnx cannot be quantised to int8"):
        quantise(tmp_path / "empty.onnx", [synthetic_image(64, 64)], tmp_path / "empty.xml")
    assert not (tmp_path / "empty.xml").exists()


def test_samples_of_different_scales_are_scaled_in_float(tmp_path: Path) -> None:
    """One volume may go up to 100, another to a million: 256 levels over both would leave one for the first."""
    nodes = [
        helper.make_node("Unsqueeze", ["shift", "axes"], ["s"]),
        helper.make_node("Unsqueeze", ["scale", "axes"], ["d"]),
        helper.make_node("Sub", ["images", "s"], ["centered"]),
        helper.make_node("Div", ["centered", "d"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["maps"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["maps", "weights"], ["logits"]),
        helper.make_node("ReduceMax", ["images"], ["largest"], axes=[3], keepdims=0),
        helper.make_node("Cast", ["largest"], ["labels"], to=TensorProto.UINT8),
    ]
    weights = np.random.default_rng(0).normal(size=(2, 1, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "scaled",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", "H", "W", 1]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("shift", "scale")),
        ],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "H", "W"]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2, "H", "W"]),
        ],
        [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "scaled.onnx")
    image = np.random.default_rng(1).random((16, 16, 1)).astype(np.float32)
    canvases = [(image * factor, np.array([[factor / 2], [factor / 4]], np.float32)) for factor in (1, 10_000)]
    quantise(tmp_path / "scaled.onnx", canvases, tmp_path / "scaled.xml")

    compiled = get_core().compile_model(tmp_path / "scaled.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(graph_inputs(image[None], canvases[0][1][None]))["logits"]
    expected = (4 * image.transpose(2, 0, 1) - 2) * weights[:, 0]
    assert np.abs(found[0] - expected).max() < 0.03 * np.abs(expected).max()


def test_broken_graph_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"broken\.onnx cannot be quantised") as caught:
        quantise(tmp_path / "broken.onnx", [synthetic_image(64, 64)], tmp_path / "out.xml")
    assert "\n" not in str(caught.value)


def test_error_without_nncf_says_what_to_install(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(EngineError, match=r"int8 needs NNCF.*\[train\]"):
        quantise(tiny_bundle / MODEL_FILE, calibration_images(), tmp_path / "out.xml")


def test_nncf_is_imported_late() -> None:
    code = "import sys, training.freezing.quantise\nassert 'nncf' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def make_matrix(*hits: int) -> ConfusionMatrix:
    """100 pixels per class, of which `hits` are right; the others are predicted as no class."""
    matrix = ConfusionMatrix(len(hits))
    for label, hit in enumerate(hits):
        prediction = np.full((1, 100), 255, np.uint8)
        prediction[0, :hit] = label
        matrix.add(np.full((1, 100), label, np.uint8), prediction)
    return matrix


def test_drop_within_the_limit_has_no_message() -> None:
    assert miou_drop_message(make_matrix(90, 80, 70, 60), make_matrix(90, 80, 70, 59), CLASS_INFOS, 0.5) is None
    assert miou_drop_message(make_matrix(50, 50, 50, 50), make_matrix(60, 60, 60, 60), CLASS_INFOS, 0.0) is None


def test_default_limit_is_half_a_point() -> None:
    before = make_matrix(90, 80, 70, 60)
    assert miou_drop_message(before, make_matrix(90, 80, 70, 59), CLASS_INFOS) is None
    assert miou_drop_message(before, make_matrix(90, 80, 70, 57), CLASS_INFOS) is not None
    assert inspect.signature(export).parameters["int8_limit"].default == MAX_MIOU_DROP


def test_drop_above_the_limit_names_the_three_worst_classes() -> None:
    message = miou_drop_message(make_matrix(90, 80, 70, 60), make_matrix(89, 75, 72, 20), CLASS_INFOS, 0.5)
    assert message == (
        "int8 is left out: it loses 11.00 points of mIoU (75.00 -> 64.00), and at most 0.5 are allowed. "
        "Largest losses of IoU: pole 0.600 -> 0.200, road 0.800 -> 0.750, sky 0.900 -> 0.890."
    )


def test_class_that_only_int8_predicts_is_a_loss() -> None:
    before, after = make_matrix(100, 100, 0, 0), make_matrix(100, 100, 0, 0)
    for matrix, prediction in ((before, 0), (after, 3)):
        few = ConfusionMatrix(4)
        few.full_counts[:2] = make_matrix(100, 100, 0, 0).full_counts[:2]
        few.add(np.zeros((1, 10), np.uint8), np.full((1, 10), prediction, np.uint8))
        matrix.full_counts[:] = few.full_counts

    message = miou_drop_message(before, after, CLASS_INFOS, 0.5)
    assert message is not None and "pole absent -> 0.000, sky 1.000 ->" in message and "car" not in message
