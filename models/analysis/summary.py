"""The stages of a network: operations, channels, stride, receptive field, parameters and FLOP of each.

A stage is a module that keeps the scale of its maps or changes it by a factor of two, such as `encoder.layer1`. A
larger module, such as an encoder, is split into its submodules. Neighbours in a list that have the same stride are
merged into one stage.
"""

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from models.analysis.complexity import NetworkTrace, count_flops, padded_size, trace_network
from models.analysis.receptive_field import ModuleTrace, feature_map_layout
from models.analysis.receptive_field_rules import OpCall
from models.architectures.base import Network
from models.architectures.meta_device import copy_to_meta

# Modules without listed operations that are merged into the stage before them, by parts of their class names.
MINOR_LAYERS = ("Norm", "ReLU", "GELU", "SiLU", "Hardswish", "Dropout", "Identity", "Activation", "Pad")


@dataclass(frozen=True)
class Stage:
    """One or several neighbouring modules of a network."""

    name: str  # of the module, or of the first and last one: encoder.layer1, features.0-3; "" for the remainder
    operations: dict[str, int]  # description, such as "conv 3x3 /2", and count
    channels: int | None  # of its output maps; None if its output is no map
    stride: float | None  # pixels of the image per value of these maps
    receptive_field: int | None  # of these maps, in pixels; None is the whole image
    parameters: int
    flops: int  # for one image; a multiplication and an addition count as two


@dataclass
class _ModuleGroup:
    module_names: list[str]
    scale: tuple[float, int] | None  # stride and channels of the last module's output; None if that is no map
    operations: Counter[str]


def list_stages(network: Network, size: tuple[int, ...]) -> list[Stage]:
    """The stages of the network for one image of `size` = (height, width) in pixels, padded as in `count_gflops`.

    The parameters and FLOP of all stages sum to the network's. The last stage, without a name, is the remainder that is
    in no other stage: modules that only training uses, and matrix products between the stages.
    """
    body, channels = copy_to_meta(network.body), network.num_channels
    trace = trace_network(body, describe_operation, channels, len(network.input.axes))
    flops = count_flops(body, padded_size(size), channels)
    modules = dict(body.named_modules())
    stages = []
    for group in _group_modules(modules, trace):
        stride, width = group.scale or (None, None)
        stages.append(
            Stage(
                _group_name(group.module_names),
                dict(group.operations),
                width,
                stride,
                trace.receptive_fields[group.module_names[-1]],
                sum(parameter.numel() for name in group.module_names for parameter in modules[name].parameters()),
                sum(flops.get(name, 0) for name in group.module_names),
            )
        )
    other_parameters = sum(parameter.numel() for parameter in body.parameters()) - sum(
        stage.parameters for stage in stages
    )
    other_flops = flops[""] - sum(stage.flops for stage in stages)
    if other_parameters or other_flops:
        stages.append(Stage("", {}, None, None, None, other_parameters, other_flops))
    return stages


def describe_operation(call: OpCall) -> str | None:
    """The name of an operation, such as "conv 3x3 /2"; None for operations that a summary does not list."""
    several = len(call.tracked_inputs()) > 1
    match call.name:
        case "convolution":
            return _describe_convolution(call)
        case "max_pool2d_with_indices" | "max_pool3d_with_indices" | "avg_pool1d" | "avg_pool2d" | "avg_pool3d":
            kind = "max" if call.name.startswith("max") else "mean"
            return f"{kind} pool {_format_kernel_size(call['kernel_size'], call)}" + _format_stride(
                call["stride"] or call["kernel_size"]
            )
        case "_adaptive_avg_pool2d" | "_adaptive_avg_pool3d" | "adaptive_max_pool2d" | "adaptive_max_pool3d":
            return f"pool to {_format_kernel_size(call['output_size'], call)}"
        case "mean" if call["self"].ndim - 2 == len(call["dim"] or []) > 0:
            return "global pool"
        case "add" if several:
            return "sum"
        case "mul" if several:
            return "gate"
        case "cat" if several:
            return "concat"
        case "_softmax" | "_safe_softmax":
            return "attention"
        case "addmm":
            return "linear"
        case name if "upsample" in name:
            return "upsample"
    return None


def _describe_convolution(call: OpCall) -> str:
    weight, groups = call["weight"], call["groups"]
    kind = "conv transposed" if call["transposed"] else "conv"
    kind += "" if groups == 1 else " depthwise" if groups == call["input"].shape[1] else " grouped"
    dilation = max(call["dilation"])
    return (
        f"{kind} {_format_kernel_size(weight.shape[2:], call)}"
        + _format_stride(call["stride"])
        + (f" dilated {dilation}" if dilation > 1 else "")
    )


def _format_kernel_size(lengths: list[int], call: OpCall) -> str:
    """Such as 3x3: one length per axis of the maps."""
    return "x".join(map(str, lengths if len(lengths) > 1 else list(lengths) * (call.result.ndim - 2)))


def _format_stride(stride: list[int]) -> str:
    return f" /{max(stride)}" if max(stride) > 1 else ""


def _group_modules(modules: dict[str, nn.Module], trace: NetworkTrace) -> list[_ModuleGroup]:
    """The modules of each stage, in the order in which they run."""
    children: dict[str, list[str]] = {name: [] for name in trace.module_traces}  # of the modules that ran
    for name in trace.module_traces:
        parents = (name[:end] for end in range(len(name) - 1, -1, -1) if name[end] == "." or end == 0)
        if name:
            children[next(parent for parent in parents if parent in children)].append(name)
    groups: list[_ModuleGroup] = []

    def visit(name: str) -> None:
        module_trace = trace.module_traces[name]
        if children[name] and (name == "" or _changes_scale(module_trace, trace)):
            for child in children[name]:
                visit(child)
        else:
            outputs = module_trace.outputs
            scale = _stride_and_channels(outputs[-1], trace) if outputs else None
            _append_or_merge(groups, _ModuleGroup([name], scale, module_trace.operations), modules[name])
        if groups:
            groups[-1].operations += module_trace.following_operations

    visit("")
    return groups


def _append_or_merge(groups: list[_ModuleGroup], group: _ModuleGroup, module: nn.Module) -> None:
    """Append a stage, or merge it into the last one: minor layers, and neighbours in a list with the same stride."""
    if not groups:
        groups.append(group)
        return
    last, name = groups[-1], group.module_names[0]
    minor = not group.operations and any(word in type(module).__name__ for word in MINOR_LAYERS)
    opening = len(groups) == 1 and not last.operations  # a first stage without operations takes the next one
    neighbours = _list_name(name) is not None and _list_name(name) == _list_name(last.module_names[-1])
    same_stride = last.scale is not None and group.scale is not None and last.scale[0] == group.scale[0]
    if minor or opening or (neighbours and same_stride):
        last.module_names.append(name)
        last.scale = group.scale
        last.operations = last.operations + group.operations
    else:
        groups.append(group)


def _list_name(name: str) -> str | None:
    """The name of the list that a module is in: `features` for `features.3`; None for a module in no list."""
    parent, _, child = name.rpartition(".")
    return parent if child.isdecimal() else None


def _group_name(names: list[str]) -> str:
    """The first name, and the index of its last neighbour in a list: `features.0-3`."""
    first = names[0]
    in_list = [name for name in names if _list_name(name) is not None and _list_name(name) == _list_name(first)]
    return f"{first}-{in_list[-1].rpartition('.')[2]}" if len(in_list) > 1 else first


def _changes_scale(module: ModuleTrace, trace: NetworkTrace) -> bool:
    """Whether the strides of a module's input and output maps differ by more than a factor of two."""
    inputs, outputs = (
        [scale[0] for tensor in tensors if (scale := _stride_and_channels(tensor, trace))]
        for tensors in (module.inputs, module.outputs)
    )
    return bool(inputs and outputs) and not 0.5 <= max(inputs) / max(outputs) <= 2


def _stride_and_channels(tensor: Tensor, trace: NetworkTrace) -> tuple[float, int] | None:
    """Stride and channels of a map; None for a tensor that is no map."""
    layout = feature_map_layout(tensor.shape, trace.probe_width, trace.dims)
    return (trace.probe_width / layout[1], layout[2]) if layout else None
