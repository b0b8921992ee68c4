"""Walks over the nodes of an ONNX graph and of the graphs inside it."""

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto

# Operators that only move or rescale values on the way from an activation to the graph's output.
_PASS_THROUGH_OPS = (
    "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Resize", "Upsample", "Slice",
    "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip


def producing_operator(model: ModelProto, output: str) -> str:
    """The operator that computes an output's values (`Softmax`, `Conv`, ...), behind those that only move them."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in _PASS_THROUGH_OPS and node.input:
        node = producers.get(node.input[0])
    return node.op_type if node is not None else ""


def is_quantised(model: ModelProto) -> bool:
    """Whether a graph is quantised."""
    return any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in model.graph.node)


def iter_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and the graphs inside it, such as the branches of an `If`."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    yield from iter_graphs(inner)


def strip_metadata(graph: GraphProto) -> None:
    """Remove what torch's exporter adds to each node: lines of source code, with the paths of the exporting machine."""
    for node in (node for inner in iter_graphs(graph) for node in inner.node):
        node.doc_string = ""
        del node.metadata_props[:]


def node_inputs(node: NodeProto) -> Iterator[str]:
    """The names of the values that a node needs, including those that its inner graphs take from outside."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from node_inputs(inner)
            yield from (entry.name for entry in graph.output)
