"""The training loop, from a step to the next: what an epoch, a limit in minutes, Ctrl-C and a crash mean to it."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor

from models.architectures.network import Network, upsample
from training.augment import Draws
from training.augment import batch as augment
from training.config import TrainConfig
from training.data.loader import Batch
from training.learner import Guard, seed_draws
from training.metrics import Confusion
from training.optim import rate
from training.parallel import over_processes
from training.state import BEST, LAST, State

EPOCHS = 40  # where neither epochs nor minutes are given


class Watcher(Protocol):
    """Who is told how it goes; `training/progress.py` has the one for people and files."""

    def stepped(self, state: State, loss: float | None) -> None:
        """A step is done; the loss is an earlier step's."""

    def validated(self, state: State, confusion: Confusion, lr: float, better: bool) -> None:
        """A validation is done, at the end of an epoch or of the time."""


class Span:
    """How long a training lasts, in steps or minutes, and where in it a step lies."""

    def __init__(self, pictures: int, held_out: int, config: TrainConfig) -> None:
        """`pictures` to train on, `held_out` to validate on."""
        self.steps_per_epoch = max(1, round(pictures / (config.batch * config.accumulate)))
        self.validation = (
            held_out / (config.batch * config.accumulate) / 2
        )  # in steps: half of one, as nothing is learned
        epochs = config.epochs or (None if config.minutes else EPOCHS)
        self.steps = epochs and epochs * self.steps_per_epoch
        self.seconds = config.minutes and 60 * config.minutes
        self.validate_every = config.validate_every * self.steps_per_epoch
        self.reserve: float | None = None  # seconds that the last validation will take, once one was seen

    def progress(self, step: int, seconds: float) -> float:
        """The share that is done, 0..1: a limit in minutes shortens the schedule, so that it still ends."""
        by_steps = step / self.steps if self.steps else 0.0
        if not self.seconds:
            return min(1.0, by_steps)
        reserve = self.validation * seconds / max(1, step) if self.reserve is None else self.reserve
        return min(1.0, max(by_steps, seconds / max(1e-9, self.seconds - reserve)))

    def epoch(self, step: int) -> float:
        """Passes over the pictures that are done."""
        return step / self.steps_per_epoch


def fit(
    fabric: Fabric, state: State, learner: Any, batches: Iterator[Batch], validate: Callable[[Network], Confusion],
    span: Span, config: TrainConfig, crop: tuple[int, int], autocast: torch.dtype | None, watcher: Watcher, out: Path,
) -> None:  # fmt: skip
    """Train from the state's step to the end of the span; leaves `best.ckpt` and `last.ckpt` under `out`.

    `learner`: as Fabric has set it up. `validate`: gives the whole split's confusion matrix in every process.
    `autocast`: the number format of convolutions; None for float32.
    Raises: RunError where the loss is no number or the disk is full; KeyboardInterrupt once a stop was asked for and
    the step is saved.
    """
    guard, saved = Guard(config), time.monotonic()
    progress = shared(fabric, span, state)
    with stop_signals() as stopped:
        while progress < 1:
            lr = config.lr * set_rate(state.optimizer, rate(progress, state.step, config))
            names, loss = one_step(fabric, state, learner, batches, config, crop, autocast)
            state.step += 1
            watcher.stepped(state, taken(state, guard.watch(state.step, lr, names, loss)))

            progress = shared(fabric, span, state)
            if state.step % span.validate_every == 0 or progress >= 1:
                taken(state, guard.before_a_save(state.network))
                begun = time.monotonic()
                confusion = validate(state.result)
                span.reserve = max(span.reserve or 0.0, time.monotonic() - begun)
                better = judge(state, confusion)
                watcher.validated(state, confusion, lr, better)
                state.loss_sum, state.loss_count = 0.0, 0
                if fabric.is_global_zero:
                    if better:
                        state.save_result(out / BEST)
                    state.save(out / LAST)
                saved = time.monotonic()
                if config.patience and state.stale >= config.patience:
                    return
            elif fabric.is_global_zero and time.monotonic() - saved >= 60 * config.save_minutes:
                taken(state, guard.before_a_save(state.network))
                state.save(out / LAST)
                saved = time.monotonic()
            if agreed(fabric, bool(stopped)):
                taken(state, guard.before_a_save(state.network))
                if fabric.is_global_zero:
                    state.save(out / LAST)
                raise KeyboardInterrupt


def one_step(
    fabric: Fabric, state: State, learner: Any, batches: Iterator[Batch], config: TrainConfig, crop: tuple[int, int],
    autocast: torch.dtype | None,
) -> tuple[list[str], Tensor]:  # fmt: skip
    """Gradients of `accumulate` batches, one step of the optimiser; returns the pictures' names and the mean loss."""
    learner.train()
    names, total = [], torch.zeros((), device=fabric.device)
    for part in range(1, config.accumulate + 1):
        batch = next(batches)
        names += batch.names
        pictures, labels = to_device(batch, fabric.device, crop)
        # Only now: a loader that begins draws from torch's generator, and a resumed run begins elsewhere.
        seed_draws(config.seed, state.step, part, fabric.global_rank)
        with fabric.no_backward_sync(learner, enabled=part < config.accumulate):
            with half(fabric.device, autocast):
                loss = learner(pictures, labels) / config.accumulate
            fabric.backward(loss)
        total += loss.detach()
    if config.clip:
        torch.nn.utils.clip_grad_norm_(learner.parameters(), config.clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        state.average.update_parameters(state.network)
    return names, total


def validate_on(
    fabric: Fabric, network: Network, batches: Iterator[Batch], classes: int, autocast: torch.dtype | None
) -> Confusion:
    """The confusion matrix of a network at the scale that it sees, over what all processes read."""
    confusion, training = Confusion(classes), network.training
    network.eval()
    if fabric.world_size > 1:  # batch norms have met other pictures in each process; the first one's are kept
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)
    with torch.inference_mode(), half(fabric.device, autocast):
        for batch in batches:
            pictures, labels = to_device(batch, fabric.device, (0, 0))
            logits = network.logits(pictures.permute(0, 3, 1, 2))
            answers = upsample(logits.float(), labels.shape[1:]).argmax(dim=1).to(torch.uint8)
            confusion.add(labels.cpu().numpy(), answers.cpu().numpy())
    network.train(training)
    confusion.pixels[:] = over_processes(torch.from_numpy(confusion.pixels).to(fabric.device)).cpu().numpy()
    return confusion


def to_device(batch: Batch, device: torch.device, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pictures and labels, moved while the device is still busy with the batch before, and augmented there if asked for."""
    pictures, labels = batch.pictures.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
    if batch.draws is None:
        return pictures, labels
    draws = Draws(*(part.to(device, non_blocking=True) for part in batch.draws))
    return augment.apply(pictures, labels, draws, crop)


def half(device: torch.device, kind: torch.dtype | None) -> Any:
    """Convolutions in `kind`, the rest as torch's autocast has it; nothing for None."""
    return nullcontext() if kind is None else torch.autocast(device.type, kind)


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set each group's learning rate to its share of the group's peak; returns the share."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
    return share


def taken(state: State, loss: float | None) -> float | None:
    """Count a loss, once it is known, into the mean of the epoch."""
    if loss is not None:
        state.loss_sum += loss
        state.loss_count += 1
    return loss


def judge(state: State, confusion: Confusion) -> bool:
    """Whether the validation is the best so far. A split without a single labelled pixel counts as 0."""
    miou = confusion.miou()
    miou = 0.0 if math.isnan(miou) else miou
    better = miou > state.best
    state.best = max(state.best, miou)
    state.stale = 0 if better else state.stale + 1
    return better


def shared(fabric: Fabric, span: Span, state: State) -> float:
    """The share of the training that is done, the first process's in all: learning rates by other clocks would differ."""
    progress = span.progress(state.step, state.seconds())
    if not span.seconds or fabric.world_size == 1:
        return progress
    told = torch.tensor(progress if fabric.is_global_zero else 0.0, dtype=torch.float64, device=fabric.device)
    return over_processes(told).item()


def agreed(fabric: Fabric, stopped: bool) -> bool:
    """Whether any process was asked to stop: they leave after the same step, or would wait for each other for ever."""
    if fabric.world_size == 1:
        return stopped
    return over_processes(torch.tensor(float(stopped), device=fabric.device)).item() > 0


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
            signal.signal(number, handler)
