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
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.spec import ClassInfo
from training.engine.checkpoint import State
from training.engine.schedule import Span
from training.engine.step import Settled
from training.metrics.confusion import Confusion
from training.reports.plots import confusion_figure
from training.run_folder import write_whole

Log = Literal["bar", "quiet", "json"]
OFTEN = 0.25  # seconds between looks at the bar
TABLE = "metrics.csv"


class Nobody:
    """Watches in the processes that are not the first: one of them speaks and writes."""

    def __enter__(self) -> "Nobody":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stepped(self, state: State) -> None:
        """See `Watch`."""

    def settled(self, settled: Settled) -> None:
        """See `Watch`."""

    def validated(self, state: State, confusion: Confusion, loss: float, lr: float, better: bool) -> None:
        """See `Watch`."""

    def kept(self, state: State, confusion: Confusion) -> None:
        """See `Watch`."""


class Watch:
    """A progress bar (epoch, loss, mIoU, images/s, time left), a line a validation, `metrics.csv` and TensorBoard's files.

    `log`: `bar` for people; `quiet` for nobody; `json` for programs, an object a line on standard output.
    """

    def __init__(
        self, out: Path, classes: list[ClassInfo], span: Span, pictures: int, step: int, console: Console, log: Log = "bar",
        board: bool = False, samples: Callable[[], dict[str, Image.Image]] | None = None,
    ) -> None:  # fmt: skip
        """`pictures`: of a step; `step`: those that are done; `samples`: draws validation pictures with their answers."""
        self.table = out / TABLE
        self.classes, self.span, self.pictures = classes, span, pictures
        self.console, self.log = console, log
        self.samples = samples
        self.board: Any = _board(out / "tensorboard", step) if board else None
        self.loss = self.miou = math.nan
        self.since: tuple[int, float] | None = None  # a step and when it was done: speed counts from there
        self.speed = 0.0  # images a second since then, reading and augmentation included
        self.looked = 0.0
        self._write(self._rows(before=step + 1))  # a resumed run will come by the later ones again
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

    def settled(self, settled: Settled) -> None:
        """Smooth the loss for the bar."""
        self.loss = settled.loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * settled.loss
        if self.board is not None:
            self.board.add_scalar("loss/step", settled.loss, settled.step)
            self.board.add_scalar("lr", settled.lr, settled.step)

    def stepped(self, state: State) -> None:
        """Move the bar on."""
        now = time.monotonic()
        if self.since is None:  # the first step waits for workers to start
            self.since = state.step, now
        elif state.step > self.since[0]:
            self.speed = (state.step - self.since[0]) * self.pictures / (now - self.since[1])
        if now - self.looked > OFTEN:
            self.looked = now
            self.bar.update(
                self.task,
                completed=self.span.progress(state.step, state.seconds(), state.reserve or 0.0),
                description=f"epoch {math.ceil(self.span.epoch(state.step))}{self._of()}",
                loss=shown(self.loss),
                miou=shown(self.miou),
                speed=self.speed,
            )

    def validated(self, state: State, confusion: Confusion, loss: float, lr: float, better: bool) -> None:
        """A line for people, and a row for the table."""
        summary = confusion.summary(self.classes)
        self.miou = math.nan if summary["miou"] is None else summary["miou"]
        epoch = round(self.span.epoch(state.step), 3)
        row = {
            "epoch": int(epoch) if epoch == int(epoch) else epoch,
            "step": state.step,
            "lr": lr,
            "loss": loss,
            "miou": summary["miou"],
            "pixel_accuracy": summary["pixel_accuracy"],
            "images_per_second": round(self.speed, 2),
            "minutes": round(state.seconds() / 60, 2),
            **{f"iou_{name}": value for name, value in summary["per_class_iou"].items()},
        }
        self._write([*self._rows(before=state.step), row])
        self._say(row, better)
        if self.board is not None:
            for name, value in row.items():
                if name not in ("step", "lr", "minutes") and value is not None:
                    self.board.add_scalar(f"validation/{name}" if name != "loss" else "loss/epoch", value, state.step)

    def kept(self, state: State, confusion: Confusion) -> None:
        """Pictures for TensorBoard."""
        if self.board is not None:
            self.board.add_figure("confusion", confusion_figure(confusion, self.classes), state.step)
            for name, picture in (self.samples() if self.samples else {}).items():
                self.board.add_image(f"samples/{name}", np.asarray(picture), state.step, dataformats="HWC")
        self.since = state.step, time.monotonic()

    def _of(self) -> str:
        return f"/{self.span.epoch(self.span.steps):.0f}" if self.span.steps else ""

    def _say(self, row: dict[str, Any], better: bool) -> None:
        if self.log == "json":
            print(json.dumps({"event": "validation", **row, "best": better}), flush=True)
        elif self.log == "bar":
            self.console.print(
                f"epoch {row['epoch']:>3.4g}{self._of()}  loss {row['loss']:.3f}  mIoU {shown(self.miou)}"
                f"  accuracy {row['pixel_accuracy'] or 0:.3f}  {row['images_per_second']:.1f} images/s{'  best' if better else ''}",
                highlight=False,
            )

    def _rows(self, before: int) -> list[dict[str, Any]]:
        if not self.table.exists():
            return []
        with self.table.open(newline="") as stream:
            return [row for row in csv.DictReader(stream) if int(row["step"]) < before]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            self.table.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.table, text.getvalue().encode())


def _board(folder: Path, step: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own deprecated calls
        from torch.utils.tensorboard import SummaryWriter  # seconds, for those who want it

    # What a resumed run does again stands there once.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def shown(value: float) -> str:
    """A loss or mIoU for people; a dash where there is none yet."""
    return "-" if math.isnan(value) else f"{value:.3f}"
