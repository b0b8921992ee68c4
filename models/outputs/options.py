"""What a caller may ask of an output; each format reads what concerns it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The defaults are what a plain request gets."""

    alpha: float = 0.5  # of the colours over the picture, 0..1
