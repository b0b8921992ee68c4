"""Small ONNX graphs in the forms that other tools write, and their labels computed without a bundle."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.data.synthetic import generate_scene

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
}
OUTPUT_KINDS = (
    "logits", "softmax", "sigmoid", "own sigmoid", "labels", "labels with their axis", "one class", "bytes"
)  # fmt: skip


class GraphBuilder:
    """Collects nodes and weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add_node(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        out = out or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [out], **attributes))
        return out

    def add_weight(self, values: Any, kind: Any = np.float32, name: str = "") -> str:
        """Add a constant tensor and return its name."""
        name = name or f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name


def write_onnx_graph(
    file: Path,
    *,
    channels: int = 4,
    dims: tuple[int | str, int | str, int | str] = ("N", "H", "W"),
    layout: str = "nchw",
    gives: str = "nchw",
    kind: str = "float32",
    ending: str = "logits",
    full: bool = False,
    squeezed: bool = False,
    names: tuple[str, str] = ("x", "y"),
    also: tuple[str, ...] = (),
    opset: int = 17,
    seed: int = 0,
) -> Path:
    """Write two convolutions whose output has an eighth of the input's height and width, or its size if `full`.

    `dims`: batch, height, width; `also`: further outputs of the same scores; `squeezed`: without the batch axis.
    """
    assert ending in OUTPUT_KINDS
    random, drawing = np.random.default_rng(seed), GraphBuilder()
    floats = "float16" if kind == "float16" else "float32"  # onnxruntime has no convolution in float64
    values = drawing.add_node("Transpose", names[0], perm=[0, 3, 1, 2]) if layout == "nhwc" else names[0]
    if kind != floats:
        values = drawing.add_node("Cast", values, to=TensorProto.FLOAT)
        values = drawing.add_node("Div", values, drawing.add_weight(64.0 if kind == "uint8" else 1.0))
    first = drawing.add_weight(random.normal(0, 0.05, (8, 3, 9, 9)), floats)
    values = drawing.add_node("Conv", values, first, kernel_shape=[9, 9], strides=[8, 8], pads=[4] * 4)
    values = drawing.add_node("Relu", values)
    last = drawing.add_weight(random.normal(0, 1, (channels, 8, 1, 1)), floats)
    scores = drawing.add_node("Conv", values, last, kernel_shape=[1, 1])
    if full:
        factors = drawing.add_weight([1, 1, 8, 8], np.float32)
        scores = drawing.add_node("Resize", scores, drawing.add_weight([]), factors, mode="linear")
    for name in also:
        drawing.add_node("Neg", scores, out=name)
    values = _add_output(drawing, scores, ending)
    if gives == "nhwc":
        values = drawing.add_node("Transpose", values, perm=[0, 2, 3, 1])
    if squeezed:
        values = drawing.add_node("Squeeze", values, drawing.add_weight([0], np.int64))
    drawing.add_node("Identity", values, out=names[1])
    batch, height, width = dims
    shape = [batch, 3, height, width] if layout == "nchw" else [batch, height, width, 3]
    made = {"labels": "int64", "labels with their axis": "int64", "bytes": "uint8"}.get(ending, floats)
    axes = [f"{names[1]} {axis}" for axis in range(4 - (ending == "labels") - squeezed)]
    outputs = [helper.make_tensor_value_info(name, ONNX_TYPES[floats], [None] * 4) for name in also]
    outputs += [helper.make_tensor_value_info(names[1], ONNX_TYPES[made], axes)]
    return save_graph(file, drawing, helper.make_tensor_value_info(names[0], ONNX_TYPES[kind], shape), outputs, opset)


def save_graph(
    file: Path, drawing: GraphBuilder, entry: onnx.ValueInfoProto, outputs: list[onnx.ValueInfoProto], opset: int = 17
) -> Path:
    """Write a valid ONNX file."""
    made = helper.make_graph(drawing.nodes, "foreign", [entry], outputs, drawing.weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    return file


def _add_output(drawing: GraphBuilder, scores: str, ending: str) -> str:
    if ending == "softmax":
        return drawing.add_node("Softmax", scores, axis=1)
    if ending == "sigmoid":
        return drawing.add_node("Sigmoid", scores)
    if ending == "own sigmoid":
        one = drawing.add_weight(1.0)
        return drawing.add_node(
            "Div", one, drawing.add_node("Add", one, drawing.add_node("Exp", drawing.add_node("Neg", scores)))
        )
    if ending.startswith("labels"):
        return drawing.add_node("ArgMax", scores, axis=1, keepdims=int(ending != "labels"))
    if ending == "one class":
        return drawing.add_node("Mul", scores, drawing.add_weight(0.0))
    if ending == "bytes":
        return drawing.add_node("QuantizeLinear", scores, drawing.add_weight(0.05), drawing.add_weight(128, np.uint8))
    return scores


def reference_labels(
    file: Path, image: NDArray[np.uint8], *, mean: Any = MEAN, std: Any = STD, white: float = 1, order: str = "rgb",
    layout: str = "nchw", kind: str = "float32", gives: str = "nchw", output: str | None = None, meaning: str = "logits",
    squeezed: bool = False, batch: int = 1,
) -> NDArray[np.uint8]:  # fmt: skip
    """The labels that the author of a graph would get, with onnxruntime, NumPy and OpenCV."""
    session = onnxruntime.InferenceSession(file)
    values = image.astype(np.float64) if order == "rgb" else image[..., ::-1].astype(np.float64)
    if kind != "uint8":
        values = (values * white / 255 - np.array(mean)) / np.array(std)
    values = values.transpose(2, 0, 1) if layout == "nchw" else values
    entry = session.get_inputs()[0].name
    result = session.run([output or session.get_outputs()[-1].name], {entry: np.stack([values] * batch).astype(kind)})[
        0
    ]
    result = result if squeezed else result[0]
    if meaning == "labels":
        plane = result.reshape([side for side in result.shape if side > 1]).astype(np.uint8)
        return cv2.resize(plane, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    scores = (result.transpose(1, 2, 0) if gives == "nchw" else result).astype(np.float32)
    if meaning == "probability":  # of the second of two classes
        scores = np.concatenate([1 - scores, scores], axis=2)
    if meaning.startswith("probabilit"):
        scores = np.log(np.maximum(scores, 1e-7))
    if meaning == "logit":
        scores = np.concatenate([0 * scores, scores], axis=2)
    large = cv2.resize(scores, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return large.argmax(axis=2).astype(np.uint8)


def scene_image(height: int = 128, width: int = 192, seed: int = 7) -> NDArray[np.uint8]:
    """A synthetic image, RGB uint8 H x W x 3."""
    return generate_scene(np.random.default_rng(seed), (height, width))[0]
