"""How long a training lasts, how far it is, and what all processes must know of it alike."""

import functools
import time
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric

from training.config import TrainConfig
from training.engine.checkpoint import TrainState

DEFAULT_EPOCHS = 40  # where neither epochs nor minutes are given
MIN_TIMED_STEPS = 5  # steps of a start before their time says anything: workers and kernels get going


class TrainingDuration:
    """How long a training lasts, in steps or minutes, and where in it a step lies."""

    def __init__(self, images: int, held_out: int, config: TrainConfig) -> None:
        """`images` to train on, `held_out` to validate on."""
        self.steps_per_epoch = max(1, round(images / (config.batch * config.accumulate)))
        epochs = config.epochs or (None if config.minutes else DEFAULT_EPOCHS)
        self.max_steps = epochs and epochs * self.steps_per_epoch
        self.max_seconds = config.minutes and 60 * config.minutes
        self.validation_interval = config.validate_every * self.steps_per_epoch
        # In steps: a validation is worth half of as many images, for nothing is learned from them.
        self.validation_cost = held_out / (config.batch * config.accumulate) / 2

    def progress(self, step: int, seconds: float, reserve: float) -> float:
        """The share that is done, 0..1: a limit in minutes shortens the schedule, so that it still ends.

        reserve: seconds that the last validation will take; they are counted up to half of the limit.
        """
        by_steps = step / self.max_steps if self.max_steps else 0.0
        if not self.max_seconds:
            return min(1.0, by_steps)
        return min(1.0, max(by_steps, seconds / (self.max_seconds - min(reserve, self.max_seconds / 2))))

    def epochs_done(self, step: int) -> float:
        """Passes over the images that are done."""
        return step / self.steps_per_epoch


class SharedStatus(NamedTuple):
    """What all processes must know alike after a step: learning rates by clocks of their own would drift apart."""

    progress: float  # share of the training that is done, 0..1
    skip_validation: bool  # whether another validation before the last one would overrun the limit
    stop_requested: bool  # whether any process was asked to stop: they leave together, or wait for each other for ever


class StepTimer:
    """How long a step of this start takes."""

    def __init__(self) -> None:
        self.steps = 0
        self.first_time = self.last_time = 0.0

    def tick(self) -> None:
        """A step is done."""
        self.steps, self.last_time = self.steps + 1, time.monotonic()
        self.first_time = self.first_time or self.last_time

    def mean_step_seconds(self) -> float:
        """The mean; 0 while it says nothing yet."""
        return (self.last_time - self.first_time) / (self.steps - 1) if self.steps > MIN_TIMED_STEPS else 0.0


def sync_status(
    fabric: Fabric, span: TrainingDuration, state: TrainState, clock: StepTimer, stopped: bool
) -> SharedStatus:
    """The first process's clock, and any process's stop, for all. The group is of CPUs, so that no GPU waits."""
    reserve = (
        span.validation_cost * clock.mean_step_seconds()
        if state.validation_seconds is None
        else state.validation_seconds
    )
    seconds = state.elapsed_seconds()
    progress = span.progress(state.step, seconds, reserve)
    hurry = bool(span.max_seconds) and seconds + 2 * reserve > float(span.max_seconds or 0)
    if fabric.world_size > 1:
        mine = [progress, float(hurry)] if fabric.is_global_zero else [0.0, 0.0]
        told = torch.tensor([*mine, float(stopped)], dtype=torch.float64)
        torch.distributed.all_reduce(told, group=gloo_group())
        progress, hurry, stopped = told[0].item(), bool(told[1]), bool(told[2])
    return SharedStatus(progress, hurry, stopped)


@functools.cache
def gloo_group() -> Any:
    """Every process, by gloo."""
    return torch.distributed.new_group(backend="gloo")
