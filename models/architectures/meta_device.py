"""A network's shapes without its values: what a network would do is asked of a copy that computes nothing."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def copy_to_meta(body: Module) -> Module:
    """A copy of a module on PyTorch's meta device: float32, in evaluation mode, without gradients, at no cost of memory."""
    kept = [*body.parameters(), *body.buffers()]
    shapes: dict[int, Any] = {id(one): torch.empty_like(one, device="meta") for one in kept}
    for one in body.parameters():
        shapes[id(one)] = nn.Parameter(shapes[id(one)], requires_grad=False)
    return copy.deepcopy(body, shapes).to("meta", torch.float32).eval()  # what is in `shapes` already is not copied
