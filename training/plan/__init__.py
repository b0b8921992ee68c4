"""Settings that follow from the data and the machine, as nnU-Net plans for volumes (doi 10.1038/s41592-020-01008-z).

Reads downwards: what the lint measured is surveyed, choices are made one after another, what depends on the machine is
tried there, and the result is a plain config, `plan.yaml`, with the reason of each value.
"""

import functools
import time
from pathlib import Path
from typing import Any

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

__all__ = ["Plan", "make_plan"]


def make_plan(
    report: LintReport, overrides: dict[str, Any], out: Path | None = None, start_time: float | None = None
) -> Plan:
    """A plan for the data of a lint's report that holds no errors; `wishes` are settings that stand as they are.

    out: the run folder to be, on whose disk images may be kept; default: the current folder's disk.
    started: when the minutes began to count, by the monotonic clock; default: now.
    Takes some seconds: steps are tried on this machine. Raises: ConfigError, WeightsError, BundleError; DataError for a
    image that is gone.
    """
    plan, survey = Plan(dict(overrides)), DatasetFingerprint.from_report(report)
    machine = MachineProfile.detect(plan.config())
    choose_architecture(plan)
    choose_input_rule(plan, survey, machine)
    choose_crop(plan, survey, machine)
    choose_augmentation(plan, survey)
    choose_loss(plan, survey)
    choose_batch(plan, survey, machine)
    reading = measure_read_seconds(report.datasets.get("train"))
    wanted = decoded_bytes(report.all_image_sizes(), planned_input_rule(plan))
    choose_caching(plan, wanted, functools.partial(fits_on_disk, out or Path()), reading)
    trials = StepProfiler(len(report.classes), machine, reading, plan["cache_decoded"], start_time or time.monotonic())
    seconds = choose_encoder(plan, trials)
    choose_workers(plan, trials, seconds)
    choose_optimiser(plan)
    choose_duration(plan, survey, trials, seconds)
    return plan
