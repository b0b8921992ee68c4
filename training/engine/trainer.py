"""The trainer: steps, validations, checkpoints, and the end by epochs, minutes, patience or a stop signal."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from models.architectures.base import Network, channels_first, upsample
from models.imaging.decode import Labels
from models.inference.postprocess import Scores
from models.inference.windows import Values, extract_window, make_lattice, predict_windows
from models.thread_count import ThreadCount
from training.augment import BatchedAugmentParams, batched, batched_samples
from training.augment.mixing import BatchMixer, shrink_batch
from training.config import TrainConfig
from training.config_io import save_config
from training.data.loader import Batch, iterate_batches
from training.engine.checkpoint import TrainState
from training.engine.distributed import all_reduce_sum
from training.engine.kernel_snapshots import KernelSnapshots
from training.engine.loggers import TrainingLogger
from training.engine.losses import Criterion
from training.engine.optim import lr_factor, make_optimizer
from training.engine.schedule import (
    PaceEstimate,
    SharedStatus,
    StepTimer,
    TrainingDuration,
    epochs_between_validations,
    sync_status,
)
from training.engine.step import LossMonitor, NetworkWithLoss, StepResult, make_ema_network, seed_torch, update_ema
from training.metrics.confusion import ConfusionMatrix
from training.metrics.monitor import monitored_value
from training.run_folder import BEST_CHECKPOINT, CONFIG_FILE, LAST_CHECKPOINT, EndSetting, RunMetadata


class Trainer:
    """Trains a network and writes `best.ckpt` and `last.ckpt` to the run folder `out`.

    In a distributed training every process has one; they share each batch and leave `fit` after the same step.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        run: RunMetadata,
        network: Network,
        criterion: Criterion,
        duration: TrainingDuration,
        out: Path,
        start_time: float | None = None,
        expected_epochs: float = math.inf,
        adapt_validation: bool = False,
    ) -> None:
        """Move `network` to the device.

        `start_time`: when the run started, by the monotonic clock; default: now. `expected_epochs`: of a plan in minutes; a
        much faster or slower pace is reported, and with `adapt_validation` changes `validate_every`.
        """
        self.fabric, self.config, self.run, self.duration, self.out = fabric, config, run, duration, out
        self.learner: Any = fabric.setup_module(NetworkWithLoss(network, criterion, config))
        self.state = TrainState(
            network,
            # Not set up by Fabric: its wrapper copies the optimizer, and a checkpoint loaded into the copy is lost.
            make_optimizer(network, config),
            make_ema_network(network, config.ema),
            start_time=time.monotonic() if start_time is None else start_time,
        )
        self.loss_monitor = LossMonitor(config, out / LAST_CHECKPOINT)
        self.step_timer = StepTimer()
        # A different number of threads rounds differently.
        self.thread_count = ThreadCount(
            fabric.device.type == "cpu" and fabric.world_size == 1 and not config.deterministic
        )
        self.last_save = time.monotonic()
        self.logger = TrainingLogger()
        self.pace, self.adapt_validation = PaceEstimate(duration, expected_epochs), adapt_validation
        self.best_confusion: ConfusionMatrix | None = None  # of the best validation since this start
        self.mixer = BatchMixer(config, run.input, len(run.classes))
        self.shrinks = False  # at the beginning, with `progressive`
        self.snapshots: KernelSnapshots | None = None  # with `kernel_snapshots`, in the first process

    def resume(self) -> EndSetting | None:
        """Continue from `last.ckpt`. Returns: the setting that leaves nothing to train, if one does. Raises: RunError."""
        self.state.load(self.out / LAST_CHECKPOINT)
        self.loss_monitor.start_step = self.state.step
        return self._end(self._sync_status([]))

    def learning_rates(self) -> tuple[float, float]:
        """The learning rate of the last step, and that of the next one, of a group whose peak is `lr`."""
        group, status = self.state.optimizer.param_groups[0], self._sync_status([])
        last = float(group["lr"]) / float(group["initial_lr"]) * self.config.lr
        return last, self.config.lr * lr_factor(status.progress, self.state.step, self.config)

    def fit(
        self, train_loader: DataLoader[Batch], val_loader: DataLoader[list[Batch]], logger: TrainingLogger | None = None
    ) -> EndSetting:
        """Train from the state's step to the end of the duration, or until patience runs out.

        Returns: the setting that ended it.
        Raises: RunError if the loss becomes NaN or the disk is full; KeyboardInterrupt after a stop signal, with the
        step in progress finished and saved.
        """
        state, self.logger = self.state, logger or TrainingLogger()
        self.last_save = time.monotonic()
        if self.config.kernel_snapshots and self.fabric.is_global_zero:
            self.snapshots = KernelSnapshots(state.network.body, self.out, state.step)
        self.learner.train()
        with catch_stop_signals() as signals, closing(iterate_batches(train_loader)) as batches:
            status = self._sync_status(signals)
            while self._end(status) is None:
                lr = self._set_learning_rate(status.progress)
                self.shrinks = status.progress < self.config.progressive
                names, loss = self.train_step(batches)
                self.step_timer.tick()
                self._log_loss(self.loss_monitor.record(state.step, lr, names, loss))
                self.logger.on_step(state)
                if self.snapshots:
                    self.snapshots.record(state.step)

                status = self._sync_status(signals)
                if epochs := self.pace.update(state.step, status.progress):
                    self._adapt_to_pace(epochs)
                end_of_interval = state.step % self.duration.validation_interval == 0
                if status.progress >= 1 or (end_of_interval and not status.skip_validation):
                    self._validate_and_save(val_loader, lr)
                    status = self._sync_status(signals)
                elif status.stop_requested or self._save_is_due():
                    self.save()
                if status.stop_requested:
                    raise KeyboardInterrupt
            return self._end(status) or "epochs"

    def train_step(self, batches: Iterator[Batch]) -> tuple[list[str], Tensor]:
        """One optimizer step on `accumulate` batches. Returns the names of the images, and the mean loss (0 axes)."""
        config, state = self.config, self.state
        names: list[str] = []
        total = torch.zeros((), device=self.fabric.device)
        self.thread_count.update()
        for part in range(1, config.accumulate + 1):
            batch = next(batches)
            names += batch.names
            images, labels, *statistics = self._move_to_device(batch)
            if config.classmix or config.cutmix or config.erasing:
                images, labels = self.mixer(images, labels, state.step, part, self.fabric.global_rank)
            if self.shrinks:
                images, labels = shrink_batch(images, labels)
            # After `next`: a loader that starts draws from torch's generator, and a resumed run starts it elsewhere.
            seed_torch(config.seed, state.step, part, self.fabric.global_rank)
            with self.fabric.no_backward_sync(self.learner, enabled=part < config.accumulate):
                with self._autocast():
                    loss = self.learner(images, labels, *statistics) / config.accumulate
                self.fabric.backward(loss)
            total += loss.detach()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.learner.parameters(), config.grad_clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema_network is not None:
            update_ema(state.ema_network, state.network, config.ema, state.step)
        state.step += 1
        return names, total

    def validate(self, val_loader: DataLoader[list[Batch]]) -> ConfusionMatrix:
        """The confusion matrix of the network (with `ema`, of the averaged one) over what all processes read.

        Leaves the network in eval mode.
        """
        fabric, network = self.fabric, self.state.eval_network
        confusion = ConfusionMatrix(network.num_classes)
        network.eval()
        if fabric.world_size > 1:  # batch norm statistics differ between processes: use those of the first
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)
        # Images differ in size here: cuDNN would benchmark its convolutions for each.
        with (
            torch.inference_mode(),
            self._autocast(),
            torch.backends.cudnn.flags(benchmark=False),
            closing(iterate_batches(val_loader)) as batches,
        ):
            for batch in batches:
                self.thread_count.update()
                images = batch.images.to(fabric.device, non_blocking=True)
                statistics = None if batch.statistics is None else batch.statistics.to(fabric.device)
                if network.input.window:
                    confusion.add(batch.labels.numpy(), predict_in_windows(network, batch.images, statistics))
                    continue
                logits = network.logits(channels_first(images), statistics)
                predictions = upsample(logits.float(), batch.labels.shape[1:]).argmax(dim=1).to(torch.uint8)
                confusion.add(batch.labels.numpy(), predictions.cpu().numpy())
        counts = torch.from_numpy(confusion.full_counts).to(fabric.device)
        confusion.full_counts[:] = all_reduce_sum(counts).cpu().numpy()
        return confusion

    def save(self, best: bool = False) -> None:
        """Write `last.ckpt`, and with `best` also `best.ckpt`. Only the first process writes.

        Raises: RunError if a weight or the last loss is not finite, or the disk is full; the old files are kept.
        """
        self._log_loss(self.loss_monitor.check_before_save(self.state.network))
        if self.fabric.is_global_zero:
            if best:
                self.state.save_eval_network(self.out / BEST_CHECKPOINT)
            self.state.save(self.out / LAST_CHECKPOINT)
            if self.snapshots:
                self.snapshots.save()
        self.last_save = time.monotonic()

    def _validate_and_save(self, val_loader: DataLoader[list[Batch]], lr: float) -> None:
        state = self.state
        self._log_loss(self.loss_monitor.check_before_save(state.network))
        start = time.monotonic()
        confusion = self.validate(val_loader)
        state.validation_seconds = max(state.validation_seconds or 0.0, time.monotonic() - start)
        score = monitored_value(self.config.monitor, confusion, self.run.classes)
        better = score > state.best_score
        state.best_score = max(state.best_score, score)
        state.validations_since_best = 0 if better else state.validations_since_best + 1
        if better:
            self.best_confusion = confusion
        mean_loss = state.loss_sum / max(1, state.loss_count)
        state.loss_sum, state.loss_count = 0.0, 0
        self.logger.on_validation(state, confusion, mean_loss, lr, better)
        if self.snapshots:
            self.snapshots.record(state.step, "validation")
        self.save(best=better)
        self.logger.on_checkpoint(state, confusion)
        self.learner.train()
        self.last_save = time.monotonic()

    def _adapt_to_pace(self, epochs: float) -> None:
        """Validate as often as a plan for so many epochs would. The learning rate follows the clock already."""
        every = epochs_between_validations(epochs)
        adapted = ""
        if self.adapt_validation and every != self.config.validate_every:
            self.config = self.config.model_copy(update={"validate_every": every})
            self.duration.validation_interval = every * self.duration.steps_per_epoch
            adapted = f"; validates every {every} epochs" if every > 1 else "; validates every epoch"
            if self.fabric.is_global_zero:
                save_config(self.config, self.out / CONFIG_FILE)
        self.logger.on_note(
            f"At the pace so far, about {epochs:.{0 if epochs >= 10 else 1}f} epochs fit into the time{adapted}."
        )

    def _move_to_device(self, batch: Batch) -> tuple[Tensor, ...]:
        """Copy a batch while the device still computes the one before, and augment it there with `augment=gpu`.

        Returns: images, labels, and statistics if there are any.
        """
        device = self.fabric.device
        images, labels = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        statistics = [] if batch.statistics is None else [batch.statistics.to(device, non_blocking=True)]
        if batch.augment_params is not None:
            params = BatchedAugmentParams(*(part.to(device, non_blocking=True) for part in batch.augment_params))
            crop, rule = (self.run.crop[0], self.run.crop[1]), self.run.input
            if rule.is_photograph:
                images, labels = batched.augment_batch(images, labels, params, crop)
            else:
                images, labels = batched_samples.augment_samples(images, labels, params, crop, rule, *statistics)
        return images, labels, *statistics

    def _autocast(self) -> AbstractContextManager[Any]:
        """Convolutions in bfloat16, if the run's precision is bf16."""
        return (
            torch.autocast(self.fabric.device.type, torch.bfloat16) if self.run.precision == "bf16" else nullcontext()
        )

    def _set_learning_rate(self, progress: float) -> float:
        """Set each group's learning rate for the next step; returns that of a group whose peak is `lr`."""
        factor = lr_factor(progress, self.state.step, self.config)
        for group in self.state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return self.config.lr * factor

    def _sync_status(self, signals: list[int]) -> SharedStatus:
        return sync_status(self.fabric, self.duration, self.state, self.step_timer, bool(signals))

    def _log_loss(self, result: StepResult | None) -> None:
        """Add a step's loss, once it is known, to the mean since the last validation."""
        if result is not None:
            self.state.loss_sum += result.loss
            self.state.loss_count += 1
            self.logger.on_loss(result)

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.last_save >= 60 * self.config.save_minutes

    def _end(self, status: SharedStatus) -> EndSetting | None:
        """The setting that ends the training now; None if it goes on. Steps that were never validated do not end it."""
        state, patience, max_steps = self.state, self.config.patience, self.duration.max_steps
        validated = state.step > 0 and state.loss_count == 0
        if patience is not None and state.validations_since_best >= patience:
            return "patience"
        if status.progress < 1 or not validated:
            return None
        return "epochs" if max_steps and state.step >= max_steps else "minutes"


def predict_in_windows(network: Network, samples: Tensor, statistics: Tensor | None) -> Labels:
    """Labels uint8 N x axes of N x axes x C, in windows of the lengths that the network takes, as the Segmenter predicts them."""

    def predict_logits(index: int, canvas: Values) -> Scores:
        images = torch.from_numpy(canvas)[None].to(network.mean.device)
        own = None if statistics is None else statistics[index : index + 1]
        return network.logits(channels_first(images), own)[0].float().cpu().numpy()

    rule, lengths = network.input, tuple(samples.shape[1:-1])
    lattice = make_lattice(lengths, rule, 0)
    window_logits = (
        predict_logits(index, extract_window(values, corner, lattice.sides))
        for index, values in enumerate(samples.numpy())
        for corner in lattice.corners()
    )
    return np.stack(
        [predict_windows(window_logits, lengths, lattice, rule.divisor, confidence=False)[0] for _ in samples]
    )


@contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in progress ends first; a second Ctrl-C ends it at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, handle)
        except ValueError:  # not in the main thread, as in some notebooks: the caller's handlers stay
            break
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
