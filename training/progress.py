"""What a person, a log and TensorBoard see of a training, and the table that is left of it."""

import csv
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.spec import ClassInfo
from training.loop import Span
from training.metrics import Confusion
from training.report import confusion_figure
from training.state import State

Log = Literal["bar", "quiet", "json"]
OFTEN = 0.25  # seconds between looks at the bar
TABLE = "metrics.csv"


class Watch:
    """A progress bar (epoch, loss, mIoU, images/s, time left), a line a validation, `metrics.csv` and TensorBoard's files.

    `log`: `bar` for people; `quiet` for nobody; `json` for programs, an object a line on standard output.
    """

    def __init__(
        self, out: Path, classes: list[ClassInfo], span: Span, pictures: int, console: Console, log: Log = "bar",
        board: bool = False, samples: Callable[[], dict[str, Image.Image]] | None = None,
    ) -> None:  # fmt: skip
        """`pictures`: of a step; `samples`: draws validation pictures with their answers, for TensorBoard."""
        self.table = out / TABLE
        self.classes, self.span, self.pictures = classes, span, pictures
        self.console, self.log = console, log
        self.samples = samples
        self.board: Any = _board(out / "tensorboard") if board else None
        self.loss = self.miou = math.nan
        self.speed_since: tuple[int, float] | None = None  # step and time that the epoch began with
        self.looked = 0.0
        self.bar = Progress(
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
        self.task = self.bar.add_task("training", total=1.0, loss="-", miou="-", speed=0.0)

    def __enter__(self) -> "Watch":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.close()

    def stepped(self, state: State, loss: float | None) -> None:
        """Move the bar on."""
        if self.speed_since is None:
            self.speed_since = state.step - 1, time.monotonic()
        if loss is not None:
            self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
            if self.board is not None:
                self.board.add_scalar("loss/step", loss, state.step)
                self.board.add_scalar("lr", state.optimizer.param_groups[0]["lr"], state.step)
        if time.monotonic() - self.looked > OFTEN:
            self.looked = time.monotonic()
            of = f"/{self.span.epoch(self.span.steps):.0f}" if self.span.steps else ""
            self.bar.update(
                self.task,
                completed=self.span.progress(state.step, state.seconds()),
                description=f"epoch {math.ceil(self.span.epoch(state.step))}{of}",
                loss=shown(self.loss),
                miou=shown(self.miou),
                speed=self.speed(state.step),
            )

    def validated(self, state: State, confusion: Confusion, lr: float, better: bool) -> None:
        """A line for people, a row for the table, and pictures for TensorBoard."""
        summary = confusion.summary(self.classes)
        self.miou = math.nan if summary["miou"] is None else summary["miou"]
        row = {
            "epoch": round(self.span.epoch(state.step), 3),
            "step": state.step,
            "lr": lr,
            "loss": state.loss_sum / max(1, state.loss_count),
            "miou": summary["miou"],
            "pixel_accuracy": summary["pixel_accuracy"],
            "images_per_second": round(self.speed(state.step), 2),
            "minutes": round(state.seconds() / 60, 2),
            **{f"iou_{name}": value for name, value in summary["per_class_iou"].items()},
        }
        row["epoch"] = int(row["epoch"]) if row["epoch"] == int(row["epoch"]) else row["epoch"]
        self._append(row)
        self._say(row, better)
        if self.board is not None:
            self._draw(row, confusion)
        self.speed_since = None

    def speed(self, step: int) -> float:
        """Images a second since the last validation, reading and augmentation included."""
        begun, since = self.speed_since or (step, time.monotonic())
        return (step - begun) * self.pictures / max(1e-9, time.monotonic() - since)

    def _say(self, row: dict[str, Any], better: bool) -> None:
        if self.log == "json":
            print(json.dumps({"event": "validation", **row, "best": better}), flush=True)
        elif self.log == "bar":
            of = f"/{self.span.epoch(self.span.steps):.0f}" if self.span.steps else ""
            self.console.print(
                f"epoch {row['epoch']:>3}{of}  loss {row['loss']:.3f}  mIoU {shown(self.miou)}"
                f"  accuracy {row['pixel_accuracy'] or 0:.3f}  {row['images_per_second']:.1f} images/s{'  best' if better else ''}",
                highlight=False,
            )

    def _append(self, row: dict[str, Any]) -> None:
        """Rows that a resumed run comes by again are replaced."""
        rows = []
        if self.table.exists():
            with self.table.open(newline="") as stream:
                rows = [old for old in csv.DictReader(stream) if int(old["step"]) < row["step"]]
        draft = self.table.with_suffix(".part")
        with draft.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            writer.writeheader()
            writer.writerows([*rows, row])
        draft.replace(self.table)

    def _draw(self, row: dict[str, Any], confusion: Confusion) -> None:
        step = row["step"]
        for name, value in row.items():
            if name not in ("step", "lr", "minutes") and value is not None:
                self.board.add_scalar(f"validation/{name}" if name != "loss" else "loss/epoch", value, step)
        self.board.add_figure("confusion", confusion_figure(confusion, self.classes), step)
        for name, picture in (self.samples() if self.samples else {}).items():
            self.board.add_image(f"samples/{name}", np.asarray(picture), step, dataformats="HWC")


def _board(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own deprecated calls
        from torch.utils.tensorboard import SummaryWriter  # seconds, for those who want it

    return SummaryWriter(str(folder))


def shown(value: float) -> str:
    """A loss or mIoU for people; a dash where there is none yet."""
    return "-" if math.isnan(value) else f"{value:.3f}"
