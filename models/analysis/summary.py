"""The story of a network, stage by stage: what happens to the image on its way to the scores.

A stage is a module that keeps the scale of its maps or changes it by a factor of two, such as `encoder.layer1`. What
is larger, as an encoder, is told by its parts; neighbours in a list that have the same stride are told as one.
"""

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from models.analysis.complexity import NetworkTrace, count_flops, trace_network
from models.analysis.receptive_field import ModuleTrace, feature_map_layout
from models.analysis.receptive_field_rules import OpCall
from models.architectures.base import Network
from models.architectures.meta_device import copy_to_meta

# Modules that are told with the stage before them.
MINOR_LAYERS = ("Norm", "ReLU", "GELU", "SiLU", "Hardswish", "Dropout", "Identity", "Activation", "Pad")


@dataclass(frozen=True)
class Stage:
    """A stretch of the network, in the order in which the image meets it."""

    name: str  # of its module, or of the first and last one: encoder.layer1, features.0-3; "" is what is left over
    operations: dict[str, int]  # its operations in words, such as "conv 3x3 /2", and how many of each
    channels: int | None  # of the maps that it hands on; None where these are no maps
    stride: float | None  # pixels of the image for one value of these maps
    receptive_field: int | None  # their receptive field in pixels; None is the whole image
    parameters: int
    flops: int  # of one image; a multiplication and an addition are two


@dataclass
class _ModuleGroup:
    module_names: list[str]  # of the modules that it tells
    scale: tuple[float, int] | None  # stride and channels of the last one's maps
    operations: Counter[str]


def list_stages(network: Network, size: tuple[int, int]) -> list[Stage]:
    """Every stage of the network for one image of `size` = (height, width) in pixels, padded as in `gflop`.

    The parameters and FLOP of all stages sum to the network's. What no stage holds comes last, without a name:
    parts that serve training alone, and products between the stages.
    """
    body = copy_to_meta(network.body)
    found, work = trace_network(body, describe_operation), count_flops(body, size)
    modules = dict(body.named_modules())
    told = []
    for row in _group_modules(modules, found):
        channels, stride = (row.scale[1], row.scale[0]) if row.scale else (None, None)
        weights = sum(one.numel() for name in row.module_names for one in modules[name].parameters())
        share = sum(work.get(name, 0) for name in row.module_names)
        told.append(
            Stage(
                _group_name(row.module_names),
                dict(row.operations),
                channels,
                stride,
                found.receptive_fields[row.module_names[-1]],
                weights,
                share,
            )
        )
    weights = sum(one.numel() for one in body.parameters()) - sum(stage.parameters for stage in told)
    share = work[""] - sum(stage.flops for stage in told)
    return [*told, Stage("", {}, None, None, None, weights, share)] if weights or share else told


def describe_operation(call: OpCall) -> str | None:
    """What an operation is called in the field, for those that a network's story is about."""
    several = len(call.tracked_inputs()) > 1
    match call.name:
        case "convolution":
            return _describe_convolution(call)
        case "max_pool2d_with_indices" | "avg_pool2d":
            kind = "max" if call.name.startswith("max") else "mean"
            return f"{kind} pool {_format_kernel_size(call['kernel_size'])}" + _format_stride(
                call["stride"] or call["kernel_size"]
            )
        case "_adaptive_avg_pool2d" | "adaptive_max_pool2d":
            return f"pool to {_format_kernel_size(call['output_size'])}"
        case "mean" if call["self"].ndim == 4 and len(call["dim"] or []) == 2:
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
        f"{kind} {_format_kernel_size(weight.shape[2:])}"
        + _format_stride(call["stride"])
        + (f" dilated {dilation}" if dilation > 1 else "")
    )


def _format_kernel_size(lengths: list[int]) -> str:
    return "x".join(map(str, lengths if len(lengths) > 1 else [*lengths, *lengths]))


def _format_stride(stride: list[int]) -> str:
    return f" /{max(stride)}" if max(stride) > 1 else ""


def _group_modules(modules: dict[str, nn.Module], found: NetworkTrace) -> list[_ModuleGroup]:
    """The stages by their modules, in the order in which they run."""
    parts: dict[str, list[str]] = {name: [] for name in found.module_traces}
    for name in found.module_traces:
        parents = (name[:end] for end in range(len(name) - 1, -1, -1) if name[end] == "." or end == 0)
        if name:
            parts[next(parent for parent in parents if parent in parts)].append(name)
    rows: list[_ModuleGroup] = []

    def tell(name: str) -> None:
        visit = found.module_traces[name]
        if parts[name] and (name == "" or _changes_scale(visit, found.probe_width)):
            for part in parts[name]:
                tell(part)
        else:
            _append_or_merge(
                rows,
                _ModuleGroup(
                    [name],
                    _stride_and_channels(visit.outputs[-1], found.probe_width) if visit.outputs else None,
                    visit.operations,
                ),
                modules[name],
            )
        if rows:
            rows[-1].operations += visit.following_operations

    tell("")
    return rows


def _append_or_merge(rows: list[_ModuleGroup], row: _ModuleGroup, module: nn.Module) -> None:
    """Put a stage behind the others, or into the last one: trifles, and neighbours in a list at the same stride."""
    name, before = row.module_names[0], rows[-1].module_names[-1] if rows else ""
    trifle = not row.operations and any(word in type(module).__name__ for word in MINOR_LAYERS)
    trifle = trifle or (
        len(rows) == 1 and not rows[0].operations
    )  # one that opens the network is told with what follows
    in_one_list = name.rpartition(".")[0] == before.rpartition(".")[0] and _is_numbered(name) and _is_numbered(before)
    same_stride = rows and rows[-1].scale and row.scale and rows[-1].scale[0] == row.scale[0]
    if rows and (trifle or (in_one_list and same_stride)):
        rows[-1].module_names.append(name)
        rows[-1].scale = row.scale
        rows[-1].operations = rows[-1].operations + row.operations
    else:
        rows.append(row)


def _is_numbered(name: str) -> bool:
    return name.rpartition(".")[2].isdecimal()


def _group_name(names: list[str]) -> str:
    """Such as `features.0-3` for neighbours; trifles at the end are not named."""
    first = names[0]
    last = [name for name in names if name.rpartition(".")[0] == first.rpartition(".")[0] and _is_numbered(name)]
    return f"{first}-{last[-1].rpartition('.')[2]}" if _is_numbered(first) and len(last) > 1 else first


def _changes_scale(visit: ModuleTrace, width: int) -> bool:
    """Whether a module's maps differ by more than a factor of two from those that it is given."""
    into, out = (
        [scale[0] for one in tensors if (scale := _stride_and_channels(one, width))]
        for tensors in (visit.inputs, visit.outputs)
    )
    return bool(into and out) and not 0.5 <= max(into) / max(out) <= 2


def _stride_and_channels(tensor: Tensor, width: int) -> tuple[float, int] | None:
    """Stride and channels of maps; None for what is no map."""
    lies = feature_map_layout(tensor.shape, width)
    return (width / lies[1], lies[2]) if lies else None
