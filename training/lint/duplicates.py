"""Finds images that occur twice, exactly or nearly. Duplicates across splits make the test images part of the training images.

Exact duplicates have equal pixels, whatever their files. Near duplicates have perceptual hashes that differ in at most 6 of 64
bits: the same image saved again, resized or slightly brightened, and neighboring video frames. Only hashes with an equal part
are compared.
"""

import itertools
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from training.data.scan.scanner import SampleStats
from training.lint.findings import Finding, LintReport

MAX_HAMMING_DISTANCE = 6  # bits of 64
HASH_PARTS = MAX_HAMMING_DISTANCE + 1  # 6 differing bits leave at least one of 7 parts equal
MAX_PAIRS = 200_000  # more pairs mean a video, and add no information
MAX_LISTED_IMAGES = 4
SampleLocation = tuple[str, int]  # split, index


def check_duplicates(report: LintReport) -> list[Finding]:
    """The findings about images that occur twice."""
    locations = [(split, index) for split, stats in report.sample_stats.items() for index in range(len(stats))]
    all_stats = [stats for split_stats in report.sample_stats.values() for stats in split_stats]
    found, known = _exact_duplicates(report, locations, all_stats)
    return found + _near_duplicates(report, locations, all_stats, known)


def _exact_duplicates(
    report: LintReport, locations: list[SampleLocation], all_stats: list[SampleStats]
) -> tuple[list[Finding], set[int]]:
    """The findings, and the numbers of the images in them."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, stats in enumerate(all_stats):
        if stats.digest:
            groups[stats.digest].append(number)
    found, known = [], set()
    for group in groups.values():
        if len(group) < 2:
            continue
        known.update(group)
        first = group[0]
        other = next((number for number in group if locations[number][0] != locations[first][0]), None)
        if other is not None:  # the leak is worse than masks that differ
            kind = "same image in two splits"
        elif any(_mask_key(all_stats[number]) != _mask_key(all_stats[first]) for number in group[1:]):
            kind = "same image, different masks"
        else:
            kind = "same image twice"
        shown = (locations[first], locations[group[1] if other is None else other])
        detail = _describe_images(report, [locations[number] for number in group])
        found.append(Finding("warning", kind, detail, len(group), shown))
    return found, known


def _mask_key(stats: SampleStats) -> tuple[bytes, ...]:
    return stats.values.tobytes(), stats.quarters.tobytes(), stats.edges.tobytes()


def _near_duplicates(
    report: LintReport, locations: list[SampleLocation], all_stats: list[SampleStats], known: set[int]
) -> list[Finding]:
    """A finding per image with a near duplicate in an earlier split, and one per split for those within it."""
    numbers = [
        number
        for number, stats in enumerate(all_stats)
        # Images with nodata share the shape of their collar, which the hash would compare.
        if stats.perceptual_hash and number not in known and not stats.sample_format.nodata
    ]
    hashes = np.array([all_stats[number].perceptual_hash for number in numbers], np.uint64)
    values, inverse = np.unique(hashes, return_inverse=True)
    owners: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))  # hash index -> split -> images
    for number, value in zip(numbers, inverse.tolist(), strict=True):
        owners[value][locations[number][0]].append(number)
    splits = list(report.sample_stats)
    across: dict[int, tuple[int, int]] = {}  # image of a later split -> distance in bits, image of an earlier split
    within: dict[str, dict[int, int]] = {split: {} for split in splits}  # split -> image -> similar image
    pairs, distances = near_pairs(values)
    equal = np.stack([np.arange(len(values))] * 2, axis=1)
    for (one, two), distance in zip(
        [*equal.tolist(), *pairs.tolist()], [0] * len(values) + distances.tolist(), strict=True
    ):
        for first, second in {(one, two), (two, one)}:
            for split, images in owners[first].items():
                similar = owners[second].get(split, [])
                if first != second and similar:
                    within[split].update(dict.fromkeys(images, similar[0]))
                elif first == second and len(images) > 1:
                    within[split].update({images[0]: images[1], **dict.fromkeys(images[1:], images[0])})
                for earlier in splits[: splits.index(split)]:
                    if earlier in owners[second]:
                        for number in images:
                            across[number] = min(across.get(number, (65, 0)), (distance, owners[second][earlier][0]))
    found = []
    for number, (distance, other) in across.items():
        shown = (locations[other], locations[number])
        detail = _describe_images(report, list(shown), distance)
        found.append(Finding("warning", "near duplicates in two splits", detail, -distance, shown))
    return found + [
        _within_split_finding(report, locations, split, similar) for split, similar in within.items() if similar
    ]


def _within_split_finding(
    report: LintReport, locations: list[SampleLocation], split: str, similar: dict[int, int]
) -> Finding:
    number, other = next(iter(similar.items()))
    shown = (locations[number], locations[other])
    detail = (
        f"{len(similar):,} of the {report.image_counts[split]:,} images of {split} are similar to another one, such as "
        f"{_describe_images(report, list(shown))}"
    )
    return Finding("note", "near duplicates within a split", detail, len(similar), shown)


def _describe_images(report: LintReport, locations: list[SampleLocation], distance: int | None = None) -> str:
    names = [f"{report.datasets[split].pairs[index].image} ({split})" for split, index in locations]
    more = f" and {len(names) - MAX_LISTED_IMAGES} more" if len(names) > MAX_LISTED_IMAGES else ""
    bits = f", {distance} of 64 bits apart" if distance else ""
    return " and ".join(names[:MAX_LISTED_IMAGES]) + more + bits


def near_pairs(values: NDArray[np.uint64], max_pairs: int = MAX_PAIRS) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of distinct 64-bit values that differ in at most MAX_HAMMING_DISTANCE bits.

    Returns: indices P x 2, and the number of differing bits, P; about `max_pairs` pairs at most.
    By the pigeonhole principle two such values share one of HASH_PARTS parts: the values are sorted by each part, and only those
    with an equal part are compared (multi-index hashing, Norouzi et al. 2012).
    """
    found: dict[tuple[int, int], int] = {}
    ends = np.linspace(0, 64, HASH_PARTS + 1).astype(int)
    for low, high in itertools.pairwise(ends):
        part = (values >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(part, kind="stable")
        part, ordered = part[order], values[order]
        last = np.searchsorted(part, part, side="right")
        left = np.arange(len(values))
        step = 1
        while True:
            left = left[left + step < last[left]]
            if not len(left) or len(found) > max_pairs:
                break
            bits = np.bitwise_count(ordered[left] ^ ordered[left + step])
            near = bits <= MAX_HAMMING_DISTANCE
            for index, distance in zip(left[near].tolist(), bits[near].tolist(), strict=True):
                one, two = sorted((int(order[index]), int(order[index + step])))
                found[one, two] = distance
            step += 1
    pairs = sorted(found)
    return np.array(pairs, np.int64).reshape(-1, 2), np.array([found[pair] for pair in pairs], np.int64)
