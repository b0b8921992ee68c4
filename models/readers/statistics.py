"""Mean and scale of a sample, for the scaling `zscore`: the one function of training, evaluation, service and predict.

A raster that does not fit into memory is added in windows, in a first pass; the result is that of the whole.
"""

import numpy as np
from numpy.typing import NDArray

from models.sample import Statistics, Valid, Values

VALUES = 1 << 18  # samples that are converted to float64 at a time


class StatisticsAccumulator:
    """Sums of the valid pixels of each channel."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total: NDArray[np.float64] = np.zeros(channels)
        self.squares: NDArray[np.float64] = np.zeros(channels)

    def add(self, values: Values, valid: Valid | None = None) -> None:
        """Add values [*axes, C], such as H x W x C; `valid`, without C, leaves some out."""
        at_once = max(1, VALUES // max(1, values[:1].size))
        for top in range(0, len(values), at_once):
            rows = values[top : top + at_once]
            chosen = rows.reshape(-1, rows.shape[-1]) if valid is None else rows[valid[top : top + at_once]]
            numbers = chosen.astype(np.float64)
            self.count += len(numbers)
            self.total += numbers.sum(axis=0)
            self.squares += np.einsum("nc,nc->c", numbers, numbers)

    def result(self) -> Statistics:
        """Float32 2 x C: the mean, and the standard deviation; of a constant channel, 1."""
        count = max(1, self.count)
        mean = self.total / count
        deviation = np.sqrt(np.maximum(self.squares / count - mean**2, 0.0))
        scale = np.where(deviation > 1e-6 * np.maximum(1.0, np.abs(mean)), deviation, 1.0)
        return np.stack([mean, scale]).astype(np.float32)


def sample_statistics(values: Values, valid: Valid | None = None) -> Statistics:
    """Mean and standard deviation of each channel over the valid pixels, float32 2 x C."""
    sums = StatisticsAccumulator(values.shape[-1])
    sums.add(values, valid)
    return sums.result()
