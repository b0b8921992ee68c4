"""Every file of a data set read once, in parallel, and what was seen kept by file: the second time costs a `stat`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.meaning import Kind
from training.data.samples import Samples


@dataclass(frozen=True)
class Facts:
    """What one picture and its mask hold. It knows no classes: a value gets its label by the data set's `Meaning`."""

    size: tuple[int, int] | None  # (height, width) of the picture, upright; None where it cannot be read
    mask_size: tuple[int, int] | None  # of the mask
    orientation: int  # EXIF's, 1..8; 1 is upright
    image_format: str  # Pillow's name, such as JPEG
    mask_format: str  # the same, or "" where the mask is no picture
    kind: Kind  # of the mask's values
    values: NDArray[np.int64]  # K: the values that occur (the most frequent 256), ascending
    colours: NDArray[np.int64]  # K: for a palette file, their colours 0xRRGGBB
    quarters: NDArray[np.int64]  # K x 2 x 2: pixels of each value in the (top, bottom) x (left, right) quarter
    edges: NDArray[np.int64]  # K: pixels of each value that have one of the 4 neighbours of another value
    more: int  # values beyond those 256
    digest: str  # of the picture's decoded pixels: equal for equal pictures
    likeness: int  # 64 bits, near in Hamming distance for pictures that look alike
    errors: tuple[str, ...]  # what could not be read, a sentence each


def scan(samples: Samples, progress: Callable[[int, int], None] | None = None) -> list[Facts]:
    """The facts of each pair, in order. `progress` is called with the number of pairs done and of all."""
    raise NotImplementedError
