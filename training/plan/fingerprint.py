"""What a data set's images and masks say of how to train on them: read off the lint's measures, no pixel twice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.lint import LabelStats, LintReport

FEW_IMAGES = 8  # images, below which a leaning of theirs may be chance
MIN_STANDARD_ERRORS = 5.0  # standard errors, beyond which it is not
MIN_VERTICAL_ASYMMETRY = 0.4  # of a class's pixels more in one half than in the other, from which images have an upside
MIN_HORIZONTAL_ASYMMETRY = (
    0.8  # the same, from which a mirrored image shows what does not exist: the heart on the right
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class DatasetFingerprint:
    """Sizes in pixels of the upright images; classes by label."""

    num_train_images: int  # to train on
    num_val_images: int  # to validate on
    median_size: tuple[int, int]  # median (height, width)
    size_spread: float  # long sides, the 90th percentile over the 10th: 1 where all are alike
    pixel_fractions: FloatArray  # C, of the labelled pixels, 0..1
    class_widths: FloatArray  # C, typical width of a class's regions, pixels of the images; NaN where it never occurs
    image_fractions: FloatArray  # C, share of the images that hold a class, 0..1
    vertically_asymmetric: bool  # whether classes have their place above or below
    horizontally_asymmetric: bool  # whether a class has its place left or right
    width_exponent: float | None  # growth of widths with images: 1 where twice the image shows things twice as wide

    @classmethod
    def from_report(cls, report: LintReport) -> "DatasetFingerprint":
        """From the lint's report, which holds no errors."""
        measures, count = report.train_label_stats, len(report.classes)
        quarters, edges = _stack_counts(measures, count)
        pixels = quarters.sum(axis=(2, 3))
        sizes = np.array([one.size for one in measures])
        long = sizes.max(axis=1)
        low, high = np.quantile(long, [0.1, 0.9])
        with np.errstate(invalid="ignore", divide="ignore"):
            # A strip of width w and length l has w x l pixels, and 2 x l of them at its edge.
            widths = 2 * pixels.sum(axis=0) / edges.sum(axis=0)
        height, width = _median_size(sizes)
        return cls(
            num_train_images=len(measures),
            num_val_images=report.image_counts.get("val", 0),
            median_size=(height, width),
            size_spread=float(high / low),
            pixel_fractions=pixels.sum(axis=0) / max(1, pixels.sum()),
            class_widths=np.where(pixels.sum(axis=0) > 0, np.minimum(widths, max(height, width)), np.nan),
            image_fractions=(pixels > 0).mean(axis=0),
            # A row of pixels has no upper half.
            # Where too few tell: images are mostly taken upright, and seldom one-sided.
            vertically_asymmetric=bool(
                np.mean(_asymmetries(quarters[sizes[:, 0] > 1].sum(axis=3)) or [1.0]) >= MIN_VERTICAL_ASYMMETRY
            ),
            horizontally_asymmetric=max(_asymmetries(quarters[sizes[:, 1] > 1].sum(axis=2)), default=0.0)
            >= MIN_HORIZONTAL_ASYMMETRY,
            width_exponent=_width_exponent(long, pixels, edges),
        )

    @property
    def largest_class(self) -> int:
        """The label of the class that fills most."""
        return int(self.pixel_fractions.argmax())

    @property
    def other_class_widths(self) -> FloatArray:
        """The widths of the classes that occur, but for the one that fills most."""
        others = np.delete(self.class_widths, self.largest_class)
        return others[~np.isnan(others)]

    @property
    def min_class_width(self) -> float:
        """Width of the thinnest class."""
        return float(self.other_class_widths.min(initial=max(self.median_size)))

    @property
    def median_class_width(self) -> float:
        """Width of the middle class of those that do not fill most."""
        return (
            float(np.median(self.other_class_widths)) if self.other_class_widths.size else float(max(self.median_size))
        )


def _stack_counts(measures: list[LabelStats], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """N x C x 2 x 2 pixels and N x C edge pixels of the classes."""
    quarters = np.zeros((len(measures), count, 2, 2), np.int64)
    edges = np.zeros((len(measures), count), np.int64)
    for row, one in enumerate(measures):
        known = one.labels < count  # all but void
        quarters[row, one.labels[known]] = one.quarters[known]
        edges[row, one.labels[known]] = one.edges[known]
    return quarters, edges


def _median_size(sizes: NDArray[np.int64]) -> tuple[int, int]:
    """(height, width) of an image of the median long side and the median shape, of N x 2."""
    long, slope = np.median(sizes.max(axis=1)), np.median(np.log(sizes[:, 0] / sizes[:, 1]))
    short = long * np.exp(-abs(slope))
    height, width = (long, short) if slope > 0 else (short, long)
    return max(1, round(height)), max(1, round(width))


def _asymmetries(halves: NDArray[np.int64]) -> list[float]:
    """How far each class lies in one of two halves (N x C x 2 pixels), 0..1; those on too few images are left out."""
    leanings = []
    for label in range(halves.shape[1]):
        held = halves[halves[:, label].sum(axis=1) > 0, label].astype(float)
        if len(held) < FEW_IMAGES:
            continue
        lean = (held[:, 0] - held[:, 1]) / held.sum(axis=1)
        error = max(float(lean.std()), 0.05) / np.sqrt(len(lean))
        leanings.append(float(abs(lean.mean())) if abs(lean.mean()) > MIN_STANDARD_ERRORS * error else 0.0)
    return leanings


def _width_exponent(long: NDArray[np.int64], pixels: NDArray[np.int64], edges: NDArray[np.int64]) -> float | None:
    """The slope of log width over log long side, each class around its own mean; None where sizes hardly differ.

    The class that fills most is left out: it fills what there is.
    """
    sides, widths = [], []
    for label in np.delete(np.arange(pixels.shape[1]), pixels.sum(axis=0).argmax()):
        held = (pixels[:, label] > 0) & (edges[:, label] > 0)
        if held.sum() < FEW_IMAGES:
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
