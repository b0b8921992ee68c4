"""Propagation of receptive fields through single operations: one rule per operation.

The *reach* of a tensor is, for each of its values, the rightmost column of the image on which the value can depend. A
convolution takes the largest reach under its kernel, a sum the larger one of its terms, an attention the largest of
all: every rule is a maximum. `receptive_field.py` runs a network under these rules. `REACH_RULES` lists them by
PyTorch's names of the operations.

A reach is a float32 tensor (exact up to 2^24) with the axes of its tensor. An axis has full length, or length 1 if the
reach is constant along it, as along the channels after a convolution. A value that depends on no column has -inf.
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
# Names of the scales of an interpolation in PyTorch's schemas, by the number of axes.
SCALES: dict[int, tuple[str, ...]] = {
    1: ("scales",),
    2: ("scales_h", "scales_w"),
    3: ("scales_d", "scales_h", "scales_w"),
}


@dataclass(frozen=True)
class OpCall:
    """One call of an operation, such as aten.convolution, with tracked and untracked tensors as arguments."""

    operation: Any  # torch._ops.OpOverload
    arguments: dict[str, Any]  # by their names in the operation's schema, defaults included
    result: Tensor  # the first one, on the meta device
    reaches: MutableMapping[Any, Any]  # of the tracked tensors

    @property
    def name(self) -> str:
        """Such as `convolution`; an in-place operation has the name of the one that is not in place."""
        return str(self.operation._schema.name).removeprefix("aten::").rstrip("_")

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def input_tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return [value for value in tree_leaves(self.arguments) if isinstance(value, Tensor)]

    def tracked_inputs(self) -> list[Tensor]:
        """The argument tensors that depend on the image."""
        return [tensor for tensor in self.input_tensors() if tensor in self.reaches]

    def reach(self, tensor: Tensor) -> Tensor:
        """The reach of a tensor; -inf for a weight or another constant."""
        reach = self.reaches.get(tensor)
        return torch.full((1,) * tensor.ndim, NO_REACH) if reach is None else reach

    def expanded_reach(self, tensor: Tensor, axes: int | None = None) -> Tensor:
        """The reach with its last `axes` axes (default: all) expanded to full length, as a view without memory."""
        reach, first = self.reach(tensor), tensor.ndim - (tensor.ndim if axes is None else axes)
        return reach.expand(*reach.shape[:first], *tensor.shape[first:])


ReachRule = Callable[[OpCall], Tensor | list[Tensor]]


def full_dependency(call: OpCall) -> Tensor:
    """Each value depends on all inputs, even across the batch: the conservative rule."""
    maxima = [call.reach(tensor).max() for tensor in call.input_tensors()]
    return torch.stack(maxima).max().expand((1,) * call.result.ndim)


def pointwise(call: OpCall) -> Tensor:
    """Each value depends on the values at the same position, with broadcasting."""
    reach = torch.full((1,) * call.result.ndim, NO_REACH)
    for tensor in call.input_tensors():
        reach = torch.maximum(reach, call.reach(tensor))
    return reach


def data_movement(call: OpCall) -> Tensor | list[Tensor]:
    """Values only move, and their reaches with them: the operation itself is applied to the reaches."""
    arguments = tree_map(lambda leaf: call.expanded_reach(leaf) if isinstance(leaf, Tensor) else leaf, call.arguments)
    moved = call.operation(**arguments)
    return moved if isinstance(moved, Tensor) else list(moved)


def reshape(call: OpCall) -> Tensor:
    """As `data_movement`, but copies: an expanded axis cannot always be viewed in another shape."""
    return call.expanded_reach(call["self"]).reshape(call.result.shape)


def indexing(call: OpCall) -> Tensor | list[Tensor]:
    """As `data_movement` if the indices have values, which indices on the meta device do not."""
    known = all(tensor.device.type != "meta" for tensor in call.input_tensors() if tensor is not call["self"])
    return data_movement(call) if known else full_dependency(call)


def as_strided(call: OpCall) -> Tensor:
    """Each value depends on the whole image: the strides are not analysed (seen after a global mean)."""
    return _image_max(call.reach(call["self"]))


def constant_pad(call: OpCall) -> Tensor:
    """The values that are added depend on nothing."""
    return F.pad(call.expanded_reach(call["self"]), call["pad"], value=NO_REACH)


def reduction(call: OpCall) -> Tensor:
    """A mean, a sum or a maximum over some axes, or over all."""
    axes = call.arguments.get("dim")
    axes = list(range(call["self"].ndim)) if axes is None or axes == [] else axes
    return call.reach(call["self"]).amax(axes, keepdim=bool(call.arguments.get("keepdim")))


def softmax(call: OpCall) -> Tensor:
    """Each value depends on all values along an axis."""
    return call.reach(call["self"]).amax(call["dim"], keepdim=True)


def layer_norm(call: OpCall) -> Tensor:
    """Each value depends on all values along the last axes."""
    return call.reach(call["input"]).amax([-1 - axis for axis in range(len(call["normalized_shape"]))], keepdim=True)


def group_norm(call: OpCall) -> Tensor:
    """Each value depends on the whole image, whose statistics it is normalised with."""
    return _image_max(call.reach(call["input"]))


def batch_norm(call: OpCall) -> Tensor:
    """Each value depends on itself, because trained statistics are constants; an instance norm uses the image's."""
    return group_norm(call) if call.arguments.get("training") else call.reach(call["input"])


def matmul(call: OpCall) -> Tensor:
    """Each value depends on a row of the left matrix, a column of the right one, and the bias if there is one."""
    *bias, left, right = call.input_tensors()
    reach = torch.maximum(call.reach(left).amax(-1, keepdim=True), call.reach(right).amax(-2, keepdim=True))
    return torch.maximum(reach, call.reach(bias[0])) if bias else reach


def convolution(call: OpCall) -> Tensor:
    """The largest reach under the kernel, over all channels; groups are not distinguished."""
    kernel = call["weight"].shape[2:]
    reach = call.expanded_reach(call["input"], len(kernel)).amax(1, keepdim=True)
    for axis, length in enumerate(kernel):
        stride, before, dilation = (call[name][axis % len(call[name])] for name in ("stride", "padding", "dilation"))
        if call["transposed"]:  # a plain convolution over values with gaps of `stride` between them
            reach = _insert_gaps(reach, axis + 2, stride)
            stride, before = 1, dilation * (length - 1) - before
        reach = sliding_max(reach, axis + 2, length, stride, before, dilation, call.result.shape[axis + 2])
    return reach


def pooling(call: OpCall) -> Tensor:
    """The largest reach under the kernel, per channel."""
    kernel = call["kernel_size"]
    axes = int(call.operation._schema.name.split("pool")[1][0])
    reach = call.expanded_reach(call["self"], axes)
    settings = (kernel, call["stride"] or kernel, call["padding"], call.arguments.get("dilation") or [1])
    for index in range(axes):
        length, stride, before, dilation = (values[index % len(values)] for values in settings)
        axis = reach.ndim - axes + index
        reach = sliding_max(reach, axis, length, stride, before, dilation, call.result.shape[axis])
    return reach


def adaptive_pooling(call: OpCall) -> Tensor:
    """The largest reach in each cell; the cells are those of PyTorch."""
    axes = call["self"].ndim - 2
    pools: Any = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    reach: Tensor = pools[axes - 1](call.expanded_reach(call["self"], axes), call["output_size"])
    return reach


def resampling(call: OpCall) -> Tensor:
    """Interpolation: along each axis the largest reach of the positions to which PyTorch gives a weight."""
    axes = call["self"].ndim - 2
    reach = call.expanded_reach(call["self"], axes)
    scales: dict[str, Any] = dict.fromkeys(SCALES[axes])
    for axis, name in zip(range(-axes, 0), SCALES[axes], strict=True):
        old, new = reach.shape[axis], call.result.shape[axis]
        if old == new:
            continue
        # Channel i is an axis of values in which only value i is 1; the other axes have the length 1.
        one_hot = torch.eye(old).view(1, old, *[1] * (axes - 1), old)
        lengths = {"self": one_hot, "output_size": [*[1] * (axes - 1), new]}
        arguments = call.arguments | lengths | scales | {SCALES[axes][-1]: call[name]}
        weighted = call.operation(**arguments).view(old, new) != 0
        first, last = weighted.int().argmax(0), old - 1 - weighted.flip(0).int().argmax(0)
        taps = range(int((last - first).max()) + 1)
        reach = torch.stack([reach.index_select(axis, torch.minimum(first + tap, last)) for tap in taps]).amax(0)
    return reach


def sliding_max(reach: Tensor, axis: int, kernel: int, stride: int, before: int, dilation: int, count: int) -> Tensor:
    """The maximum under a kernel at `count` positions along an axis; the first kernel starts `before` positions outside."""
    span = (count - 1) * stride + 1
    after = span + (kernel - 1) * dilation - before - reach.shape[axis]
    reach = F.pad(reach, [0, 0] * (reach.ndim - 1 - axis) + [before, after], value=NO_REACH)
    taps = (reach.narrow(axis, tap * dilation, span) for tap in range(kernel))
    strided = (slice(None),) * axis + (slice(None, None, stride),)
    maximum = next(taps)[strided]
    for tap in taps:
        maximum = torch.maximum(maximum, tap[strided])
    return maximum


def _image_max(reach: Tensor) -> Tensor:
    """The largest reach of each image of the batch."""
    return reach.amax(list(range(1, reach.ndim)), keepdim=True)


def _insert_gaps(reach: Tensor, axis: int, stride: int) -> Tensor:
    """Put the values of an axis `stride` positions apart."""
    shape = list(reach.shape)
    shape[axis] = (shape[axis] - 1) * stride + 1
    spaced = torch.full(shape, NO_REACH)
    spaced[(slice(None),) * axis + (slice(None, None, stride),)] = reach
    return spaced


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
    **dict.fromkeys(
        ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d"), pooling
    ),
    **dict.fromkeys(
        ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"), adaptive_pooling
    ),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d"), resampling),
    **dict.fromkeys(
        ("upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d"), resampling
    ),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), resampling),
}
