"""The lint: every file's facts, given labels, put before the rules."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.spec import IGNORE_INDEX
from training.data import SegmentationDataset, has_split, load_splits
from training.data.dataset import SPLITS
from training.data.scan.label_stats import LabelLookup, compute_label_stats
from training.data.scan.scanner import SampleStats, scan_splits
from training.lint.dataset_rules import check_dataset
from training.lint.duplicates import check_duplicates
from training.lint.findings import LintReport
from training.lint.sample_rules import check_sample


def lint(
    root: Path,
    data_format: str = "auto",
    splits: tuple[str, ...] = SPLITS,
    progress: Callable[[int, int], None] | None = None,
    use_cache: bool = True,
) -> LintReport:
    """Read every image and mask of a data set. A split that has no folder is passed over, but train must be there.

    `progress` is called with the number of pairs done and of all. Files that are as they were at the last lint are not read again,
    unless not `cached`.
    Raises: DataError for a folder that is no data set at all, or a split that is laid out wrongly.
    """
    there = ["train", *(split for split in splits if split != "train" and has_split(root, split, data_format))]
    opened = load_splits(root, there, data_format, progress)
    report = LintReport(opened["train"].classes)
    for split, facts in scan_splits(opened, progress, use_cache).items():
        _add_split(report, split, opened[split], facts)
    report.findings += check_dataset(report, splits)
    report.findings += check_duplicates(report)
    return report


def _add_split(report: LintReport, split: str, samples: SegmentationDataset, scanned: list[SampleStats]) -> None:
    """Put the facts of one split into the report, and what is wrong with its pairs."""
    report.datasets[split], report.sample_stats[split], report.image_counts[split] = samples, scanned, len(samples)
    for counts in (report.pixel_counts, report.images_with_label, report.edge_counts):
        counts[split] = np.zeros(IGNORE_INDEX + 1, np.int64)
    labeller = LabelLookup(samples.mask_encoding, len(samples.classes))
    for index, (pair, facts) in enumerate(zip(samples.pairs, scanned, strict=True)):
        labelled = labeller(facts)
        findings = check_sample(pair, facts, labelled, len(samples.classes), (split, index))
        report.findings += findings
        if split == "train" and facts.size:
            report.train_image_sizes.append(facts.size)
        if not facts.is_valid:
            continue
        figures = compute_label_stats(facts, labelled)
        report.pixel_counts[split][figures.labels] += figures.quarters.sum(axis=(1, 2))
        report.images_with_label[split][figures.labels] += 1
        report.edge_counts[split][figures.labels] += figures.edges
        if split == "train" and not any(finding.level == "error" for finding in findings):
            report.train_label_stats.append(figures)
