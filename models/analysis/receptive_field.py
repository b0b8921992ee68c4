"""The exact receptive field of every module of a network, without computing the network.

The network runs on PyTorch's meta device, where tensors have shapes but no values. A dispatch mode keeps, beside each
tensor, its reach: which columns of the image its values can depend on (`receptive_field_rules.py`). The image is a
batch of two. In the first image columns are numbered from left to right, in the second one with negative signs, so
that one rule, a maximum, finds both ends of a field.

The result counts paths, not weights: the field that a trained network effectively uses is narrower and falls off like a
Gaussian from its centre (Luo et al. 2016, arXiv 1701.04128). Between its ends a field may have gaps, as that of a
dilated kernel has.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from models.analysis.receptive_field_rules import REACH_RULES, OpCall, full_dependency, pointwise

PROBE_HEIGHT = 64  # of the probe image, in pixels; fields are measured along its width only


class ReceptiveFieldMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """While active, records the reach of every tensor and passes each operation on a tracked tensor to `on_call`."""

    def __init__(self, on_call: Callable[[OpCall], None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reaches: MutableMapping[Any, Any] = WeakTensorKeyDictionary()
        self.unsupported_operations: set[str] = set()  # without a rule; `full_dependency` was assumed for them
        self.on_call = on_call

    def make_probe_image(self, width: int, channels: int = 3, dims: int = 2) -> Tensor:
        """A tracked image to run a network on: a meta tensor 2 x `channels` x PROBE_HEIGHT x `width` (pixels).

        Of one axis there is only the width, of three there are two of PROBE_HEIGHT before it.
        """
        image = torch.empty(2, channels, *[PROBE_HEIGHT] * (dims - 1), width, device="meta")
        columns = torch.arange(width, dtype=torch.float32)
        self.reaches[image] = torch.stack([columns, -columns]).view(2, *[1] * dims, width)
        return image

    def field_range(self, tensor: Tensor, width: int, dims: int = 2) -> tuple[int, int]:
        """The narrowest field of any column of a map, and the widest in its middle half, in pixels.

        The widest one excludes the ends: a transformer with shifted windows rolls values around the edge and masks
        them there, and masks are values, which are not computed.
        """
        reach = self.reaches.get(tensor)
        if reach is None:
            return 0, 0
        halves = reach.chunk(2)  # one per image; a reach that is the same for both has a single half
        columns = _column_maxima((halves[0] + halves[-1]).clamp(min=-1) + 1, tensor.shape, width, dims)
        quarter = len(columns) // 4
        return int(columns.min()), int(columns[quarter : len(columns) - quarter].max())

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and record the reach of its results."""
        result = func(*args, **(kwargs or {}))
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        first = next((output for output in outputs if isinstance(output, Tensor)), None)
        inputs = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if first is not None and any(tensor in self.reaches for tensor in inputs):
            self._record(OpCall(func, _bind_arguments(func, args, kwargs or {}), first, self.reaches), outputs)
        return result

    def _record(self, call: OpCall, outputs: list[Any]) -> None:
        rule = REACH_RULES.get(call.name) or (pointwise if torch.Tag.pointwise in call.operation.tags else None)
        if rule is None:
            self.unsupported_operations.add(call.name)
        if self.on_call:
            self.on_call(call)
        reach = (rule or full_dependency)(call)
        base = call.result._base  # the tensor that a view written to in place belongs to
        if call.operation._schema.is_mutable and base is not None and len(call.tracked_inputs()) > 1:
            self.reaches[base] = torch.maximum(call.reach(base), full_dependency(call).max())
        for index, output in enumerate(outputs):
            if isinstance(output, Tensor):
                self.reaches[output] = _collapse_expanded_axes(reach[index] if isinstance(reach, list) else reach)


@dataclass
class ModuleTrace:
    """What was recorded of a module while the network ran on a probe image."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    # Receptive field of the last output in pixels: the narrowest of any column (the ends of the image cut it off), and
    # the widest of the middle half.
    min_field: int = 0
    max_field: int = 0
    # Descriptions and counts of its operations, its submodules' included, and of the operations that its parent does
    # between it and the next submodule.
    operations: Counter[str] = field(default_factory=Counter)
    following_operations: Counter[str] = field(default_factory=Counter)


def trace_modules(
    body: nn.Module,
    width: int,
    describe: Callable[[OpCall], str | None] | None = None,
    channels: int = 3,
    dims: int = 2,
) -> dict[str, ModuleTrace]:
    """Run a module that is on the meta device on a probe image of `channels`, `width` pixels wide, or one of other axes.

    `describe` returns the text under which an operation is counted, or None for one that is not counted.
    Returns: the trace of each module that ran, by name, in the order of their calls; "" is `body` itself.
    """
    traces: dict[str, ModuleTrace] = {}
    active: list[ModuleTrace] = []  # the modules that are running, outermost first
    previous: dict[int, ModuleTrace] = {}  # depth of a running module -> its submodule that ended last

    def count(call: OpCall) -> None:
        description = describe(call) if describe else None
        if description:
            active[-1].operations[description] += 1
            if len(active) in previous:
                previous[len(active)].following_operations[description] += 1

    def begin(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace = traces.setdefault(name, ModuleTrace())
        trace.inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        active.append(trace)
        previous.pop(len(active), None)

    def end(name: str, module: nn.Module, args: Any, result: Any) -> None:
        trace = active.pop()
        trace.outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        trace.min_field, trace.max_field = mode.field_range(trace.outputs[-1], width, dims) if trace.outputs else (0, 0)
        if active:
            active[-1].operations += trace.operations
            previous[len(active)] = trace

    mode = ReceptiveFieldMode(count)
    handles: list[Any] = []
    for name, module in body.named_modules():
        handles.append(module.register_forward_pre_hook(partial(begin, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(end, name)))
    try:
        with _single_thread(), torch.no_grad():
            image = mode.make_probe_image(width, channels, dims)
            with mode:
                body(image)
    finally:
        for handle in handles:
            handle.remove()
    return traces


@contextmanager
def _single_thread() -> Iterator[None]:
    """Reaches are small tensors: on a busy machine several threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def feature_map_layout(shape: torch.Size, width: int, dims: int = 2) -> tuple[int, int, int] | None:
    """(rows, columns, channels) of a feature map of a probe image of this width in pixels.

    The shape is N x C x h x w, N x h x w x C, or tokens N x hw x C. None for other tensors, such as a global mean. Networks of
    one or three axes have only maps N x C x t, of one row, and N x C x d x h x w.
    """
    if dims != 2:
        is_map = len(shape) == dims + 2 and shape[-1] > 1 and width % shape[-1] == 0
        return (shape[-2] if dims == 3 else 1, shape[-1], shape[1]) if is_map else None
    if len(shape) == 4 and shape[3] * PROBE_HEIGHT == shape[2] * width:
        return shape[2], shape[3], shape[1]
    if len(shape) == 4 and shape[2] * PROBE_HEIGHT == shape[1] * width:
        return shape[1], shape[2], shape[3]
    rows = math.isqrt(shape[1] * PROBE_HEIGHT // width) if len(shape) == 3 else 0
    return (rows, shape[1] // rows, shape[2]) if rows and rows**2 * width == shape[1] * PROBE_HEIGHT else None


def _column_maxima(values: Tensor, shape: torch.Size, width: int, dims: int = 2) -> Tensor:
    """The maximum of each column of a map; of the last axis for other tensors."""
    layout = feature_map_layout(shape, width) if dims == 2 else None
    axis = values.ndim - 1
    if layout and len(shape) == 3 and values.shape[1] > 1:
        values, axis = values.reshape(len(values), *layout[:2], -1), 2
    elif layout and shape[1:3] == layout[:2]:
        axis = 2
    return values.movedim(axis, 0).flatten(1).amax(1)


def _bind_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    parameters = func._schema.arguments
    defaults = {parameter.name: parameter.default_value for parameter in parameters if parameter.has_default_value()}
    return defaults | dict(zip((parameter.name for parameter in parameters), args, strict=False)) | kwargs


def _collapse_expanded_axes(reach: Tensor) -> Tensor:
    """Reduce every axis that repeats one value (stride 0) to length 1."""
    for axis, (length, stride) in enumerate(zip(reach.shape, reach.stride(), strict=True)):
        if length > 1 and stride == 0:
            reach = reach.narrow(axis, 0, 1)
    return reach
