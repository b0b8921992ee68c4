"""Chooses the training settings from the data and the machine, as nnU-Net does for volumes (doi 10.1038/s41592-020-01008-z).

The lint report becomes a fingerprint of the data set, rules choose one setting after another, training steps are timed on
this machine, and the result is a plain config, `plan.yaml`, with a reason for each value.
"""

import functools
import time
from pathlib import Path
from typing import Any

from training.augment.samples import rgb_indices
from training.data.decoded_cache import decoded_bytes, fits_on_disk
from training.lint import LintReport
from training.plan.budget import (
    StepProfiler,
    choose_batch,
    choose_caching,
    choose_duration,
    choose_encoder,
    choose_workers,
)
from training.plan.fingerprint import DatasetFingerprint
from training.plan.profiling import MachineProfile, measure_read_seconds
from training.plan.rules import (
    Plan,
    choose_architecture,
    choose_augmentation,
    choose_crop,
    choose_input_rule,
    choose_loss,
    choose_optimiser,
    planned_input_rule,
)
from training.plan.signals import (
    AUGMENT_SECONDS,
    SampleCounts,
    choose_rate,
    choose_signal_augmentation,
    choose_signal_batch,
    choose_signal_crop,
    choose_signal_events,
    choose_signal_loss,
    choose_signal_network,
    choose_signal_size,
    fits_in_memory,
)
from training.plan.volumes import (
    choose_spacing,
    choose_volume_augmentation,
    choose_volume_batch,
    choose_volume_loss,
    choose_volume_network,
    choose_volume_resolution,
)

__all__ = ["Plan", "make_plan"]


def make_plan(
    report: LintReport, overrides: dict[str, Any], out: Path | None = None, start_time: float | None = None
) -> Plan:
    """Make a plan from a lint report without errors; takes some seconds, because it times training steps.

    overrides: settings that the plan keeps as they are.
    out: the future run folder, whose disk may cache images; default: the current folder.
    start_time: when the minutes began to count, by the monotonic clock; default: now.
    Raises: ConfigError, WeightsError, BundleError; DataError for an image that has been removed.
    """
    if report.axes == "T":
        return _plan_signals(report, Plan(dict(overrides)), start_time)
    if report.axes == "DHW":
        return _plan_volumes(report, Plan(dict(overrides)), start_time)
    plan, fingerprint = Plan(dict(overrides)), DatasetFingerprint.from_report(report)
    machine = MachineProfile.detect(plan.config())
    choose_architecture(plan)
    choose_input_rule(plan, fingerprint, machine)
    choose_crop(plan, fingerprint, machine)
    rule = report.datasets["train"].input if "train" in report.datasets else None
    choose_augmentation(plan, fingerprint, has_color=rule is None or bool(rgb_indices(rule)))
    choose_loss(plan, fingerprint)
    choose_batch(plan, fingerprint, machine)
    read_seconds = measure_read_seconds(report.datasets.get("train"))
    planned = planned_input_rule(plan)
    resized = rule.model_copy(update={"rule": planned.rule, "side": planned.side}) if rule else planned
    cache_bytes = decoded_bytes(report.all_image_sizes(), resized)
    choose_caching(plan, cache_bytes, functools.partial(fits_on_disk, out or Path()), read_seconds)
    profiler = StepProfiler(
        len(report.classes), machine, read_seconds, plan["cache_decoded"], start_time or time.monotonic(), rule=rule
    )
    seconds = choose_encoder(plan, profiler)
    choose_workers(plan, profiler, seconds)
    choose_optimiser(plan)
    choose_duration(plan, fingerprint, profiler, seconds)
    return plan


def _plan_signals(report: LintReport, plan: Plan, start_time: float | None) -> Plan:
    """The plan for signals: their own rules for data and augmentation, the same for time, memory and optimizer."""
    rule = report.datasets["train"].input
    if rule is None:  # `apply_input` has chosen it before
        raise ValueError("the report has no input rule")
    machine = MachineProfile.detect(plan.config())
    if rule.rate is not None:
        plan.set("rate", rule.rate, choose_rate(report, plan.config())[1].rstrip("."))
    choose_architecture(plan)
    choose_signal_network(plan)
    choose_signal_crop(plan, report, rule)
    choose_signal_augmentation(plan, report, rule)
    choose_signal_loss(plan, report)
    choose_signal_events(plan, report, rule)
    choose_signal_batch(plan, report, machine)
    # Recordings that fit into memory are read once.
    read_seconds = 0.0 if fits_in_memory(report, rule) else measure_read_seconds(report.datasets["train"])
    profiler = StepProfiler(
        len(report.classes),
        machine,
        read_seconds,
        start_time=start_time or time.monotonic(),
        rule=rule,
        augment_seconds=AUGMENT_SECONDS,
    )
    seconds = choose_signal_size(plan, profiler)
    choose_workers(plan, profiler, seconds)
    choose_optimiser(plan)
    choose_duration(plan, SampleCounts(report), profiler, seconds)
    return plan


def _plan_volumes(report: LintReport, plan: Plan, start_time: float | None) -> Plan:
    """The plan for volumes: nnU-Net's rules for spacing, patch and network, the same as for images for time and optimizer."""
    rule = report.datasets["train"].input
    if rule is None:  # `apply_input` has chosen it before
        raise ValueError("the report has no input rule")
    machine = MachineProfile.detect(plan.config())
    if rule.spacing is not None:
        plan.set("spacing", list(rule.spacing.values), choose_spacing(report, plan.config())[1].rstrip("."))
    choose_architecture(plan)
    choose_volume_network(plan, report, rule, machine)
    choose_volume_augmentation(plan, report, rule)
    choose_volume_loss(plan)
    choose_volume_batch(plan, len(report.datasets["train"]), machine)
    read_seconds = measure_read_seconds(report.datasets["train"])
    profiler = StepProfiler(
        len(report.classes), machine, read_seconds, start_time=start_time or time.monotonic(), rule=rule
    )
    seconds = choose_volume_resolution(plan, profiler)
    choose_workers(plan, profiler, seconds)
    choose_optimiser(plan)
    choose_duration(plan, SampleCounts(report), profiler, seconds)
    return plan
