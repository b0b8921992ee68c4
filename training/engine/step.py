"""One step of training: from a batch to a loss, and what is random in between."""

import copy
import math
from collections import deque
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.architectures.base import Network
from models.errors import RunError
from training.config import TrainConfig
from training.engine.losses import Criterion

LOSS_HISTORY_LENGTH = 50  # losses that are looked at to tell why one became NaN
MIN_LOSS_HISTORY = (
    10  # losses; a run that fails before has no past to judge by, and then it is mostly the learning rate
)


class NetworkWithLoss(nn.Module):
    """A network and its loss as one module, because DDP averages the gradients of what is called."""

    def __init__(self, network: Network, criterion: Criterion, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.aux_weight = config.aux_weight
        self.freeze_norms = config.freeze_norms

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss, a float32 scalar, of images uint8 N x H x W x 3 RGB and labels uint8 N x H x W."""
        # N x H x W x 3 seen as N x 3 x H x W is channels_last already, the layout that convolutions are quickest in.
        logits, *auxiliary = self.network.training_logits(images.permute(0, 3, 1, 2))
        total: Tensor = self.criterion(logits, labels)
        for one in auxiliary:
            total = total + self.aux_weight * self.criterion(one, labels)
        return total

    def train(self, mode: bool = True) -> "NetworkWithLoss":
        """As `nn.Module.train`, but batch norms stay as they are where they are frozen."""
        super().train(mode)
        if self.freeze_norms:
            for layer in self.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self


def make_ema_network(network: Network, decay: float) -> Network | None:
    """A copy of the network for running averages of its weights (arXiv 1803.05407); None for a decay of 0."""
    return copy.deepcopy(network).eval().requires_grad_(False) if decay else None


@torch.no_grad()
def update_ema(average: Network, network: Network, decay: float, step: int) -> None:
    """Take in the weights, and batch norms' statistics, after the step of that number (from 0).

    The first steps are forgotten sooner: the decay is at most (1 + step) / (10 + step). Not torch's AveragedModel: it counts
    on the CPU what it multiplies on the GPU, which waits for it, and multiplies tensor by tensor.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    old, new = ([*one.parameters(), *one.buffers()] for one in (average, network))
    floats = [place for place, value in enumerate(new) if value.is_floating_point()]
    torch._foreach_lerp_([old[place] for place in floats], [new[place] for place in floats], share)
    for place in set(range(len(new))) - set(floats):
        old[place].copy_(new[place])  # batch norms count their batches


def seed_torch(*place: int) -> None:
    """Make what is drawn next (dropout) a function of these numbers alone, so that a resumed run draws it again."""
    torch.manual_seed(hash(place) % 2**63)  # a tuple of integers hashes alike everywhere


class StepResult(NamedTuple):
    """A step's loss, once it is known."""

    step: int
    lr: float
    loss: float


class LossMonitor:
    """Notices a loss that is no number. It looks at a step's loss after the next has begun, so that a GPU need not wait."""

    def __init__(self, config: TrainConfig, kept: Path, begun: int = 0) -> None:
        """`kept`: the checkpoint that an error speaks of, if it is there; `begun`: steps before this start."""
        self.config = config
        self.checkpoint = kept
        self.start_step = begun
        self.pending: tuple[int, float, list[str], Tensor] | None = None
        self.recent_losses: deque[float] = deque(maxlen=LOSS_HISTORY_LENGTH)

    def record(self, step: int, lr: float, names: list[str], loss: Tensor) -> StepResult | None:
        """Take a step's loss, and give that of the step before. Raises: RunError."""
        before = self.flush()
        self.pending = (step, lr, names, loss)
        return before

    def flush(self) -> StepResult | None:
        """Look at the loss that is still waiting. Raises: RunError where it is NaN or infinite."""
        if self.pending is None:
            return None
        (step, lr, names, tensor), self.pending = self.pending, None
        loss = tensor.item()
        if not math.isfinite(loss):
            raise self._error(f"The loss is {loss} at step {step}, lr {lr:.3g}, on {', '.join(names)}.")
        self.recent_losses.append(loss)
        return StepResult(step, lr, loss)

    def check_before_save(self, network: nn.Module) -> StepResult | None:
        """As `settle`, and look at the weights too: what is kept must be good. Raises: RunError."""
        settled = self.flush()
        if not all(parameter.isfinite().all() for parameter in network.parameters()):
            raise self._error("Weights are no longer numbers.")
        return settled

    def _error(self, what: str) -> RunError:
        kept = f" {self.checkpoint} is from before it." if self.checkpoint.exists() else ""
        return RunError(f"{what} {self._explain()}{kept}")

    def _explain(self) -> str:
        config, recent = self.config, self.recent_losses
        if self.start_step + len(recent) < MIN_LOSS_HISTORY or (recent and recent[-1] > 2 * min(recent) + 1):
            climb = f"It had gone from {min(recent):.3g} to {recent[-1]:.3g}: the" if recent else "The"
            clip = "" if config.grad_clip else ", or set grad_clip=1"
            return (
                f"{climb} learning rate is likely too high: train anew with a lower lr than {config.lr:g} or more warmup "
                f"than {config.warmup}{clip}."
            )
        cure = "grad_clip=1" if config.precision == "f32" else "precision=f32"
        before = f"It was {recent[-1]:.3g} the step before" if recent else "It was a number until this start"
        return f"{before}, so look at these images and masks first; else train anew with {cure}."
