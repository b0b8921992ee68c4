"""What a person, a log and TensorBoard see of a training, and the table that is left of it."""

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.atomic_write import write_atomically
from models.spec import ClassInfo
from training.engine.checkpoint import TrainState
from training.engine.schedule import TrainingDuration
from training.engine.step import StepResult
from training.metrics.confusion import ConfusionMatrix

LogMode = Literal["bar", "quiet", "json"]
REFRESH_SECONDS = 0.25  # seconds between looks at the bar
METRICS_CSV = "metrics.csv"


class NullLogger:
    """Watches in the processes that are not the first: one of them speaks and writes."""

    def __enter__(self) -> "NullLogger":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def on_step(self, state: TrainState) -> None:
        """See `Watch`."""

    def on_loss(self, settled: StepResult) -> None:
        """See `Watch`."""

    def on_validation(
        self, state: TrainState, confusion: ConfusionMatrix, loss: float, lr: float, better: bool
    ) -> None:
        """See `Watch`."""

    def on_checkpoint(self, state: TrainState, confusion: ConfusionMatrix) -> None:
        """See `Watch`."""


class ProgressLogger:
    """A progress bar (epoch, loss, mIoU, images/s, time left), a line a validation, `metrics.csv` and TensorBoard's files.

    `log`: `bar` for people; `quiet` for nobody; `json` for programs, an object a line on standard output.
    """

    def __init__(
        self,
        out: Path,
        classes: list[ClassInfo],
        span: TrainingDuration,
        images: int,
        step: int,
        console: Console,
        log: LogMode = "bar",
        board: bool = False,
        samples: Callable[[], dict[str, Image.Image]] | None = None,
        plot_confusion: Callable[[ConfusionMatrix, list[ClassInfo]], Figure] | None = None,
    ) -> None:
        """`images`: of a step; `step`: those that are done; `samples`: renders validation images with their predictions, and
        `plot_confusion` the confusion matrix, for TensorBoard.
        """
        self.metrics_path = out / METRICS_CSV
        self.classes, self.duration, self.images_per_step = classes, span, images
        self.console, self.log_mode = console, log
        self.render_samples, self.plot_confusion = samples, plot_confusion
        self.summary_writer: Any = _open_summary_writer(out / "tensorboard", step) if board else None
        self.smoothed_loss = self.last_miou = math.nan
        self.speed_start: tuple[int, float] | None = None  # a step and when it was done: speed counts from there
        self.images_per_second = 0.0  # images a second since then, reading and augmentation included
        self.last_refresh = 0.0
        self._write_rows(self._read_rows(before=step + 1))  # a resumed run will come by the later ones again
        self.progress_bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("loss {task.fields[loss]}  mIoU {task.fields[miou]}  {task.fields[speed]:.1f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=log != "bar" or not console.is_terminal,
        )
        self.task_id = self.progress_bar.add_task("training", total=1.0, loss="-", miou="-", speed=0.0)

    def __enter__(self) -> "ProgressLogger":
        self.progress_bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress_bar.stop()
        if self.summary_writer is not None:
            self.summary_writer.close()

    def on_loss(self, settled: StepResult) -> None:
        """Smooth the loss for the bar."""
        self.smoothed_loss = (
            settled.loss if math.isnan(self.smoothed_loss) else 0.95 * self.smoothed_loss + 0.05 * settled.loss
        )
        if self.summary_writer is not None:
            self.summary_writer.add_scalar("loss/step", settled.loss, settled.step)
            self.summary_writer.add_scalar("lr", settled.lr, settled.step)

    def on_step(self, state: TrainState) -> None:
        """Move the bar on."""
        now = time.monotonic()
        if self.speed_start is None:  # the first step waits for workers to start
            self.speed_start = state.step, now
        elif state.step > self.speed_start[0]:
            self.images_per_second = (
                (state.step - self.speed_start[0]) * self.images_per_step / (now - self.speed_start[1])
            )
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
        """A line for people, and a row for the table."""
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
        self._write_rows([*self._read_rows(before=state.step), row])
        self._print_validation(row, better)
        if self.summary_writer is not None:
            for name, value in row.items():
                if name not in ("step", "lr", "minutes") and value is not None:
                    self.summary_writer.add_scalar(
                        f"validation/{name}" if name != "loss" else "loss/epoch", value, state.step
                    )

    def on_checkpoint(self, state: TrainState, confusion: ConfusionMatrix) -> None:
        """Images for TensorBoard."""
        if self.summary_writer is not None:
            if self.plot_confusion:
                self.summary_writer.add_figure("confusion", self.plot_confusion(confusion, self.classes), state.step)
            for name, image in (self.render_samples() if self.render_samples else {}).items():
                self.summary_writer.add_image(f"samples/{name}", np.asarray(image), state.step, dataformats="HWC")
        self.speed_start = state.step, time.monotonic()

    def _epoch_total(self) -> str:
        return f"/{self.duration.epochs_done(self.duration.max_steps):.0f}" if self.duration.max_steps else ""

    def _print_validation(self, row: dict[str, Any], better: bool) -> None:
        if self.log_mode == "json":
            print(json.dumps({"event": "validation", **row, "best": better}), flush=True)
        elif self.log_mode == "bar":
            self.console.print(
                f"epoch {row['epoch']:>3.4g}{self._epoch_total()}  loss {row['loss']:.3f}  mIoU {format_metric(self.last_miou)}"
                f"  accuracy {row['pixel_accuracy'] or 0:.3f}  {row['images_per_second']:.1f} images/s{'  best' if better else ''}",
                highlight=False,
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


def _open_summary_writer(folder: Path, step: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own deprecated calls
        from torch.utils.tensorboard import SummaryWriter  # seconds, for those who want it

    # What a resumed run does again stands there once.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def format_metric(value: float) -> str:
    """A loss or mIoU for people; a dash where there is none yet."""
    return "-" if math.isnan(value) else f"{value:.3f}"
