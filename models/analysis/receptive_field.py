"""The receptive field of every part of a network, exactly, and without computing the network.

The network runs on PyTorch's meta device, where tensors have shapes and no values; beside each tensor goes its reach
(`reach.py`). The image is a batch of two: in the first one columns are counted to the right, in the second one to
the left, so that one rule finds both ends of a field.

It counts paths, not weights: what a trained network really uses is narrower, and lies as a Gaussian around the middle
(Luo et al. 2016, arXiv 1701.04128). Between its ends a field may have holes, as that of a dilated kernel has.
"""

import math
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from models.analysis.receptive_field_rules import REACH_RULES, OpCall, full_dependency, pointwise

PROBE_HEIGHT = 64  # of the strip that stands for an image, in pixels: fields are followed along its width


class ReceptiveFieldMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """While it is entered, the reach of every tensor is noted; `watch` is told of each call on what has one."""

    def __init__(self, on_call: Callable[[OpCall], None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reaches: MutableMapping[Any, Any] = WeakTensorKeyDictionary()
        self.unsupported_operations: set[str] = (
            set()
        )  # operations that have no rule and were taken to see all that they are given
        self.on_call = on_call

    def make_probe_image(self, width: int) -> Tensor:
        """An image to run a network on: a meta tensor 2 x 3 x HEIGHT x `width`, in pixels."""
        image = torch.empty(2, 3, PROBE_HEIGHT, width, device="meta")
        columns = torch.arange(width, dtype=torch.float32)
        self.reaches[image] = torch.stack([columns, -columns])[:, None, None]
        return image

    def field_range(self, tensor: Tensor, width: int) -> tuple[int, int]:
        """The narrowest field of any column of a map, and the widest in its middle half, in pixels.

        Not at the ends: what a transformer rolls around the edge is masked there, and masks are values.
        """
        reach = self.reaches.get(tensor)
        if reach is None:
            return 0, 0
        halves = reach.chunk(2)  # one image each; a single half stands for both
        columns = _column_maxima((halves[0] + halves[-1]).clamp(min=-1) + 1, tensor.shape, width)
        quarter = len(columns) // 4
        return int(columns.min()), int(columns[quarter : len(columns) - quarter].max())

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note the reach of what it returns."""
        results = func(*args, **(kwargs or {}))
        returned = list(results) if isinstance(results, tuple | list) else [results]
        first = next((one for one in returned if isinstance(one, Tensor)), None)
        given = (one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor))
        if first is not None and any(one in self.reaches for one in given):
            self._record(OpCall(func, _bind_arguments(func, args, kwargs or {}), first, self.reaches), returned)
        return results

    def _record(self, call: OpCall, returned: list[Any]) -> None:
        rule = REACH_RULES.get(call.name) or (pointwise if torch.Tag.pointwise in call.operation.tags else None)
        if rule is None:
            self.unsupported_operations.add(call.name)
        if self.on_call:
            self.on_call(call)
        found = (rule or full_dependency)(call)
        whole = call.result._base  # what a view that is written to in place is a part of
        if call.operation._schema.is_mutable and whole is not None and len(call.tracked_inputs()) > 1:
            self.reaches[whole] = torch.maximum(call.reach(whole), full_dependency(call).max())
        for place, one in enumerate(returned):
            if isinstance(one, Tensor):
                self.reaches[one] = _collapse_expanded_axes(found[place] if isinstance(found, list) else found)


@dataclass
class ModuleTrace:
    """What was seen of a module when the network ran on a strip."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    min_field: int = 0  # field of any column in the last of `out`, in pixels: at the strip's ends it is cut off
    max_field: int = 0  # in its middle half
    operations: Counter[str] = field(
        default_factory=Counter
    )  # its operations, those of its parts among them, by their words
    following_operations: Counter[str] = field(
        default_factory=Counter
    )  # those that its parent does behind it, before another part


def trace_modules(
    body: nn.Module, width: int, words: Callable[[OpCall], str | None] | None = None
) -> dict[str, ModuleTrace]:
    """Run a module that is on the meta device on a strip, `width` pixels wide.

    `words` names the operations that are to be counted.
    Returns: what was seen of each module that ran, by name, in the order in which they began; "" is `body` itself.
    """
    visits: dict[str, ModuleTrace] = {}
    open_visits: list[ModuleTrace] = []
    latest: dict[int, ModuleTrace] = {}  # the last part that ended, by how deep its parent lies

    def watch(call: OpCall) -> None:
        word = words(call) if words else None
        if word:
            open_visits[-1].operations[word] += 1
            if len(open_visits) in latest:
                latest[len(open_visits)].following_operations[word] += 1

    def begin(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        visit = visits.setdefault(name, ModuleTrace())
        visit.inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        open_visits.append(visit)
        latest.pop(len(open_visits), None)

    def end(name: str, module: nn.Module, args: Any, result: Any) -> None:
        visit = open_visits.pop()
        visit.outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        visit.min_field, visit.max_field = fields.field_range(visit.outputs[-1], width) if visit.outputs else (0, 0)
        if open_visits:
            open_visits[-1].operations += visit.operations
            latest[len(open_visits)] = visit

    fields = ReceptiveFieldMode(watch)
    handles: list[Any] = []
    for name, module in body.named_modules():
        handles.append(module.register_forward_pre_hook(partial(begin, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(end, name)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # reaches are small: on a busy machine several threads wait for each other
    try:
        with torch.no_grad():
            image = fields.make_probe_image(width)
            with fields:
                body(image)
    finally:
        torch.set_num_threads(threads)
        for handle in handles:
            handle.remove()
    return visits


def feature_map_layout(shape: torch.Size, width: int) -> tuple[int, int, int] | None:
    """How maps of a strip lie: rows, columns, channels; None for what is no map of the strip, as a global mean.

    N x C x h x w, N x h x w x C, or tokens N x hw x C.
    """
    if len(shape) == 4 and shape[3] * PROBE_HEIGHT == shape[2] * width:
        return shape[2], shape[3], shape[1]
    if len(shape) == 4 and shape[2] * PROBE_HEIGHT == shape[1] * width:
        return shape[1], shape[2], shape[3]
    rows = math.isqrt(shape[1] * PROBE_HEIGHT // width) if len(shape) == 3 else 0
    return (rows, shape[1] // rows, shape[2]) if rows and rows**2 * width == shape[1] * PROBE_HEIGHT else None


def _column_maxima(values: Tensor, shape: torch.Size, width: int) -> Tensor:
    """The largest of each column; of all where there are no columns."""
    lies = feature_map_layout(shape, width)
    axis = values.ndim - 1
    if lies and len(shape) == 3 and values.shape[1] > 1:
        values, axis = values.reshape(len(values), *lies[:2], -1), 2
    elif lies and shape[1:3] == lies[:2]:
        axis = 2
    return values.movedim(axis, 0).flatten(1).amax(1)


def _bind_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    parameters = func._schema.arguments
    defaults = {one.name: one.default_value for one in parameters if one.has_default_value()}
    return defaults | dict(zip((one.name for one in parameters), args, strict=False)) | kwargs


def _collapse_expanded_axes(reach: Tensor) -> Tensor:
    """An axis of stride 0 repeats one value; one of it is enough."""
    for axis, (length, stride) in enumerate(zip(reach.shape, reach.stride(), strict=True)):
        if length > 1 and stride == 0:
            reach = reach.narrow(axis, 0, 1)
    return reach
