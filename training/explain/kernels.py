"""Kernels: the first layer as images, deeper units by what excites them, and one convolution worked out with real numbers."""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.explain.colors import enlarge, signed_colors, tile_images
from models.explain.facts import Facts, Finding
from models.explain.thresholds import THRESHOLDS
from models.imaging.decode import RGB
from models.spec import RGB_CHANNELS
from training.explain.journey import strongest_channels
from training.explain.subject import NetworkSubject, record_outputs, stage_modules

TITLE = "Kernels"
DEAD_NORM = 0.01  # of the layer's median; a kernel below it has no effect
MAX_KERNELS, SHEET_COLUMNS, KERNEL_SIDE = 96, 16, 42  # on the page; pixels of a kernel's image
MAX_SHEETS = 16  # channels of the image whose kernels are shown, if they are not RGB
NUM_UNITS, NUM_PATCHES, MAX_PATCH, PATCH_SIDE = 6, 3, 96, 56  # per stage; pixels cut out at most, and shown
WORKED_SIDE = 24  # pixels of the worked example's image

Values = NDArray[np.float32]


def compute(subject: NetworkSubject) -> Facts:
    """Norms of all layers, the first layer's sheet, patches by stage, and the numbers of one convolution."""
    facts = subject.inside
    name, layer = facts.first_layer()
    weights = layer.weight.detach().to(torch.float32)
    norms = kernel_norms(layer)
    dead = dead_kernels(norms)
    images, sheets = first_layer_sheets(weights[:MAX_KERNELS], subject.segmenter.rule.channels)
    units: dict[str, Any] = {}
    for stage in [facts.check_layer(subject.layer)] if subject.layer else list(subject.stage_maps):
        maps = layer_maps(subject, stage)
        if maps is None or maps.shape[1] < 2:
            continue
        field = facts.module_fields.get(stage_modules(stage)[-1])
        side = min(MAX_PATCH, field or MAX_PATCH)
        chosen = strongest_channels(maps, NUM_UNITS)
        patches = [best_patches(subject, maps[channel], side) for channel in chosen]
        images[f"units-{len(units):02d}"] = tile_images([patch for row in patches for patch, _ in row], NUM_PATCHES)
        units[stage] = [
            {"channel": channel, "positions": [position for _, position in row], "receptive_field": field}
            for channel, row in zip(chosen, patches, strict=True)
        ]
    numbers = {
        "layer": name,
        "receptive_field": facts.module_fields.get(name),
        "shape": list(weights.shape),
        "sheets": sheets,
        "norms": [round(float(norm), 4) for norm in norms],
        "dead": dead,
        "orientation_selectivity": round(orientation_selectivity(weights), 4),
        "layers": [{"name": each, **norm_summary(module)} for each, module in facts.layers().items()],
        "units": units,
    }
    return Facts(numbers, images, page_data={"worked": worked_convolution(subject, layer, norms)})


def layer_maps(subject: NetworkSubject, name: str) -> Tensor | None:
    """The maps C x h x w of a stage or of any module; None if it has none."""
    if name in subject.stage_maps:
        return subject.stage_maps[name]
    with torch.no_grad(), record_outputs(subject.inside.network.body, [name]) as outputs:
        subject.inside.network.body(subject.input)
    maps = outputs.get(name)
    return maps[0] if maps is not None and maps.ndim == 4 else None


def kernel_norms(layer: nn.Conv2d) -> Values:
    """The L2 norm of each kernel of a layer, float32 O."""
    return np.asarray(layer.weight.detach().to(torch.float32).flatten(1).norm(dim=1).numpy(), np.float32)


def dead_kernels(norms: Values) -> list[int]:
    """The kernels whose norm is below a hundredth of the layer's median of those that are not zero."""
    positive = norms[norms > 0]
    limit = DEAD_NORM * float(np.median(positive)) if positive.size else 0.0
    return [int(index) for index in np.flatnonzero(norms <= limit)]


def norm_summary(layer: nn.Conv2d) -> dict[str, Any]:
    """The number of a layer's kernels, how many are dead, and the lowest, median and highest norm."""
    norms = kernel_norms(layer)
    low, middle, high = (round(float(value), 4) for value in np.quantile(norms, [0, 0.5, 1]))
    return {"kernels": len(norms), "dead": len(dead_kernels(norms)), "min": low, "median": middle, "max": high}


def kernel_image(kernel: Values) -> RGB:
    """A kernel C x k x l as RGB uint8: three channels as a color image, others as the mean in blue and red."""
    peak = float(np.abs(kernel).max()) or 1.0
    if len(kernel) == 3:
        return np.asarray((kernel / peak * 127 + 128).clip(0, 255).transpose(1, 2, 0), np.uint8)
    return signed_colors(kernel.mean(axis=0), peak)


def first_layer_sheets(weights: Tensor, channels: tuple[str, ...]) -> tuple[dict[str, RGB], dict[str, str]]:
    """Kernels O x C x k x l as images, and the title of each: one in color for RGB, else one in gray for each channel.

    A gray sheet for each channel of the image, up to MAX_SHEETS of them; zero is gray, and a kernel has one scale in all.
    """
    kernels = weights.detach().numpy()
    if len(channels) == kernels.shape[1] == len(RGB_CHANNELS) and set(map(str.lower, channels)) == set(RGB_CHANNELS):
        order = [list(map(str.lower, channels)).index(name) for name in RGB_CHANNELS]
        return {"first-layer": kernel_sheet([kernel_image(kernel[order]) for kernel in kernels])}, {"first-layer": ""}
    names = channels if len(channels) == kernels.shape[1] else [f"channel {index}" for index in range(kernels.shape[1])]
    peaks = [float(np.abs(kernel).max()) or 1.0 for kernel in kernels]
    images = {
        f"first-layer-{index:02d}": kernel_sheet(
            [gray_image(kernel[index], peak) for kernel, peak in zip(kernels, peaks, strict=True)]
        )
        for index in range(min(MAX_SHEETS, len(names)))
    }
    return images, dict(zip(images, names, strict=False))


def gray_image(plane: Values, peak: float) -> RGB:
    """One channel k x l of a kernel, -peak..peak, as gray RGB uint8."""
    return np.asarray((plane / peak * 127 + 128).clip(0, 255)[..., None].repeat(3, axis=2), np.uint8)


def kernel_sheet(images: list[RGB]) -> RGB:
    """Small images of kernels as one, in rows of SHEET_COLUMNS."""
    images = [enlarge(image, max(1, KERNEL_SIDE // max(image.shape[:2]))) for image in images]
    return tile_images(images, SHEET_COLUMNS, gap=4)


def best_patches(subject: NetworkSubject, plane: Tensor, side: int) -> list[tuple[RGB, list[int]]]:
    """The parts of the image at the highest values of a map, and their centers (x, y); each hides its surroundings."""
    values = plane.detach().numpy().copy()
    image = subject.rgb
    scale = subject.input.shape[-1] / values.shape[1]
    found = []
    for _ in range(NUM_PATCHES):
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        x, y = int((column + 0.5) * scale), int((row + 0.5) * scale)
        reach = max(1, int(side / scale / 2))
        values[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = -np.inf
        half = side // 2
        padded = np.pad(image, ((half, half), (half, half), (0, 0)))
        part = padded[min(y, len(image) - 1) : min(y, len(image) - 1) + side, min(x, image.shape[1] - 1) :][:, :side]
        found.append((np.asarray(cv2.resize(part, (PATCH_SIDE, PATCH_SIDE)), np.uint8), [x, y]))
    return found


def orientation_selectivity(weights: Tensor) -> float:
    """How much the kernels O x C x k x l prefer one orientation, 0 (none) to 1 (one only): the mean over the kernels.

    The energy of a kernel's spectrum by angle, summed as vectors of twice the angle, as in the circular variance of Ringach et
    al. 2002 (J. Neuroscience 22:5639). The kernels are weighted by their energy.
    """
    kernels = (weights - weights.mean(dim=(2, 3), keepdim=True)).to(torch.float64)
    size = 16
    power = torch.fft.fft2(kernels, s=(size, size)).abs().square().sum(dim=1)
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    angle = torch.atan2(frequency[:, None], frequency[None, :])
    power = power * ((frequency[:, None] ** 2 + frequency[None, :] ** 2) <= 0.25)  # beyond, the square has corners only
    energy = power.sum(dim=(1, 2))
    resultant = torch.hypot(
        (power * torch.cos(2 * angle)).sum(dim=(1, 2)), (power * torch.sin(2 * angle)).sum(dim=(1, 2))
    )
    total = float(energy.sum())
    return float(resultant.sum() / total) if total > 0 else 0.0


def worked_convolution(subject: NetworkSubject, layer: nn.Conv2d, norms: Values) -> dict[str, Any]:
    """A part of the normalised image and the strongest kernel there: the numbers of the interactive example.

    `value` is the layer's own output at (row 0, column 0) of the part's interior, for the test of the page's arithmetic.
    """
    height, width = subject.input.shape[2:]
    side = min(WORKED_SIDE, height, width)
    top = min(max(0, subject.point[1] - side // 2), height - side)
    left = min(max(0, subject.point[0] - side // 2), width - side)
    part = subject.input[:, :, top : top + side, left : left + side]
    weight = layer.weight.detach()
    groups = part.shape[1] // weight.shape[1]
    with torch.no_grad():
        response = F.conv2d(part, weight, layer.bias, padding="valid", dilation=layer.dilation, groups=groups)
    kernel = int(response[0].abs().amax(dim=(1, 2)).argmax())
    return {
        "kernel_index": kernel,
        "kernel": np.round(weight[kernel].numpy(), 4).tolist(),
        "bias": 0.0 if layer.bias is None else round(float(layer.bias[kernel].detach()), 4),
        "patch": np.round(part[0].numpy(), 3).tolist() if groups == 1 else [],
        "pixels": subject.rgb[top : top + side, left : left + side].tolist(),
        "origin": [left, top],
        "stride": max(layer.stride),
        "padding": layer.padding[0] if isinstance(layer.padding, tuple) else 0,
        "value": round(float(response[0, kernel, 0, 0]), 4),
    }


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """First-layer kernels without effect."""
    numbers = images[0]
    count, dead = numbers["shape"][0], len(numbers["dead"])
    if not THRESHOLDS["dead kernels"].crossed_by(dead / count):
        return []
    return [
        Finding(
            "dead kernels",
            "kernels",
            round(dead / count, 4),
            f"{dead} of {count} first-layer kernels are dead: their norm is below {DEAD_NORM:.0%} of the median.",
            "Train again with a lower lr or a longer warmup, or start from pretrained weights.",
        )
    ]
