"""Reads an imported ONNX graph: its input from the graph itself, and from the user's hints where the graph says nothing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto

from models.errors import ConfigError, WeightsError, quoted
from models.spec import RGB_CHANNELS, SAMPLE_DTYPES

Layout = Literal["nchw", "nhwc"]
ChannelOrder = Literal["rgb", "bgr"]
ScoreKind = Literal["logits", "probabilities"]
MaxPixelValue = Literal[1, 255]
Numbers = tuple[float, ...]  # one for each channel, or one for all
Dim = int | None  # length of an axis; None: any

MAX_GRAPH_BYTES = 2**31 - 2**20  # bytes: protobuf allows 2 GB, and the added steps need some
MIN_OPSET = 11  # Resize with sizes and half-pixel coordinates; older graphs are converted to TARGET_OPSET
TARGET_OPSET = 13
DTYPES = {
    TensorProto.UINT8: "uint8",
    TensorProto.FLOAT16: "float16",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
}
# ImageNet's, as most networks were trained, for pixels from 0 to 1.
RGB_COUNT = 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class UserHints:
    """The user's options for reading a graph; None: read it from the graph."""

    channels: tuple[str, ...] | None = None  # names, in the network's order; None: red, green and blue
    samples: str | None = None  # type of the samples of images that are not RGB, one of SAMPLE_DTYPES
    mean: Numbers | None = None  # in the network's channel order and the units of `scale`
    std: Numbers | None = None
    scale: MaxPixelValue | None = None  # value of white before mean and std
    order: ChannelOrder | None = None
    layout: Layout | None = None
    output: str | None = None
    output_layout: Layout | None = None
    scores: ScoreKind | None = None

    @classmethod
    def parse(cls, **options: str | int | None) -> "UserHints":
        """From the values of the command line's options, by field name. Raises: ConfigError."""
        choices = {
            "scale": MaxPixelValue,
            "order": ChannelOrder,
            "layout": Layout,
            "output_layout": Layout,
            "scores": ScoreKind,
        }
        fields: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name, value in fields.items():
            option = "--" + name.replace("_", "-")
            if name in ("mean", "std"):
                fields[name] = _parse_numbers(option, value)
            elif name == "channels":
                fields[name] = _parse_channels(value)
            elif name == "samples" and value not in SAMPLE_DTYPES:
                raise ConfigError(f"{option} {value} is not possible; choose {' or '.join(SAMPLE_DTYPES)}.")
            elif name in choices and value not in get_args(choices[name]):
                allowed = " or ".join(str(choice) for choice in get_args(choices[name]))
                raise ConfigError(f"{option} {value} is not possible; choose {allowed}.")
        return cls(**fields)


@dataclass(frozen=True)
class InputSpec:
    """A graph's input: (pixel x max_pixel_value / 255 - mean) / std, in its channel order and layout."""

    name: str
    dtype: str  # uint8, float16, float32 or float64; uint8 is not normalised
    layout: Layout
    batch: Dim
    size: tuple[int, int] | None  # (height, width) in pixels; None: any
    order: ChannelOrder
    max_pixel_value: MaxPixelValue
    mean: Numbers
    std: Numbers
    channels: tuple[str, ...] = RGB_CHANNELS  # names, in the network's order but for `order`
    samples: str = "uint8"  # type of the samples of images

    @property
    def is_rgb(self) -> bool:
        """Whether it takes photographs."""
        return self.channels == RGB_CHANNELS and self.samples == "uint8"


def read_graph(file: Path) -> ModelProto:
    """Read an ONNX file and the data files beside it into one graph, with functions inlined and a recent opset.

    Raises: WeightsError for a file that is missing, broken, incomplete, or larger than 2 GB.
    """
    if not file.is_file():
        raise WeightsError(f"{file} {'is a folder' if file.is_dir() else 'does not exist'}; name an ONNX file.")
    _check_size(file, file.stat().st_size)
    try:
        model = onnx.load(file, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise WeightsError(
            f"{file} is not an ONNX file, or is truncated: it cannot be parsed. Export it again."
        ) from error
    if not model.graph.node or not model.ir_version:
        raise WeightsError(f"{file} is not an ONNX file: it holds no graph. Export it again.")
    _load_external_data(model, file)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return _upgrade_opset(model, file)


def resolve_input(file: Path, model: ModelProto, hints: UserHints, size: tuple[int, int] | None) -> InputSpec:
    """The graph's input; `size` is the (height, width) of `--input exact`, if given.

    Raises: WeightsError for a graph that takes no images, ConfigError for a hint that is missing or wrong.
    """
    known = {entry.name for entry in model.graph.initializer}  # older files list these as inputs too
    inputs = [entry for entry in model.graph.input if entry.name not in known]
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs) or "none"
        raise WeightsError(f"{file} takes {len(inputs)} inputs ({names}); export it with the image as its only input.")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in DTYPES:
        known_types = {number: name.lower() for name, number in TensorProto.DataType.items()}
        dtype = known_types.get(tensor.elem_type, f"of the unknown type {tensor.elem_type}")
        raise WeightsError(
            f"{file}: the input {quoted(inputs[0].name)} is {dtype}; export it with one of {', '.join(DTYPES.values())}."
        )
    dims = _input_dims(file, inputs[0])
    channels = hints.channels or RGB_CHANNELS
    layout = _infer_layout(file, dims, hints.layout, len(channels))
    height, width = dims[2:] if layout == "nchw" else dims[1:3]
    dtype = DTYPES[tensor.elem_type]
    is_rgb = channels == RGB_CHANNELS and hints.samples in (None, "uint8")
    resolve = _resolve_normalisation if is_rgb else _resolve_sample_normalisation
    scale, mean, std = resolve(file, hints, dtype)
    samples = hints.samples or ("uint8" if is_rgb or dtype == "uint8" else "float32")
    return InputSpec(
        name=inputs[0].name,
        dtype=dtype,
        layout=layout,
        batch=dims[0],
        size=_infer_size(file, (height, width), size),
        order=hints.order or "rgb",
        max_pixel_value=scale,
        mean=mean,
        std=std,
        channels=channels,
        samples=samples,
    )


def format_shape(shape: Iterable[Dim]) -> str:
    """A shape for people: `1 x 21 x any x any`."""
    return " x ".join("any" if length is None else str(length) for length in shape)


def _load_external_data(model: ModelProto, file: Path) -> None:
    tensors = [entry for entry in model.graph.initializer if entry.data_location == TensorProto.EXTERNAL]
    external = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
    for name in sorted({entry.get("location", "") for entry in external}):
        if not (file.parent / name).is_file():
            raise WeightsError(
                f"{file} keeps its weights in {name}, which is missing; put that file into {file.parent}."
            )
    try:
        _check_size(file, file.stat().st_size + sum(int(entry.get("length", 0)) for entry in external))
        onnx.load_external_data_for_model(model, str(file.parent))
    except WeightsError:
        raise
    except Exception as error:  # onnx checks location and length, and raises many types
        raise WeightsError(f"{file}: its data file cannot be read: {shorten_error(error)}") from error


def _check_size(file: Path, size: int) -> None:
    if size > MAX_GRAPH_BYTES:
        raise WeightsError(
            f"{file} has {size / 1e9:.1f} GB of weights; a bundle's model.onnx holds at most 2 GB. Export it in float16."
        )


def _upgrade_opset(model: ModelProto, file: Path) -> ModelProto:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset >= MIN_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, TARGET_OPSET)
    except Exception as error:  # its C++ raises RuntimeError, its Python code many types
        raise WeightsError(
            f"{file} has opset {opset} and cannot be converted to {TARGET_OPSET} ({shorten_error(error)}); "
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
            f"{file}: the input {quoted(entry.name)} is {format_shape(dims)}, not an image, and only "
            "networks of images can be imported; export it with N x 3 x H x W or N x H x W x 3."
        )
    return dims


def _infer_layout(file: Path, dims: tuple[Dim, ...], hint: Layout | None, count: int) -> Layout:
    axes: dict[Layout, Dim] = {"nchw": dims[1], "nhwc": dims[3]}
    sides: dict[Layout, tuple[Dim, ...]] = {"nchw": dims[2:], "nhwc": dims[1:3]}
    possible: list[Layout] = [
        layout
        for layout, channels in axes.items()
        # No network takes images of four rows: such a short axis holds channels.
        if channels in (None, count) and all(side is None or side > 4 for side in sides[layout])
    ]
    if hint:
        possible = [layout for layout in possible if layout == hint]
    if not possible:
        under_hint = f" under --layout {hint}" if hint else ""
        if count != RGB_COUNT:
            raise ConfigError(
                f"{file} takes an input of {format_shape(dims)}, which has no axis of {count} channels{under_hint}; --channels "
                "names each channel of the network, in its order."
            )
        raise WeightsError(
            f"{file} takes an input of {format_shape(dims)}, which has no axis of three channels{under_hint}; "
            "export it with N x 3 x H x W or N x H x W x 3, or name other channels: --channels NAME,NAME."
        )
    certain = [layout for layout in possible if axes[layout] == count]
    if not certain and len(possible) > 1:
        raise ConfigError(f"{file} does not tell which axis holds the channels; add --layout nchw or --layout nhwc.")
    return (certain or possible)[0]


def _infer_size(file: Path, dims: tuple[Dim, Dim], requested: tuple[int, int] | None) -> tuple[int, int] | None:
    if requested and any(dim not in (None, side) for dim, side in zip(dims, requested, strict=True)):
        raise ConfigError(
            f"{file} takes images of height x width {format_shape(dims)}, not {requested[0]} x {requested[1]}; omit --input."
        )
    if requested or dims == (None, None):
        return requested
    if None in dims:
        raise ConfigError(
            f"{file} takes images of height x width {format_shape(dims)}; "
            "add the size of the free side: --input exact:HEIGHTxWIDTH."
        )
    return (dims[0] or 0, dims[1] or 0)


def _resolve_sample_normalisation(file: Path, hints: UserHints, dtype: str) -> tuple[MaxPixelValue, Numbers, Numbers]:
    """Mean and std of channels that are not RGB: in units of the samples, and never guessed."""
    count = len(hints.channels or RGB_CHANNELS)
    if hints.scale or hints.order:
        raise ConfigError(
            "--scale and --order are for RGB: omit them; --mean and --std of other channels are in units of the samples."
        )
    if dtype == "uint8":
        return _resolve_normalisation(file, hints, dtype)[0], (0.0,) * count, (1.0,) * count
    if hints.mean is None or hints.std is None:
        raise ConfigError(
            f"{file} does not say how its {count} channels are normalised; add --mean and --std, in units of the samples (--mean 0 "
            "--std 1 if they are not)."
        )
    for option, numbers in (("--mean", hints.mean), ("--std", hints.std)):
        if len(numbers) not in (1, count):
            raise ConfigError(
                f"{option} has {len(numbers)} numbers for {count} channels; write one for each, or one for all."
            )
    mean, std = (numbers * (count if len(numbers) == 1 else 1) for numbers in (hints.mean, hints.std))
    if min(std) <= 0:
        raise ConfigError(f"--std {','.join(f'{value:g}' for value in std)} is a divisor; each number must be above 0.")
    return 255, mean, std


def _resolve_normalisation(file: Path, hints: UserHints, dtype: str) -> tuple[MaxPixelValue, Numbers, Numbers]:
    given = [hints.mean, hints.std]
    if dtype == "uint8":
        if hints.scale or any(given):
            raise ConfigError(
                f"{file} takes bytes (uint8), so the graph normalises them itself; omit --mean, --std and --scale."
            )
        return 255, (0.0,) * 3, (1.0,) * 3
    if None in given and any(given):
        raise ConfigError("--mean and --std belong together; pass both (--std 1 if the network divides by nothing).")
    mean, std = hints.mean or IMAGENET_MEAN, hints.std or IMAGENET_STD
    for option, numbers in (("--mean", mean), ("--std", std)):
        if len(numbers) not in (1, RGB_COUNT):
            raise ConfigError(
                f"{option} has {len(numbers)} numbers; write three numbers, as in 0.5,0.5,0.5, or one for all channels."
            )
    mean, std = (numbers * (RGB_COUNT if len(numbers) == 1 else 1) for numbers in (mean, std))
    if min(std) <= 0:
        raise ConfigError(f"--std {','.join(f'{value:g}' for value in std)} is a divisor; each number must be above 0.")
    return hints.scale or (1 if max(*mean, *std) <= 1 else 255), mean, std


def _parse_channels(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len({name.lower() for name in names}) != len(names):
        raise ConfigError(f"--channels {text} is not possible; write different names, as in red,green,blue,nir.")
    return names


def _parse_numbers(option: str, text: str) -> Numbers:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ConfigError(
            f"{option} {text} is not possible; write three numbers, as in 0.5,0.5,0.5, one for each of --channels, or one for all."
        )
    return numbers


def shorten_error(error: BaseException) -> str:
    """A library's error, cut to one line."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 240 else text[:240] + "..."
