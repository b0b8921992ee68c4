"""Residual paths: what changes when a single residual block is switched off (Veit et al. 2016, arXiv 1605.06431).

n blocks give 2^n paths from the image to the scores, of which n! / (k! (n - k)!) pass k blocks. A block that is switched off
passes its input on.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures.base import upsample
from models.explain.facts import Facts, Finding
from models.explain.thresholds import THRESHOLDS
from models.inference.geometry import network_input_size, resize_labels
from training.data import SegmentationDataset
from training.explain.subject import NetworkSubject, network_input
from training.metrics.confusion import ConfusionMatrix

TITLE = "Residual paths"
NUM_IMAGES = 6  # of --data, for the mIoU without each block


def compute(subject: NetworkSubject) -> Facts:
    """A row per block: the fraction of labels that stay the same without it, and with data the mIoU."""
    body = subject.inside.network.body
    blocks = residual_blocks(body, subject.input)
    whole = labels_of(subject, body, subject.input, subject.size)
    samples = subject.samples
    rows: list[dict[str, Any]] = []
    for name in blocks:
        with switched_off(body, name):
            same = float((labels_of(subject, body, subject.input, subject.size) == whole).mean())
            row = {"name": name, "agreement": round(same, 5)}
            if samples is not None:
                row["miou"] = data_miou(subject, samples)
        rows.append(row)
    count = len(rows)
    numbers = {
        "blocks": rows,
        "paths": [math.comb(count, length) for length in range(count + 1)],
        "miou": data_miou(subject, samples) if samples is not None and rows else None,
    }
    return Facts(numbers)


def residual_blocks(body: nn.Module, images: Tensor) -> list[str]:
    """The modules that add to their input: innermost blocks whose input and output have one shape, and that keep a shortcut.

    A block is recognized by what it does: with all its convolutions silenced, it returns its input (through a ReLU).
    """
    candidates: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            if isinstance(result, Tensor) and args and isinstance(args[0], Tensor) and args[0].shape == result.shape:
                candidates[name] = (args[0], result)

        return hook

    modules = {
        name: module
        for name, module in body.named_modules()
        if name and sum(isinstance(each, nn.Conv2d) for each in module.modules()) >= 2
    }
    handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    with torch.no_grad():
        body(images)
    for handle in handles:
        handle.remove()
    found = [name for name, (before, _) in candidates.items() if _keeps_shortcut(modules[name], before)]
    return [name for name in modules if name in found and not any(other.startswith(f"{name}.") for other in found)]


def _keeps_shortcut(block: nn.Module, values: Tensor) -> bool:
    """Whether a block whose branch is zero returns its input, or the ReLU of it."""
    handles = []
    last = [module for module in block.modules() if isinstance(module, nn.Conv2d | nn.modules.batchnorm._BatchNorm)]
    for module in last:
        handles.append(module.register_forward_hook(lambda module, args, result: torch.zeros_like(result)))
    with torch.no_grad():
        result = block(values)
    for handle in handles:
        handle.remove()
    return bool(torch.equal(result, values) or torch.equal(result, values.relu()))


@contextmanager
def switched_off(body: nn.Module, name: str) -> Iterator[None]:
    """While active, a module returns its input."""
    handle = dict(body.named_modules())[name].register_forward_hook(lambda module, args, result: args[0])
    try:
        yield
    finally:
        handle.remove()


def labels_of(subject: NetworkSubject, body: nn.Module, images: Tensor, size: tuple[int, int]) -> Any:
    """Labels uint8 H x W of a normalised canvas, cropped to `size`."""
    with torch.no_grad():
        logits = body(images)
    labels = upsample(logits, images.shape[2:]).argmax(dim=1)[0].to(torch.uint8).numpy()
    return labels[: size[0], : size[1]]


def data_miou(subject: NetworkSubject, samples: SegmentationDataset) -> float | None:
    """mIoU of the network as it is now on a few images of the data; None if they have no labeled pixel."""
    network, rule = subject.inside.network, subject.segmenter.rule
    confusion = ConfusionMatrix(len(subject.classes))
    for index in samples.evenly_spaced_indices(NUM_IMAGES):
        sample, target = samples.sample_and_labels(index)
        size = network_input_size((sample.size[0], sample.size[1]), rule)
        labels = labels_of(subject, network.body, network_input(network, rule, sample, size), size)
        confusion.add(target, resize_labels(labels, (target.shape[0], target.shape[1])))
    miou = confusion.miou()
    return None if math.isnan(miou) else round(miou, 4)


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """Blocks that nothing changes without."""
    rows = images[0]["blocks"]
    idle = [row["name"] for row in rows if THRESHOLDS["idle blocks"].crossed_by(1 - row["agreement"])]
    if not idle:
        return []
    return [
        Finding(
            "idle blocks",
            "residual",
            min(1 - row["agreement"] for row in rows),
            f"{len(idle)} of {len(rows)} residual blocks change fewer than 0.1% of the labels: {', '.join(idle)}.",
            "A shallower encoder would do the same in less time.",
        )
    ]
