"""What a foreign ONNX graph says of itself, and what its user says of it where it is silent."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from models.errors import ConfigError, WeightsError

Layout = Literal["nchw", "nhwc"]
ChannelOrder = Literal["rgb", "bgr"]
ScoreKind = Literal["logits", "probabilities"]
MaxPixelValue = Literal[1, 255]
Triple = tuple[float, float, float]  # a number for each channel
Dim = int | None  # an axis of one length, or of any

MAX_GRAPH_BYTES = 2**31 - 2**20  # bytes: protobuf ends at 2 GB, and the steps around the graph need some
MIN_OPSET = 11  # Resize with sizes and half-pixel coordinates; older graphs are brought to the next
TARGET_OPSET = 13
DTYPES = {
    TensorProto.UINT8: "uint8",
    TensorProto.FLOAT16: "float16",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
}
# ImageNet's, as most networks were trained; samples run from 0 to 1 before them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What leaves values as they are, or only moves them, on the way from an activation to the graph's output.
_PASS_THROUGH_OPS = (
    "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Resize", "Upsample", "Slice",
    "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip


@dataclass(frozen=True)
class UserHints:
    """What the user says of a graph; None is left to the graph."""

    mean: Triple | None = None  # in the network's order of channels and the units of `scale`
    std: Triple | None = None
    scale: MaxPixelValue | None = None  # what white is before mean and deviation
    order: ChannelOrder | None = None
    layout: Layout | None = None
    output: str | None = None
    output_layout: Layout | None = None
    scores: ScoreKind | None = None

    @classmethod
    def parse(cls, **words: str | int | None) -> "UserHints":
        """From the words of the command line, by the fields' names. Raises: ConfigError."""
        kinds = {
            "scale": MaxPixelValue,
            "order": ChannelOrder,
            "layout": Layout,
            "output_layout": Layout,
            "scores": ScoreKind,
        }
        fields: dict[str, Any] = {name: word for name, word in words.items() if word is not None}
        for name, word in fields.items():
            option = "--" + name.replace("_", "-")
            if name in ("mean", "std"):
                fields[name] = _parse_triple(option, word)
            elif name in kinds and word not in get_args(kinds[name]):
                wanted = " or ".join(str(choice) for choice in get_args(kinds[name]))
                raise ConfigError(f"{option} {word} is not possible; choose {wanted}.")
        return cls(**fields)


@dataclass(frozen=True)
class InputSpec:
    """How images enter a graph: (sample x scale / 255 - mean) / std, in its order of channels and its layout."""

    name: str
    dtype: str  # uint8, float16, float32 or float64; to uint8 the samples go as they are
    layout: Layout
    batch: Dim
    size: tuple[int, int] | None  # (height, width) in pixels; None: any
    order: ChannelOrder
    max_pixel_value: MaxPixelValue
    mean: Triple
    std: Triple


def read_graph(file: Path) -> ModelProto:
    """Read an ONNX file and the data files beside it into one graph, without functions and of a recent opset.

    Raises: WeightsError for a file that is none, is broken, lacks a part, or has more than 2 GB.
    """
    if not file.is_file():
        raise WeightsError(f"{file} is {'a folder' if file.is_dir() else 'not there'}; name an ONNX file.")
    _check_size(file, file.stat().st_size)
    try:
        model = onnx.load(file, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise WeightsError(f"{file} is no ONNX file, or it is cut short: it cannot be parsed.") from error
    if not model.graph.node or not model.ir_version:
        raise WeightsError(f"{file} is no ONNX file: it holds no graph.")
    _load_external_data(model, file)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return _upgrade_opset(model, file)


def resolve_input(file: Path, model: ModelProto, told: UserHints, size: tuple[int, int] | None) -> InputSpec:
    """How images enter; `size` is the one (height, width) that the user wants the graph to see.

    Raises: WeightsError for a graph that takes no images, ConfigError for what the user must add or take back.
    """
    known = {entry.name for entry in model.graph.initializer}  # older files list these as inputs too
    inputs = [entry for entry in model.graph.input if entry.name not in known]
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs) or "none"
        raise WeightsError(f"{file} takes {len(inputs)} inputs ({names}); export it with the image as its only one.")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in DTYPES:
        known_types = {number: word.lower() for word, number in TensorProto.DataType.items()}
        kind = known_types.get(tensor.elem_type, f"of the unknown type {tensor.elem_type}")
        raise WeightsError(
            f"{file}: the input {inputs[0].name!r} is {kind}; wanted is one of {', '.join(DTYPES.values())}: export it so."
        )
    dims = _input_dims(file, inputs[0])
    layout = _infer_layout(file, dims, told.layout)
    high, wide = dims[2:] if layout == "nchw" else dims[1:3]
    dtype = DTYPES[tensor.elem_type]
    scale, mean, std = _resolve_normalisation(file, told, dtype)
    return InputSpec(
        name=inputs[0].name,
        dtype=dtype,
        layout=layout,
        batch=dims[0],
        size=_infer_size(file, (high, wide), size),
        order=told.order or "rgb",
        max_pixel_value=scale,
        mean=mean,
        std=std,
    )


def producing_operator(model: ModelProto, output: str) -> str:
    """The operator that made an output's values (`Softmax`, `Conv`, ...): what only moves them is passed over."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in _PASS_THROUGH_OPS and node.input:
        node = makers.get(node.input[0])
    return node.op_type if node is not None else ""


def is_quantised(model: ModelProto) -> bool:
    """Whether a graph computes in integers of few bits."""
    return any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in model.graph.node)


def iter_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside it, as the branches of an `If`."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    yield from iter_graphs(inner)


def strip_metadata(graph: GraphProto) -> None:
    """Take away what torch's exporter writes to each node: lines of source, with the folders of who exported it."""
    for node in (node for inner in iter_graphs(graph) for node in inner.node):
        node.doc_string = ""
        del node.metadata_props[:]


def node_inputs(node: NodeProto) -> Iterator[str]:
    """The names of the values that a node needs, those that its inner graphs take from outside among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from node_inputs(inner)
            yield from (entry.name for entry in graph.output)


def format_shape(shape: Iterable[Dim]) -> str:
    """A shape for people: `1 x 21 x any x any`."""
    return " x ".join("any" if length is None else str(length) for length in shape)


def _load_external_data(model: ModelProto, file: Path) -> None:
    tensors = [entry for entry in model.graph.initializer if entry.data_location == TensorProto.EXTERNAL]
    facts = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
    for name in sorted({fact.get("location", "") for fact in facts}):
        if not (file.parent / name).is_file():
            raise WeightsError(
                f"{file} keeps its weights in {name}, which is not beside it; put that file into {file.parent}."
            )
    try:
        _check_size(file, file.stat().st_size + sum(int(fact.get("length", 0)) for fact in facts))
        onnx.load_external_data_for_model(model, str(file.parent))
    except WeightsError:
        raise
    except Exception as error:  # onnx checks that they stay in the folder and are long enough, each in its own way
        raise WeightsError(f"{file}: its data file cannot be read: {shorten_error(error)}") from error


def _check_size(file: Path, size: int) -> None:
    if size > MAX_GRAPH_BYTES:
        raise WeightsError(
            f"{file} has {size / 1e9:.1f} GB of weights; a bundle's model.onnx holds 2 GB. Export it in float16."
        )


def _upgrade_opset(model: ModelProto, file: Path) -> ModelProto:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset >= MIN_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, TARGET_OPSET)
    except Exception as error:  # its C++ raises RuntimeError, its Python whatever it met
        raise WeightsError(
            f"{file} is of opset {opset} and cannot be brought to {TARGET_OPSET} ({shorten_error(error)}); "
            f"export it with opset {TARGET_OPSET} or later."
        ) from error


def _input_dims(file: Path, entry: ValueInfoProto) -> tuple[Dim, ...]:
    tensor = entry.type.tensor_type
    if not tensor.HasField("shape"):
        return (None,) * 4
    # Some exporters write 0 or -1 for an axis of any length.
    dims = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    if len(dims) != 4:
        raise WeightsError(
            f"{file}: the input {entry.name!r} is {format_shape(dims)}; wanted are images, N x 3 x H x W or N x H x W x 3."
        )
    return dims


def _infer_layout(file: Path, dims: tuple[Dim, ...], told: Layout | None) -> Layout:
    axes: dict[Layout, Dim] = {"nchw": dims[1], "nhwc": dims[3]}
    sides: dict[Layout, tuple[Dim, ...]] = {"nchw": dims[2:], "nhwc": dims[1:3]}
    possible: list[Layout] = [
        layout
        for layout, channels in axes.items()
        # No network sees images of four rows: an axis as short as that is one of channels.
        if channels in (None, 3) and all(side is None or side > 4 for side in sides[layout])
    ]
    if told:
        possible = [layout for layout in possible if layout == told]
    if not possible:
        wanted = f"; under --layout {told}" if told else ""
        raise WeightsError(
            f"{file} takes images of {format_shape(dims)}{wanted} no axis for red, green and blue is there. "
            "Wanted are three channels, N x 3 x H x W or N x H x W x 3."
        )
    certain = [layout for layout in possible if axes[layout] == 3]
    if not certain and len(possible) > 1:
        raise ConfigError(f"{file} does not say where its channels lie; add --layout nchw or --layout nhwc.")
    return (certain or possible)[0]


def _infer_size(file: Path, dims: tuple[Dim, Dim], wish: tuple[int, int] | None) -> tuple[int, int] | None:
    if wish and any(dim not in (None, side) for dim, side in zip(dims, wish, strict=True)):
        raise ConfigError(
            f"{file} takes images of height x width {format_shape(dims)}, not {wish[0]} x {wish[1]}; leave --input out."
        )
    if wish or dims == (None, None):
        return wish
    if None in dims:
        raise ConfigError(
            f"{file} takes images of height x width {format_shape(dims)}; name the free one too: --input exact:HEIGHTxWIDTH."
        )
    return (dims[0] or 0, dims[1] or 0)


def _resolve_normalisation(file: Path, told: UserHints, dtype: str) -> tuple[MaxPixelValue, Triple, Triple]:
    given = [told.mean, told.std]
    if dtype == "uint8":
        if told.scale or any(given):
            raise ConfigError(
                f"{file} takes bytes (uint8), so its normalisation is inside; leave out --mean, --std and --scale."
            )
        return 255, (0.0,) * 3, (1.0,) * 3
    if None in given and any(given):
        raise ConfigError("--mean and --std belong together; give both (--std 1 where the network divides by nothing).")
    mean, std = told.mean or IMAGENET_MEAN, told.std or IMAGENET_STD
    if min(std) <= 0:
        raise ConfigError(f"--std {','.join(f'{value:g}' for value in std)}: is divided by, so each must be above 0.")
    return told.scale or (1 if max(*mean, *std) <= 1 else 255), mean, std


def _parse_triple(option: str, word: str) -> Triple:
    try:
        numbers = [float(part) for part in word.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{option} {word} is not possible; wanted are three numbers, as 0.5,0.5,0.5, or one for all.")
    first, second, third = numbers if len(numbers) == 3 else numbers * 3
    return first, second, third


def shorten_error(error: BaseException) -> str:
    """An error of a library, cut to the length of a line."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 240 else text[:240] + "..."
