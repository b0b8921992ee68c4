"""One step of training: from a batch to a loss, and what is random in between."""

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from models.architectures.network import Network
from models.errors import RunError
from training.config import TrainConfig
from training.losses import Criterion

RECENT = 50  # losses that are looked at to tell why one became NaN
YOUNG = 10  # losses; a run that fails before has no past to judge by, and then it is mostly the learning rate


class Learner(nn.Module):
    """A network and its loss as one module, because DDP averages the gradients of what is called."""

    def __init__(self, network: Network, criterion: Criterion, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.aux_weight = config.aux_weight
        self.freeze_norms = config.freeze_norms

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """The loss, a float32 scalar, of pictures uint8 N x H x W x 3 RGB and labels uint8 N x H x W."""
        # N x H x W x 3 seen as N x 3 x H x W is channels_last already, the layout that convolutions are quickest in.
        logits, *auxiliary = self.network.training_logits(pictures.permute(0, 3, 1, 2))
        total: Tensor = self.criterion(logits, labels)
        for one in auxiliary:
            total = total + self.aux_weight * self.criterion(one, labels)
        return total

    def train(self, mode: bool = True) -> "Learner":
        """As `nn.Module.train`, but batch norms stay as they are where they are frozen."""
        super().train(mode)
        if self.freeze_norms:
            for layer in self.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self


def averaged(network: Network, decay: float) -> AveragedModel | None:
    """A running average of the weights and of batch norms' statistics (arXiv 1803.05407); None for a decay of 0.

    The first steps are forgotten sooner: after t steps the decay is at most (1 + t) / (10 + t).
    """
    if decay == 0:
        return None

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        steps = torch.as_tensor(count, dtype=torch.float32)  # stays on the GPU, which need not wait for it
        share = 1 - ((1 + steps) / (10 + steps)).clamp(max=decay)
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)  # batch norms count their batches

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def seed_draws(*place: int) -> None:
    """Make what is drawn next (dropout) a function of these numbers alone, so that a resumed run draws it again."""
    torch.manual_seed(hash(place) % 2**63)  # a tuple of integers hashes alike everywhere


class Guard:
    """Notices a loss that is no number. It looks at a step's loss after the next has begun, so that a GPU need not wait."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.waiting: tuple[int, float, list[str], Tensor] | None = None
        self.recent: deque[float] = deque(maxlen=RECENT)

    def watch(self, step: int, rate: float, names: list[str], loss: Tensor) -> float | None:
        """Take a step's loss, and give that of the step before. Raises: RunError."""
        before = self.settle()
        self.waiting = (step, rate, names, loss)
        return before

    def settle(self) -> float | None:
        """Look at the loss that is still waiting. Raises: RunError where it is NaN or infinite."""
        if self.waiting is None:
            return None
        (step, rate, names, tensor), self.waiting = self.waiting, None
        loss = tensor.item()
        if not math.isfinite(loss):
            raise RunError(
                f"The loss is {loss} at step {step}, lr {rate:.3g}, on {', '.join(names)}. {self._cause()} The last "
                "good checkpoint is kept."
            )
        self.recent.append(loss)
        return loss

    def before_a_save(self, network: nn.Module) -> float | None:
        """As `settle`, and look at the weights too: what is kept must be good. Raises: RunError."""
        loss = self.settle()
        if not all(parameter.isfinite().all() for parameter in network.parameters()):
            raise RunError(f"Weights are no longer numbers. {self._cause()} The last good checkpoint is kept.")
        return loss

    def _cause(self) -> str:
        config, recent = self.config, self.recent
        if len(recent) < YOUNG or recent[-1] > 2 * min(recent) + 1:
            climb = f"It had gone from {min(recent):.3g} to {recent[-1]:.3g}: the" if recent else "The"
            clip = "" if config.clip else ", or set clip=1"
            return (
                f"{climb} learning rate is likely too high: lower lr={config.lr:g}, raise warmup={config.warmup}{clip}."
            )
        cure = "set clip=1" if config.precision == "f32" else "set precision=f32"
        return f"It was {recent[-1]:.3g} the step before, so look at these pictures and masks first; else {cure}."
