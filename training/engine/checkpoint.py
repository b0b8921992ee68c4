"""All that a training is at a step, and how it gets to the disk and back: whole, or not at all."""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.architectures.base import Network
from models.atomic_write import write_atomically
from models.errors import RunError

CHECKPOINT_FORMAT = 2  # of a checkpoint; one of another format is refused by a sentence


@dataclass
class TrainState:
    """What a run goes on from. Everything else follows from the settings, the data and the step."""

    network: Network
    optimizer: torch.optim.Optimizer
    ema_network: Network | None = None  # of running averages of its weights, where the settings ask for one
    step: int = 0  # steps of the optimiser that are done
    best_miou: float = -1.0  # highest validation mIoU, 0..1; -1 before the first
    validations_since_best: int = 0  # validations since then
    loss_sum: float = 0.0  # over the steps since the last validation
    loss_count: int = 0
    validation_seconds: float | None = None  # seconds that a validation takes, once one was seen
    previous_seconds: float = 0.0  # of training before this start
    start_time: float = field(default_factory=time.monotonic)

    @property
    def eval_network(self) -> Network:
        """The network to validate and to keep: of the averaged weights where there are any."""
        return self.network if self.ema_network is None else self.ema_network

    def elapsed_seconds(self) -> float:
        """How long the run has taken, over all its starts."""
        return self.previous_seconds + time.monotonic() - self.start_time

    def save(self, file: Path) -> None:
        """Write all of it. Raises: RunError, with the file as it was, where that cannot be done."""
        content = {
            "format": CHECKPOINT_FORMAT,
            "network": self.network.state_dict(),
            "ema_network": None if self.ema_network is None else self.ema_network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best_miou": self.best_miou,
            "validations_since_best": self.validations_since_best,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "validation_seconds": self.validation_seconds,
            "seconds": self.elapsed_seconds(),
        }
        write_checkpoint(content, file)

    def save_eval_network(self, file: Path) -> None:
        """Write the network alone. Raises: as `save`."""
        write_checkpoint(
            {
                "format": CHECKPOINT_FORMAT,
                "network": self.eval_network.state_dict(),
                "step": self.step,
                "miou": self.best_miou,
            },
            file,
        )

    def load(self, file: Path) -> None:
        """Go on from a checkpoint. Raises: RunError."""
        content = read_checkpoint(file)
        try:
            self.network.load_state_dict(content["network"])
            if self.ema_network is not None:
                self.ema_network.load_state_dict(content["ema_network"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is not of the network that the run's settings describe; train anew.") from error
        self.step, self.best_miou = content["step"], content["best_miou"]
        self.validations_since_best = content["validations_since_best"]
        self.loss_sum, self.loss_count = content["loss_sum"], content["loss_count"]
        self.validation_seconds = content["validation_seconds"]
        self.previous_seconds = content["seconds"]


def write_checkpoint(content: dict[str, Any], file: Path) -> None:
    """Write a checkpoint. Raises: RunError, with the one before it untouched."""
    memory = io.BytesIO()  # torch's writer hides the system's error behind its own
    torch.save(content, memory)
    try:
        write_atomically(file, memory.getbuffer())
    except OSError as error:
        kept = f"the {file.name} before it is kept; " if file.exists() else ""
        raise RunError(
            f"{file} cannot be written ({error.strerror}); {kept}make room, and go on by --resume."
        ) from error


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; no pickle is run. Raises: RunError."""
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing; train with `maskserve train`.") from error
    except Exception as error:  # torch's many kinds for what is no checkpoint
        raise RunError(f"{file} is no checkpoint of a training, or is damaged; train anew.") from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise RunError(f"{file} is of another version of maskserve; train anew.")
    return content
