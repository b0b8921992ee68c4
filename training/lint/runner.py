"""Runs the lint: scans every file, maps values to labels, applies the rules."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.spec import IGNORE_INDEX
from training.data import SegmentationDataset, load_available_splits, recognize_dataset
from training.data.dataset import SPLITS
from training.data.infer_classes import LINT_ADVICE, UnknownClassesError
from training.data.leads import arrange_leads
from training.data.scan.label_stats import LabelLookup, compute_label_stats
from training.data.scan.scanner import SampleStats, scan_splits
from training.data.tree import FileTree
from training.lint.coverage import check_coverage, describe_unread, unread_files
from training.lint.dataset_rules import check_dataset
from training.lint.duplicates import check_duplicates
from training.lint.findings import Finding, LintReport
from training.lint.object_rules import check_objects
from training.lint.sample_format_rules import check_sample_formats
from training.lint.sample_rules import check_sample
from training.lint.signal_rules import check_recording, check_signals
from training.lint.volume_rules import check_case, check_volumes

OTHER_ERRORS_ADVICE = "the other errors name the reason for each"


def lint(
    root: Path,
    data_format: str = "auto",
    splits: tuple[str, ...] = SPLITS,
    progress: Callable[[int, int], None] | None = None,
    use_cache: bool = True,
    leads: str = "auto",
    rate: float | None = None,
) -> LintReport:
    """Read every image and mask of a data set. Missing splits are skipped, except train.

    `progress` is called with the number of pairs done and their total. With `use_cache`, files that have not changed since the
    last lint are not read again. `leads`: the arrangement of signals (`training/data/leads.py`); `rate`: in Hz, of
    signals whose files state none.
    Raises: DataError for a folder that is not a data set, or a split with a wrong layout.
    """
    recognition = recognize_dataset(root, data_format)
    try:
        opened = load_available_splits(root, splits, data_format, progress, recognition)
        report = LintReport(opened["train"].classes)
    except UnknownClassesError as error:  # unreadable masks may be the reason, so the files are checked all the same
        opened = error.datasets
        detail = str(error).replace(LINT_ADVICE, OTHER_ERRORS_ADVICE)  # this is the lint
        report = LintReport([], [Finding("error", "unknown classes", detail)])
    if opened["train"].axes == "T":
        arranged = {split: arrange_leads(dataset, leads) for split, dataset in opened.items()}
        opened = {split: replace(dataset, default_rate=rate) for split, dataset in arranged.items()}
        return _lint_signals(report, opened, splits, recognition.tree, progress)
    if opened["train"].axes == "DHW":
        return _lint_volumes(report, opened, splits, recognition.tree, progress)
    for split, all_stats in scan_splits(opened, progress, use_cache).items():
        _add_split(report, split, opened[split], all_stats)
    report.findings += check_dataset(report, splits)
    report.findings += check_sample_formats(report)
    report.findings += check_objects(report)
    report.findings += check_duplicates(report)
    _add_coverage(report, recognition.tree)
    return report


def _lint_signals(
    report: LintReport,
    opened: dict[str, SegmentationDataset],
    splits: tuple[str, ...],
    tree: FileTree,
    progress: Callable[[int, int], None] | None,
) -> LintReport:
    """The lint of signals, whose statistics are others (`signal_stats.py`)."""
    for split, all_stats in scan_splits(opened, progress).items():
        dataset = opened[split]
        _start_split(report, split, dataset, all_stats)
        for index, (pair, stats) in enumerate(zip(dataset.pairs, all_stats, strict=True)):
            report.findings += check_recording(pair, stats, (split, index))
            if not stats.is_valid:
                report.num_unreadable_masks += 1
                continue
            report.pixel_counts[split] += stats.label_counts
            report.images_with_label[split] += stats.label_counts > 0
            report.background_images[split] += int(stats.label_counts[1:IGNORE_INDEX].sum() == 0)
            if split == "train" and stats.size:
                report.train_image_sizes.append(stats.size)
    report.findings += check_dataset(report, splits)
    report.findings += check_signals(report)
    _add_coverage(report, tree)
    return report


def _lint_volumes(
    report: LintReport,
    opened: dict[str, SegmentationDataset],
    splits: tuple[str, ...],
    tree: FileTree,
    progress: Callable[[int, int], None] | None,
) -> LintReport:
    """The lint of volumes, whose statistics are others (`volume_stats.py`)."""
    names = [entry.name for entry in report.classes]
    for split, all_stats in scan_splits(opened, progress).items():
        dataset = opened[split]
        _start_split(report, split, dataset, all_stats)
        for index, (pair, stats) in enumerate(zip(dataset.pairs, all_stats, strict=True)):
            report.findings += check_case(pair, stats, names, (split, index))
            if not stats.is_valid or stats.label_counts is None:
                report.num_unreadable_masks += stats.label_counts is None
                continue
            report.pixel_counts[split] += stats.label_counts
            report.images_with_label[split] += stats.label_counts > 0
            report.background_images[split] += int(stats.label_counts[1:IGNORE_INDEX].sum() == 0)
            if split == "train" and stats.size:
                report.train_image_sizes.append(stats.size)
    report.findings += check_dataset(report, splits)
    report.findings += check_volumes(report)
    _add_coverage(report, tree)
    return report


def _add_coverage(report: LintReport, tree: FileTree) -> None:
    """Add what was not read."""
    unread = unread_files(tree, report.datasets.values())
    report.not_read = describe_unread(unread)
    report.findings += check_coverage(tree, unread)


def _start_split(report: LintReport, split: str, dataset: SegmentationDataset, all_stats: Sequence[Any]) -> None:
    """Add a split, with counts of 0."""
    report.datasets[split], report.sample_stats[split], report.image_counts[split] = (
        dataset,
        list(all_stats),
        len(dataset),
    )
    report.labels_in_errors[split] = set()
    for counts in (
        report.pixel_counts, report.images_with_label, report.edge_counts, report.cut_objects, report.images_with_cuts
    ):  # fmt: skip
        counts[split] = np.zeros(IGNORE_INDEX + 1, np.int64)
    report.background_images[split] = 0


def _add_split(report: LintReport, split: str, dataset: SegmentationDataset, all_stats: list[SampleStats]) -> None:
    """Add the statistics and sample findings of one split to the report."""
    _start_split(report, split, dataset, all_stats)
    lookup = LabelLookup(dataset.mask_encoding, len(dataset.classes))
    for index, (pair, stats) in enumerate(zip(dataset.pairs, all_stats, strict=True)):
        value_labels = lookup(stats)
        findings = check_sample(pair, stats, value_labels, len(dataset.classes), (split, index))
        report.findings += findings
        if split == "train" and stats.size:
            report.train_image_sizes.append(stats.size)
        if not stats.is_valid:
            report.labels_in_errors[split].update(value_labels.present_labels.tolist())
            report.num_unreadable_masks += stats.mask_size is None
            continue
        label_stats = compute_label_stats(stats, value_labels)
        report.pixel_counts[split][label_stats.labels] += label_stats.quarters.sum(axis=(1, 2))
        report.images_with_label[split][label_stats.labels] += 1
        report.edge_counts[split][label_stats.labels] += label_stats.edges
        cut = (stats.border_runs > 0) & (value_labels.labels >= 0) & (value_labels.labels <= IGNORE_INDEX)
        report.images_with_cuts[split][np.unique(value_labels.labels[cut])] += 1
        np.add.at(report.cut_objects[split], value_labels.labels[cut], stats.border_runs[cut])
        report.background_images[split] += set(label_stats.labels.tolist()) - {IGNORE_INDEX} == {0}
        if split == "train" and not any(finding.level == "error" for finding in findings):
            report.train_label_stats.append(label_stats)
