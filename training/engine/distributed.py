"""Sums over the processes of a distributed training, so that a loss is that of the whole batch on every one of them."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(sums: Tensor) -> Tensor:
    """The sum of `sums` over all processes, on each; as it is where there is one. Every process must call it.

    A loss made of such sums has the whole batch's value on every process. Its gradient there is of the process's own
    pixels, times the number of processes, for DistributedDataParallel averages gradients: the average is then what one
    process would have had at the same batch. (A mean taken a process at a time weighs pixels by how few of the others
    on their process are labelled.)
    """
    if world_size() == 1:
        return sums
    return cast(Tensor, _AllReduceSum.apply(sums))


def all_reduce_kth_smallest(values: Tensor, count: int) -> Tensor:
    """The `count`-th smallest of the `values` (one axis) of all processes, 0 axes; they hold `count` or more together."""
    held = min(count, len(values))
    mine = values.detach().topk(held, largest=False).values
    if world_size() > 1:
        padded = mine.new_full((count,), torch.inf)
        padded[:held] = mine
        everyone = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(everyone, padded)
        mine = torch.cat(everyone).topk(count, largest=False).values
    return mine.max()


class _AllReduceSum(torch.autograd.Function):
    """Written out because torch.distributed.nn's all_reduce is deprecated in torch 2.14, and what follows it has no
    gradient in 2.11; and because theirs sums the gradients over the processes once more, which DDP does already.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        """Sum."""
        total = sums.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """See `over_processes`."""
        return gradient * world_size()
