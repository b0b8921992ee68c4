"""Gaussian noise as a function of a seed and a pixel's index, the same on any device and in any batch.

A generator per sample would give other numbers on a GPU than on a CPU, and need a kernel per sample. A hashed counter gives
the same numbers everywhere, in a few kernels for the whole batch (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"). The hash is lowbias32 (Wellons, "Prospecting for hash functions", 2018).
"""

import torch
from torch import Tensor

# The sum of the four bytes of a hash is nearly normal (central limit theorem), without tails beyond 3.45 deviations.
BYTE_SUM_MEAN, BYTE_SUM_STD = 4 * 127.5, (4 * (256**2 - 1) / 12) ** 0.5


def gaussian_noise(seeds: Tensor, deviations: Tensor, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Whole levels, float32 N x h x w x channels, from seeds int N and standard deviations float32 N; `size` is (height, width)."""
    height, width = size
    counter = torch.arange(height * width * channels, dtype=torch.int32, device=seeds.device)
    # Seeds are hashed first: otherwise seeds 1 and 2 would only swap the noise of neighboring pixels.
    hashed_seeds = lowbias32(seeds.to(torch.int32)).view(-1, 1, 1, 1)
    hashed = lowbias32(counter.view(1, height, width, channels) ^ hashed_seeds)
    total = (hashed & 0xFF) + ((hashed >> 8) & 0xFF) + ((hashed >> 16) & 0xFF) + ((hashed >> 24) & 0xFF)
    levels: Tensor = (total - BYTE_SUM_MEAN) * (deviations / BYTE_SUM_STD).view(-1, 1, 1, 1)
    return levels.round()


def lowbias32(values: Tensor) -> Tensor:
    """Hash int32, read as unsigned 32 bits, to int32; products wrap around."""
    values = values ^ ((values >> 16) & 0xFFFF)  # the mask removes the sign bits that `>>` shifts in
    values = values * 0x7FEB352D
    values = values ^ ((values >> 15) & 0x1FFFF)
    values = values * (0x846CA68B - 2**32)
    return values ^ ((values >> 16) & 0xFFFF)
