"""Training losses: functions of logits and labels, and weighted sums of them.

All are computed in float32 at the size of the labels, also under autocast. Where shapes say H x W, signals have T and volumes
D x H x W. Ignored pixels do not count; a batch of only
ignored pixels has loss 0 and gradients 0. In distributed training each process has the loss of the whole batch (see
`training.engine.distributed`; Lovasz is the exception).

Of segmentation-models-pytorch (0.6) only Lovasz is used. Its Dice counts an absent class as a loss of 0 in the mean, so the
loss shrinks with each class that a batch lacks (similar to smp #546); it makes an int64 one-hot, 8 bytes per class and pixel;
and it hides the sums that must be taken over the processes. Its focal loss is the binary one per class, not the paper's over
a softmax; its mean over a batch of only ignored pixels is NaN; and its softmax form has no ignore index. In half precision its
Dice is NaN (smp #463) and its Lovasz fails.
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
    """An image or a batch: log-probabilities, and labels at the same size."""

    log_probabilities: Tensor  # float N x C x H x W
    target_log_probabilities: Tensor  # of each pixel's true class, float N x H x W; 0 where ignored
    labels: Tensor  # int64 N x H x W; 0 where ignored, so that it is a valid index
    valid: Tensor  # bool N x H x W; false where ignored


@dataclass(frozen=True)
class LossOptions:
    """Options of the losses; see the settings of the same names in `training.config`."""

    class_weights: Tensor | None = None  # float32 C
    label_smoothing: float = 0.0
    ohem_threshold: float = 0.9
    ohem_keep: float = 1 / 16
    tversky_beta: float = 0.7


class Criterion(nn.Module):
    """A weighted sum of losses: logits float N x C x h x w, labels uint8 N x H x W -> float32 of 0 axes.

    In distributed training every process must call it equally often, because it waits for the others.
    """

    class_weights: Tensor | None

    def __init__(self, loss: str = "ce", class_weights: Tensor | None = None, **options: float) -> None:
        """`loss`: as the setting; `class_weights`: float C; `options`: as in `LossOptions`. Raises: ConfigError."""
        super().__init__()
        self.terms = parse_loss(loss)
        self.options = options
        # A buffer, to move to the GPU with the module; not in checkpoints, because it is computed from the data.
        self.register_buffer("class_weights", class_weights, persistent=False)

    @classmethod
    def from_config(cls, config: TrainConfig, class_weights: Tensor | None = None) -> "Criterion":
        """The criterion of a run. Raises: ConfigError."""
        return cls(
            config.loss,
            class_weights,
            label_smoothing=config.label_smoothing,
            ohem_threshold=config.ohem_threshold,
            ohem_keep=config.ohem_keep,
            tversky_beta=config.tversky_beta,
        )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of the batch."""
        with torch.autocast(logits.device.type, enabled=False):
            # float64 is kept, for numerical gradient checks. In channels_last the rest would be slower on a CPU.
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
            inputs = [prepare_loss_inputs(*part) for part in split_batch(logits, labels)]
            options = LossOptions(self.class_weights, **self.options)
            return cast(Tensor, sum(term.weight * LOSSES[term.name](inputs, options) for term in self.terms))


def split_batch(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The whole batch on a GPU; one image at a time on a CPU, where its full-size maps then stay in the cache.

    Cross-entropy of 8 x 11 x 360 x 480, forward and backward on one core: 0.16-0.2 s, instead of 0.25-0.3 s.
    """
    if logits.device.type != "cpu":
        return [(logits, labels)]
    return [(logits[n : n + 1], labels[n : n + 1]) for n in range(len(logits))]


def prepare_loss_inputs(logits: Tensor, labels: Tensor) -> LossInputs:
    """Upsample logits float N x C x h x w to the size of labels uint8 N x H x W, and take log-probabilities.

    With `gather` instead of `cross_entropy`: `nll_loss2d` has no deterministic kernel on CUDA and, on a CPU, writes
    out of bounds for a label that is not a class (pytorch #194802), which `gather` refuses. It takes 10% longer.
    """
    valid = labels != IGNORE_INDEX
    classes = labels.long().masked_fill_(~valid, 0)
    full = logits if logits.shape[2:] == labels.shape[1:] else upsample(logits, labels.shape[1:])
    log_probabilities = full.log_softmax(dim=1)
    of_target = log_probabilities.gather(1, classes[:, None])[:, 0].masked_fill(~valid, 0)
    return LossInputs(log_probabilities, of_target, classes, valid)


def pixel_weights(image: LossInputs, options: LossOptions) -> Tensor:
    """The weight of each pixel's class, float N x H x W; 0 where ignored."""
    if options.class_weights is None:
        return image.valid.to(image.target_log_probabilities.dtype)
    return options.class_weights.to(image.target_log_probabilities.dtype)[image.labels].masked_fill(~image.valid, 0)


def pixel_cross_entropy(image: LossInputs, options: LossOptions) -> Tensor:
    """Weighted and smoothed cross-entropy of each pixel, float N x H x W; 0 where ignored. As torch's with reduction `none`."""
    losses = -image.target_log_probabilities
    if options.class_weights is not None:
        losses = losses * pixel_weights(image, options)
    if not options.label_smoothing:
        return losses
    # Smoothing (arXiv 1512.00567) mixes the target with the uniform distribution over the classes.
    logs, classes = image.log_probabilities, image.log_probabilities.shape[1]
    if options.class_weights is not None:
        logs = logs * options.class_weights.to(logs.dtype).view(1, -1, *[1] * (logs.ndim - 2))
    uniform = -logs.sum(dim=1).masked_fill(~image.valid, 0) / classes
    return torch.lerp(losses, uniform, options.label_smoothing)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The sum of `losses` divided by that of `weights`, both over all processes; 0 if all weights are 0."""
    summed, weight = all_reduce_sum(torch.stack([losses.sum(), weights.sum()])).unbind()
    return summed / torch.where(weight > 0, weight, 1)


def ce(images: list[LossInputs], options: LossOptions) -> Tensor:
    """Cross-entropy: the mean, weighted by class, over all labeled pixels."""
    losses = torch.stack([pixel_cross_entropy(image, options).sum() for image in images])
    return weighted_mean(losses, torch.stack([pixel_weights(image, options).sum() for image in images]))


def ohem(images: list[LossInputs], options: LossOptions) -> Tensor:
    """Cross-entropy over the hard pixels only: online hard example mining, Shrivastava et al. 2016 (arXiv 1604.03540).

    A pixel is hard if its true class has a probability of at most `ohem_threshold`. If these are fewer than the fraction
    `ohem_keep`, the hardest pixels up to that fraction are used, as in PIDNet (arXiv 2206.02066). Ties are kept together.
    """
    valid = torch.cat([image.valid.flatten() for image in images])
    of_target = torch.cat([image.target_log_probabilities.detach().flatten() for image in images])
    counts = torch.stack([valid.sum(), (valid & (of_target <= math.log(options.ohem_threshold))).sum()])
    labeled, hard = all_reduce_sum(counts).tolist()
    minimum = math.ceil(options.ohem_keep * labeled)
    threshold: Any = math.log(options.ohem_threshold)
    if hard < minimum:
        threshold = all_reduce_kth_smallest(of_target[valid], minimum)
    kept = valid & (of_target <= threshold)
    losses = torch.cat([pixel_cross_entropy(image, options).flatten() for image in images])
    weights = torch.cat([pixel_weights(image, options).flatten() for image in images])
    return weighted_mean(losses * kept, weights * kept)


def focal(images: list[LossInputs], options: LossOptions) -> Tensor:
    """Cross-entropy times (1 - p)^2, p of the true class, so that easy pixels count less: Lin et al. 2017 (arXiv 1708.02002).

    The mean is as in `ce`; the class weights are the paper's alpha. No label smoothing.
    """
    losses, weights = [], []
    for image in images:
        weight = pixel_weights(image, options)
        modulation = (-torch.expm1(image.target_log_probabilities)) ** FOCAL_GAMMA
        losses.append((-image.target_log_probabilities * modulation * weight).sum())
        weights.append(weight.sum())
    return weighted_mean(torch.stack(losses), torch.stack(weights))


def dice(images: list[LossInputs], options: LossOptions) -> Tensor:
    """1 - 2 |A and B| / (|A| + |B|) of each class over the batch; the mean over the classes present (arXiv 1606.04797).

    Ignored pixels are masked first: in other libraries they became a class (PaddleSeg #2270, mmsegmentation #3172).
    Neither weighted nor smoothed, because each class already counts equally.
    """
    return _tversky(images, 0.5)


def tversky(images: list[LossInputs], options: LossOptions) -> Tensor:
    """As `dice`, missed pixels weighted by `tversky_beta` and false ones by the rest (arXiv 1706.05721): more recall above 0.5."""
    return _tversky(images, options.tversky_beta)


def _tversky(images: list[LossInputs], beta: float) -> Tensor:
    overlap, predicted, target = all_reduce_sum(
        torch.stack([class_overlaps(image) for image in images]).sum(dim=0)
    ).unbind()
    present = target > 0
    total = (1 - beta) * predicted + beta * target  # overlap + (1 - beta) * false + beta * missed
    ratios = overlap / torch.where(present, total, 1)
    return ((1 - ratios) * present).sum() / present.sum().clamp(min=1)


def class_overlaps(image: LossInputs) -> Tensor:
    """By class: its probability summed over its own pixels, summed over all pixels, and its pixel count; float 3 x C."""
    probabilities = image.log_probabilities.exp() * image.valid[:, None]
    classes = probabilities.shape[1]
    labels, valid = image.labels.flatten(), image.valid.flatten().to(probabilities.dtype)
    zero = probabilities.new_zeros(classes)
    overlap = zero.index_add(0, labels, image.target_log_probabilities.exp().flatten() * valid)
    return torch.stack(
        [overlap, probabilities.sum(dim=[0, *range(2, probabilities.ndim)]), zero.index_add(0, labels, valid)]
    )


def lovasz(images: list[LossInputs], options: LossOptions) -> Tensor:
    """Lovasz-Softmax, a convex surrogate of the IoU of the classes present: Berman et al. 2018 (arXiv 1705.08790).

    It sorts the pixels of the batch per class. In distributed training each process sorts its own, and the loss is the
    mean of theirs weighted by labeled pixels, not that of the whole batch. Neither weighted by class nor smoothed.
    """
    logs = torch.cat([image.log_probabilities for image in images])
    valid = torch.cat([image.valid for image in images])
    labeled = valid.sum()
    value = logs.sum() * 0
    if labeled:  # for a batch of only ignored pixels, smp returns a loss without elements
        labels = torch.cat([image.labels for image in images]).masked_fill(~valid, IGNORE_INDEX)
        # smp expects logits of images; log-probabilities have the same softmax, and the order of pixels does not matter.
        columns = logs.flatten(2)[..., None], labels.flatten(1)[..., None]
        value = LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)(*columns)
    return weighted_mean(value * labeled, labeled.to(value.dtype))


LOSSES: dict[str, Callable[[list[LossInputs], LossOptions], Tensor]] = {
    "ce": ce,
    "ohem": ohem,
    "dice": dice,
    "focal": focal,
    "tversky": tversky,
    "lovasz": lovasz,
}


def compute_class_weights(name: str, counts: np.ndarray) -> Tensor | None:
    """The weight of each class, float32 C, from its pixels in the training images, int64 C; None for `none`.

    `median`: median frequency / frequency of the class (arXiv 1411.4734; there frequencies are over the images with the class,
    here over all). `enet`: 1 / ln(1.02 + frequency), between 1.4 and 50 (arXiv 1606.02147). A class without pixels has 0.
    """
    if name == "none":
        return None
    weights, present = np.zeros(len(counts), dtype=np.float32), counts > 0
    frequencies = counts[present] / max(1, counts.sum())
    if name == "enet":
        weights[present] = 1 / np.log(1.02 + frequencies)
    elif present.any():
        weights[present] = np.median(frequencies) / frequencies
    return torch.from_numpy(weights)
