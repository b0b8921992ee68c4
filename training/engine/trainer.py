"""The training loop, from a step to the next: what an epoch, a limit in minutes, Ctrl-C and a crash mean to it."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor

from models.architectures.base import Network, upsample
from training.augment import Draws
from training.augment import batched as augment
from training.config import TrainConfig
from training.data.loader import Batch
from training.engine.checkpoint import State
from training.engine.distributed import over_processes
from training.engine.optim import rate
from training.engine.schedule import Span, StepClock, agree
from training.engine.step import Guard, Settled, seed_draws, update_average
from training.metrics.confusion import Confusion
from training.run_folder import BEST, LAST


class Watcher(Protocol):
    """Who is told how it goes; `training/engine/loggers.py` has the one for people and files."""

    def stepped(self, state: State) -> None:
        """A step is done."""

    def settled(self, settled: Settled) -> None:
        """A step's loss is known."""

    def validated(self, state: State, confusion: Confusion, loss: float, lr: float, better: bool) -> None:
        """A validation is done, at the end of an epoch or of the time; the checkpoints of it come next."""

    def kept(self, state: State, confusion: Confusion) -> None:
        """The checkpoints are written. What is done here may take its time, and may leave the network in eval mode."""


@dataclass(frozen=True)
class Setup:
    """What steps and validations are computed with."""

    fabric: Fabric
    config: TrainConfig
    crop: tuple[int, int]  # (height, width) in pixels
    autocast: torch.dtype | None  # number format of convolutions; None for float32

    def half(self) -> Any:
        """Convolutions in `autocast`, the rest as torch has it."""
        return nullcontext() if self.autocast is None else torch.autocast(self.fabric.device.type, self.autocast)


def fit(
    setup: Setup, state: State, learner: Any, batches: Iterator[Batch], validate: Callable[[Network], Confusion],
    span: Span, watcher: Watcher, out: Path,
) -> None:  # fmt: skip
    """Train from the state's step to the end of the span; leaves `best.ckpt` and `last.ckpt` under `out`.

    `learner`: as Fabric has set it up. `validate`: gives the whole split's confusion matrix in every process.
    Raises: RunError where the loss is no number or the disk is full; KeyboardInterrupt once a stop was asked for and
    the step is saved.
    """
    fabric, config = setup.fabric, setup.config
    guard, saved, clock = Guard(config, out / LAST, state.step), time.monotonic(), StepClock()
    pace = agree(fabric, span, state, clock, stopped=False)
    learner.train()
    with stop_signals() as stopped:
        while (pace.progress < 1 or state.step == 0) and not out_of_patience(state, config):
            lr = config.lr * set_rate(state.optimizer, rate(pace.progress, state.step, config))
            names, loss = one_step(setup, state, learner, batches)
            state.step += 1
            clock.tick()
            note(state, watcher, guard.watch(state.step, lr, names, loss))
            watcher.stepped(state)

            pace = agree(fabric, span, state, clock, bool(stopped))
            if pace.progress >= 1 or (state.step % span.validate_every == 0 and not pace.hurry):
                note(state, watcher, guard.before_a_save(state.network))
                begun = time.monotonic()
                confusion = validate(state.result)
                state.reserve = max(state.reserve or 0.0, time.monotonic() - begun)
                better, mean_loss = judge(state, confusion), state.loss_sum / max(1, state.loss_count)
                state.loss_sum, state.loss_count = 0.0, 0
                watcher.validated(state, confusion, mean_loss, lr, better)
                if fabric.is_global_zero:
                    if better:
                        state.save_result(out / BEST)
                    state.save(out / LAST)
                watcher.kept(state, confusion)
                learner.train()
                saved, pace = time.monotonic(), agree(fabric, span, state, clock, bool(stopped))
            elif fabric.is_global_zero and time.monotonic() - saved >= 60 * config.save_minutes:
                note(state, watcher, guard.before_a_save(state.network))
                state.save(out / LAST)
                saved = time.monotonic()
            if pace.stopped:
                note(state, watcher, guard.before_a_save(state.network))
                if fabric.is_global_zero:
                    state.save(out / LAST)
                raise KeyboardInterrupt


def one_step(setup: Setup, state: State, learner: Any, batches: Iterator[Batch]) -> tuple[list[str], Tensor]:
    """Gradients of `accumulate` batches, one step of the optimiser; returns the pictures' names and the mean loss."""
    fabric, config = setup.fabric, setup.config
    names, total = [], torch.zeros((), device=fabric.device)
    for part in range(1, config.accumulate + 1):
        batch = next(batches)
        names += batch.names
        pictures, labels = to_device(batch, fabric.device, setup.crop)
        # Only now: a loader that begins draws from torch's generator, and a resumed run begins elsewhere.
        seed_draws(config.seed, state.step, part, fabric.global_rank)
        with fabric.no_backward_sync(learner, enabled=part < config.accumulate):
            with setup.half():
                loss = learner(pictures, labels) / config.accumulate
            fabric.backward(loss)
        total += loss.detach()
    if config.clip:
        torch.nn.utils.clip_grad_norm_(learner.parameters(), config.clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        update_average(state.average, state.network, config.ema, state.step)
    return names, total


def validate_on(setup: Setup, network: Network, batches: Iterator[Batch], classes: int) -> Confusion:
    """The confusion matrix of a network at the scale that it sees, over what all processes read; leaves it in eval mode."""
    fabric, confusion = setup.fabric, Confusion(classes)
    network.eval()
    if fabric.world_size > 1:  # batch norms have met other pictures in each process; the first one's are kept
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)
    # Pictures differ in size here, and cuDNN would look for the quickest convolution of each.
    with torch.inference_mode(), setup.half(), torch.backends.cudnn.flags(benchmark=False):
        for batch in batches:
            pictures = batch.pictures.to(fabric.device, non_blocking=True)
            logits = network.logits(pictures.permute(0, 3, 1, 2))
            answers = upsample(logits.float(), batch.labels.shape[1:]).argmax(dim=1).to(torch.uint8)
            confusion.add(batch.labels.numpy(), answers.cpu().numpy())
    confusion.pixels[:] = over_processes(torch.from_numpy(confusion.pixels).to(fabric.device)).cpu().numpy()
    return confusion


def to_device(batch: Batch, device: torch.device, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pictures and labels, moved while the device is still busy with the batch before, and augmented there if asked for."""
    pictures, labels = batch.pictures.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
    if batch.draws is None:
        return pictures, labels
    draws = Draws(*(part.to(device, non_blocking=True) for part in batch.draws))
    return augment.apply(pictures, labels, draws, crop)


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set each group's learning rate to its share of the group's peak; returns the share."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
    return share


def note(state: State, watcher: Watcher, settled: Settled | None) -> None:
    """Count a loss, once it is known, into the mean of the epoch, and tell of it."""
    if settled is not None:
        state.loss_sum += settled.loss
        state.loss_count += 1
        watcher.settled(settled)


def judge(state: State, confusion: Confusion) -> bool:
    """Whether the validation is the best so far. A split without a single labelled pixel counts as 0."""
    miou = confusion.miou()
    miou = 0.0 if math.isnan(miou) else miou
    better = miou > state.best
    state.best = max(state.best, miou)
    state.stale = 0 if better else state.stale + 1
    return better


def out_of_patience(state: State, config: TrainConfig) -> bool:
    """Whether it has been too long without a better validation; of a run that is resumed, too."""
    return config.patience is not None and state.stale >= config.patience


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the training after the step that is under way; Ctrl-C again ends it at once."""
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.append(number)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, stop)
        except ValueError:  # not in the main thread, as in a notebook's: the caller's own way to stop stays
            break
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by no Python code
