"""Images that are there twice, exactly or nearly: across splits they make a test of what was trained on.

Exact is equal pixels, whatever the files. Near is `likeness` in at most 6 of 64 bits: the same image saved anew, made smaller or
a little brighter, and neighbouring frames of a video. No pair is compared that has no equal part of the bits.
"""

import itertools
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from training.data.scan.scanner import SampleStats
from training.lint.findings import Finding, LintReport

MAX_HAMMING_DISTANCE = 6  # bits of 64
HASH_PARTS = MAX_HAMMING_DISTANCE + 1  # bits that differ in 6 places leave one of 7 parts equal
MAX_PAIRS = 200_000  # pairs: past that many a data set is a film, and more of them say nothing new
SampleLocation = tuple[str, int]  # split and index


def check_duplicates(report: LintReport) -> list[Finding]:
    """The findings about images that are there twice."""
    places = [(split, index) for split, facts in report.sample_stats.items() for index in range(len(facts))]
    facts = [each for split in report.sample_stats.values() for each in split]
    found, known = _exact_duplicates(report, places, facts)
    return found + _near_duplicates(report, places, facts, known)


def _exact_duplicates(
    report: LintReport, places: list[SampleLocation], facts: list[SampleStats]
) -> tuple[list[Finding], set[int]]:
    """The findings, and the images that they tell of."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, each in enumerate(facts):
        if each.digest:
            groups[each.digest].append(number)
    found, known = [], set()
    for group in groups.values():
        if len(group) < 2:
            continue
        known.update(group)
        first = group[0]
        other = next((number for number in group if places[number][0] != places[first][0]), None)
        kind = "same image twice" if other is None else "same image in two splits"
        if any(_mask_key(facts[number]) != _mask_key(facts[first]) for number in group[1:]):
            # Across splits the leak is the greater harm, and is told.
            kind = "same image, other masks" if other is None else kind
        shown = (places[first], places[group[1] if other is None else other])
        found.append(
            Finding("warning", kind, _describe_images(report, [places[number] for number in group]), len(group), shown)
        )
    return found, known


def _mask_key(facts: SampleStats) -> tuple[bytes, ...]:
    return facts.values.tobytes(), facts.quarters.tobytes(), facts.edges.tobytes()


def _near_duplicates(
    report: LintReport, places: list[SampleLocation], facts: list[SampleStats], known: set[int]
) -> list[Finding]:
    """A finding for each image that has a near twin in an earlier split, and one a split for those within it."""
    chosen = [number for number, each in enumerate(facts) if each.perceptual_hash and number not in known]
    bits = np.array([facts[number].perceptual_hash for number in chosen], np.uint64)
    values, owner = np.unique(bits, return_inverse=True)
    owners: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, value in zip(chosen, owner.tolist(), strict=True):
        owners[value][places[number][0]].append(number)
    order = list(report.sample_stats)
    across: dict[int, tuple[int, int]] = {}  # image of a later split: bits apart, and its twin in an earlier one
    within: dict[str, dict[int, int]] = {split: {} for split in order}
    pairs, apart = near_pairs(values)
    alike = np.stack([np.arange(len(values))] * 2, axis=1)
    for (one, two), distance in zip(
        [*alike.tolist(), *pairs.tolist()], [0] * len(values) + apart.tolist(), strict=True
    ):
        for here, there in {(one, two), (two, one)}:
            for split, numbers in owners[here].items():
                twins = owners[there].get(split, [])
                if here != there and twins:
                    within[split].update(dict.fromkeys(numbers, twins[0]))
                elif here == there and len(numbers) > 1:
                    within[split].update({numbers[0]: numbers[1], **dict.fromkeys(numbers[1:], numbers[0])})
                for earlier in order[: order.index(split)]:
                    if earlier in owners[there]:
                        for number in numbers:
                            across[number] = min(across.get(number, (65, 0)), (distance, owners[there][earlier][0]))
    found = [
        Finding(
            "warning",
            "near duplicates in two splits",
            _describe_images(report, [places[twin], places[number]], distance),
            -distance,
            (places[twin], places[number]),
        )
        for number, (distance, twin) in across.items()
    ]
    return found + [_within_split_finding(report, places, split, twins) for split, twins in within.items() if twins]


def _within_split_finding(
    report: LintReport, places: list[SampleLocation], split: str, twins: dict[int, int]
) -> Finding:
    number, twin = next(iter(twins.items()))
    count = (
        f"{len(twins):,} of the {report.image_counts[split]:,} images of {split} look like another one of it, such as "
    )
    shown = (places[number], places[twin])
    return Finding(
        "note", "near duplicates within a split", count + _describe_images(report, list(shown)), len(twins), shown
    )


def _describe_images(report: LintReport, places: list[SampleLocation], apart: int | None = None, most: int = 4) -> str:
    names = [f"{report.datasets[split].pairs[index].image} ({split})" for split, index in places]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    near = f", {apart} of 64 bits apart" if apart else ""
    return " and ".join(names[:most]) + more + near


def near_pairs(values: NDArray[np.uint64], max_pairs: int = MAX_PAIRS) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of distinct 64-bit values that differ in at most NEAR bits: places P x 2, and by how many bits, P.

    By the pigeonhole principle two such have one of PARTS parts in common: values are sorted by each part, and only those of one
    part's value are compared (multi-index hashing, Norouzi et al. 2012). At most about `most` pairs.
    """
    found: dict[tuple[int, int], int] = {}
    ends = np.linspace(0, 64, HASH_PARTS + 1).astype(int)
    for low, high in itertools.pairwise(ends):
        part = (values >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(part, kind="stable")
        part, inner = part[order], values[order]
        last = np.searchsorted(part, part, side="right")
        left = np.arange(len(values))
        step = 1
        while True:
            left = left[left + step < last[left]]
            if not len(left) or len(found) > max_pairs:
                break
            bits = np.bitwise_count(inner[left] ^ inner[left + step])
            for place, apart in zip(
                left[bits <= MAX_HAMMING_DISTANCE].tolist(), bits[bits <= MAX_HAMMING_DISTANCE].tolist(), strict=True
            ):
                one, two = sorted((int(order[place]), int(order[place + step])))
                found[one, two] = apart
            step += 1
    pairs = sorted(found)
    return np.array(pairs, np.int64).reshape(-1, 2), np.array([found[pair] for pair in pairs], np.int64)
