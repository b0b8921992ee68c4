"""What a person sees of a training, and the table that is left of it."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.spec import ClassInfo
from training.module import Training


class Watch(pl.Callback):
    """A progress bar (epoch, loss, mIoU, images/s, time left), a line an epoch, and `metrics.csv`."""

    def __init__(self, file: Path, classes: list[ClassInfo], batch: int, console: Console) -> None:
        self.file = file
        self.classes = classes
        self.batch = batch
        self.console = console
        self.loss, self.miou, self.best = float("nan"), float("nan"), 0.0
        self.losses: list[float] = []
        self.epoch_started = self.seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the bar; after a resume it starts where the run stood."""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("loss {task.fields[loss]}  mIoU {task.fields[miou]}  {task.fields[speed]:.1f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.bar.start()
        total = int(trainer.estimated_stepping_batches)
        self.task: TaskID = self.bar.add_task(
            "training",
            total=total,
            completed=trainer.global_step,
            loss=shown(self.loss),
            miou=shown(self.miou),
            speed=0.0,
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self.losses, self.seconds = [], 0.0
        self.epoch_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Move the bar on."""
        value = float(outputs["loss"])
        self.losses.append(value)
        self.loss = value if self.loss != self.loss else 0.95 * self.loss + 0.05 * value
        self.seconds = time.monotonic() - self.epoch_started
        self.bar.update(
            self.task,
            completed=trainer.global_step,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            loss=shown(self.loss),
            miou=shown(self.miou),
            speed=self.speed(),
        )

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A line for people and a row for the table."""
        assert isinstance(module, Training)
        summary = module.confusion.summary(self.classes)
        self.miou = summary["miou"] or 0.0
        better = self.miou > self.best
        self.best = max(self.best, self.miou)
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "loss": sum(self.losses) / max(1, len(self.losses)),
            "miou": summary["miou"],
            "pixel_accuracy": summary["pixel_accuracy"],
            "images_per_second": round(self.speed(), 2),
            **{f"iou_{name}": value for name, value in summary["per_class_iou"].items()},
        }
        self._append(row)
        self.console.print(
            f"epoch {row['epoch']:3d}/{trainer.max_epochs}  loss {row['loss']:.3f}  mIoU {self.miou:.3f}"
            f"  accuracy {summary['pixel_accuracy'] or 0:.3f}  {self.speed():.1f} images/s{'  best' if better else ''}",
            highlight=False,
        )

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after an error or Ctrl-C."""
        if hasattr(self, "bar"):
            self.bar.stop()

    def speed(self) -> float:
        """Images a second in this epoch, reading and augmentation included."""
        return len(self.losses) * self.batch / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"loss": self.loss, "miou": self.miou, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.loss, self.miou, self.best = state_dict["loss"], state_dict["miou"], state_dict["best"]

    def _append(self, row: dict[str, Any]) -> None:
        """Rows of epochs that a resumed run does again are replaced."""
        rows = []
        if self.file.exists():
            with self.file.open(newline="") as stream:
                rows = [old for old in csv.DictReader(stream) if int(old["epoch"]) < row["epoch"]]
        with self.file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            writer.writeheader()
            writer.writerows([*rows, row])


def shown(value: float) -> str:
    """A loss or mIoU for people; a dash where there is none yet."""
    return "-" if value != value else f"{value:.3f}"


class TimeLimit(pl.Callback):
    """Stop at the end of the epoch after which another would not end within the limit."""

    def __init__(self, minutes: float) -> None:
        self.limit = 60 * minutes
        self.last = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock of the first epoch."""
        assert isinstance(module, Training)
        self.last = module.seconds()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Judge by the epoch that has just ended, its validation included."""
        assert isinstance(module, Training)
        now = module.seconds()
        if now + (now - self.last) > self.limit:
            trainer.should_stop = True
        self.last = now
