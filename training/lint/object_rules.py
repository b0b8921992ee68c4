"""Rules about the objects in masks: masks of other images, values that only lie between objects, images without objects."""

import numpy as np

from models.spec import IGNORE_INDEX
from training.data.scan.scanner import SampleStats
from training.lint.findings import Finding, LintReport

# Median of `mask_alignment` over CamVid, by split: 1.13 to 1.17 with the own masks, 0.91 to 0.94 with those of distant images, 1.04
# with those of the next one where the camera hardly moves (val), which is not found.
MIN_ALIGNMENT = 1.02  # median of a split; below, most masks lie no better than elsewhere
# A single mask is reported below MAX_OUTLIER, if the median is above GOOD_ALIGNMENT.
GOOD_ALIGNMENT, MAX_OUTLIER = 1.08, 0.9
MIN_ALIGNED_IMAGES = 8  # with a known alignment, for a median
MAX_OUTLIER_FRACTION = 0.1  # of the images; if more are below, the images have no clear edges

MIN_BORDER_VALUES = 3  # values of one mask that lie at borders
MIN_EDGE_FRACTION = 0.95  # of the pixels of such a value, that lie at borders
MAX_BORDER_AREA = 0.02  # of the mask, of one such value
MIN_VALUE_FRACTION, MIN_MASK_FRACTION = 0.4, 0.5  # of the values of a mask; of the masks

MAX_STUFF_FRACTION = 0.9  # of its images; a class that more of them cut is no object, such as sky
MAX_NAMED_CLASSES = 12


def check_objects(report: LintReport) -> list[Finding]:
    """The findings about alignment, border values, images without objects, and objects that the images cut."""
    if not report.classes:
        return _check_border_values(report)
    return [
        *_check_alignment(report),
        *_check_border_values(report),
        *_check_background_images(report),
        *_check_cut_objects(report),
    ]


def _check_alignment(report: LintReport) -> list[Finding]:
    """Masks whose borders do not lie on edges of the image: of the whole split, or single ones."""
    found = []
    for split, all_stats in report.sample_stats.items():
        known = {index: stats.alignment for index, stats in enumerate(all_stats) if stats.alignment > 0}
        if len(known) < MIN_ALIGNED_IMAGES:
            continue
        median = float(np.median(list(known.values())))
        worst = sorted(known, key=known.__getitem__)
        outliers = [index for index in worst if known[index] < MAX_OUTLIER]
        if median < MIN_ALIGNMENT:
            detail = (
                f"The masks of {split} do not lie on the edges of their images: moved by some pixels, about half of them lie as "
                f"well or better (median ratio {median:.2f}; usual is 1.1). They may be the masks of other images."
            )
            found.append(Finding("warning", "masks of other images", detail, 1.0, ((split, worst[0]),)))
        elif median >= GOOD_ALIGNMENT and len(outliers) <= MAX_OUTLIER_FRACTION * len(known):
            for index in outliers:
                pair = report.datasets[split].pairs[index]
                detail = (
                    f"{pair.mask} lies better on {pair.image} when it is moved (ratio {known[index]:.2f}; the median of {split} "
                    f"is {median:.2f}); it may be the mask of another image."
                )
                found.append(Finding("note", "masks of other images", detail, 1 - known[index], ((split, index),)))
    return found


def _check_border_values(report: LintReport) -> list[Finding]:
    """Gray masks of which many values lie only between two others: JPEG artifacts, anti-aliasing, interpolation."""
    grays = [
        (split, index, stats)
        for split, all_stats in report.sample_stats.items()
        for index, stats in enumerate(all_stats)
        if stats.kind == "gray" and not stats.errors
    ]
    affected = [(split, index, values) for split, index, stats in grays if (values := _border_values(stats))]
    if len(affected) < MIN_MASK_FRACTION * max(1, len(grays)):
        return []
    split, index, values = max(affected, key=lambda each: len(each[2]))
    listed = ", ".join(map(str, values[:MAX_NAMED_CLASSES])) + (" and more" if len(values) > MAX_NAMED_CLASSES else "")
    detail = (
        f"{len(affected):,} of {len(grays):,} masks have values that lie only at the borders of others, such as {listed} in "
        f"{report.datasets[split].pairs[index].mask}."
    )
    return [Finding("warning", "values only at borders", detail, locations=((split, index),))]


def _border_values(stats: SampleStats) -> list[int]:
    """The values of a mask that lie only at borders, if they are many of its values; otherwise none."""
    pixels = stats.quarters.sum(axis=(1, 2))
    total = max(1, int(pixels.sum()))
    at_borders = (stats.edges >= MIN_EDGE_FRACTION * pixels) & (pixels <= MAX_BORDER_AREA * total)
    values = [int(value) for value in stats.values[at_borders] if value != IGNORE_INDEX]
    many = len(values) >= max(MIN_BORDER_VALUES, MIN_VALUE_FRACTION * len(stats.values))
    return values if many else []


def _check_background_images(report: LintReport) -> list[Finding]:
    name = report.classes[0].name
    return [
        Finding(
            "note",
            "images without objects",
            f"{count:,} of the {report.image_counts[split]:,} images of {split} have only {name} (label 0).",
            count,
        )
        for split, count in report.background_images.items()
        if count and not report.has_unknown_values
    ]


def _check_cut_objects(report: LintReport) -> list[Finding]:
    """One note; classes that nearly every image cuts, such as sky, are no objects."""
    cuts, cut_images, images = (
        np.sum(list(counts.values()), axis=0)
        for counts in (report.cut_objects, report.images_with_cuts, report.images_with_label)
    )
    labels = [
        label
        for label in range(1, len(report.classes))
        if cuts[label] and cut_images[label] < MAX_STUFF_FRACTION * images[label]
    ]
    if not labels:
        return []
    listed = ", ".join(
        f"{report.classes[label].name} {cuts[label]:,} (in {cut_images[label]:,} of its {images[label]:,} images)"
        for label in sorted(labels, key=lambda label: -cuts[label])[:MAX_NAMED_CLASSES]
    )
    more = f" and {len(labels) - MAX_NAMED_CLASSES} more classes" if len(labels) > MAX_NAMED_CLASSES else ""
    return [Finding("note", "objects cut at borders", f"Objects at the border of an image: {listed}{more}.")]
