"""What the values in mask files mean: labels as written, 0/255, or colours.

A mask is read to `Values`, as its file holds them; a `Meaning`, one for the whole data set, makes labels of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.image import Labels, read_mask

Kind = Literal["grey", "palette", "colour"]


@dataclass(frozen=True)
class Values:
    """What a mask file holds: H x W of grey values (0..65535), places in a palette (0..255), or colours (0xRRGGBB)."""

    array: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
    kind: Kind = "grey"
    palette: tuple[int, ...] = ()  # of a palette file: the colour 0xRRGGBB of each place


@dataclass(frozen=True)
class Meaning:
    """From values to labels."""

    grey: tuple[tuple[int, int], ...] = ()  # value or palette place -> label; one that is not here is its own label
    colours: tuple[tuple[int, int], ...] = ()  # 0xRRGGBB -> label; one that is not here has no meaning

    def label(self, value: int, kind: Kind, colour: int | None = None) -> int | None:
        """The label of one value, or None where it has no meaning; `colour`: of a palette's place."""
        if kind == "colour":
            return dict(self.colours).get(value)
        return dict(self.grey).get(value, value)

    def labels(self, values: Values, file: Path) -> Labels:
        """uint8 H x W, 255 is void. Raises: DataError that names the file and a value without a meaning."""
        labels = values.array.astype(np.uint8)
        for value, label in self.grey:
            labels[values.array == value] = label
        return labels


AS_WRITTEN = Meaning()


def read_values(file: Path) -> Values:
    """What a mask file holds. Raises: DataError, ImageError, naming the file."""
    return Values(read_mask(file))
