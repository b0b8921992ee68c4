"""Rules for volumes: one with its labels, and all of a data set."""

from collections import Counter, defaultdict

import numpy as np

from models.errors import quoted
from models.spec import IGNORE_INDEX
from training.data.dataset import Pair
from training.data.scan.volume_stats import VolumeStats
from training.lint.findings import Finding, LintReport

MIN_SCALE_RATIO = 16.0  # between the largest values of volumes, from which a fixed range does not fit both
MAX_SPACING_RATIO = 3.0  # between spacings of one axis
Location = tuple[str, int]


def check_case(pair: Pair, stats: VolumeStats, classes: list[str], location: Location) -> list[Finding]:
    """The findings about one volume and its labels."""
    place = (location,)
    found = [Finding("error", "unreadable file", error, locations=place) for error in stats.errors]
    if stats.size is None:
        return found
    if stats.mismatch:
        detail = f"{pair.mask} does not lie on {pair.image}: {stats.mismatch}."
        found.append(Finding("error", "labels on another grid", detail, locations=place))
    if stats.unknown_values:
        listed = ", ".join(map(str, stats.unknown_values[:8]))
        more = f" and {len(stats.unknown_values) - 8} more" if len(stats.unknown_values) > 8 else ""
        detail = f"{pair.mask} has the labels {listed}{more}, which are no class; the classes are {', '.join(classes)}."
        found.append(Finding("error", "label out of range", detail, locations=place))
    if stats.valid < 1:
        detail = f"{pair.image} has {1 - stats.valid:.2%} voxels that are NaN, infinite or beyond 1e20."
        found.append(
            Finding("warning" if stats.valid > 0 else "error", "missing voxels", detail, 1 - stats.valid, place)
        )
    constant = [name for name, low, high in zip(stats.channels, stats.low, stats.high, strict=True) if low == high]
    if constant and stats.valid > 0:
        detail = f"{pair.image} has the same value, {stats.low[0]:g}, in every voxel of {', '.join(constant)}."
        found.append(Finding("warning", "constant volume", detail, locations=place))
    if stats.label_counts is not None:
        labelled = stats.label_counts.sum() - stats.label_counts[IGNORE_INDEX]
        if not labelled and not stats.unknown_values:
            found.append(
                Finding("warning", "unlabeled mask", f"Every voxel of {pair.mask} is ignored.", locations=place)
            )
        elif labelled and labelled == stats.label_counts[0]:
            detail = f"{pair.mask} has only label 0."
            found.append(Finding("note", "volume without objects", detail, locations=place))
    if stats.size and min(stats.size) == 1:
        detail = f"{pair.image} has {' x '.join(map(str, stats.shape))} voxels: one slice."
        found.append(Finding("warning", "volume of one slice", detail, locations=place))
    return found


def check_volumes(report: LintReport) -> list[Finding]:
    """The findings that only all volumes together show; one of each kind."""
    located = [
        ((split, index), stats)
        for split, all_stats in report.sample_stats.items()
        for index, stats in enumerate(all_stats)
        if stats.size
    ]
    return [
        *_check_orientations(report, located), *_check_scales(report, located), *_check_spacings(report, located),
        *_check_channels(report, located), *_check_float_labels(report, located), *_check_copies(report, located),
        *_check_patients(report),
    ]  # fmt: skip


Located = list[tuple[Location, VolumeStats]]


def _image(report: LintReport, location: Location) -> str:
    return str(report.datasets[location[0]].pairs[location[1]].image)


def _check_orientations(report: LintReport, located: Located) -> list[Finding]:
    counts = Counter(stats.orientation for _, stats in located)
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{name or 'none stated'} {count:,}" for name, count in counts.most_common())
    usual = counts.most_common(1)[0][0]
    odd = next(place for place, stats in located if stats.orientation != usual)
    level = "warning" if "" in counts else "note"  # without an orientation, nothing can be turned
    detail = f"The files have different orientations: {listed}; {_image(report, odd)} is one of the rare ones."
    return [Finding(level, "mixed orientations", detail, locations=(odd,))]


def _check_scales(report: LintReport, located: Located) -> list[Finding]:
    spans = [(high[0], place) for place, stats in located if (high := stats.high) and stats.valid > 0 and high[0] > 0]
    if not spans:
        return []
    (least, small), (most, large) = min(spans), max(spans)
    if most < MIN_SCALE_RATIO * least:
        return []
    detail = (
        f"The volumes have different scales: {_image(report, small)} goes up to {least:,.6g}, {_image(report, large)} up to "
        f"{most:,.6g}."
    )
    return [Finding("warning", "different scales of volumes", detail, locations=(small, large))]


def _check_spacings(report: LintReport, located: Located) -> list[Finding]:
    known = [(place, stats.spacing) for place, stats in located if stats.spacing]
    if not known:
        return (
            [Finding("note", "no spacing", "No volume states its spacing: voxels are taken as cubes.")]
            if located
            else []
        )
    if len(known) < len(located):
        place = next(place for place, stats in located if not stats.spacing)
        detail = f"{len(located) - len(known):,} of {len(located):,} volumes state no spacing, such as {_image(report, place)}."
        return [Finding("warning", "no spacing", detail, locations=(place,))]
    table = np.array([spacing for _, spacing in known])
    for axis, name in enumerate(("depth", "height", "width")):
        first, last = int(table[:, axis].argmin()), int(table[:, axis].argmax())
        if table[last, axis] > MAX_SPACING_RATIO * table[first, axis]:
            detail = (
                f"The spacing along the {name} is {table[first, axis]:.3g} mm in {_image(report, known[first][0])} and "
                f"{table[last, axis]:.3g} mm in {_image(report, known[last][0])}."
            )
            return [Finding("note", "different spacings", detail, locations=(known[first][0], known[last][0]))]
    return []


def _check_channels(report: LintReport, located: Located) -> list[Finding]:
    counts = Counter(len(stats.channels) for _, stats in located)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    odd, stats = next((place, stats) for place, stats in located if len(stats.channels) != usual)
    detail = f"{_image(report, odd)} has {len(stats.channels)} channels, and {counts[usual]:,} volumes have {usual}."
    return [Finding("error", "different channels", detail, locations=(odd,))]


def _check_float_labels(report: LintReport, located: Located) -> list[Finding]:
    places = [place for place, stats in located if stats.fractional]
    if not places:
        return []
    mask = report.datasets[places[0][0]].pairs[places[0][1]].mask
    detail = f"{len(places):,} label volumes are stored as floats, such as {mask}; their values are whole numbers."
    return [Finding("note", "float labels", detail, locations=(places[0],))]


def _check_copies(report: LintReport, located: Located) -> list[Finding]:
    by_digest: dict[str, list[Location]] = defaultdict(list)
    for place, stats in located:
        by_digest[stats.digest].append(place)
    found = []
    for places in by_digest.values():
        if len(places) < 2:
            continue
        splits = {split for split, _ in places}
        detail = f"{_image(report, places[0])} and {_image(report, places[1])} are the same volume."
        kind = "same volume in two splits" if len(splits) > 1 else "same volume twice"
        found.append(Finding("error" if len(splits) > 1 else "warning", kind, detail, locations=(places[0], places[1])))
    return found


def _check_patients(report: LintReport) -> list[Finding]:
    splits: dict[str, dict[str, int]] = defaultdict(dict)
    for split, dataset in report.datasets.items():
        for index, pair in enumerate(dataset.pairs):
            if pair.group:
                splits[pair.group].setdefault(split, index)
    found = []
    for patient, by_split in splits.items():
        if len(by_split) > 1:
            (one, first), (two, second), *_ = by_split.items()
            detail = (
                f"The patient {quoted(patient)} is in {one} ({report.datasets[one].pairs[first].name}) and in {two} "
                f"({report.datasets[two].pairs[second].name})."
            )
            found.append(
                Finding("error", "same patient in two splits", detail, locations=((one, first), (two, second)))
            )
    return found
