"""What a view returns, and the findings that follow from it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from models.explain.thresholds import THRESHOLDS
from models.imaging.decode import RGB


@dataclass
class Facts:
    """The result of a view."""

    numbers: dict[str, Any] = field(default_factory=dict)  # JSON values, for explain.json and the template
    images: dict[str, RGB] = field(default_factory=dict)  # RGB uint8 h x w x 3 by name: for the page and as PNGs
    files: dict[str, bytes] = field(default_factory=dict)  # other files by name, such as an animation
    page_data: dict[str, Any] = field(default_factory=dict)  # JSON values for the page's script only


def mean_of(images: list[dict[str, Any]], key: str) -> float:
    """The mean over the images of one of their numbers, rounded for explain.json."""
    return round(float(np.mean([numbers[key] for numbers in images])), 5)


@dataclass(frozen=True)
class Finding:
    """A sentence about a network, with the number and the threshold that it follows from."""

    kind: str  # a key of `THRESHOLDS`
    view: str  # the view that measured it
    value: float
    text: str  # what was measured, in one sentence
    advice: str  # what to do, in one sentence

    @property
    def limit(self) -> float:
        """The threshold that was crossed."""
        return THRESHOLDS[self.kind].limit


class View(Protocol):
    """The interface of a view's module. `compute` gets the subject that its package defines."""

    TITLE: str
    compute: Any  # (subject) -> Facts
    findings: Any  # (numbers of each image, list[dict]) -> list[Finding]
