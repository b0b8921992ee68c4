"""Imported ONNX graphs of many kinds predict in a bundle as they do under ONNX Runtime."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.bundle import Bundle, open_bundle
from models.engines.openvino_engine import load as compile_bundle
from models.errors import ConfigError
from models.inference.segmenter import Segmenter, agreement
from models.spec import InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.fixtures_graphs import MEAN, STD, GraphBuilder, reference_labels, save_graph, scene_image, write_onnx_graph
from training.data.synthetic import generate_dataset
from training.freezing.onnx_import.graph_reader import UserHints
from training.import_model import import_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # options of the graph; hints; how the reference reads it
    "of any size": ({}, {}, {}),
    "one at a time": ({"dims": (1, "H", "W")}, {}, {}),
    "with names of ours": ({"names": ("labels", "images")}, {}, {}),
    "with our names, the other way round": ({"names": ("logits", "labels")}, {}, {}),
    "NHWC in": ({"layout": "nhwc"}, {}, {"layout": "nhwc"}),
    "NHWC in and out": ({"layout": "nhwc", "gives": "nhwc"}, {}, {"layout": "nhwc", "gives": "nhwc"}),
    "NHWC out": ({"gives": "nhwc"}, {}, {"gives": "nhwc"}),
    "in bytes": ({"kind": "uint8"}, {}, {"kind": "uint8"}),
    "in NHWC bytes, BGR": (
        {"kind": "uint8", "layout": "nhwc"},
        {"order": "bgr"},
        {"kind": "uint8", "layout": "nhwc", "order": "bgr"},
    ),
    "in float16": ({"kind": "float16"}, {}, {"kind": "float16"}),
    "in float64": ({"kind": "float64"}, {}, {"kind": "float64"}),
    "BGR": ({}, {"order": "bgr"}, {"order": "bgr"}),
    "Caffe's way": (
        {},
        {"mean": "104.008,116.669,122.675", "std": "1", "order": "bgr"},
        {"mean": (104.008, 116.669, 122.675), "std": 1, "white": 255, "order": "bgr"},
    ),
    "TensorFlow's way": (
        {"layout": "nhwc"},
        {"mean": "127.5", "std": "127.5"},
        {"mean": 127.5, "std": 127.5, "white": 255, "layout": "nhwc"},
    ),
    "from 0 to 1": ({}, {"mean": "0", "std": "1"}, {"mean": 0, "std": 1}),
    "from 0 to 255": ({}, {"mean": "0", "std": "1", "scale": 255}, {"mean": 0, "std": 1, "white": 255}),
    "softmax at its end": ({"ending": "softmax"}, {}, {"meaning": "probabilities"}),
    "softmax, full size": ({"ending": "softmax", "full": True}, {}, {"meaning": "probabilities"}),
    "softmax, taken for logits": ({"ending": "softmax"}, {"scores": "logits"}, {}),
    "a sigmoid each": ({"ending": "sigmoid"}, {}, {"meaning": "probabilities"}),
    "full size": ({"full": True}, {}, {}),
    "the batch's axis dropped": ({"squeezed": True, "dims": (1, "H", "W")}, {}, {"squeezed": True}),
    "two outputs": ({"also": ("aux",)}, {"output": "y"}, {}),
    "two outputs, the other": ({"also": ("aux",)}, {"output": "aux"}, {"output": "aux"}),
    "labels": ({"ending": "labels"}, {}, {"meaning": "labels"}),
    "labels, full size": ({"ending": "labels", "full": True}, {}, {"meaning": "labels"}),
    "labels with their axis": ({"ending": "labels with their axis"}, {}, {"meaning": "labels"}),
    "labels with their axis last": (
        {"ending": "labels with their axis", "gives": "nhwc"},
        {},
        {"meaning": "labels"},
    ),
    "labels without the batch's axis": (
        {"ending": "labels", "squeezed": True, "dims": (1, "H", "W")},
        {},
        {"meaning": "labels", "squeezed": True},
    ),
    "scores in bytes": ({"ending": "bytes"}, {}, {}),
    "an old opset": ({"opset": 11}, {}, {}),
    "the newest opset": ({"opset": 21}, {}, {}),
}


# Combinations of what other cases test one by one.
SLOW_CASES = {
    "with our names, the other way round", "NHWC out", "in NHWC bytes, BGR", "in float64", "TensorFlow's way",
    "from 0 to 1", "softmax, full size", "softmax, taken for logits", "two outputs, the other",
    "labels with their axis last", "the newest opset",
}  # fmt: skip
assert CASES.keys() >= SLOW_CASES


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW_CASES else ()) for case in CASES]
)
def test_imported_graph_predicts_as_the_original(
    case: str, import_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    options, hints, reference = CASES[case]
    file = write_onnx_graph(tmp_path / "theirs.onnx", **options)
    bundle = import_bundle(file, **hints)
    rule = InputRule(
        rule="native", divisor=8 if options.get("full") else 1
    )  # enlarged 8 times, it is full size only then
    assert (bundle.spec.name, bundle.spec.input, bundle.spec.architecture.name) == ("theirs", rule, "onnx")
    assert not bundle.weights_path.exists()
    segmenter, image = Segmenter.load(bundle, precision="f32"), scene_image()
    labels = segmenter.segment(image).labels
    assert len(np.unique(labels)) > 1
    assert agreement(labels, reference_labels(file, image, **reference)) >= 0.999
    assert segmenter.verify_probes(bundle) >= 0.99
    assert len(bundle.probes()) == 3
    check_contract(bundle, image, cv2.INTER_NEAREST_EXACT if "labels" in reference.values() else cv2.INTER_LINEAR)


def check_contract(bundle: Bundle, image: NDArray[np.uint8], mode: int) -> None:
    """uint8 N x H x W x 3 -> labels uint8 N x H x W == argmax(resized(logits)), logits float32 N x C x h x w."""
    onnx.checker.check_model(onnx.load(bundle.model_path), full_check=True)
    labels, logits = compile_bundle(bundle, "cpu", "f32", 1)(image[None], logits=True)
    assert (labels.shape, labels.dtype, logits.dtype) == ((1, *image.shape[:2]), np.uint8, np.float32)
    assert logits.shape[:2] == (1, len(bundle.spec.classes))
    large = cv2.resize(logits[0].transpose(1, 2, 0), image.shape[1::-1], interpolation=mode)
    assert agreement(labels[0], large.argmax(axis=2)) >= 0.999


@pytest.mark.parametrize("size", [(97, 131), (120, 203), (34, 33)])
def test_graph_of_any_size_gets_images_without_padding(
    size: tuple[int, int], import_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    file = write_onnx_graph(tmp_path / "theirs.onnx")
    bundle, image = import_bundle(file), scene_image(*size)
    assert bundle.spec.unpadded_agreement == 1
    labels = Segmenter.load(bundle, precision="f32").segment(image).labels
    assert agreement(labels, reference_labels(file, image)) >= 0.999


def test_graph_whose_maps_must_fit_gets_padded_images(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """It adds scores of stride 4, enlarged, to those of stride 1, as decoders with skips do."""
    drawing, random = GraphBuilder(), np.random.default_rng(0)
    fine = drawing.add_node("Conv", "x", drawing.add_weight(random.normal(0, 1, (4, 3, 1, 1))), kernel_shape=[1, 1])
    weight = drawing.add_weight(random.normal(0, 0.3, (4, 3, 5, 5)))
    coarse = drawing.add_node("Conv", "x", weight, kernel_shape=[5, 5], strides=[4, 4], pads=[2] * 4)
    factors = drawing.add_weight([1, 1, 4, 4])
    drawing.add_node("Add", fine, drawing.add_node("Resize", coarse, "", factors, mode="nearest"), out="y")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "H", "W"])
    file = save_graph(tmp_path / "skips.onnx", drawing, entry, [out])
    bundle, image = import_bundle(file), scene_image(97, 131)
    assert bundle.spec.input == InputRule(rule="native", divisor=4)
    assert bundle.spec.unpadded_agreement is None
    labels = Segmenter.load(bundle, precision="f32").segment(image).labels
    padded = np.pad(image, ((0, 3), (0, 1), (0, 0)), "edge")
    assert agreement(labels, reference_labels(file, padded)[:97, :131]) >= 0.999


# The map of (64, 32) is as high as it has channels.
@pytest.mark.parametrize(
    ("size", "full"),
    [
        ((120, 200), False),
        ((200, 120), True),
        ((64, 32), False),
        ((64, 32), True),
        pytest.param((64, 64), False, marks=pytest.mark.slow),
        pytest.param((520, 520), True, marks=pytest.mark.slow),
    ],
)
def test_graph_of_one_size_gets_the_rule_exact(
    size: tuple[int, int], full: bool, import_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    file = write_onnx_graph(tmp_path / "fixed.onnx", dims=(1, *size), full=full)
    bundle = import_bundle(file)
    assert bundle.spec.input == InputRule(rule="exact", size=size)
    segmenter = Segmenter.load(bundle, precision="f32")
    image = scene_image(*size)
    assert agreement(segmenter.segment(image).labels, reference_labels(file, image)) >= 0.999
    assert segmenter.segment(scene_image(77, 133)).labels.shape == (77, 133)
    with pytest.raises(ConfigError, match=f"takes only images of {size[0]} x {size[1]} "):
        import_bundle(file, input="fit:320")
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]}, not 64 x 96"):
        import_bundle(file, input="exact:64x96")


def test_input_rule_can_be_chosen(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "any.onnx")
    assert import_bundle(file, input="fit:320").spec.input == InputRule(rule="fit", side=320, divisor=1)
    half = write_onnx_graph(tmp_path / "half.onnx", dims=(1, 120, "W"))
    with pytest.raises(ConfigError, match=r"120 x any; add the size of the free side: --input exact:HEIGHTxWIDTH"):
        import_bundle(half)
    for free in (file, half):
        bundle = import_bundle(free, input="exact:120x200")
        assert bundle.spec.input == InputRule(rule="exact", size=(120, 200))
        image = scene_image(120, 200)
        labels = Segmenter.load(bundle, precision="f32").segment(image).labels
        assert agreement(labels, reference_labels(free, image)) >= 0.999
    for wrong in ("exact:120", "exact:0x5", "fit:3", "fit", "stretch"):
        with pytest.raises(ConfigError, match="is not possible"):
            import_bundle(file, input=wrong)


@pytest.mark.parametrize("ending", ["logits", "sigmoid", "own sigmoid"])
def test_one_channel_is_the_score_of_the_second_of_two_classes(
    ending: str, import_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    file = write_onnx_graph(tmp_path / "binary.onnx", channels=1, ending=ending, seed=3)
    bundle, image = import_bundle(file, classes=2), scene_image()
    labels = Segmenter.load(bundle, precision="f32").segment(image).labels
    assert set(np.unique(labels)) == {0, 1}
    meaning = "logit" if ending == "logits" else "probability"
    assert agreement(labels, reference_labels(file, image, meaning=meaning)) >= 0.999
    session = onnxruntime.InferenceSession(file)
    small = session.run(None, {"x": ((image / 255 - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)})[0][0, 0]
    _, logits = compile_bundle(bundle, "cpu", "f32", 1)(image[None], logits=True)
    clear = abs(small - (0 if ending == "logits" else 0.5)) > 1e-4
    threshold = 0 if ending == "logits" else 0.5
    assert (logits[0].argmax(axis=0) == (small > threshold))[clear].all()


def test_probabilities_become_their_logarithms(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    plain, ended = (write_onnx_graph(tmp_path / f"{ending}.onnx", ending=ending) for ending in ("logits", "softmax"))
    image = scene_image()
    scores = compile_bundle(import_bundle(plain), "cpu", "f32", 1)(image[None], logits=True)[1]
    logits = compile_bundle(import_bundle(ended), "cpu", "f32", 1)(image[None], logits=True)[1]
    softmax = [torch.softmax(torch.from_numpy(values), dim=1).numpy() for values in (scores, logits)]
    np.testing.assert_allclose(softmax[0], softmax[1], atol=1e-5)


def test_fixed_batch_size_of_the_original(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "four.onnx", dims=(4, "H", "W"))
    bundle, image = import_bundle(file), scene_image()
    labels = Segmenter.load(bundle, precision="f32").segment(image).labels
    assert agreement(labels, reference_labels(file, image, batch=4)) >= 0.999


def test_batches_of_any_size(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = import_bundle(write_onnx_graph(tmp_path / "any.onnx"))
    run = compile_bundle(bundle, "cpu", "f32", 1)
    several = np.stack([scene_image(seed=seed) for seed in range(3)])
    labels = run(several)[0].copy()
    for index in range(3):
        assert agreement(labels[index], run(several[index : index + 1])[0][0]) >= 0.999


def test_labels_of_minus_1_and_255_are_ignored(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """Neither is a class, so all logits of such a pixel are 0."""
    drawing = GraphBuilder()
    shrunk = drawing.add_node("AveragePool", "x", kernel_shape=[8, 8], strides=[8, 8])
    bright = drawing.add_node("ReduceMean", shrunk, axes=[1], keepdims=0)
    labels = drawing.add_node("Cast", drawing.add_node("Round", bright), to=TensorProto.INT64)
    drawing.add_node("Clip", labels, drawing.add_weight(-1, np.int64), drawing.add_weight(2, np.int64), out="y")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("y", TensorProto.INT64, ["N", "h", "w"])
    bundle = import_bundle(save_graph(tmp_path / "void.onnx", drawing, entry, [out]), classes=3, mean="0.4", std="0.2")
    gradient = np.repeat(np.linspace(0, 255, 192, dtype=np.uint8)[None, :, None], 128, axis=0).repeat(3, axis=2)
    labels, logits = compile_bundle(bundle, "cpu", "f32", 1)(gradient[None], logits=True)
    assert set(np.unique(labels)) == {0, 1, 2, 255}
    small = labels[0, 4::8, 4::8]
    assert (logits[0].max(axis=0) == (small != 255)).all()


def test_inner_graph_keeps_values_from_outside(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """The weight has one of our reserved names, and only a branch of an `If` uses it."""
    drawing = GraphBuilder()
    shrunk = drawing.add_node("AveragePool", "x", kernel_shape=[8, 8], strides=[8, 8])
    weight = drawing.add_weight(np.random.default_rng(0).normal(0, 1, (4, 3, 1, 1)), name="labels")
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Conv", [shrunk, weight], [f"{name} out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name} out", TensorProto.FLOAT, ["N", 4, "h", "w"])],
        )
        for name in ("then", "else")
    }
    drawing.add_node("If", drawing.add_weight(True, np.bool_), out="y", **branches)
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "h", "w"])
    file = save_graph(tmp_path / "if.onnx", drawing, entry, [out])
    image = scene_image()
    labels = Segmenter.load(import_bundle(file), precision="f32").segment(image).labels
    assert agreement(labels, reference_labels(file, image)) >= 0.999


def test_nodes_of_unread_outputs_are_removed(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    file = write_onnx_graph(tmp_path / "two.onnx", also=("aux",))
    model = onnx.load(file)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((300, 300), np.float32), "heavy"))
    model.graph.node.append(helper.make_node("Add", ["heavy", "heavy"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [300, 300]))
    onnx.save(model, file)
    bundle = import_bundle(file, output="y")
    assert bundle.model_path.stat().st_size < 100_000 < file.stat().st_size
    assert "unused" not in {name for node in onnx.load(bundle.model_path).graph.node for name in node.output}


@pytest.fixture(scope="module")
def torch_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two graphs by torch's exporter: any size with functions inside, and one size with external weights."""

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = torch.nn.Conv2d(3, 16, 5, stride=4, padding=2)
            self.last = torch.nn.Conv2d(16, 4, 1)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            maps = torch.relu(self.first(images))
            large = torch.nn.functional.interpolate(self.last(maps), images.shape[-2:], mode="bilinear")
            return {"out": large, "features": maps}

    folder = tmp_path_factory.mktemp("torch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    free = torch.export.Dim.DYNAMIC
    for name, size, sizes in (("any", (96, 128), ({0: free, 2: free, 3: free},)), ("fixed", (100, 150), None)):
        images = torch.zeros(2 if sizes else 1, 3, *size)
        torch.onnx.export(
            Small().eval(), (images,), folder / f"{name}.onnx", dynamo=True, dynamic_shapes=sizes, verbose=False,
            output_names=["out", "features"], external_data=not sizes,
        )  # fmt: skip
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_graphs_by_torchs_exporter(torch_graphs: Path, import_bundle: Callable[..., Bundle]) -> None:
    """The one output with as many channels as classes is read, without a hint."""
    assert (torch_graphs / "fixed.onnx.data").exists()
    for name, size, rule in (("any", (128, 192), "native"), ("fixed", (100, 150), "exact")):
        bundle, image = import_bundle(torch_graphs / f"{name}.onnx"), scene_image(*size)
        assert bundle.spec.input.rule == rule
        labels = Segmenter.load(bundle, precision="f32").segment(image).labels
        assert agreement(labels, reference_labels(torch_graphs / f"{name}.onnx", image, output="out")) >= 0.999
        assert str(Path(__file__).parent).encode() in (torch_graphs / f"{name}.onnx").read_bytes()
        assert str(Path(__file__).parent).encode() not in bundle.model_path.read_bytes()
        assert sorted(path.name for path in bundle.folder.iterdir()) == [
            "SHA256SUMS",
            "model.onnx",
            "probes",
            "spec.json",
        ]


def test_quantised_graph(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            images = [(scene_image(seed=seed) / 255 - MEAN) / STD for seed in range(4)]
            self.rest = iter([{"x": values.transpose(2, 0, 1)[None].astype(np.float32)} for values in images])

        def get_next(self) -> Any:
            return next(self.rest, None)

    file = tmp_path / "int8.onnx"
    quantize_static(write_onnx_graph(tmp_path / "f32.onnx"), file, Images(), per_channel=True, reduce_range=True)
    # Engines round quantised values differently. In a small image, the pixels around one such value are 0.4% of all.
    generate_dataset(tmp_path / "large", counts={"train": 2}, size=(240, 320))
    names = tmp_path / "classes.csv"
    names.write_text("".join(f"class {label}\n" for label in range(4)))
    folder = import_onnx(
        file, tmp_path / "b", str(names), UserHints.parse(), None, tmp_path / "large" / "images", QUIET_CONSOLE
    )
    image = scene_image()
    labels = Segmenter.load(open_bundle(folder), precision="f32").segment(image).labels
    assert agreement(labels, reference_labels(file, image)) >= 0.999


def test_old_opset_is_upgraded(import_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    drawing = GraphBuilder()
    first = drawing.add_weight(np.random.default_rng(0).normal(0, 1, (4, 3, 8, 8)))
    drawing.add_node("Conv", "x", first, out="y", kernel_shape=[8, 8], strides=[8, 8])
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "h", "w"])
    file = save_graph(tmp_path / "old.onnx", drawing, entry, [out], opset=9)
    model = onnx.load(file)
    model.ir_version = 3  # weights had to be inputs
    model.graph.input.append(helper.make_tensor_value_info(first, TensorProto.FLOAT, [4, 3, 8, 8]))
    onnx.checker.check_model(model)
    onnx.save(model, file)
    image = scene_image()
    labels = Segmenter.load(import_bundle(file), precision="f32").segment(image).labels
    assert agreement(labels, reference_labels(file, image)) >= 0.999
