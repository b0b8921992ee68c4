"""The lint: every file's facts, given labels, put before the rules."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.spec import VOID
from training.data import Samples, has_split, load_splits
from training.data.dataset import SPLITS
from training.data.scan.label_stats import Labeller, measure
from training.data.scan.scanner import Facts, scan_splits
from training.lint.dataset_rules import judge_whole
from training.lint.duplicates import judge_twins
from training.lint.findings import Report
from training.lint.sample_rules import judge


def lint(
    root: Path,
    format: str = "auto",
    splits: tuple[str, ...] = SPLITS,
    progress: Callable[[int, int], None] | None = None,
    cached: bool = True,
) -> Report:
    """Read every picture and mask of a data set. A split that has no folder is passed over, but train must be there.

    `progress` is called with the number of pairs done and of all. Files that are as they were at the last lint are not read again,
    unless not `cached`.
    Raises: DataError for a folder that is no data set at all, or a split that is laid out wrongly.
    """
    there = ["train", *(split for split in splits if split != "train" and has_split(root, split, format))]
    opened = load_splits(root, there, format, progress)
    report = Report(opened["train"].classes)
    for split, facts in scan_splits(opened, progress, cached).items():
        _take(report, split, opened[split], facts)
    report.findings += judge_whole(report, splits)
    report.findings += judge_twins(report)
    return report


def _take(report: Report, split: str, samples: Samples, scanned: list[Facts]) -> None:
    """Put the facts of one split into the report, and what is wrong with its pairs."""
    report.samples[split], report.facts[split], report.pictures[split] = samples, scanned, len(samples)
    for counts in (report.pixels, report.holders, report.edges):
        counts[split] = np.zeros(VOID + 1, np.int64)
    labeller = Labeller(samples.meaning, len(samples.classes))
    for index, (pair, facts) in enumerate(zip(samples.pairs, scanned, strict=True)):
        labelled = labeller(facts)
        findings = judge(pair, facts, labelled, len(samples.classes), (split, index))
        report.findings += findings
        if split == "train" and facts.size:
            report.sizes.append(facts.size)
        if not facts.fits:
            continue
        figures = measure(facts, labelled)
        report.pixels[split][figures.labels] += figures.quarters.sum(axis=(1, 2))
        report.holders[split][figures.labels] += 1
        report.edges[split][figures.labels] += figures.edges
        if split == "train" and not any(finding.level == "error" for finding in findings):
            report.measures.append(figures)
