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
from training.augment import BatchedAugmentParams
from training.augment import batched as augment
from training.config import TrainConfig
from training.data.loader import Batch
from training.engine.checkpoint import TrainState
from training.engine.distributed import all_reduce_sum
from training.engine.optim import lr_factor
from training.engine.schedule import StepTimer, TrainingDuration, sync_status
from training.engine.step import LossMonitor, StepResult, seed_torch, update_ema
from training.metrics.confusion import ConfusionMatrix
from training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT


class TrainingLogger(Protocol):
    """Who is told how it goes; `training/engine/loggers.py` has the one for people and files."""

    def on_step(self, state: TrainState) -> None:
        """A step is done."""

    def on_loss(self, settled: StepResult) -> None:
        """A step's loss is known."""

    def on_validation(
        self, state: TrainState, confusion: ConfusionMatrix, loss: float, lr: float, better: bool
    ) -> None:
        """A validation is done, at the end of an epoch or of the time; the checkpoints of it come next."""

    def on_checkpoint(self, state: TrainState, confusion: ConfusionMatrix) -> None:
        """The checkpoints are written. What is done here may take its time, and may leave the network in eval mode."""


@dataclass(frozen=True)
class ComputeContext:
    """What steps and validations are computed with."""

    fabric: Fabric
    config: TrainConfig
    crop_size: tuple[int, int]  # (height, width) in pixels
    autocast_dtype: torch.dtype | None  # number format of convolutions; None for float32

    def autocast_context(self) -> Any:
        """Convolutions in `autocast`, the rest as torch has it."""
        return (
            nullcontext()
            if self.autocast_dtype is None
            else torch.autocast(self.fabric.device.type, self.autocast_dtype)
        )


def fit(
    setup: ComputeContext,
    state: TrainState,
    learner: Any,
    batches: Iterator[Batch],
    validate: Callable[[Network], ConfusionMatrix],
    span: TrainingDuration,
    watcher: TrainingLogger,
    out: Path,
) -> None:
    """Train from the state's step to the end of the span; leaves `best.ckpt` and `last.ckpt` under `out`.

    `learner`: as Fabric has set it up. `validate`: gives the whole split's confusion matrix in every process.
    Raises: RunError where the loss is no number or the disk is full; KeyboardInterrupt once a stop was asked for and
    the step is saved.
    """
    fabric, config = setup.fabric, setup.config
    guard, saved, clock = LossMonitor(config, out / LAST_CHECKPOINT, state.step), time.monotonic(), StepTimer()
    pace = sync_status(fabric, span, state, clock, stopped=False)
    learner.train()
    with catch_stop_signals() as stopped:
        while (pace.progress < 1 or state.step == 0) and not patience_exhausted(state, config):
            lr = config.lr * set_learning_rate(state.optimizer, lr_factor(pace.progress, state.step, config))
            names, loss = train_step(setup, state, learner, batches)
            state.step += 1
            clock.tick()
            record_loss(state, watcher, guard.record(state.step, lr, names, loss))
            watcher.on_step(state)

            pace = sync_status(fabric, span, state, clock, bool(stopped))
            if pace.progress >= 1 or (state.step % span.validation_interval == 0 and not pace.skip_validation):
                record_loss(state, watcher, guard.check_before_save(state.network))
                begun = time.monotonic()
                confusion = validate(state.eval_network)
                state.validation_seconds = max(state.validation_seconds or 0.0, time.monotonic() - begun)
                better, mean_loss = update_best(state, confusion), state.loss_sum / max(1, state.loss_count)
                state.loss_sum, state.loss_count = 0.0, 0
                watcher.on_validation(state, confusion, mean_loss, lr, better)
                if fabric.is_global_zero:
                    if better:
                        state.save_eval_network(out / BEST_CHECKPOINT)
                    state.save(out / LAST_CHECKPOINT)
                watcher.on_checkpoint(state, confusion)
                learner.train()
                saved, pace = time.monotonic(), sync_status(fabric, span, state, clock, bool(stopped))
            elif fabric.is_global_zero and time.monotonic() - saved >= 60 * config.save_minutes:
                record_loss(state, watcher, guard.check_before_save(state.network))
                state.save(out / LAST_CHECKPOINT)
                saved = time.monotonic()
            if pace.stop_requested:
                record_loss(state, watcher, guard.check_before_save(state.network))
                if fabric.is_global_zero:
                    state.save(out / LAST_CHECKPOINT)
                raise KeyboardInterrupt


def train_step(
    setup: ComputeContext, state: TrainState, learner: Any, batches: Iterator[Batch]
) -> tuple[list[str], Tensor]:
    """Gradients of `accumulate` batches, one step of the optimiser; returns the images' names and the mean loss."""
    fabric, config = setup.fabric, setup.config
    names, total = [], torch.zeros((), device=fabric.device)
    for part in range(1, config.accumulate + 1):
        batch = next(batches)
        names += batch.names
        images, labels = prepare_batch(batch, fabric.device, setup.crop_size)
        # Only now: a loader that begins draws from torch's generator, and a resumed run begins elsewhere.
        seed_torch(config.seed, state.step, part, fabric.global_rank)
        with fabric.no_backward_sync(learner, enabled=part < config.accumulate):
            with setup.autocast_context():
                loss = learner(images, labels) / config.accumulate
            fabric.backward(loss)
        total += loss.detach()
    if config.grad_clip:
        torch.nn.utils.clip_grad_norm_(learner.parameters(), config.grad_clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema_network is not None:
        update_ema(state.ema_network, state.network, config.ema, state.step)
    return names, total


def compute_confusion(
    setup: ComputeContext, network: Network, batches: Iterator[Batch], classes: int
) -> ConfusionMatrix:
    """The confusion matrix of a network at the scale that it sees, over what all processes read; leaves it in eval mode."""
    fabric, confusion = setup.fabric, ConfusionMatrix(classes)
    network.eval()
    if fabric.world_size > 1:  # batch norms have met other images in each process; the first one's are kept
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)
    # Images differ in size here, and cuDNN would look for the quickest convolution of each.
    with torch.inference_mode(), setup.autocast_context(), torch.backends.cudnn.flags(benchmark=False):
        for batch in batches:
            images = batch.images.to(fabric.device, non_blocking=True)
            logits = network.logits(images.permute(0, 3, 1, 2))
            answers = upsample(logits.float(), batch.labels.shape[1:]).argmax(dim=1).to(torch.uint8)
            confusion.add(batch.labels.numpy(), answers.cpu().numpy())
    confusion.full_counts[:] = all_reduce_sum(torch.from_numpy(confusion.full_counts).to(fabric.device)).cpu().numpy()
    return confusion


def prepare_batch(batch: Batch, device: torch.device, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images and labels, moved while the device is still busy with the batch before, and augmented there if asked for."""
    images, labels = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
    if batch.augment_params is None:
        return images, labels
    draws = BatchedAugmentParams(*(part.to(device, non_blocking=True) for part in batch.augment_params))
    return augment.augment_batch(images, labels, draws, crop)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set each group's learning rate to its share of the group's peak; returns the share."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
    return share


def record_loss(state: TrainState, watcher: TrainingLogger, settled: StepResult | None) -> None:
    """Count a loss, once it is known, into the mean of the epoch, and tell of it."""
    if settled is not None:
        state.loss_sum += settled.loss
        state.loss_count += 1
        watcher.on_loss(settled)


def update_best(state: TrainState, confusion: ConfusionMatrix) -> bool:
    """Whether the validation is the best so far. A split without a single labelled pixel counts as 0."""
    miou = confusion.miou()
    miou = 0.0 if math.isnan(miou) else miou
    better = miou > state.best_miou
    state.best_miou = max(state.best_miou, miou)
    state.validations_since_best = 0 if better else state.validations_since_best + 1
    return better


def patience_exhausted(state: TrainState, config: TrainConfig) -> bool:
    """Whether it has been too long without a better validation; of a run that is resumed, too."""
    return config.patience is not None and state.validations_since_best >= config.patience


@contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
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
