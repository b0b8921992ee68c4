"""All that a training is at a step, and how it gets to the disk and back: whole, or not at all."""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.architectures.base import Network
from models.errors import RunError
from training.run_folder import write_whole

FORMAT = 1  # of a checkpoint; one of another format is refused by a sentence


@dataclass
class State:
    """What a run goes on from. Everything else follows from the settings, the data and the step."""

    network: Network
    optimizer: torch.optim.Optimizer
    average: Network | None = None  # of running averages of its weights, where the settings ask for one
    step: int = 0  # steps of the optimiser that are done
    best: float = -1.0  # highest validation mIoU, 0..1; -1 before the first
    stale: int = 0  # validations since then
    loss_sum: float = 0.0  # over the steps since the last validation
    loss_count: int = 0
    reserve: float | None = None  # seconds that a validation takes, once one was seen
    seconds_before: float = 0.0  # of training before this start
    started: float = field(default_factory=time.monotonic)

    @property
    def result(self) -> Network:
        """The network to validate and to keep: of the averaged weights where there are any."""
        return self.network if self.average is None else self.average

    def seconds(self) -> float:
        """How long the run has taken, over all its starts."""
        return self.seconds_before + time.monotonic() - self.started

    def save(self, file: Path) -> None:
        """Write all of it. Raises: RunError, with the file as it was, where that cannot be done."""
        content = {
            "format": FORMAT,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "reserve": self.reserve,
            "seconds": self.seconds(),
        }
        write(content, file)

    def save_result(self, file: Path) -> None:
        """Write the network alone. Raises: as `save`."""
        write({"format": FORMAT, "network": self.result.state_dict(), "step": self.step, "miou": self.best}, file)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint. Raises: RunError."""
        content = read(file)
        try:
            self.network.load_state_dict(content["network"])
            if self.average is not None:
                self.average.load_state_dict(content["average"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is not of the network that the run's settings describe; train anew.") from error
        self.step, self.best, self.stale = content["step"], content["best"], content["stale"]
        self.loss_sum, self.loss_count = content["loss_sum"], content["loss_count"]
        self.reserve = content["reserve"]
        self.seconds_before = content["seconds"]


def write(content: dict[str, Any], file: Path) -> None:
    """Write a checkpoint. Raises: RunError, with the one before it untouched."""
    memory = io.BytesIO()  # torch's writer hides the system's error behind its own
    torch.save(content, memory)
    try:
        write_whole(file, memory.getbuffer())
    except OSError as error:
        kept = f"the {file.name} before it is kept; " if file.exists() else ""
        raise RunError(
            f"{file} cannot be written ({error.strerror}); {kept}make room, and go on by --resume."
        ) from error


def read(file: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; no pickle is run. Raises: RunError."""
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing; train with `maskserve train`.") from error
    except Exception as error:  # torch's many kinds for what is no checkpoint
        raise RunError(f"{file} is no checkpoint of a training, or is damaged; train anew.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{file} is of another version of maskserve; train anew.")
    return content
