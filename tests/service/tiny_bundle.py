"""A bundle that is written and opened in milliseconds: two convolutions with random weights, by hand."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from PIL import Image

from models.bundle import MODEL, SPEC, Bundle, writing
from models.inference.segmenter import Segmenter
from models.spec import Architecture, ClassInfo, InputRule, Spec, default_rgb
from tests.fixtures_bundles import drawing
from tests.fixtures_graphs import Drawing, save

CLASSES = 4


def small_bundle(folder: Path, name: str = "small", classes: int = CLASSES) -> Path:
    """Write the bundle into `folder` and return that path."""
    spec = Spec(
        name=name,
        classes=[ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(classes)],
        input=InputRule(rule="native"),
        architecture=Architecture(name="by hand"),
    )
    with writing(folder) as new:
        _graph(new / MODEL, classes)
        (new / SPEC).write_text(spec.model_dump_json())
        (new / "probes").mkdir()
        picture = drawing(120, 160)
        labels = Segmenter.load(Bundle(new, spec), "onnxruntime").segment(picture).labels
        Image.fromarray(picture).save(new / "probes" / "0.png")
        Image.fromarray(labels).save(new / "probes" / "0.labels.png")
    return folder


def _graph(file: Path, classes: int) -> None:
    """The contract of a frozen network: images uint8 N x H x W x 3 -> labels N x H x W, logits at stride 8."""
    random, graph = np.random.default_rng(0), Drawing()
    values = graph.node("Cast", graph.node("Transpose", "images", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    values = graph.node("Sub", graph.node("Div", values, graph.weight(255.0)), graph.weight(0.5))
    features = max(8, classes // 4)  # with fewer, most of many classes would never win
    first = graph.weight(random.normal(0, 0.05, (features, 3, 9, 9)))
    values = graph.node(
        "Relu", graph.node("Conv", values, first, kernel_shape=[9, 9], strides=[8, 8], pads=[4, 4, 4, 4])
    )
    last = graph.weight(random.normal(0, 1, (classes, features, 1, 1)))
    logits = graph.node("Conv", values, last, kernel_shape=[1, 1], out="logits")
    full = graph.node("Resize", logits, graph.weight([]), graph.weight([1, 1, 8, 8]), mode="linear")
    graph.node("Cast", graph.node("ArgMax", full, axis=1, keepdims=0), to=TensorProto.UINT8, out="labels")
    entry = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])
    outputs = [
        helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "height", "width"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes, "h", "w"]),
    ]
    save(file, graph, entry, outputs)
