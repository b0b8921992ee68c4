"""Fingerprint of a data set: the statistics that the plan's rules use, from the lint's, without reading pixels again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.lint import LabelStats, LintReport

MIN_HALVED_SIDE = 16  # pixels: an image of fewer rows has no upper and lower half; of fewer columns, no left and right
FEW_IMAGES = 8  # with fewer images, an asymmetry may be chance
MIN_STANDARD_ERRORS = 5.0  # an asymmetry of more standard errors is significant
# Difference between the two halves, as a fraction of a class's pixels. From the first on, images have an upside; from the
# second on, a mirrored image shows what does not exist, such as the heart on the right.
MIN_VERTICAL_ASYMMETRY, MIN_HORIZONTAL_ASYMMETRY = 0.4, 0.8

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class DatasetFingerprint:
    """Statistics of a data set; sizes are in pixels of the upright images, arrays are by label."""

    num_train_images: int
    num_val_images: int
    median_size: tuple[int, int]  # median (height, width)
    size_spread: float  # 90th over 10th percentile of the long sides: 1 if all are equal
    pixel_fractions: FloatArray  # C, of the pixels that are not ignored, 0..1
    class_widths: FloatArray  # C, typical width of a class's regions in pixels; NaN if it never occurs
    image_fractions: FloatArray  # C, fraction of the images with the class, 0..1
    vertically_asymmetric: bool  # whether a class lies mostly in the upper or lower half
    horizontally_asymmetric: bool  # whether a class lies mostly in the left or right half
    width_exponent: float | None  # 1 if objects are twice as wide in images of twice the size, 0 if as wide

    @classmethod
    def from_report(cls, report: LintReport) -> "DatasetFingerprint":
        """From a lint report without errors."""
        stats = report.train_label_stats
        quarters, edges = _stack_counts(stats, len(report.classes))
        pixels = quarters.sum(axis=(2, 3))
        sizes = np.array([one.size for one in stats])
        long = sizes.max(axis=1)
        tall, wide = sizes[:, 0] >= MIN_HALVED_SIDE, sizes[:, 1] >= MIN_HALVED_SIDE
        low, high = np.quantile(long, [0.1, 0.9])
        with np.errstate(invalid="ignore", divide="ignore"):
            # A strip of width w and length l has w x l pixels, 2 x l of them at its edge.
            widths = 2 * pixels.sum(axis=0) / edges.sum(axis=0)
        height, width = _median_size(sizes)
        return cls(
            num_train_images=len(stats),
            num_val_images=report.image_counts.get("val", 0),
            median_size=(height, width),
            size_spread=float(high / low),
            pixel_fractions=pixels.sum(axis=0) / max(1, pixels.sum()),
            class_widths=np.where(pixels.sum(axis=0) > 0, np.minimum(widths, max(height, width)), np.nan),
            image_fractions=(pixels > 0).mean(axis=0),
            # Without enough images: photographs are mostly upright, rarely one-sided.
            vertically_asymmetric=bool(
                tall.any() and np.mean(_asymmetries(quarters[tall].sum(axis=3)) or [1.0]) >= MIN_VERTICAL_ASYMMETRY
            ),
            horizontally_asymmetric=max(_asymmetries(quarters[wide].sum(axis=2)), default=0.0)
            >= MIN_HORIZONTAL_ASYMMETRY,
            width_exponent=_width_exponent(long, pixels, edges),
        )

    @property
    def largest_class(self) -> int:
        """The label of the class with the most pixels."""
        return int(self.pixel_fractions.argmax())

    @property
    def other_class_widths(self) -> FloatArray:
        """The widths of the classes that occur, without the largest class."""
        others = np.delete(self.class_widths, self.largest_class)
        return others[~np.isnan(others)]

    @property
    def min_class_width(self) -> float:
        """Width of the thinnest class, in pixels."""
        return float(self.other_class_widths.min(initial=max(self.median_size)))

    @property
    def median_class_width(self) -> float:
        """Median width of the classes without the largest one, in pixels."""
        return (
            float(np.median(self.other_class_widths)) if self.other_class_widths.size else float(max(self.median_size))
        )


def _stack_counts(stats: list[LabelStats], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """N x C x 2 x 2 pixels by quarter of the image, and N x C edge pixels."""
    quarters = np.zeros((len(stats), classes, 2, 2), np.int64)
    edges = np.zeros((len(stats), classes), np.int64)
    for row, one in enumerate(stats):
        known = one.labels < classes  # not ignored
        quarters[row, one.labels[known]] = one.quarters[known]
        edges[row, one.labels[known]] = one.edges[known]
    return quarters, edges


def _median_size(sizes: NDArray[np.int64]) -> tuple[int, int]:
    """(height, width) of an image of the median long side and the median aspect ratio, from N x 2 sizes."""
    long, slope = np.median(sizes.max(axis=1)), np.median(np.log(sizes[:, 0] / sizes[:, 1]))
    short = long * np.exp(-abs(slope))
    height, width = (long, short) if slope > 0 else (short, long)
    return max(1, round(height)), max(1, round(width))


def _asymmetries(halves: NDArray[np.int64]) -> list[float]:
    """How much each class prefers one of two halves (N x C x 2 pixels), 0..1; without classes on too few images."""
    asymmetries = []
    for label in range(halves.shape[1]):
        counts = halves[halves[:, label].sum(axis=1) > 0, label].astype(float)
        if len(counts) < FEW_IMAGES:
            continue
        difference = (counts[:, 0] - counts[:, 1]) / counts.sum(axis=1)
        mean, error = float(abs(difference.mean())), max(float(difference.std()), 0.05) / np.sqrt(len(difference))
        asymmetries.append(mean if mean > MIN_STANDARD_ERRORS * error else 0.0)
    return asymmetries


def _width_exponent(long: NDArray[np.int64], pixels: NDArray[np.int64], edges: NDArray[np.int64]) -> float | None:
    """The slope of log width over log long side, each class around its own mean; None if sizes hardly differ.

    The largest class is left out, because it fills the rest of any image.
    """
    sides, widths = [], []
    for label in np.delete(np.arange(pixels.shape[1]), pixels.sum(axis=0).argmax()):
        present = (pixels[:, label] > 0) & (edges[:, label] > 0)
        if present.sum() < FEW_IMAGES:
            continue
        side = np.log(long[present])
        width = np.log(2 * pixels[present, label] / edges[present, label])
        sides.append(side - side.mean())
        widths.append(width - width.mean())
    if not sides:
        return None
    side, width = np.concatenate(sides), np.concatenate(widths)
    if side.std() < 0.15:  # a long side of 1.5 times is 0.4
        return None
    return float((side @ width) / (side @ side))
