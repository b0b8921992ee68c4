"""Rewrites an imported graph to the inputs and outputs of a bundle, within one ONNX graph:

    images N x H x W x C (uint8 RGB, or other channels) -> labels uint8 N x H x W, logits float32 N x classes x h x w

`labels == argmax(bilinear(logits, H x W))`, as for maskserve's own networks. If a graph outputs labels only, they are
resized by nearest neighbor, and its `logits` are 1 for the label of a pixel and 0 for the others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from training.freezing.onnx_import.graph_reader import InputSpec
from training.freezing.onnx_import.graph_walk import iter_graphs, node_inputs, strip_metadata
from training.freezing.onnx_import.reference import MIN_PROBABILITY, OutputSpec

RESERVED_NAMES = ("images", "labels", "logits")
IR_VERSION = 8  # of the file format: enough for every opset that is read here; before 4, weights had to be inputs
SAMPLE_TYPES = {
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "float32": TensorProto.FLOAT,
}
ONNX_TYPES = {
    "uint8": TensorProto.UINT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


def rewrite_graph(model: ModelProto, input_spec: InputSpec, output_spec: OutputSpec, classes: int) -> ModelProto:
    """The imported graph with pre- and postprocessing; nodes that only its other outputs need are removed.

    Changes `model`, which cannot be used afterwards.
    """
    graph = model.graph
    strip_metadata(graph)
    renamed = _rename_reserved(graph)
    entry, out = (renamed.get(name, name) for name in (input_spec.name, output_spec.name))
    opset = next(known.version for known in model.opset_import if known.domain in ("", "ai.onnx"))
    before, after = NodeChain("before", opset), NodeChain("after", opset)
    _add_preprocessing(before, input_spec, entry)
    (_add_label_outputs if output_spec.kind == "labels" else _add_score_outputs)(after, output_spec, out, classes)

    nodes = [*before.nodes, *_required_nodes(graph, out), *after.nodes]
    used = {name for node in nodes for name in node_inputs(node)}
    batch = "N" if input_spec.batch != 1 and output_spec.has_batch_axis else 1
    height, width = input_spec.size or ("H", "W")
    samples = SAMPLE_TYPES[input_spec.samples]
    frozen = helper.make_graph(
        nodes,
        "maskserve",
        [helper.make_tensor_value_info("images", samples, [batch, height, width, len(input_spec.channels)])],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, [batch, height, width]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes, "h", "w"]),
        ],
        [*(tensor for tensor in graph.initializer if tensor.name in used), *before.constants, *after.constants],
        sparse_initializer=[tensor for tensor in graph.sparse_initializer if tensor.values.name in used],
    )
    return helper.make_model(
        frozen,
        opset_imports=model.opset_import,
        ir_version=max(IR_VERSION, model.ir_version),
        producer_name="maskserve",
    )


class NodeChain:
    """A chain of nodes; their outputs are named by the chain and their index in it."""

    def __init__(self, chain: str, opset: int) -> None:
        self.prefix = chain
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, into: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its output, which is `into` if given."""
        into = into or self._next_name(operator)
        self.nodes.append(helper.make_node(operator, inputs, [into], **attributes))
        return into

    def constant(self, *values: float, kind: type = np.int64, shape: tuple[int, ...] = (-1,)) -> str:
        """Add a constant, along one axis or in `shape`; returns its name."""
        array: NDArray[np.generic] = np.array(values, kind).reshape(shape)
        name = self._next_name("constant")
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def resize(self, maps: str, mode: str, **attributes: Any) -> str:
        """Resize N x C x h x w to the N x C x H x W of `images`, with torch's align_corners=False."""
        kept = self.add("Gather", self.add("Shape", maps), self.constant(0, 1))
        sides = self.add("Gather", self.add("Shape", "images"), self.constant(1, 2))
        nothing = "" if self.opset >= 13 else self.constant(kind=np.float32, shape=(0,))  # region, and scales
        sizes = self.add("Concat", kept, sides, axis=0)
        attributes = {"mode": mode, "coordinate_transformation_mode": "half_pixel", **attributes}
        return self.add("Resize", maps, nothing, nothing, sizes, **attributes)

    def _next_name(self, kind: str) -> str:
        return f"maskserve/{self.prefix}/{len(self.nodes) + len(self.constants)}/{kind}"


def _add_preprocessing(steps: NodeChain, input_spec: InputSpec, entry: str) -> None:
    """From `images` to the value `entry`: channel order, layout, normalisation, type."""
    values = "images"
    if input_spec.order == "bgr":
        values = steps.add("Gather", values, steps.constant(2, 1, 0), axis=3)
    if input_spec.layout == "nchw":  # as bytes, which moves a quarter of the data
        values = steps.add("Transpose", values, perm=[0, 3, 1, 2])
    if input_spec.dtype != "uint8":
        unit = 255 / input_spec.max_pixel_value
        shape = (1, -1, 1, 1) if input_spec.layout == "nchw" else (1, 1, 1, -1)
        mean = steps.constant(*(value * unit for value in input_spec.mean), kind=np.float32, shape=shape)
        std = steps.constant(*(value * unit for value in input_spec.std), kind=np.float32, shape=shape)
        values = steps.add("Cast", values, to=TensorProto.FLOAT)
        values = steps.add("Div", steps.add("Sub", values, mean), std)
    steps.add("Cast", values, into=entry, to=ONNX_TYPES[input_spec.dtype])


def _add_score_outputs(steps: NodeChain, output_spec: OutputSpec, out: str, classes: int) -> None:
    """From the value `out` to `logits`, and from these to `labels`."""
    maps = out
    if not output_spec.has_batch_axis:
        maps = steps.add("Reshape", out, steps.add("Concat", steps.constant(1), steps.add("Shape", out), axis=0))
    if output_spec.layout == "nhwc":
        maps = steps.add("Transpose", maps, perm=[0, 3, 1, 2])
    maps = steps.add("Cast", maps, to=TensorProto.FLOAT)
    if output_spec.kind == "probabilities":
        if output_spec.channels == 1:
            rest = steps.add("Sub", steps.constant(1, kind=np.float32), maps)
            maps = steps.add("Concat", rest, maps, axis=1)
        maps = steps.add("Log", steps.add("Max", maps, steps.constant(MIN_PROBABILITY, kind=np.float32)))
    elif output_spec.channels == 1:
        nothing = steps.add("Mul", maps, steps.constant(0, kind=np.float32))
        maps = steps.add("Concat", nothing, maps, axis=1)
    steps.add("Identity", maps, into="logits")
    full = maps if output_spec.full_size else steps.resize(maps, "linear")
    steps.add("Cast", steps.add("ArgMax", full, axis=1, keepdims=0), into="labels", to=TensorProto.UINT8)


def _add_label_outputs(steps: NodeChain, output_spec: OutputSpec, out: str, classes: int) -> None:
    """From labels at the value `out` to `labels` and `logits`."""
    small = steps.add("Cast", out, to=TensorProto.UINT8)  # -1 becomes 255, which is ignored
    sides = steps.constant(-2, -1) if output_spec.layout == "nchw" else steps.constant(-3, -2)
    shape = steps.add("Concat", steps.constant(-1, 1), steps.add("Gather", steps.add("Shape", small), sides), axis=0)
    labels = steps.add("Cast", steps.add("Reshape", small, shape), to=TensorProto.FLOAT)  # N x 1 x h x w
    each = steps.constant(*range(classes), kind=np.float32, shape=(1, classes, 1, 1))
    steps.add("Cast", steps.add("Equal", labels, each), into="logits", to=TensorProto.FLOAT)
    full = labels if output_spec.full_size else steps.resize(labels, "nearest", nearest_mode="round_prefer_ceil")
    shape = steps.add("Gather", steps.add("Shape", "images"), steps.constant(0, 1, 2))
    steps.add("Reshape", steps.add("Cast", full, to=TensorProto.UINT8), shape, into="labels")


def _rename_reserved(graph: GraphProto) -> dict[str, str]:
    """Rename values that have one of our names; returns new names by old ones.

    onnx.compose.add_prefix (1.23) does not rename weights that inner graphs take from an outer one.
    """
    renamed = {name: f"imported/{name}" for name in RESERVED_NAMES}
    for inner in iter_graphs(graph):
        for node in inner.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for entry in (*inner.input, *inner.output, *inner.initializer):
            entry.name = renamed.get(entry.name, entry.name)
        for sparse in inner.sparse_initializer:
            sparse.values.name = renamed.get(sparse.values.name, sparse.values.name)
    return renamed


def _required_nodes(graph: GraphProto, out: str) -> list[NodeProto]:
    """The nodes that a value depends on, in their order (ONNX sorts them topologically)."""
    needed, kept = {out}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node_inputs(node))
            kept.append(node)
    return kept[::-1]
