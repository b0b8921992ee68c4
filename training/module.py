"""The training step, around which Lightning runs the loop."""

import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.network import Network, upsample
from models.spec import VOID
from training.config import TrainConfig
from training.data.loader import Batch
from training.metrics import Confusion


class Training(pl.LightningModule):
    """A network, its loss, its optimiser, and the validation metrics."""

    def __init__(self, network: Network, classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.confusion = Confusion(classes)
        self.started = time.monotonic()
        self.seconds_before = 0.0  # of training before this start, where a run is resumed

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of a batch."""
        pictures, labels = batch
        # N x H x W x 3 seen as N x 3 x H x W is channels_last already, the layout that convolutions are quickest in.
        logits, *auxiliary = self.network.training_logits(pictures.permute(0, 3, 1, 2))
        total = loss(logits, labels)
        for one in auxiliary:
            total = total + self.config.aux_weight * loss(one, labels)
        return total

    def on_validation_epoch_start(self) -> None:
        """Start a new confusion matrix."""
        self.confusion = Confusion(self.confusion.classes)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Count a batch into the confusion matrix, at the scale that the network sees."""
        pictures, labels = batch
        logits = self.network.logits(pictures.permute(0, 3, 1, 2))
        answers = upsample(logits.float(), labels.shape[1:]).argmax(dim=1).to(torch.uint8)
        self.confusion.add(labels.cpu().numpy(), answers.cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        """Log what the checkpoint is chosen by. A split without a single labelled pixel counts as 0 there."""
        miou = self.confusion.miou()
        self.log("miou", 0.0 if miou != miou else miou)

    def configure_optimizers(self) -> Any:
        """SGD or AdamW, with a linear warm-up and a polynomial decay by the step."""
        groups = parameter_groups(self.network, self.config.weight_decay)
        optimizer: torch.optim.Optimizer
        if self.config.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups, lr=self.config.lr, momentum=self.config.momentum, nesterov=self.config.momentum > 0
            )
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.config.lr)
        total = int(self.trainer.estimated_stepping_batches)
        self.started = time.monotonic()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def seconds(self) -> float:
        """How long the run has trained, over all its starts."""
        return self.seconds_before + time.monotonic() - self.started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The time that a run has taken goes with it."""
        checkpoint["seconds"] = self.seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A resumed run has what is left of its minutes."""
        self.seconds_before = checkpoint["seconds"]

    def rate(self, step: int, total: int) -> float:
        """The share of the peak learning rate at a step; a limit in minutes shortens the decay so that it still ends."""
        done = step / max(1, total)
        if self.config.minutes:
            done = max(done, self.seconds() / (60 * self.config.minutes))
        warm = min(1.0, (step + 1) / max(1, self.config.warmup))
        return warm * float(max(0.0, 1 - done) ** self.config.power)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that are not void; 0, with gradients of 0, where all are.

    logits N x C x h x w of any float type, labels uint8 N x H x W. Computed in float32 also under autocast.
    """
    full = upsample(logits.float(), labels.shape[1:])
    summed = F.cross_entropy(full, labels.long(), ignore_index=VOID, reduction="sum")
    return summed / (labels != VOID).sum().clamp(min=1)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels decay; biases and the scales of norms (the parameters of one axis) do not."""
    kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
