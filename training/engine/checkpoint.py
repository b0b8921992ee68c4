"""The state of a training, and its checkpoints: written whole or not at all."""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.architectures.base import Network
from models.atomic_write import write_atomically
from models.errors import RunError
from training.run_folder import LAST_CHECKPOINT

CHECKPOINT_FORMAT = 2  # a checkpoint of another format is refused


@dataclass
class TrainState:
    """The state that a resumed run needs. Everything else follows from the settings, the data and the step."""

    network: Network
    optimizer: torch.optim.Optimizer
    ema_network: Network | None = None  # averaged weights, with `ema`
    step: int = 0  # optimizer steps done
    best_score: float = -1.0  # highest value of the monitored validation metric, 0..1; -1 before the first
    validations_since_best: int = 0
    loss_sum: float = 0.0  # over the steps since the last validation
    loss_count: int = 0
    validation_seconds: float | None = None  # longest validation; None before the first
    previous_seconds: float = 0.0  # training time before this start
    start_time: float = field(default_factory=time.monotonic)

    @property
    def eval_network(self) -> Network:
        """The network to validate and to save as the best: the averaged one, if there is one."""
        return self.network if self.ema_network is None else self.ema_network

    def elapsed_seconds(self) -> float:
        """Training time over all starts."""
        return self.previous_seconds + time.monotonic() - self.start_time

    def save(self, file: Path) -> None:
        """Write the whole state. Raises: RunError, with the old file unchanged."""
        content = {
            "format": CHECKPOINT_FORMAT,
            "network": self.network.state_dict(),
            "ema_network": None if self.ema_network is None else self.ema_network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best_score": self.best_score,
            "validations_since_best": self.validations_since_best,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "validation_seconds": self.validation_seconds,
            "seconds": self.elapsed_seconds(),
        }
        write_checkpoint(content, file)

    def save_eval_network(self, file: Path) -> None:
        """Write only the network to evaluate. Raises: as `save`."""
        content = {
            "format": CHECKPOINT_FORMAT,
            "network": self.eval_network.state_dict(),
            "step": self.step,
            "score": self.best_score,
        }
        write_checkpoint(content, file)

    def load(self, file: Path) -> None:
        """Load what `save` wrote. Raises: RunError."""
        content = read_checkpoint(file)
        try:
            self.network.load_state_dict(content["network"])
            if self.ema_network is not None:
                self.ema_network.load_state_dict(content["ema_network"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{file} holds another network than config.yaml describes; restore config.yaml, or train again."
            ) from error
        self.step = content["step"]
        # Before there was a choice of the metric it was the mIoU.
        self.best_score = content["best_score"] if "best_score" in content else content["best_miou"]
        self.validations_since_best = content["validations_since_best"]
        self.loss_sum, self.loss_count = content["loss_sum"], content["loss_count"]
        self.validation_seconds = content["validation_seconds"]
        self.previous_seconds = content["seconds"]


def write_checkpoint(content: dict[str, Any], file: Path) -> None:
    """Write a checkpoint. Raises: RunError, with the old file unchanged."""
    memory = io.BytesIO()  # torch's writer hides the system's error behind its own
    torch.save(content, memory)
    try:
        write_atomically(file, memory.getbuffer())
    except OSError as error:
        kept = f" The previous {file.name} is kept." if file.exists() else ""
        can_resume = file.with_name(LAST_CHECKPOINT.name).exists()
        again = "continue with --resume" if can_resume else "train again: no checkpoint to resume from was written"
        raise RunError(
            f"{file} cannot be written ({error.strerror}; it takes {memory.tell() / 1e6:,.0f} MB).{kept} Free disk space, "
            f"then {again}."
        ) from error


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; no pickle is executed. Raises: RunError."""
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing; train with `maskserve train`.") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RunError(f"{file} is damaged, or not a checkpoint of maskserve; train again.") from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise RunError(f"{file} was written by another version of maskserve; train again.")
    return content
