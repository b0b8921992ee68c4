"""The labels of a recording: its events, and the class of each time step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskserve.client.mask import IGNORE_INDEX, Mask
from maskserve.client.npz_arrays import read_arrays

ARRAYS = ("labels", "confidence", "rate", "leads", "start")


@dataclass(frozen=True)
class Event:
    """A stretch of one class. `onset` is its first time step, `offset` the one after its last."""

    name: str  # of its class
    label: int
    lead: str | None  # None where the model takes all leads together
    onset: int
    offset: int
    onset_seconds: float
    offset_seconds: float
    confidence: float  # mean softmax probability, 0..1


@dataclass(frozen=True, eq=False, repr=False)
class SignalMask(Mask):
    """The events of a recording, and the label of each of its time steps, on the recording's own time base.

    As a `Mask`, with `labels` and `confidence` T, or T x leads where several leads were segmented on their own. `png` is empty.
    """

    events: list[Event] = field(default_factory=list)  # lead by lead, each in order of time
    rate: float = 0.0  # Hz
    leads: list[str] = field(default_factory=list)  # that were segmented
    start: str = ""  # when the recording began, ISO 8601; empty if the file does not say it
    npz: bytes = b""  # what the service returned

    @classmethod
    def from_npz(cls, npz: bytes, **fields: Any) -> "SignalMask":
        """The labels of the service's npz; `fields`: those of `Mask` beside the labels, `palette` and `png`.

        Raises: ValueError, LookupError or zipfile.BadZipFile for bytes that are not this format.
        """
        arrays = read_arrays(npz, ARRAYS)
        labels, confidence, rate = arrays["labels"], arrays["confidence"], float(arrays["rate"].item())
        leads, start = [str(name) for name in arrays["leads"].ravel()], str(arrays["start"].item())
        if labels.dtype != np.uint8 or labels.ndim not in (1, 2) or not labels.size:
            raise ValueError(f"expected labels as uint8 of time steps, got {labels.dtype} of {labels.shape}")
        if confidence.dtype != np.float32 or confidence.shape != labels.shape:
            raise ValueError(f"expected a confidence for each label, got {confidence.dtype} of {confidence.shape}")
        if not (math.isfinite(rate) and rate > 0) or (labels.ndim == 2 and labels.shape[1] != len(leads)):
            raise ValueError(f"expected a rate and a name for each lead, got {rate} and {len(leads)} names")
        classes = fields.get("classes", [])
        columns = labels.reshape(len(labels), -1), confidence.reshape(len(labels), -1)
        events = []
        for index in range(columns[0].shape[1]):
            lead = leads[index] if labels.ndim == 2 or len(leads) == 1 else None
            events += list(_find_events(columns[0][:, index], columns[1][:, index], rate, lead, classes))
        palette = np.zeros((256, 3), np.uint8)
        for label, entry in enumerate(classes[:256]):
            palette[label] = entry["rgb"]
        return cls(
            labels=labels, palette=palette, png=b"", confidence=confidence, events=events, rate=rate, leads=leads,
            start=start, npz=npz, **fields,
        )  # fmt: skip

    def save(self, path: Path | str) -> None:
        """Write the npz that the service returned: labels, confidence, rate and leads."""
        Path(path).write_bytes(self.npz)

    def class_fractions(self) -> dict[str, float]:
        """Fraction of the time, 0..1, by class name, the largest first. Only classes that occur; 255 is none."""
        steps = np.bincount(self.labels.ravel(), minlength=256).tolist()
        counts = sorted(zip(steps, self.classes, strict=False), key=lambda pair: -pair[0])
        return {entry["name"]: count / self.labels.size for count, entry in counts if count}

    def overlay(self, alpha: float = 0.5) -> Any:
        """Raises: ValueError: a recording is no image."""
        raise ValueError("A recording has no overlay; the web page of the service draws it.")

    def _repr_png_(self) -> None:  # type: ignore[override]
        """In a notebook, the text and no image."""

    def __repr__(self) -> str:
        seconds = len(self.labels) / self.rate
        names = [event.name for event in self.events]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        return f"<SignalMask {seconds:g} s of {len(self.leads)} leads by {self.model}: {counts or 'no events'}>"


def _find_events(
    labels: NDArray[np.uint8],
    confidence: NDArray[np.float32],
    rate: float,
    lead: str | None,
    classes: list[dict[str, Any]],
) -> Iterator[Event]:
    """The stretches of one class that is neither 0, the background, nor 255, unlabeled."""
    starts = np.concatenate([[0], np.flatnonzero(labels[1:] != labels[:-1]) + 1])
    ends = np.append(starts[1:], len(labels))
    means = np.add.reduceat(confidence, starts, dtype=np.float64) / (ends - starts)
    for start, end, mean in zip(starts.tolist(), ends.tolist(), means.tolist(), strict=True):
        label = int(labels[start])
        if label in (0, IGNORE_INDEX):
            continue
        name = classes[label]["name"] if label < len(classes) else str(label)
        yield Event(name, label, lead, start, end, start / rate, end / rate, mean)
