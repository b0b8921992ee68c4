"""Settings that follow from the data and the machine, as nnU-Net plans for volumes (doi 10.1038/s41592-020-01008-z).

Reads downwards: what the lint measured is surveyed, choices are made one after another, what depends on the machine is
tried there, and the result is a plain config, `plan.yaml`, with the reason of each value.
"""

import functools
import time
from pathlib import Path
from typing import Any

from training.data.decoded_cache import has_room, size_of
from training.lint import Report
from training.plan.budget import Trials, choose_batch, choose_encoder, choose_keeping, choose_length, choose_workers
from training.plan.fingerprint import Survey
from training.plan.profiling import Machine, seconds_a_reading
from training.plan.rules import (
    Plan,
    begin_from,
    choose_augmentation,
    choose_crop,
    choose_loss,
    choose_optimiser,
    choose_view,
    rule_of,
)

__all__ = ["Plan", "make_plan"]


def make_plan(report: Report, wishes: dict[str, Any], out: Path | None = None, started: float | None = None) -> Plan:
    """A plan for the data of a lint's report that holds no errors; `wishes` are settings that stand as they are.

    out: the run folder to be, on whose disk pictures may be kept; default: the current folder's disk.
    started: when the minutes began to count, by the monotonic clock; default: now.
    Takes some seconds: steps are tried on this machine. Raises: ConfigError, WeightsError, BundleError; DataError for a
    picture that is gone.
    """
    plan, survey = Plan(dict(wishes)), Survey.of(report)
    machine = Machine.here(plan.config())
    begin_from(plan)
    choose_view(plan, survey, machine)
    choose_crop(plan, survey, machine)
    choose_augmentation(plan, survey)
    choose_loss(plan, survey)
    choose_batch(plan, survey, machine)
    reading = seconds_a_reading(report.samples.get("train"))
    wanted = size_of(report.every_size(), rule_of(plan))
    choose_keeping(plan, wanted, functools.partial(has_room, out or Path()), reading)
    trials = Trials(len(report.classes), machine, reading, plan["keep"], started or time.monotonic())
    seconds = choose_encoder(plan, trials)
    choose_workers(plan, trials, seconds)
    choose_optimiser(plan)
    choose_length(plan, survey, trials, seconds)
    return plan
