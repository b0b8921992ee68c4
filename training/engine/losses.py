"""What a network is trained to make small: losses of the logits against the labels, and sums of them.

All are computed in float32 and at the labels' size, under autocast too. A void pixel takes no part, and a batch with
nothing but void gives 0, with gradients of 0. In distributed training each is the loss of the whole batch on every
process (see `training.engine.distributed`; Lovasz is the one exception).

Of segmentation-models-pytorch (0.6) Lovasz alone is right here, and used. Its Dice masks void well, but counts an absent
class as a loss of 0 in the mean, so the loss shrinks with each class that a batch lacks (smp #546 in another guise);
makes an int64 one-hot, 8 bytes a class and pixel; and hides the sums that must go over the processes. Its focal loss is
the binary one, a class at a time, not the paper's over a softmax; its mean over a batch of nothing but void is NaN; and
its softmax form takes no ignore index. In half precision its Dice is NaN (smp #463) and its Lovasz stops.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor, nn

from models.architectures.base import upsample
from models.spec import IGNORE_INDEX
from training.config import TrainConfig
from training.engine.distributed import all_reduce_kth_smallest, all_reduce_sum
from training.loss_spec import parse_loss

FOCAL_GAMMA = 2.0  # gamma of the focal loss, as in arXiv 1708.02002


@dataclass(frozen=True)
class LossInputs:
    """An image, or a batch of them, with what the network says of each pixel."""

    log_probabilities: Tensor  # float N x C x H x W
    target_log_probabilities: Tensor  # log-probability of the pixel's own class, float N x H x W; 0 on void
    labels: Tensor  # int64 N x H x W; 0 on void, so that it is an index everywhere
    valid: Tensor  # bool N x H x W; false on void


@dataclass(frozen=True)
class LossOptions:
    """What the losses can be told; see the settings of the same names in `training.config`."""

    class_weights: Tensor | None = None  # float32 C
    label_smoothing: float = 0.0
    ohem_threshold: float = 0.9
    ohem_min_fraction: float = 1 / 16


class Criterion(nn.Module):
    """A sum of losses: logits float N x C x h x w, labels uint8 N x H x W -> float32 of 0 axes.

    In distributed training every process must call it as often as the others: it waits for them.
    """

    class_weights: Tensor | None

    def __init__(self, loss: str = "ce", class_weights: Tensor | None = None, **how: float) -> None:
        """`loss`: as the setting; `class_weights`: float C; `how`: as in `How`. Raises: ConfigError."""
        super().__init__()
        self.terms = parse_loss(loss)
        self.options = how
        # A buffer goes to the GPU with the module; it comes from the data, so no checkpoint need hold it.
        self.register_buffer("class_weights", class_weights, persistent=False)

    @classmethod
    def from_config(cls, config: TrainConfig, class_weights: Tensor | None = None) -> "Criterion":
        """The criterion of a run. Raises: ConfigError."""
        how = ("label_smoothing", "ohem_threshold", "ohem_keep")
        return cls(config.loss, class_weights, **{name: getattr(config, name) for name in how})

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        with torch.autocast(logits.device.type, enabled=False):
            # float64 stays, for gradients that are checked. In channels_last a CPU takes longer over all that follows.
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
            scored = [prepare_loss_inputs(*pair) for pair in split_batch(logits, labels)]
            how = LossOptions(self.class_weights, **self.options)
            return cast(Tensor, sum(term.weight * LOSSES[term.name](scored, how) for term in self.terms))


def split_batch(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The batch whole on a GPU; an image at a time on a CPU, where maps of full size then stay in the cache.

    Cross-entropy of 8 x 11 x 360 x 480, forward and backward on one core: 0.16-0.2 s, and 0.25-0.3 s by the batch.
    """
    if logits.device.type != "cpu":
        return [(logits, labels)]
    return [(logits[n : n + 1], labels[n : n + 1]) for n in range(len(logits))]


def prepare_loss_inputs(logits: Tensor, labels: Tensor) -> LossInputs:
    """Logits float N x C x h x w and labels uint8 N x H x W, brought together at the labels' size.

    By `gather` and not by `cross_entropy`: `nll_loss2d` has no deterministic kernel on CUDA and, on a CPU, writes
    out of bounds for a label that is no class (pytorch #194802), which `gather` refuses. It costs a tenth more.
    """
    valid = labels != IGNORE_INDEX
    classes = labels.long().masked_fill_(~valid, 0)
    full = logits if logits.shape[2:] == labels.shape[1:] else upsample(logits, labels.shape[1:])
    log_probabilities = full.log_softmax(dim=1)
    of_truth = log_probabilities.gather(1, classes[:, None])[:, 0].masked_fill(~valid, 0)
    return LossInputs(log_probabilities, of_truth, classes, valid)


def pixel_weights(image: LossInputs, how: LossOptions) -> Tensor:
    """The weight of each pixel's class, float N x H x W; 0 on void."""
    if how.class_weights is None:
        return image.valid.to(image.target_log_probabilities.dtype)
    return how.class_weights.to(image.target_log_probabilities.dtype)[image.labels].masked_fill(~image.valid, 0)


def pixel_cross_entropy(image: LossInputs, how: LossOptions) -> Tensor:
    """Weighted and smoothed cross-entropy of each pixel, float N x H x W; 0 on void. As torch's of reduction `none`."""
    losses = -image.target_log_probabilities
    if how.class_weights is not None:
        losses = losses * pixel_weights(image, how)
    if not how.label_smoothing:
        return losses
    # Smoothing (arXiv 1512.00567) mixes the truth with an even share for each class.
    logs, classes = image.log_probabilities, image.log_probabilities.shape[1]
    if how.class_weights is not None:
        logs = logs * how.class_weights.to(logs.dtype).view(1, -1, 1, 1)
    even = -logs.sum(dim=1).masked_fill(~image.valid, 0) / classes
    return torch.lerp(losses, even, how.label_smoothing)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The sum of `losses` over that of `weights`, both over all processes; 0 where nothing has a weight."""
    summed, weight = all_reduce_sum(torch.stack([losses.sum(), weights.sum()])).unbind()
    return summed / torch.where(weight > 0, weight, 1)


def ce(images: list[LossInputs], how: LossOptions) -> Tensor:
    """Cross-entropy, its mean by class weight over all pixels that are not void."""
    losses = torch.stack([pixel_cross_entropy(image, how).sum() for image in images])
    return weighted_mean(losses, torch.stack([pixel_weights(image, how).sum() for image in images]))


def ohem(images: list[LossInputs], how: LossOptions) -> Tensor:
    """Cross-entropy over the hard pixels alone: online hard example mining, Shrivastava et al. 2016 (arXiv 1604.03540).

    Hard is a pixel whose own class has a probability of `ohem_threshold` or less; where these are fewer than a share of
    `ohem_keep`, the hardest of that share are taken, as in PIDNet (arXiv 2206.02066). Pixels of equal rank go together.
    """
    valid = torch.cat([image.valid.flatten() for image in images])
    truth = torch.cat([image.target_log_probabilities.detach().flatten() for image in images])
    counts = torch.stack([valid.sum(), (valid & (truth <= math.log(how.ohem_threshold))).sum()])
    labelled, hard = all_reduce_sum(counts).tolist()
    least = math.ceil(how.ohem_min_fraction * labelled)
    cut: Any = math.log(how.ohem_threshold)
    if hard < least:
        cut = all_reduce_kth_smallest(truth[valid], least)
    kept = valid & (truth <= cut)
    losses = torch.cat([pixel_cross_entropy(image, how).flatten() for image in images])
    weights = torch.cat([pixel_weights(image, how).flatten() for image in images])
    return weighted_mean(losses * kept, weights * kept)


def focal(images: list[LossInputs], how: LossOptions) -> Tensor:
    """Cross-entropy times (1 - p)^2 of the true class's p: easy pixels count less, Lin et al. 2017 (arXiv 1708.02002).

    The mean is that of `ce`; the class weights are the paper's alpha. Labels are not smoothed.
    """
    losses, weights = [], []
    for image in images:
        weight = pixel_weights(image, how)
        easy = (-torch.expm1(image.target_log_probabilities)) ** FOCAL_GAMMA
        losses.append((-image.target_log_probabilities * easy * weight).sum())
        weights.append(weight.sum())
    return weighted_mean(torch.stack(losses), torch.stack(weights))


def dice(images: list[LossInputs], how: LossOptions) -> Tensor:
    """1 - 2 |A and B| / (|A| + |B|) of each class over the batch, its mean over the classes present (arXiv 1606.04797).

    Void is masked before anything is counted: elsewhere it becomes a class (PaddleSeg #2270, mmsegmentation #3172).
    Neither weighted nor smoothed, for each class counts alike already.
    """
    shared, sizes, there = all_reduce_sum(torch.stack([class_overlaps(image) for image in images]).sum(dim=0)).unbind()
    present = there > 0
    ratios = 2 * shared / torch.where(present, sizes + there, 1)
    return ((1 - ratios) * present).sum() / present.sum().clamp(min=1)


def class_overlaps(image: LossInputs) -> Tensor:
    """By class: the probability on its own pixels, that on all pixels, and the count of its pixels; float 3 x C."""
    probabilities = image.log_probabilities.exp() * image.valid[:, None]
    classes = probabilities.shape[1]
    labels, valid = image.labels.flatten(), image.valid.flatten().to(probabilities.dtype)
    zero = probabilities.new_zeros(classes)
    shared = zero.index_add(0, labels, image.target_log_probabilities.exp().flatten() * valid)
    return torch.stack([shared, probabilities.sum(dim=(0, 2, 3)), zero.index_add(0, labels, valid)])


def lovasz(images: list[LossInputs], how: LossOptions) -> Tensor:
    """Lovasz-Softmax, a convex surface over the IoU of the classes present, Berman et al. 2018 (arXiv 1705.08790).

    It sorts the pixels of the batch, a class at a time: in distributed training each process sorts its own, and the loss
    is their mean by the number of labelled pixels, not that of the whole batch. Neither weighted nor smoothed.
    """
    logs = torch.cat([image.log_probabilities for image in images])
    valid = torch.cat([image.valid for image in images])
    labelled = valid.sum()
    value = logs.sum() * 0
    if labelled:  # smp gives a batch of void alone a loss of no elements
        labels = torch.cat([image.labels for image in images]).masked_fill(~valid, IGNORE_INDEX)
        # It takes logits, and the softmax of log-probabilities is that of the logits that they came from.
        value = LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)(logs, labels)
    return weighted_mean(value * labelled, labelled.to(value.dtype))


LOSSES: dict[str, Callable[[list[LossInputs], LossOptions], Tensor]] = {
    "ce": ce,
    "ohem": ohem,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
}


def compute_class_weights(name: str, counts: np.ndarray) -> Tensor | None:
    """The weight of each class, float32 C, from its pixels in the training images, int64 C; None for `none`.

    `median`: the median frequency over the class's own (arXiv 1411.4734; there a frequency is of the images with the class,
    here of all). `enet`: 1 / ln(1.02 + frequency), between 1.4 and 50 (arXiv 1606.02147). A class without a pixel has 0.
    """
    if name == "none":
        return None
    weights, present = np.zeros(len(counts), dtype=np.float32), counts > 0
    shares = counts[present] / max(1, counts.sum())
    if name == "enet":
        weights[present] = 1 / np.log(1.02 + shares)
    elif present.any():
        weights[present] = np.median(shares) / shares
    return torch.from_numpy(weights)
