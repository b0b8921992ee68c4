"""Why this label: Grad-CAM for segmentation at a pixel and at the object around it, checked against a random network.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) weights the channels of a layer by the mean gradient of a class score; for
segmentation the score is the sum of the class's logits over a pixel or a region (Vinogradova et al. 2020, arXiv 2002.11434).
A map that a network with random weights draws as well explains nothing (Adebayo et al. 2018, arXiv 1810.03292): the rank
correlation of the two is printed, and a deletion score: the class probability while the most important parts of the image are
hidden first, beside that of a random order. Both are means over the steps; the map's should be lower.
"""

import copy
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.explain.colors import heat_colors
from models.explain.facts import Facts, Finding
from models.explain.thresholds import THRESHOLDS
from models.imaging.decode import RGB
from training.explain.subject import NetworkSubject, record_outputs, stage_modules

TITLE = "Why this label"
DELETION_STEPS = 8  # images with more and more cells hidden
CELLS = 12  # the image is hidden in CELLS x CELLS parts

Map = NDArray[np.float32]  # H x W
Region = NDArray[np.bool_]  # H x W


@dataclass(frozen=True)
class ForwardPass:
    """A network's pass over images, from which gradients may be taken several times."""

    maps: Tensor  # of the layer, N x K x h x w
    logits: Tensor  # N x C x h x w


def compute(subject: NetworkSubject) -> Facts:
    """Grad-CAM of the pixel and of its object, each beside the same map of a network with shuffled weights."""
    label = subject.target_label()
    layer = subject.inside.check_layer(subject.layer) if subject.layer else default_layer(subject)
    body = subject.inside.network.body
    trained_pass, random_pass = (forward_pass(each, layer, subject.input) for each in (body, shuffled_copy(body)))
    x, y = subject.point
    pixel = np.zeros(subject.size, bool)
    pixel[y, x] = True
    ranking = np.argsort(subject.probabilities[:, y, x])[::-1]
    runner_up = int(ranking[ranking != label][0])
    rows, images = [], {}
    for name, region, target in (
        ("pixel", pixel, label),
        ("object", object_at(subject), label),
        ("runner-up", pixel, runner_up),
    ):
        trained = grad_cam(subject, trained_pass, region, target)
        random = grad_cam(subject, random_pass, region, target)
        correlation = rank_correlation(trained, random)
        row = {
            "target": name,
            "class": subject.classes[target].name,
            "rank_correlation": round(correlation, 4),
            "passes": not THRESHOLDS["failed check"].crossed_by(correlation),
            "mass_inside": round(mass_inside(trained, region), 4),
            "area": round(float(region.mean()), 5),
        }
        if name != "runner-up":
            row |= deletion_scores(subject, trained, region, target)
        rows.append(row)
        images[name], images[f"{name}-random"] = overlay(subject, trained), overlay(subject, random)
    numbers = {
        "layer": layer,
        "point": [x, y],
        "class": subject.classes[label].name,
        "probability": round(float(subject.probabilities[label, y, x]), 4),
        "runner_up": subject.classes[runner_up].name,
        "runner_up_probability": round(float(subject.probabilities[runner_up, y, x]), 4),
        "maps": rows,
    }
    return Facts(numbers, images)


def default_layer(subject: NetworkSubject) -> str:
    """The output of the stage with the most channels, of those that are no coarser than the scores.

    On 12 objects of the shapes, 65% of the map's mass lies inside the object for the stage of stride 8, 47% for stride 16 and
    13% for stride 32, which has 5 x 6 positions.
    """
    stages = [stage for stage in subject.stages if stage.name in subject.stage_maps and stage.stride and stage.channels]
    finest = min((stage.stride or 1 for stage in stages[-1:]), default=8)
    usable = [stage for stage in stages if (stage.stride or 1) <= finest] or stages
    return stage_modules(max(usable, key=lambda stage: stage.channels or 0).name)[-1]


def forward_pass(body: nn.Module, layer: str, images: Tensor) -> ForwardPass:
    """A network's pass over normalised images, N x C x H x W, with the output of a layer."""
    with record_outputs(body, [layer]) as outputs:
        logits = body(images.clone().requires_grad_())
    return ForwardPass(outputs[layer], logits)


def grad_cam(subject: NetworkSubject, passed: ForwardPass, region: Region, label: int) -> Map:
    """The map of a layer for the sum of a class's logits over a region of the image, float32 H x W, >= 0."""
    weighted = layer_cam(passed, logit_region(subject, passed, region), label)
    canvas = subject.input.shape[2:]
    large = nn.functional.interpolate(weighted.relu(), size=tuple(canvas), mode="bilinear", align_corners=False)
    height, width = subject.size
    return np.asarray(large[0, 0, :height, :width].numpy(), np.float32)


def layer_cam(passed: ForwardPass, region: Tensor, label: int) -> Tensor:
    """Channels of a layer weighted by their mean gradient, N x 1 x h x w; `region` weights the logits, float h x w."""
    score = (passed.logits[:, label] * region).sum()
    (gradient,) = torch.autograd.grad(score, passed.maps, retain_graph=True)
    return (gradient.mean(dim=(2, 3), keepdim=True) * passed.maps).sum(dim=1, keepdim=True).detach()


def logit_region(subject: NetworkSubject, passed: ForwardPass, region: Region) -> Tensor:
    """A region H x W on the grid of the logits, float h x w: the fraction of each position that it covers, at least one."""
    padded = np.zeros(subject.input.shape[2:], np.float32)
    padded[: region.shape[0], : region.shape[1]] = region
    return torch.from_numpy(cv2.resize(padded, tuple(passed.logits.shape[2:])[::-1], interpolation=cv2.INTER_AREA))


def object_at(subject: NetworkSubject) -> Region:
    """The connected component of the predicted labels that holds the point."""
    mask = (subject.labels == subject.label_at_point()).astype(np.uint8)
    _, components = cv2.connectedComponents(mask, connectivity=4)
    x, y = subject.point
    return np.asarray(components == components[y, x])


def shuffled_copy(body: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose weights are shuffled within each layer: random, and of the same size as the trained ones."""
    shadow = copy.deepcopy(body)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in shadow.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                flat = module.weight.flatten()
                module.weight.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(module.weight))
    return shadow


def rank_correlation(first: Map, second: Map) -> float:
    """Spearman's correlation of two maps, -1..1; 0 if one is constant."""
    ranks = [mean_ranks(values) for values in (first, second)]
    deviations = [values - values.mean() for values in ranks]
    scale = float(np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float((deviations[0] * deviations[1]).sum()) / scale if scale > 0 else 0.0


def mean_ranks(values: Map) -> NDArray[np.float64]:
    """The rank of each value; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()], np.float64)


def mass_inside(values: Map, region: Region) -> float:
    """The fraction of a map's sum that lies in a region; 0 for an empty map."""
    total = float(values.sum())
    return float(values[region].sum()) / total if total > 0 else 0.0


def deletion_scores(subject: NetworkSubject, values: Map, region: Region, label: int) -> dict[str, float]:
    """The mean class probability over the region while cells are hidden: the map's order, and a random one."""
    cells = cv2.resize(values, (CELLS, CELLS), interpolation=cv2.INTER_AREA).ravel()
    orders = {
        "deletion": np.argsort(-cells, kind="stable"),
        "deletion_random": np.random.default_rng(0).permutation(cells.size),
    }
    height, width = subject.size
    scores = {}
    for name, order in orders.items():
        curve = []
        for step in range(1, DELETION_STEPS + 1):
            hidden = np.zeros(cells.size, np.uint8)
            hidden[order[: cells.size * step // (2 * DELETION_STEPS)]] = 1  # up to half of the image
            mask = cv2.resize(hidden.reshape(CELLS, CELLS), (width, height), interpolation=cv2.INTER_NEAREST) == 1
            image = subject.image.copy()
            image[mask] = subject.mean_sample
            curve.append(float(subject.predict(image)[label][region].mean()))
        scores[name] = round(float(np.mean(curve)), 4)
    return scores


def overlay(subject: NetworkSubject, values: Map) -> RGB:
    """A map over the image in gray."""
    strength = np.clip(values / max(float(values.max()), 1e-12), 0, 1)[..., None]
    return np.ascontiguousarray(subject.gray * (1 - 0.8 * strength) + heat_colors(values) * 0.8 * strength, np.uint8)


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """Maps that a random network draws as well."""
    rows = [row for numbers in images for row in numbers["maps"] if row["target"] == "object"]
    failed = [row["rank_correlation"] for row in rows if not row["passes"]]
    if len(failed) * 2 <= len(rows):
        return []
    return [
        Finding(
            "failed check",
            "why",
            round(float(np.median(failed)), 3),
            f"The Grad-CAM map of {len(failed)} of {len(rows)} objects is much the same for a network with random weights.",
            "Do not read this view as an explanation here; try another --layer.",
        )
    ]
