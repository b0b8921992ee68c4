"""Loggers of a training: a progress bar, `metrics.csv`, JSON lines and TensorBoard."""

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.atomic_write import write_atomically
from models.console import Console
from models.spec import ClassInfo
from training.engine.checkpoint import TrainState
from training.engine.schedule import TrainingDuration
from training.engine.step import StepResult
from training.metrics.confusion import ConfusionMatrix
from training.metrics.monitor import DEFAULT_MONITOR, monitored_value
from training.run_folder import METRICS_CSV

LogMode = Literal["bar", "quiet", "json"]
REFRESH_SECONDS = 0.25  # seconds between updates of the bar


class TrainingLogger:
    """What the trainer calls as it goes. This base class does nothing: processes other than the first use it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def on_step(self, state: TrainState) -> None:
        """After each step."""

    def on_note(self, text: str) -> None:
        """A sentence about the course of the training."""

    def on_loss(self, result: StepResult) -> None:
        """Once a step's loss is known, which is after the next step has started."""

    def on_validation(
        self, state: TrainState, confusion: ConfusionMatrix, loss: float, lr: float, better: bool
    ) -> None:
        """After a validation, before its checkpoints are written. `loss`: mean since the validation before."""

    def on_checkpoint(self, state: TrainState, confusion: ConfusionMatrix) -> None:
        """After the checkpoints of a validation are written; may take long, and may leave the network in eval mode."""


class TensorBoardWriter:
    """Writes TensorBoard's files: curves, the confusion matrix and sample predictions."""

    def __init__(
        self,
        folder: Path,
        start_step: int,
        render_samples: Callable[[], dict[str, Image.Image]],
        plot_confusion: Callable[[ConfusionMatrix, list[ClassInfo]], Figure],
    ) -> None:
        """`start_step`: of a resumed run; TensorBoard then drops the events of later steps."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensorboard's own deprecated calls
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.events: Any = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
        self.render_samples, self.plot_confusion = render_samples, plot_confusion

    def write_loss(self, result: StepResult) -> None:
        """Loss and learning rate of a step."""
        self.events.add_scalar("loss/step", result.loss, result.step)
        self.events.add_scalar("lr", result.lr, result.step)

    def write_metrics(self, row: dict[str, Any]) -> None:
        """A row of metrics.csv."""
        for name, value in row.items():
            if name not in ("step", "lr", "minutes") and value is not None:
                self.events.add_scalar("loss/epoch" if name == "loss" else f"validation/{name}", value, row["step"])

    def write_images(self, confusion: ConfusionMatrix, classes: list[ClassInfo], step: int) -> None:
        """The confusion matrix and the sample predictions."""
        self.events.add_figure("confusion", self.plot_confusion(confusion, classes), step)
        for name, image in self.render_samples().items():
            self.events.add_image(f"samples/{name}", np.asarray(image), step, dataformats="HWC")


class ProgressLogger(TrainingLogger):
    """A progress bar (epoch, loss, mIoU, images/s, time left), a line per validation, `metrics.csv` and TensorBoard.

    `log_mode`: `bar` for people, `quiet` prints nothing, `json` prints an object per line to standard output.
    """

    def __init__(
        self,
        out: Path,
        classes: list[ClassInfo],
        duration: TrainingDuration,
        start_step: int,
        console: Console,
        log_mode: LogMode = "bar",
        tensorboard: TensorBoardWriter | None = None,
        monitor: str = DEFAULT_MONITOR,
        noun: str = "images",
    ) -> None:
        """`start_step`: steps done before this start. `monitor`: the metric that chooses the best checkpoint.

        `noun`: what the samples are called.
        """
        self.metrics_path = out / METRICS_CSV
        self.classes, self.duration = classes, duration
        self.console, self.log_mode, self.tensorboard, self.monitor = console, log_mode, tensorboard, monitor
        self.noun = noun
        self.smoothed_loss = self.last_miou = math.nan
        self.speed_start: tuple[int, float] | None = None  # (step, time): the speed is measured from there
        self.images_per_second = 0.0  # since then, loading and augmentation included
        self.last_refresh = 0.0
        self._write_rows(self._read_rows(before=start_step + 1))  # a resumed run writes the later rows again
        self.progress_bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("loss {task.fields[loss]}  mIoU {task.fields[miou]}  {task.fields[speed]:.1f} " + f"{noun}/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=log_mode != "bar" or not console.is_terminal,
        )
        self.task_id = self.progress_bar.add_task("training", total=1.0, loss="-", miou="-", speed=0.0)

    def __enter__(self) -> Self:
        self.progress_bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress_bar.stop()
        if self.tensorboard:
            self.tensorboard.events.close()

    def on_note(self, text: str) -> None:
        """Print it."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def on_loss(self, result: StepResult) -> None:
        """Smooth the loss for the bar."""
        first = math.isnan(self.smoothed_loss)
        self.smoothed_loss = result.loss if first else 0.95 * self.smoothed_loss + 0.05 * result.loss
        if self.tensorboard:
            self.tensorboard.write_loss(result)

    def on_step(self, state: TrainState) -> None:
        """Update the bar."""
        now = time.monotonic()
        if self.speed_start is None:  # the first step waits for workers to start
            self.speed_start = state.step, now
        elif state.step > self.speed_start[0]:
            images = (state.step - self.speed_start[0]) * self.duration.images_per_step
            self.images_per_second = images / (now - self.speed_start[1])
        if now - self.last_refresh > REFRESH_SECONDS:
            self.last_refresh = now
            self.progress_bar.update(
                self.task_id,
                completed=self.duration.progress(state.step, state.elapsed_seconds(), state.validation_seconds or 0.0),
                description=f"epoch {math.ceil(self.duration.epochs_done(state.step))}{self._epoch_total()}",
                loss=format_metric(self.smoothed_loss),
                miou=format_metric(self.last_miou),
                speed=self.images_per_second,
            )

    def on_validation(
        self, state: TrainState, confusion: ConfusionMatrix, loss: float, lr: float, better: bool
    ) -> None:
        """Print a line, and add a row to metrics.csv."""
        summary = confusion.summary(self.classes)
        self.last_miou = math.nan if summary["miou"] is None else summary["miou"]
        epoch = round(self.duration.epochs_done(state.step), 3)
        row = {
            "epoch": int(epoch) if epoch == int(epoch) else epoch,
            "step": state.step,
            "lr": lr,
            "loss": loss,
            "miou": summary["miou"],
            "pixel_accuracy": summary["pixel_accuracy"],
            "images_per_second": round(self.images_per_second, 2),
            "minutes": round(state.elapsed_seconds() / 60, 2),
            **{f"iou_{name}": value for name, value in summary["per_class_iou"].items()},
        }
        row.setdefault(self.monitor, round(monitored_value(self.monitor, confusion, self.classes), 6))
        self._write_rows([*self._read_rows(before=state.step), row])
        self._print_validation(row, better)
        if self.tensorboard:
            self.tensorboard.write_metrics(row)

    def on_checkpoint(self, state: TrainState, confusion: ConfusionMatrix) -> None:
        """Write images for TensorBoard, and measure the speed anew."""
        if self.tensorboard:
            self.tensorboard.write_images(confusion, self.classes, state.step)
        self.speed_start = state.step, time.monotonic()

    def _epoch_total(self) -> str:
        return f"/{self.duration.epochs_done(self.duration.max_steps):.0f}" if self.duration.max_steps else ""

    def _print_validation(self, row: dict[str, Any], better: bool) -> None:
        if self.log_mode == "json":
            print(json.dumps({"event": "validation", **row, "monitor": self.monitor, "best": better}), flush=True)
        elif self.log_mode == "bar":
            monitored = "" if self.monitor == DEFAULT_MONITOR else f"  {self.monitor} {row[self.monitor] or 0:.3f}"
            self.console.print(
                f"epoch {row['epoch']:>3.4g}{self._epoch_total()}  loss {row['loss']:.3f}  mIoU {format_metric(self.last_miou)}"
                f"  accuracy {row['pixel_accuracy'] or 0:.3f}  {row['images_per_second']:.1f} {self.noun}/s{monitored}"
                f"{'  best' if better else ''}",
                highlight=False,
                markup=False,
            )

    def _read_rows(self, before: int) -> list[dict[str, Any]]:
        if not self.metrics_path.exists():
            return []
        with self.metrics_path.open(newline="") as stream:
            return [row for row in csv.DictReader(stream) if int(row["step"]) < before]

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            self.metrics_path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics_path, text.getvalue().encode())


def format_metric(value: float) -> str:
    """A loss or mIoU with three digits; a dash for NaN, before there is one."""
    return "-" if math.isnan(value) else f"{value:.3f}"
