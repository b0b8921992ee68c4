"""The length of a training, its progress, and the status that all processes share after each step."""

import functools
import math
import time
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric

from training.config import TrainConfig
from training.engine.checkpoint import TrainState

# The pace is estimated from so many steps on, and reported if it differs by this factor.
MIN_PACE_STEPS, PACE_TOLERANCE = 16, 1.5
NUM_VALIDATIONS = 25  # of a planned training
MIN_TIMED_STEPS = 5  # steps before a mean time is reported: workers and kernels start up


def epochs_between_validations(epochs: float) -> int:
    """How often a planned training of so many epochs validates."""
    return max(1, round(epochs / NUM_VALIDATIONS))


class TrainingDuration:
    """The length of a training in steps or seconds, and the progress at a step."""

    def __init__(self, train_images: int, val_images: int, config: TrainConfig) -> None:
        self.images_per_step = config.batch * config.accumulate
        self.steps_per_epoch = max(1, round(train_images / self.images_per_step))
        epochs = config.limits().get("epochs")
        self.max_steps = int(epochs) * self.steps_per_epoch if epochs else None
        self.max_seconds = config.minutes and 60 * config.minutes
        self.validation_interval = config.validate_every * self.steps_per_epoch  # steps
        # In steps, before one was timed: without gradients an image costs half as much.
        self.validation_cost = val_images / self.images_per_step / 2

    def progress(self, step: int, seconds: float, reserve: float) -> float:
        """The fraction of the training that is done, 0..1. A limit in minutes shortens the schedule to its end.

        `reserve`: seconds for the last validation; at most half of the limit is reserved.
        """
        by_steps = step / self.max_steps if self.max_steps else 0.0
        if not self.max_seconds:
            return min(1.0, by_steps)
        return min(1.0, max(by_steps, seconds / (self.max_seconds - min(reserve, self.max_seconds / 2))))

    def epochs_done(self, step: int) -> float:
        """Passes over the training images so far."""
        return step / self.steps_per_epoch


class PaceEstimate:
    """How many epochs a limit in minutes allows, estimated from the steps so far, again whenever their number has doubled.

    A plan times a few steps beforehand, and other programs may have used the processor just then.
    """

    def __init__(self, duration: TrainingDuration, expected_epochs: float) -> None:
        """`expected_epochs`: the plan's estimate; infinite for a run without one."""
        self.duration, self.expected_epochs = duration, expected_epochs
        self.last: tuple[int, float] | None = None  # step and progress at the last estimate
        self.next_step = 0

    def update(self, step: int, progress: float) -> float | None:
        """The epochs that the run is now expected to have, if they differ much from what was expected before."""
        if self.last is None:  # the first step waits for workers to start
            self.last, self.next_step = (step, progress), step + MIN_PACE_STEPS
        limited = self.duration.max_seconds and math.isfinite(self.expected_epochs)
        if not limited or step < self.next_step or progress <= self.last[1]:
            return None
        steps = step + (1 - progress) * (step - self.last[0]) / (progress - self.last[1])
        self.last, self.next_step, epochs = (step, progress), 2 * step - 1, self.duration.epochs_done(round(steps))
        if max(epochs, self.expected_epochs) < PACE_TOLERANCE * min(epochs, self.expected_epochs):
            return None
        self.expected_epochs = epochs
        return epochs


class SharedStatus(NamedTuple):
    """The status after a step, equal in all processes: with clocks of their own, learning rates would drift apart."""

    progress: float  # fraction of the training that is done, 0..1
    skip_validation: bool  # another validation before the last would exceed the limit in minutes
    stop_requested: bool  # any process received a stop signal: all stop together, or they wait for each other forever


class StepTimer:
    """The mean time of the steps since this start."""

    def __init__(self) -> None:
        self.steps = 0
        self.first_time = self.last_time = 0.0

    def tick(self) -> None:
        """Record the end of a step."""
        self.steps, self.last_time = self.steps + 1, time.monotonic()
        self.first_time = self.first_time or self.last_time

    def mean_step_seconds(self) -> float:
        """The mean; 0 after fewer than `MIN_TIMED_STEPS` steps."""
        return (self.last_time - self.first_time) / (self.steps - 1) if self.steps > MIN_TIMED_STEPS else 0.0


def sync_status(
    fabric: Fabric, duration: TrainingDuration, state: TrainState, timer: StepTimer, stop_requested: bool
) -> SharedStatus:
    """Combine the first process's clock with any process's stop request. By gloo on the CPU, so that no GPU waits."""
    reserve = (
        duration.validation_cost * timer.mean_step_seconds()
        if state.validation_seconds is None
        else state.validation_seconds
    )
    seconds = state.elapsed_seconds()
    progress = duration.progress(state.step, seconds, reserve)
    skip = bool(duration.max_seconds) and seconds + 2 * reserve > float(duration.max_seconds or 0)
    if fabric.world_size > 1:
        own = [progress, float(skip)] if fabric.is_global_zero else [0.0, 0.0]
        total = torch.tensor([*own, float(stop_requested)], dtype=torch.float64)
        torch.distributed.all_reduce(total, group=gloo_group())
        progress, skip, stop_requested = total[0].item(), bool(total[1]), bool(total[2])
    return SharedStatus(progress, skip, stop_requested)


@functools.cache
def gloo_group() -> Any:
    """A process group of all processes, by gloo."""
    return torch.distributed.new_group(backend="gloo")
