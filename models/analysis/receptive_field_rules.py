"""How far each operation of a network lets its results see: one rule an operation.

The *reach* of a tensor says for each of its values the rightmost column of the image on which the value can depend.
A convolution takes the largest reach under its kernel, a sum the larger of its terms', an attention the largest of
all: every rule is a maximum. `fields.py` runs a network under these rules; `RULES` is the list, by PyTorch's names.

A reach is float32 (exact up to 2^24) and has its tensor's axes, each of full length, or of length 1 where nothing
changes along it, as along the channels behind a convolution. It is -inf where a value depends on no column.
"""

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

NO_REACH = -math.inf


@dataclass(frozen=True)
class OpCall:
    """An operation as it is called, such as aten.convolution, on tensors with or without a reach."""

    operation: Any  # torch._ops.OpOverload
    arguments: dict[str, Any]  # by their names in the operation's schema, defaults included
    result: Tensor  # the first one; on the meta device it has a shape alone
    reaches: MutableMapping[Any, Any]

    @property
    def name(self) -> str:
        """Such as `convolution`; one that works in place has the name of the one that does not."""
        return str(self.operation._schema.name).removeprefix("aten::").rstrip("_")

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def input_tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return [value for value in tree_leaves(self.arguments) if isinstance(value, Tensor)]

    def tracked_inputs(self) -> list[Tensor]:
        """The given tensors that depend on the image."""
        return [one for one in self.input_tensors() if one in self.reaches]

    def reach(self, tensor: Tensor) -> Tensor:
        """What is known of it; -inf for a weight or another constant."""
        found = self.reaches.get(tensor)
        return torch.full((1,) * tensor.ndim, NO_REACH) if found is None else found

    def expanded_reach(self, tensor: Tensor, axes: int | None = None) -> Tensor:
        """The reach with its last `axes` axes, or all, of full length; as views, so that it costs no memory."""
        reach, first = self.reach(tensor), tensor.ndim - (tensor.ndim if axes is None else axes)
        return reach.expand(*reach.shape[:first], *tensor.shape[first:])


ReachRule = Callable[[OpCall], Tensor | list[Tensor]]


def full_dependency(call: OpCall) -> Tensor:
    """Each value depends on all that is given, of both images of a batch even: the cautious rule."""
    return torch.stack([call.reach(one).max() for one in call.input_tensors()]).max().expand((1,) * call.result.ndim)


def pointwise(call: OpCall) -> Tensor:
    """Value by value, with broadcasting."""
    found = torch.full((1,) * call.result.ndim, NO_REACH)
    for one in call.input_tensors():
        found = torch.maximum(found, call.reach(one))
    return found


def data_movement(call: OpCall) -> Tensor | list[Tensor]:
    """Values change their places alone, and their reaches with them."""
    found = call.operation(
        **tree_map(lambda one: call.expanded_reach(one) if isinstance(one, Tensor) else one, call.arguments)
    )
    return found if isinstance(found, Tensor) else list(found)


def reshape(call: OpCall) -> Tensor:
    """As `moved`, but where axes repeat a value they cannot always be viewed in another shape: they are copied."""
    return call.expanded_reach(call["self"]).reshape(call.result.shape)


def indexing(call: OpCall) -> Tensor | list[Tensor]:
    """As `moved`, where the indices have values."""
    known = all(one.device.type != "meta" for one in call.input_tensors() if one is not call["self"])
    return data_movement(call) if known else full_dependency(call)


def as_strided(call: OpCall) -> Tensor:
    """Of the same values, as after a global mean; which ones is not looked into."""
    return _image_max(call.reach(call["self"]))


def constant_pad(call: OpCall) -> Tensor:
    """What is added depends on nothing."""
    return F.pad(call.expanded_reach(call["self"]), call["pad"], value=NO_REACH)


def reduction(call: OpCall) -> Tensor:
    """A mean, a sum or a maximum over some axes, or over all."""
    axes = call.arguments.get("dim")
    axes = list(range(call["self"].ndim)) if axes is None or axes == [] else axes
    return call.reach(call["self"]).amax(axes, keepdim=bool(call.arguments.get("keepdim")))


def softmax(call: OpCall) -> Tensor:
    """Each value depends on all along an axis, as in a softmax."""
    return call.reach(call["self"]).amax(call["dim"], keepdim=True)


def layer_norm(call: OpCall) -> Tensor:
    """Each value depends on all along the last axes."""
    return call.reach(call["input"]).amax([-1 - axis for axis in range(len(call["normalized_shape"]))], keepdim=True)


def group_norm(call: OpCall) -> Tensor:
    """The statistics are taken from the whole of the image."""
    return _image_max(call.reach(call["input"]))


def batch_norm(call: OpCall) -> Tensor:
    """Once trained its statistics are constants; an instance norm takes those of the image."""
    return group_norm(call) if call.arguments.get("training") else call.reach(call["input"])


def matmul(call: OpCall) -> Tensor:
    """Of matrices: a value depends on a row of the left one, a column of the right one, and on what is added."""
    *added, left, right = call.input_tensors()
    found = torch.maximum(call.reach(left).amax(-1, keepdim=True), call.reach(right).amax(-2, keepdim=True))
    return torch.maximum(found, call.reach(added[0])) if added else found


def convolution(call: OpCall) -> Tensor:
    """The largest reach under the kernel, over all channels; the groups of a grouped one are not told apart."""
    kernel = call["weight"].shape[2:]
    reach = call.expanded_reach(call["input"], len(kernel)).amax(1, keepdim=True)
    for axis, length in enumerate(kernel):
        stride, before, dilation = (call[name][axis % len(call[name])] for name in ("stride", "padding", "dilation"))
        if call["transposed"]:  # is a plain one on values that are set `stride` apart
            reach = _insert_gaps(reach, axis + 2, stride)
            stride, before = 1, dilation * (length - 1) - before
        reach = sliding_max(reach, axis + 2, length, stride, before, dilation, call.result.shape[axis + 2])
    return reach


def pooling(call: OpCall) -> Tensor:
    """A maximum or a mean under a kernel, channel by channel."""
    kernel = call["kernel_size"]
    axes = int(call.operation._schema.name.split("pool")[1][0])
    reach = call.expanded_reach(call["self"], axes)
    for place in range(axes):
        axis = reach.ndim - axes + place
        length, before = kernel[place % len(kernel)], call["padding"][place % len(call["padding"])]
        stride = (call["stride"] or kernel)[place % len(call["stride"] or kernel)]
        dilation = call.arguments.get("dilation") or [1]
        size = call.result.shape[axis]
        reach = sliding_max(reach, axis, length, stride, before, dilation[place % len(dilation)], size)
    return reach


def adaptive_pooling(call: OpCall) -> Tensor:
    """To a given size: the windows that PyTorch itself takes."""
    return F.adaptive_max_pool2d(call.expanded_reach(call["self"], 2), call["output_size"])


def resampling(call: OpCall) -> Tensor:
    """Interpolation: of each axis by itself, the places that PyTorch gives a weight."""
    reach = call.expanded_reach(call["self"], 2)
    for axis, scale in ((-2, call["scales_h"]), (-1, call["scales_w"])):
        old, new = reach.shape[axis], call.result.shape[axis]
        if old == new:
            continue
        single = torch.eye(old).view(1, old, 1, old)  # a row of pixels for each place, in which it alone is lit
        changed = call.arguments | {"self": single, "output_size": [1, new], "scales_h": None, "scales_w": scale}
        lit = call.operation(**changed).view(old, new) != 0
        first, last = lit.int().argmax(0), old - 1 - lit.flip(0).int().argmax(0)
        taps = range(int((last - first).max()) + 1)
        reach = torch.stack([reach.index_select(axis, torch.minimum(first + tap, last)) for tap in taps]).amax(0)
    return reach


def sliding_max(reach: Tensor, axis: int, kernel: int, stride: int, before: int, dilation: int, count: int) -> Tensor:
    """The maximum under a kernel at each of `count` places along an axis, the first one `before` its begin."""
    span = (count - 1) * stride + 1
    after = span + (kernel - 1) * dilation - before - reach.shape[axis]
    reach = F.pad(reach, [0, 0] * (reach.ndim - 1 - axis) + [before, after], value=NO_REACH)
    taps = (reach.narrow(axis, tap * dilation, span) for tap in range(kernel))
    every = (slice(None),) * axis + (slice(None, None, stride),)
    found = next(taps)[every]
    for tap in taps:
        found = torch.maximum(found, tap[every])
    return found


def _image_max(reach: Tensor) -> Tensor:
    """All of an image, each image of the batch by itself."""
    return reach.amax(list(range(1, reach.ndim)), keepdim=True)


def _insert_gaps(reach: Tensor, axis: int, stride: int) -> Tensor:
    shape = list(reach.shape)
    shape[axis] = (shape[axis] - 1) * stride + 1
    found = torch.full(shape, NO_REACH)
    found[(slice(None),) * axis + (slice(None, None, stride),)] = reach
    return found


REACH_RULES: dict[str, ReachRule] = {
    **dict.fromkeys(("hardswish", "hardtanh", "leaky_relu", "elu", "prelu", "copy", "_prelu_kernel"), pointwise),
    **dict.fromkeys(("detach", "alias", "lift_fresh", "contiguous", "_to_copy", "clone", "dropout"), pointwise),
    **dict.fromkeys(
        ("cat", "stack", "slice", "select", "split", "split_with_sizes", "unbind", "expand"), data_movement
    ),
    **dict.fromkeys(
        ("permute", "transpose", "t", "squeeze", "unsqueeze", "repeat", "flip", "roll", "unfold"), data_movement
    ),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "reflection_pad2d", "replication_pad2d"), data_movement),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape"), reshape),
    **dict.fromkeys(("index", "index_select", "gather"), indexing),
    "as_strided": as_strided,
    "constant_pad_nd": constant_pad,
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm"), reduction
    ),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), softmax),
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "native_batch_norm": batch_norm,
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), matmul),
    "convolution": convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "avg_pool1d"), pooling),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), adaptive_pooling),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d"), resampling),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_bicubic2d"), resampling),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), resampling),
}
