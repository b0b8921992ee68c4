"""A copy of a network on PyTorch's meta device, where tensors have shapes but no values."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def copy_to_meta(body: Module) -> Module:
    """Copy a module to the meta device: float32, in evaluation mode, without gradients and without memory for values."""
    tensors = [*body.parameters(), *body.buffers()]
    copies: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for parameter in body.parameters():
        copies[id(parameter)] = nn.Parameter(copies[id(parameter)], requires_grad=False)
    return copy.deepcopy(body, copies).to("meta", torch.float32).eval()  # deepcopy takes what is in `copies` as copied
