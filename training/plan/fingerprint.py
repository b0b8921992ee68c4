"""What a data set's pictures and masks say of how to train on them: read off the lint's measures, no pixel twice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.lint import Measure, Report

FEW = 8  # pictures, below which a leaning of theirs may be chance
SURE = 5.0  # standard errors, beyond which it is not
LEANS = 0.4  # of a class's pixels more in one half than in the other, from which pictures have an upside
ONE_SIDED = 0.8  # the same, from which a mirrored picture shows what does not exist: the heart on the right

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Survey:
    """Sizes in pixels of the upright pictures; classes by label."""

    pictures: int  # to train on
    held_out: int  # to validate on
    size: tuple[int, int]  # median (height, width)
    spread: float  # long sides, the 90th percentile over the 10th: 1 where all are alike
    shares: Floats  # C, of the labelled pixels, 0..1
    widths: Floats  # C, typical width of a class's regions, pixels of the pictures; NaN where it never occurs
    held: Floats  # C, share of the pictures that hold a class, 0..1
    upright: bool  # whether classes have their place above or below
    sided: bool  # whether a class has its place left or right
    follows: float | None  # growth of widths with pictures: 1 where twice the picture shows things twice as wide

    @classmethod
    def of(cls, report: Report) -> "Survey":
        """From the lint's report, which holds no errors."""
        measures, count = report.measures, len(report.classes)
        quarters, edges = _table(measures, count)
        pixels = quarters.sum(axis=(2, 3))
        sizes = np.array([one.size for one in measures])
        long = sizes.max(axis=1)
        low, high = np.quantile(long, [0.1, 0.9])
        with np.errstate(invalid="ignore", divide="ignore"):
            # A strip of width w and length l has w x l pixels, and 2 x l of them at its edge.
            widths = 2 * pixels.sum(axis=0) / edges.sum(axis=0)
        height, width = _middle(sizes)
        return cls(
            pictures=len(measures),
            held_out=report.pictures.get("val", 0),
            size=(height, width),
            spread=float(high / low),
            shares=pixels.sum(axis=0) / max(1, pixels.sum()),
            widths=np.where(pixels.sum(axis=0) > 0, np.minimum(widths, max(height, width)), np.nan),
            held=(pixels > 0).mean(axis=0),
            # A row of pixels has no upper half.
            # Where too few tell: pictures are mostly taken upright, and seldom one-sided.
            upright=bool(np.mean(_leanings(quarters[sizes[:, 0] > 1].sum(axis=3)) or [1.0]) >= LEANS),
            sided=max(_leanings(quarters[sizes[:, 1] > 1].sum(axis=2)), default=0.0) >= ONE_SIDED,
            follows=_follows(long, pixels, edges),
        )

    @property
    def ground(self) -> int:
        """The label of the class that fills most."""
        return int(self.shares.argmax())

    @property
    def things(self) -> Floats:
        """The widths of the classes that occur, but for the one that fills most."""
        others = np.delete(self.widths, self.ground)
        return others[~np.isnan(others)]

    @property
    def thin(self) -> float:
        """Width of the thinnest class."""
        return float(self.things.min(initial=max(self.size)))

    @property
    def typical(self) -> float:
        """Width of the middle class of those that do not fill most."""
        return float(np.median(self.things)) if self.things.size else float(max(self.size))


def _table(measures: list[Measure], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """N x C x 2 x 2 pixels and N x C edge pixels of the classes."""
    quarters = np.zeros((len(measures), count, 2, 2), np.int64)
    edges = np.zeros((len(measures), count), np.int64)
    for row, one in enumerate(measures):
        known = one.labels < count  # all but void
        quarters[row, one.labels[known]] = one.quarters[known]
        edges[row, one.labels[known]] = one.edges[known]
    return quarters, edges


def _middle(sizes: NDArray[np.int64]) -> tuple[int, int]:
    """(height, width) of a picture of the median long side and the median shape, of N x 2."""
    long, slope = np.median(sizes.max(axis=1)), np.median(np.log(sizes[:, 0] / sizes[:, 1]))
    short = long * np.exp(-abs(slope))
    height, width = (long, short) if slope > 0 else (short, long)
    return max(1, round(height)), max(1, round(width))


def _leanings(halves: NDArray[np.int64]) -> list[float]:
    """How far each class lies in one of two halves (N x C x 2 pixels), 0..1; those on too few pictures are left out."""
    leanings = []
    for label in range(halves.shape[1]):
        held = halves[halves[:, label].sum(axis=1) > 0, label].astype(float)
        if len(held) < FEW:
            continue
        lean = (held[:, 0] - held[:, 1]) / held.sum(axis=1)
        error = max(float(lean.std()), 0.05) / np.sqrt(len(lean))
        leanings.append(float(abs(lean.mean())) if abs(lean.mean()) > SURE * error else 0.0)
    return leanings


def _follows(long: NDArray[np.int64], pixels: NDArray[np.int64], edges: NDArray[np.int64]) -> float | None:
    """The slope of log width over log long side, each class around its own mean; None where sizes hardly differ.

    The class that fills most is left out: it fills what there is.
    """
    sides, widths = [], []
    for label in np.delete(np.arange(pixels.shape[1]), pixels.sum(axis=0).argmax()):
        held = (pixels[:, label] > 0) & (edges[:, label] > 0)
        if held.sum() < FEW:
            continue
        side = np.log(long[held])
        width = np.log(2 * pixels[held, label] / edges[held, label])
        sides.append(side - side.mean())
        widths.append(width - width.mean())
    if not sides:
        return None
    side, width = np.concatenate(sides), np.concatenate(widths)
    if side.std() < 0.15:  # a long side half as long again is 0.4
        return None
    return float((side @ width) / (side @ side))
