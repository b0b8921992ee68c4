"""Sums over the processes of a distributed training, so that each process has the loss of the whole batch."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(sums: Tensor) -> Tensor:
    """The sum of `sums` over all processes, on each of them. Every process must call it.

    A loss of such sums has the whole batch's value on every process. Its gradient is that of the process's own pixels
    times the number of processes, because DistributedDataParallel averages gradients: the average is then that of one
    process with the same batch. (With a mean per process, a pixel would weigh more if its process has few labeled ones.)
    """
    if world_size() == 1:
        return sums
    return cast(Tensor, _AllReduceSum.apply(sums))


def all_reduce_kth_smallest(values: Tensor, count: int) -> Tensor:
    """The `count`-th smallest of the `values` (one axis) of all processes, 0 axes. All together have at least `count`."""
    own_count = min(count, len(values))
    smallest = values.detach().topk(own_count, largest=False).values
    if world_size() > 1:
        padded = smallest.new_full((count,), torch.inf)
        padded[:own_count] = smallest
        gathered = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(gathered, padded)
        smallest = torch.cat(gathered).topk(count, largest=False).values
    return smallest.max()


class _AllReduceSum(torch.autograd.Function):
    """An all_reduce with a gradient.

    torch.distributed.nn's is deprecated in torch 2.14, and its successor has no gradient in 2.11; and theirs also sums the
    gradients over the processes, which DDP already does.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        """The sum over all processes."""
        total = sums.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """See `all_reduce_sum`."""
        return gradient * world_size()
