"""Puts a foreign graph into the house's contract, within one ONNX graph:

    images uint8 N x H x W x 3 RGB -> labels uint8 N x H x W, logits float32 N x C x h x w

`labels == argmax(bilinear(logits, H x W))`, as for the house's own networks. A graph that gives labels alone has them
resized by nearest neighbour, and its `logits` are 1 for the label of a place and 0 for the others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from training.freezing.onnx_import.graph_reader import InputSpec, iter_graphs, node_inputs, strip_metadata
from training.freezing.onnx_import.reference import MIN_PROBABILITY, OutputSpec

RESERVED_NAMES = ("images", "labels", "logits")
IR_VERSION = 8  # of the file format: enough for any opset that is read here, and weights need be no inputs as before 4
ONNX_TYPES = {
    "uint8": TensorProto.UINT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


def rewrite_graph(model: ModelProto, intake: InputSpec, outlet: OutputSpec, classes: int) -> ModelProto:
    """The foreign graph with the steps before and after it; what its other outputs alone need falls away.

    `model` is changed, and is of no use afterwards.
    """
    graph = model.graph
    strip_metadata(graph)
    renamed = _rename_reserved(graph)
    entry, out = (renamed.get(name, name) for name in (intake.name, outlet.name))
    opset = next(known.version for known in model.opset_import if known.domain in ("", "ai.onnx"))
    before, after = NodeChain("before", opset), NodeChain("after", opset)
    _add_preprocessing(before, intake, entry)
    (_add_label_outputs if outlet.kind == "labels" else _add_score_outputs)(after, outlet, out, classes)

    nodes = [*before.nodes, *_required_nodes(graph, out), *after.nodes]
    used = {name for node in nodes for name in node_inputs(node)}
    batch = "N" if intake.batch != 1 and outlet.has_batch_axis else 1
    height, width = intake.size or ("H", "W")
    frozen = helper.make_graph(
        nodes,
        "maskserve",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, height, width, 3])],
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
    """A chain of nodes; what they make is named by the chain and its place in it."""

    def __init__(self, chain: str, opset: int) -> None:
        self.prefix = chain
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, into: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its output, which is `into` where that is given."""
        into = into or self._next_name(operator)
        self.nodes.append(helper.make_node(operator, inputs, [into], **attributes))
        return into

    def constant(self, *values: float, kind: type = np.int64, shape: tuple[int, ...] = (-1,)) -> str:
        """A constant of some numbers, along one axis or in `shape`; returns its name."""
        array: NDArray[np.generic] = np.array(values, kind).reshape(shape)
        name = self._next_name("constant")
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def resize(self, maps: str, mode: str, **attributes: Any) -> str:
        """Maps N x C x h x w to N x C x H x W of `images`, pixels being areas (torch's align_corners=False)."""
        kept = self.add("Gather", self.add("Shape", maps), self.constant(0, 1))
        sides = self.add("Gather", self.add("Shape", "images"), self.constant(1, 2))
        nothing = "" if self.opset >= 13 else self.constant(kind=np.float32, shape=(0,))  # region, and scales
        sizes = self.add("Concat", kept, sides, axis=0)
        attributes = {"mode": mode, "coordinate_transformation_mode": "half_pixel", **attributes}
        return self.add("Resize", maps, nothing, nothing, sizes, **attributes)

    def _next_name(self, kind: str) -> str:
        return f"maskserve/{self.prefix}/{len(self.nodes) + len(self.constants)}/{kind}"


def _add_preprocessing(steps: NodeChain, intake: InputSpec, entry: str) -> None:
    """From `images` to the value `entry`: order of channels, layout, normalisation, type."""
    values = "images"
    if intake.order == "bgr":
        values = steps.add("Gather", values, steps.constant(2, 1, 0), axis=3)
    if intake.layout == "nchw":  # while they are bytes, a quarter is to be moved
        values = steps.add("Transpose", values, perm=[0, 3, 1, 2])
    if intake.dtype != "uint8":
        unit = 255 / intake.max_pixel_value
        shape = (1, 3, 1, 1) if intake.layout == "nchw" else (1, 1, 1, 3)
        mean = steps.constant(*(value * unit for value in intake.mean), kind=np.float32, shape=shape)
        std = steps.constant(*(value * unit for value in intake.std), kind=np.float32, shape=shape)
        values = steps.add("Cast", values, to=TensorProto.FLOAT)
        values = steps.add("Div", steps.add("Sub", values, mean), std)
    steps.add("Cast", values, into=entry, to=ONNX_TYPES[intake.dtype])


def _add_score_outputs(steps: NodeChain, outlet: OutputSpec, out: str, classes: int) -> None:
    """From the value `out` to `logits`, and from these to `labels`."""
    maps = out
    if not outlet.has_batch_axis:
        maps = steps.add("Reshape", out, steps.add("Concat", steps.constant(1), steps.add("Shape", out), axis=0))
    if outlet.layout == "nhwc":
        maps = steps.add("Transpose", maps, perm=[0, 3, 1, 2])
    maps = steps.add("Cast", maps, to=TensorProto.FLOAT)
    if outlet.kind == "probabilities":
        if outlet.channels == 1:
            rest = steps.add("Sub", steps.constant(1, kind=np.float32), maps)
            maps = steps.add("Concat", rest, maps, axis=1)
        maps = steps.add("Log", steps.add("Max", maps, steps.constant(MIN_PROBABILITY, kind=np.float32)))
    elif outlet.channels == 1:
        nothing = steps.add("Mul", maps, steps.constant(0, kind=np.float32))
        maps = steps.add("Concat", nothing, maps, axis=1)
    steps.add("Identity", maps, into="logits")
    full = maps if outlet.full_size else steps.resize(maps, "linear")
    steps.add("Cast", steps.add("ArgMax", full, axis=1, keepdims=0), into="labels", to=TensorProto.UINT8)


def _add_label_outputs(steps: NodeChain, outlet: OutputSpec, out: str, classes: int) -> None:
    """From labels at the value `out` to `labels` and `logits`."""
    small = steps.add("Cast", out, to=TensorProto.UINT8)  # -1 becomes 255, void
    sides = steps.constant(-2, -1) if outlet.layout == "nchw" else steps.constant(-3, -2)
    shape = steps.add("Concat", steps.constant(-1, 1), steps.add("Gather", steps.add("Shape", small), sides), axis=0)
    plane = steps.add("Cast", steps.add("Reshape", small, shape), to=TensorProto.FLOAT)  # N x 1 x h x w
    each = steps.constant(*range(classes), kind=np.float32, shape=(1, classes, 1, 1))
    steps.add("Cast", steps.add("Equal", plane, each), into="logits", to=TensorProto.FLOAT)
    full = plane if outlet.full_size else steps.resize(plane, "nearest", nearest_mode="round_prefer_ceil")
    shape = steps.add("Gather", steps.add("Shape", "images"), steps.constant(0, 1, 2))
    steps.add("Reshape", steps.add("Cast", full, to=TensorProto.UINT8), shape, into="labels")


def _rename_reserved(graph: GraphProto) -> dict[str, str]:
    """Give values that go by our names another; returns old names with the new.

    onnx.compose.add_prefix (1.23) forgets the inner graphs that take an outer graph's weights.
    """
    renamed = {name: f"foreign/{name}" for name in RESERVED_NAMES}
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
    """The nodes that a value comes from, in their order (which ONNX has sorted)."""
    wanted, kept = {out}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node_inputs(node))
            kept.append(node)
    return kept[::-1]
