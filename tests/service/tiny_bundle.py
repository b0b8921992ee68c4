"""A bundle that is written and opened in milliseconds: two convolutions with random weights, by hand."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from PIL import Image

from models.bundle import MODEL_FILE, SPEC_FILE, Bundle, bundle_writer
from models.inference.segmenter import Segmenter
from models.spec import Architecture, BundleSpec, ClassInfo, InputRule, default_rgb
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_graphs import GraphBuilder, save_graph

CLASSES = 4


def write_tiny_bundle(
    folder: Path, name: str = "small", classes: int = CLASSES, class_names: list[str] | None = None
) -> Path:
    """Write the bundle into `folder` and return that path. The default names are `class 0` and so on."""
    class_names = class_names or [f"class {label}" for label in range(classes)]
    spec = BundleSpec(
        name=name,
        classes=[ClassInfo(name=each, rgb=default_rgb(label)) for label, each in enumerate(class_names)],
        input=InputRule(rule="native"),
        architecture=Architecture(name="by hand"),
    )
    with bundle_writer(folder) as new:
        _write_graph(new / MODEL_FILE, len(class_names))
        (new / SPEC_FILE).write_text(spec.model_dump_json())
        (new / "probes").mkdir()
        image = synthetic_image(120, 160)
        labels = Segmenter.load(Bundle(new, spec), "onnxruntime").segment(image).labels
        Image.fromarray(image).save(new / "probes" / "0.png")
        Image.fromarray(labels).save(new / "probes" / "0.labels.png")
    return folder


def _write_graph(file: Path, classes: int) -> None:
    """The contract of a frozen network: images uint8 N x H x W x 3 -> labels N x H x W, logits at stride 8."""
    random, graph = np.random.default_rng(0), GraphBuilder()
    values = graph.add_node("Cast", graph.add_node("Transpose", "images", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    values = graph.add_node("Sub", graph.add_node("Div", values, graph.add_weight(255.0)), graph.add_weight(0.5))
    features = max(8, classes // 4)  # with fewer, most of many classes would never win
    first = graph.add_weight(random.normal(0, 0.05, (features, 3, 9, 9)))
    values = graph.add_node(
        "Relu", graph.add_node("Conv", values, first, kernel_shape=[9, 9], strides=[8, 8], pads=[4, 4, 4, 4])
    )
    last = graph.add_weight(random.normal(0, 1, (classes, features, 1, 1)))
    logits = graph.add_node("Conv", values, last, kernel_shape=[1, 1], out="logits")
    full = graph.add_node("Resize", logits, graph.add_weight([]), graph.add_weight([1, 1, 8, 8]), mode="linear")
    graph.add_node("Cast", graph.add_node("ArgMax", full, axis=1, keepdims=0), to=TensorProto.UINT8, out="labels")
    entry = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])
    outputs = [
        helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "height", "width"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes, "h", "w"]),
    ]
    save_graph(file, graph, entry, outputs)
