"""Options of the output formats. Each format uses those that concern it."""

import math
from dataclasses import dataclass

from models.errors import ConfigError, quoted

MASK_ENCODINGS = ("rle", "polygons", "png", "none")


@dataclass(frozen=True)
class OutputOptions:
    """The defaults apply to a request without parameters. Raises: ConfigError for values out of range."""

    alpha: float = 0.5  # overlay: opacity of the colors over the image, 0..1
    classes: tuple[str, ...] = ()  # names of the classes to keep; empty keeps all
    min_confidence: float = 0.0  # pixels with less confidence become unlabeled, 0..1
    min_area: int = 0  # connected regions of fewer pixels become unlabeled
    simplify: float = 0.0  # polygons: how far an outline may move, in pixels
    masks: str = "rle"  # json: rle, polygons, png or none
    confidence: bool = False  # json: whether the confidence PNG is included; npz of volumes: whether the confidence is
    bands: tuple[
        str, ...
    ] = ()  # overlay: one or three channels to show; empty: red, green and blue, or the first three
    leads: tuple[str, ...] = ()  # signals: names of the leads to segment; empty: all that the network takes
    rate: float | None = None  # signals: sampling rate in Hz of a file that states none
    trace: bool = False  # npz: whether the recording itself is included

    def __post_init__(self) -> None:
        for name in ("alpha", "min_confidence"):
            value = getattr(self, name)
            if not 0 <= value <= 1:  # NaN is not
                raise ConfigError(f"{name} is {value}; expected a number from 0 to 1.")
        for name in ("min_area", "simplify"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value}; expected a number of pixels, 0 or more.")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ConfigError(f"rate is {self.rate}; expected a sampling rate in Hz, above 0.")
        if self.masks not in MASK_ENCODINGS:
            raise ConfigError(f"masks is {quoted(self.masks)}; choose from {', '.join(MASK_ENCODINGS)}.")
