"""The peers of `benchmarks/recipes.py`: networks and training loops as their projects document them, without pretraining.

They get the images at the size, the crops, the batch and the precision of our planned run, and as many minutes from the first step
on; the schedule follows the clock. The last network counts, as in their scripts.

    torchvision   references/segmentation/train.py: SGD, momentum 0.9, weight decay 1e-4, poly 0.9, cross-entropy, half of the
                  auxiliary loss, ten times the learning rate for the auxiliary head
    smp           examples/camvid_segmentation_multiclass.ipynb: Adam, cosine down to 1e-5, Dice, its transforms; with the
                  ResNet-34 of the README, because the example's ResNeXt-50 gets through few epochs on a CPU
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import albumentations as A
import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.models.segmentation import fcn_resnet50

from models.architectures.base import IMAGENET_MEAN, IMAGENET_STD
from models.inference.geometry import network_input_size, resize_image, resize_labels
from models.inference.segmenter import Segmenter
from models.spec import IGNORE_INDEX
from training.data.dataset import SegmentationDataset
from training.run_folder import RunMetadata

Loss = Callable[[Any, Tensor], Tensor]  # of the network's output and labels int64 N x H x W
LIBRARY_LEARNING_RATES = {"torchvision": (0.0025, 0.01, 0.04), "smp": (2e-4, 8e-4, 3.2e-3)}  # documented: 0.01 and 2e-4


@dataclass(frozen=True)
class Peer:
    """A network of a library."""

    library: str
    build: Callable[[int], nn.Module]  # from the number of classes


PEERS = {
    "torchvision FCN-ResNet-50": Peer(
        "torchvision",
        lambda classes: fcn_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True),
    ),
    "smp U-Net": Peer("smp", lambda classes: smp.Unet("resnet34", encoder_weights=None, classes=classes)),
    "smp FPN": Peer("smp", lambda classes: smp.FPN("resnet34", encoder_weights=None, classes=classes)),
}


def torchvision_transforms(crop: tuple[int, int]) -> Any:
    """SegmentationPresetTrain: scale 0.5 to 2, flip, crop."""
    return A.Compose([
        A.RandomScale((-0.5, 1.0), p=1),
        A.HorizontalFlip(p=0.5),
        A.PadIfNeeded(*crop, fill_mask=IGNORE_INDEX),
        A.RandomCrop(*crop),
    ])  # fmt: skip


def smp_transforms(crop: tuple[int, int]) -> Any:
    """The training transforms of the example; what a border brings in is ignored."""
    return A.Compose([
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.5, 1.5), translate_percent=(-0.1, 0.1), fill_mask=IGNORE_INDEX, p=1),
        A.PadIfNeeded(*crop, fill_mask=IGNORE_INDEX),
        A.RandomCrop(*crop),
        A.GaussNoise(p=0.2),
        A.Perspective(p=0.5, fill_mask=IGNORE_INDEX),
        A.OneOf([A.CLAHE(p=1), A.RandomBrightnessContrast(p=1), A.RandomGamma(p=1)], p=0.9),
        A.OneOf([A.Sharpen(p=1), A.Blur(blur_limit=3, p=1), A.MotionBlur(blur_limit=3, p=1)], p=0.9),
        A.OneOf([A.RandomBrightnessContrast(p=1), A.HueSaturationValue(p=1)], p=0.9),
    ])  # fmt: skip


def torchvision_loss(outputs: Any, labels: Tensor) -> Tensor:
    """Cross-entropy, and half of the auxiliary head's."""
    losses = [F.cross_entropy(outputs[name].float(), labels, ignore_index=IGNORE_INDEX) for name in ("out", "aux")]
    return losses[0] + 0.5 * losses[1]


class PeerDataset(Dataset[Any]):
    """A training split at the size of our run's input."""

    def __init__(self, samples: SegmentationDataset, run: RunMetadata, transforms: Any) -> None:
        self.samples, self.run, self.transforms = samples, run, transforms

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Normalised float32 3 x h x w, and labels int64 h x w."""
        sample, labels = self.samples.sample_and_labels(index)
        size = network_input_size((labels.shape[0], labels.shape[1]), self.run.input)
        moved = self.transforms(image=resize_image(sample.values, size), mask=resize_labels(labels, size))
        return normalise(torch.from_numpy(moved["image"])[None])[0], torch.from_numpy(moved["mask"].astype(np.int64))


def normalise(images: Tensor) -> Tensor:
    """RGB uint8 N x H x W x 3 -> float32 N x 3 x H x W."""
    return ((images.float() - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(0, 3, 1, 2)


def train_peer(
    peer: Peer,
    samples: SegmentationDataset,
    run: RunMetadata,
    batch: int,
    workers: int,
    lr: float,
    minutes: float,
    seed: int,
) -> tuple[Segmenter, float]:
    """Train on the CPU; returns the network as a Segmenter with our run's input rule, and the epochs."""
    torch.manual_seed(seed)
    network = peer.build(len(samples.classes)).to(memory_format=torch.channels_last).train()
    crop = run.crop[0], run.crop[1]
    loss: Loss
    optimizer: torch.optim.Optimizer
    if peer.library == "torchvision":
        transforms, loss = torchvision_transforms(crop), torchvision_loss
        auxiliary = list(network.get_submodule("aux_classifier").parameters())
        others = [each for name, each in network.named_parameters() if not name.startswith("aux_classifier.")]
        groups = [{"params": others}, {"params": auxiliary, "lr": 10 * lr}]
        optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=1e-4)
    else:
        transforms, loss = smp_transforms(crop), smp.losses.DiceLoss("multiclass", ignore_index=IGNORE_INDEX)
        optimizer = torch.optim.Adam(network.parameters(), lr)
    transforms.set_random_seed(seed)
    data = PeerDataset(samples, run, transforms)
    size = min(batch, len(data))
    loader = DataLoader(data, size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0)
    autocast = torch.autocast("cpu", torch.bfloat16) if run.precision == "bf16" else nullcontext()
    first = [group["lr"] for group in optimizer.param_groups]
    start, steps, done = time.monotonic(), 0, 0.0
    while done < 1:
        for images, labels in loader:
            if peer.library == "torchvision":
                rates = [rate * (1 - done) ** 0.9 for rate in first]
            else:
                rates = [1e-5 + (rate - 1e-5) * (1 + math.cos(math.pi * done)) / 2 for rate in first]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            with autocast:
                outputs = network(images.contiguous(memory_format=torch.channels_last))
            value = loss(outputs if isinstance(outputs, dict) else outputs.float(), labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            steps, done = steps + 1, (time.monotonic() - start) / 60 / minutes
            if done >= 1:
                break
    network.eval()

    def predict(images: Any, logits: bool = False) -> Any:
        with torch.inference_mode():
            outputs = network(normalise(torch.from_numpy(images)))
        scores = (outputs["out"] if isinstance(outputs, dict) else outputs).float()
        return scores.argmax(dim=1).to(torch.uint8).numpy(), scores.numpy()

    return Segmenter(predict, run.input), steps * size / len(data)
