"""The lint of signals: their leads, rates, units, events and splits."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from models.spec import IGNORE_INDEX
from training.data.dataset import Pair
from training.data.scan.signal_stats import CLIPPED_FRACTION, SignalStats
from training.lint.findings import Finding, LintReport

MIN_FLAT, MIN_MISSING = 0.1, 0.001  # fractions of a lead from which it is reported
SHORT_STEPS = 3  # an event of fewer time steps is hardly meant
SCALE_RATIO = 30.0  # of the deviations of a lead between recordings, from their 5% to their 95% quantile
MAX_NAMED = 3


def check_recording(pair: Pair, stats: SignalStats, location: tuple[str, int]) -> list[Finding]:
    """The findings of one pair."""
    found = [Finding("error", "unreadable file", message, locations=(location,)) for message in stats.errors]
    for lead in stats.leads:
        where = f"{pair.image}, lead {lead.name}"
        for kind, fraction, least, what in (
            ("flat lead", lead.flat, MIN_FLAT, "does not change"),
            ("clipped lead", lead.clipped, CLIPPED_FRACTION, "is cut off at its highest or lowest value"),
            ("missing samples", lead.missing, MIN_MISSING, "has no value"),
        ):
            if fraction >= least:
                level = "note" if kind == "missing samples" and fraction < 1 else "warning"
                found.append(
                    Finding(level, kind, f"{where}: {what} for {fraction:.1%} of the time.", fraction, (location,))
                )
    for kind, level, events, what in (
        ("events outside the recording", "warning", stats.outside, "outside of its time steps"),
        ("overlapping events", "warning", stats.overlaps, "that overlap"),
        ("event ends before it begins", "error", stats.reversed, "that end before they begin"),
    ):
        if events:
            shown = "; ".join(events[:MAX_NAMED]) + (" ..." if len(events) > MAX_NAMED else "")
            length = f" of {stats.size[0]:,}" if stats.size and events is stats.outside else ""
            detail = (
                f"{pair.mask}: {len(events):,} event{'s' * (len(events) > 1)} {what}{length}, in time steps: {shown}."
            )
            found.append(Finding(level, kind, detail, len(events), (location,)))
    if not stats.errors and stats.label_counts[:IGNORE_INDEX].sum() == 0:
        found.append(
            Finding("warning", "no labeled time", f"{pair.mask} labels no time step of {pair.image}.", 1, (location,))
        )
    return found


def check_signals(report: LintReport) -> list[Finding]:
    """The findings about the data set as a whole."""
    return [
        *_check_rates(report),
        *_check_units(report),
        *_check_scales(report),
        *_check_short_events(report),
        *_check_unlabelled(report),
        *_check_groups(report),
        *_check_copies(report),
    ]


def _all(report: LintReport) -> Iterable[tuple[str, Pair, SignalStats]]:
    for split, dataset in report.datasets.items():
        for pair, stats in zip(dataset.pairs, report.sample_stats[split], strict=True):
            yield split, pair, stats


def _check_rates(report: LintReport) -> list[Finding]:
    example: dict[float | None, Pair] = {}
    counts: Counter[float | None] = Counter()
    for _, pair, stats in _all(report):
        if stats.size:
            counts[stats.rate] += 1
            example.setdefault(stats.rate, pair)
    found = []
    if None in counts:
        detail = f"{counts[None]:,} recordings state no sampling rate, such as {example[None].image}."
        found.append(Finding("warning", "no sampling rate", detail))
    known = [rate for rate in counts if rate is not None]
    if len(known) > 1:
        listed = ", ".join(
            f"{rate:g} Hz {counts[rate]:,}, such as {example[rate].image}" for rate in sorted(known)[:MAX_NAMED]
        )
        found.append(Finding("note", "mixed rates", f"The recordings have {len(known)} sampling rates: {listed}."))
    return found


def _check_units(report: LintReport) -> list[Finding]:
    units: dict[str, dict[str, Pair]] = defaultdict(dict)
    for _, pair, stats in _all(report):
        for lead in stats.leads:
            units[lead.name.lower()].setdefault(lead.unit, pair)
    mixed = {name: each for name, each in units.items() if len(each) > 1}
    if not mixed:
        return []
    name, each = next(iter(mixed.items()))
    listed = "; ".join(f"{unit or 'no unit'}, such as {pair.image}" for unit, pair in list(each.items())[:MAX_NAMED])
    return [Finding("warning", "mixed units", f"{len(mixed)} leads are in different units, such as {name}: {listed}.")]


def _check_scales(report: LintReport) -> list[Finding]:
    deviations: dict[str, list[float]] = defaultdict(list)
    for _, _, stats in _all(report):
        for lead in stats.leads:
            if lead.deviation > 0:
                deviations[lead.name.lower()].append(lead.deviation)
    for name, values in deviations.items():
        low, high = np.quantile(values, [0.05, 0.95])
        if len(values) >= 8 and high > SCALE_RATIO * low:
            detail = (
                f"The deviation of the lead {name} goes from {low:.3g} (5%) to {high:.3g} (95%) between recordings."
            )
            return [Finding("note", "different scales of signals", detail)]
    return []


def _check_short_events(report: LintReport) -> list[Finding]:
    count, example = 0, ""
    for _, pair, stats in _all(report):
        steps = stats.durations[:, 1] * (stats.rate or 1.0)
        short = int((steps < SHORT_STEPS - 0.5).sum())
        if short and not count:
            example = str(pair.mask)
        count += short
    if not count:
        return []
    return [
        Finding(
            "note",
            "very short events",
            f"{count:,} events have fewer than {SHORT_STEPS} time steps, such as in {example}.",
        )
    ]


def _check_unlabelled(report: LintReport) -> list[Finding]:
    found = []
    for split, counts in report.pixel_counts.items():
        fraction = counts[IGNORE_INDEX] / max(1, counts.sum())
        if fraction > 0:
            detail = (
                f"{fraction:.1%} of the time of {split} is not annotated: before the first and after the last event."
            )
            found.append(Finding("note", "unannotated stretches", detail, fraction))
    return found


def _check_groups(report: LintReport) -> list[Finding]:
    splits: dict[str, dict[str, Pair]] = defaultdict(dict)
    for split, pair, _ in _all(report):
        if pair.group:
            splits[pair.group].setdefault(split, pair)
    shared = {group: each for group, each in splits.items() if len(each) > 1}
    found = []
    for group, each in shared.items():
        listed = ", ".join(f"{pair.name} ({split})" for split, pair in each.items())
        found.append(Finding("warning", "same patient in two splits", f"{group}: {listed}."))
    return found


def _check_copies(report: LintReport) -> list[Finding]:
    by_digest: dict[str, list[tuple[str, Pair]]] = defaultdict(list)
    flat = {stats.digest for _, _, stats in _all(report) if all(lead.deviation == 0 for lead in stats.leads)}
    for split, pair, stats in _all(report):
        if stats.digest and stats.digest not in flat:
            by_digest[stats.digest].append((split, pair))
    found = []
    for each in by_digest.values():
        if len(each) > 1:
            kind = "same recording in two splits" if len({split for split, _ in each}) > 1 else "same recording twice"
            listed = ", ".join(f"{pair.name} ({split})" for split, pair in each[: MAX_NAMED + 1])
            found.append(Finding("warning", kind, f"{listed} have equal values.", len(each)))
    return found
