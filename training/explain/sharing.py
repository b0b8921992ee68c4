"""Parameter sharing: what each convolution saves against a fully connected layer between maps of the same shapes.

A convolution has one kernel for all positions. A fully connected layer between the same maps has a weight for every pair of
an input and an output value.
"""

from typing import Any

import torch
from torch import nn

from models.architectures.meta_device import copy_to_meta
from models.explain.facts import Facts, Finding
from training.explain.subject import NetworkSubject

TITLE = "Parameter sharing"


def compute(subject: NetworkSubject) -> Facts:
    """A row per convolution: parameters and FLOP, and those of the fully connected layer of the same shape."""
    shape = tuple(subject.input.shape[1:])
    layers = [layer_counts(*entry) for entry in convolution_shapes(subject.inside.network.body, shape)]
    totals = {
        key: sum(row[key] for row in layers) for key in ("parameters", "flops", "dense_parameters", "dense_flops")
    }
    ratio = totals["dense_parameters"] / max(1, totals["parameters"])
    return Facts({"layers": layers, "total": totals, "saving": round(ratio, 1), "input": list(shape)})


def convolution_shapes(
    body: nn.Module, shape: tuple[int, ...]
) -> list[tuple[str, nn.Conv2d, tuple[int, ...], tuple[int, ...]]]:
    """Name, module, input and output shape (C, h, w) of each convolution, for a network input of `shape`."""
    shadow, found = copy_to_meta(body), []
    handles = []
    for name, module in shadow.named_modules():
        if isinstance(module, nn.Conv2d):

            def record(layer: Any, args: Any, result: Any, name: str = name) -> None:
                found.append((name, layer, tuple(args[0].shape[1:]), tuple(result.shape[1:])))

            handles.append(module.register_forward_hook(record))
    with torch.no_grad():
        shadow(torch.empty(1, *shape, device="meta"))
    for handle in handles:
        handle.remove()
    return found


def layer_counts(
    name: str, layer: nn.Conv2d, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Parameters and FLOP (a multiplication and an addition are two) of a convolution and of its dense twin."""
    inputs, outputs = int(torch.Size(input_shape).numel()), int(torch.Size(output_shape).numel())
    positions = outputs // output_shape[0]
    weights = layer.weight.numel()
    biases = 0 if layer.bias is None else layer.bias.numel()
    return {
        "name": name,
        "input": list(input_shape),
        "output": list(output_shape),
        "parameters": weights + biases,
        "flops": 2 * weights * positions,
        "dense_parameters": inputs * outputs + (outputs if biases else 0),
        "dense_flops": 2 * inputs * outputs,
    }


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """None."""
    return []
