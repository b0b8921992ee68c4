"""What a caller may ask of an output; each format reads what concerns it."""

import math
from dataclasses import dataclass

from models.errors import ConfigError

MASK_ENCODINGS = ("rle", "polygons", "png", "none")


@dataclass(frozen=True)
class OutputOptions:
    """The defaults are what a plain request gets. Raises: ConfigError for what is out of range."""

    alpha: float = 0.5  # overlay: of the colours over the image, 0..1
    classes: tuple[str, ...] = ()  # names of the classes to keep; none given keeps all
    min_confidence: float = 0.0  # pixels below become void, 0..1
    min_area: int = 0  # connected regions of fewer pixels become void
    simplify: float = 0.0  # polygons: how far, in pixels, an outline may move
    masks: str = "rle"  # json: rle, polygons, png or none
    confidence: bool = False  # json: whether the confidence PNG comes with it

    def __post_init__(self) -> None:
        for name in ("alpha", "min_confidence"):
            value = getattr(self, name)
            if not 0 <= value <= 1:  # NaN is not
                raise ConfigError(f"{name} is {value}; wanted is a number from 0 to 1.")
        for name in ("min_area", "simplify"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value}; wanted is a number of pixels, 0 or more.")
        if self.masks not in MASK_ENCODINGS:
            raise ConfigError(f"The masks {self.masks!r} are not known; choose from {', '.join(MASK_ENCODINGS)}.")
