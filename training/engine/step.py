"""The parts of a training step: network and loss as one module, averaged weights, seeds, and a check of the loss."""

import copy
import math
from collections import deque
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.architectures.base import Network, channels_first
from models.errors import RunError
from training.config import TrainConfig
from training.engine.losses import Criterion

LOSS_HISTORY_LENGTH = 50  # losses kept to explain a NaN
MIN_LOSS_HISTORY = 10  # losses; a run that fails earlier has most likely too high a learning rate


class NetworkWithLoss(nn.Module):
    """A network and its loss as one module, because DDP averages the gradients of the module that is called."""

    def __init__(self, network: Network, criterion: Criterion, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.aux_weight = config.aux_weight
        self.freeze_norms = config.freeze_norms

    def forward(self, images: Tensor, labels: Tensor, statistics: Tensor | None = None) -> Tensor:
        """The loss, float32 of 0 axes, of images N x H x W x C and labels uint8 N x H x W; signals have T instead of H x W.

        `statistics`, float32 N x 2 x C, are shift and scale of the whole samples, for the scaling `zscore`.
        """
        # N x H x W x C permuted to N x C x H x W is already channels_last, the fastest layout for convolutions.
        logits, *auxiliary = self.network.training_logits(channels_first(images), statistics)
        total: Tensor = self.criterion(logits, labels)
        for depth, aux_logits in enumerate(auxiliary, start=1):
            total = total + self.aux_weight**depth * self.criterion(aux_logits, labels)
        return total

    def train(self, mode: bool = True) -> "NetworkWithLoss":
        """As `nn.Module.train`, but frozen batch norms stay in eval mode."""
        super().train(mode)
        if self.freeze_norms:
            for layer in self.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self


def make_ema_network(network: Network, decay: float) -> Network | None:
    """A copy of the network for averaged weights (arXiv 1803.05407); None for a decay of 0."""
    return copy.deepcopy(network).eval().requires_grad_(False) if decay else None


@torch.no_grad()
def update_ema(average: Network, network: Network, decay: float, step: int) -> None:
    """Add the weights and batch norm statistics after step number `step` (from 0) to the average.

    The first steps are forgotten faster: the decay is at most (1 + step) / (10 + step). Not torch's AveragedModel, whose
    counter on the CPU makes the GPU wait, and which multiplies tensor by tensor.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    old, new = ([*module.parameters(), *module.buffers()] for module in (average, network))
    floats = [index for index, value in enumerate(new) if value.is_floating_point()]
    torch._foreach_lerp_([old[index] for index in floats], [new[index] for index in floats], weight)
    for index in set(range(len(new))) - set(floats):
        old[index].copy_(new[index])  # the batch counters of batch norms


def seed_torch(*numbers: int) -> None:
    """Seed torch (for dropout) by these numbers only, so that a resumed run repeats it."""
    torch.manual_seed(hash(numbers) % 2**63)  # the hash of a tuple of integers is the same on every machine


class StepResult(NamedTuple):
    """The loss of a step."""

    step: int
    lr: float
    loss: float


class LossMonitor:
    """Stops the training if the loss becomes NaN or infinite. Reads a loss after the next step has started: no GPU waits."""

    def __init__(self, config: TrainConfig, checkpoint: Path, start_step: int = 0) -> None:
        """`checkpoint`: named in errors, if it exists; `start_step`: steps done before this start."""
        self.config = config
        self.checkpoint = checkpoint
        self.start_step = start_step
        self.pending: tuple[int, float, list[str], Tensor] | None = None
        self.recent_losses: deque[float] = deque(maxlen=LOSS_HISTORY_LENGTH)

    def record(self, step: int, lr: float, names: list[str], loss: Tensor) -> StepResult | None:
        """Keep a step's loss for later, and return that of the step before. Raises: RunError."""
        result = self.flush()
        self.pending = (step, lr, names, loss)
        return result

    def flush(self) -> StepResult | None:
        """Read the pending loss. Raises: RunError if it is NaN or infinite."""
        if self.pending is None:
            return None
        (step, lr, names, tensor), self.pending = self.pending, None
        loss = tensor.item()
        if not math.isfinite(loss):
            raise self._error(f"The loss is {loss} at step {step}, lr {lr:.3g}, on {', '.join(names)}.")
        self.recent_losses.append(loss)
        return StepResult(step, lr, loss)

    def check_before_save(self, network: nn.Module) -> StepResult | None:
        """As `flush`, and check that all weights are finite. Raises: RunError."""
        result = self.flush()
        if not all(parameter.isfinite().all() for parameter in network.parameters()):
            raise self._error("A weight of the network is NaN or infinite.")
        return result

    def _error(self, problem: str) -> RunError:
        kept = f" {self.checkpoint} was saved before this step." if self.checkpoint.exists() else ""
        return RunError(f"{problem} {self._explain()}{kept}")

    def _explain(self) -> str:
        config, recent = self.config, self.recent_losses
        if self.start_step + len(recent) < MIN_LOSS_HISTORY or (recent and recent[-1] > 2 * min(recent) + 1):
            rise = f"The loss rose from {min(recent):.3g} to {recent[-1]:.3g} before. " if recent else ""
            clip = "" if config.grad_clip else ", or set grad_clip=1"
            return (
                f"{rise}The learning rate is probably too high: train again with lr below {config.lr:g} or warmup above "
                f"{config.warmup}{clip}."
            )
        setting = "grad_clip=1" if config.precision == "f32" else "precision=f32"
        before = f"It was {recent[-1]:.3g} one step before" if recent else "It was finite until this start"
        return f"{before}, so check these images and masks first; otherwise train again with {setting}."
