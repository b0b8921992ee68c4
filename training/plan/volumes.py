"""The plan of a training on volumes, after nnU-Net's (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, suppl. note 2).

The fingerprint are the spacings, sizes and intensities that the lint has read. The rules choose the spacing, the scaling, the
patch, strides and kernels by axis, and along which axes volumes may be mirrored.
"""

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError, closest_names, quoted
from models.spec import InputRule, Scaling, Spacing
from training.config import TrainConfig
from training.lint import LintReport
from training.plan.budget import StepProfiler, shrink_batch_to_fit
from training.plan.profiling import MachineProfile
from training.plan.rules import Plan

ANISOTROPY = 3.0  # from this ratio of spacings, an axis is coarse
COARSE_PERCENTILE = 10.0  # of the spacing of a coarse axis: the finest volumes lose little
PATCH_VOXELS = {"cpu": 64**3, "cuda": 128**3}
BATCH_VOXELS = {"cpu": 2 * 64**3 // 3, "cuda": 2 * 128**3}  # on a CPU, more steps are worth more than larger batches
MIN_BATCH, MAX_BATCH = 2, 16
MIN_MAP, MAX_POOLS = 4, 5  # voxels of an axis of the coarsest map; strides of 2 along an axis
SAME_SPACING = 2.0  # axes are pooled together while their spacings differ by less
WINDOW = (0.5, 99.5)  # percentiles of the foreground that CT is clipped to
AIR = -200.0  # Hounsfield units: only CT has such values as integers
FOREGROUND_PATCHES = 0.33
# Below this number of patches the first stage has stride 2: a step takes about a fifth of the time, and hippocampus is learned well
# (benchmarks/results/hippocampus.jsonl). It was not compared with a training at full resolution.
PATCHES_FOR_FULL_RESOLUTION, HALF_RESOLUTION_WIDTH = 10_000, 24
MIN_STANDARD_ERRORS, MIN_ASYMMETRY = 5.0, 0.05  # of the difference between the halves, as a fraction of a class
SIDES = re.compile(r"(^|[^a-z])(left|right|l|r|lh|rh|links|rechts|sin|dex)([^a-z]|$)", re.IGNORECASE)
AXIS_NAMES = {"D": ("lower", "upper"), "H": ("front", "back"), "W": ("right", "left")}


def choose_volume_input(report: LintReport, config: TrainConfig) -> tuple[InputRule, str]:
    """What the network takes of the volumes, and why. Raises: ConfigError."""
    spacing, why = choose_spacing(report, config)
    channels = _choose_channels(report, config)
    scaling, scaled = choose_scaling(report, config, channels)
    rule = InputRule(
        rule="native",
        axes="DHW",
        channels=channels,
        dtype="float32",
        scaling=scaling,
        nodata=config.nodata,
        spacing=None if spacing is None else Spacing(values=spacing, unit="mm"),
    )
    at = f"{' x '.join(f'{step:.3g}' for step in spacing)} mm: {why}" if spacing else why
    return rule, f"{at} {scaled}"


def choose_spacing(report: LintReport, config: TrainConfig) -> tuple[tuple[float, float, float] | None, str]:
    """The spacing to train at, mm along D, H, W: the median; of a coarse axis a finer one. None if files do not state theirs."""
    if config.spacing:
        return config.spacing, "your setting."
    known = [stats for stats in report.sample_stats["train"] if stats.size and stats.spacing]
    if not known or len(known) < len([stats for stats in report.sample_stats["train"] if stats.size]):
        return None, "Not all files state a spacing: voxels are taken as they are."
    table, sizes = (np.array([getattr(stats, name) for stats in known], np.float64) for name in ("spacing", "size"))
    target, why = np.median(table, axis=0), f"the median spacing of {len(known):,} volumes."
    worst = int(target.argmax())
    others = np.delete(np.arange(3), worst)
    typical = np.median(sizes * table, axis=0) / target
    if target[worst] > ANISOTROPY * target[others].max() and typical[worst] * ANISOTROPY < typical[others].min():
        target[worst] = max(np.percentile(table[:, worst], COARSE_PERCENTILE), target[others].max())
        why = f"the median spacing; the {'DHW'[worst]} axis is coarse, and gets its 10th percentile."
    rounded = [float(f"{step:.5g}") for step in target]
    return (rounded[0], rounded[1], rounded[2]), why


def choose_scaling(report: LintReport, config: TrainConfig, channels: tuple[str, ...]) -> tuple[Scaling, str]:
    """CT is clipped to the range of its foreground, the same in all volumes; every other volume gets z-scores of its own."""
    zscore = Scaling(kind="zscore", low=(), high=())
    if config.scaling == "zscore":
        return zscore, "Scaling zscore: your setting."
    if config.scaling == "fixed" or config.sample_range:
        low, high = config.sample_range or (-1.0, 1.0)
        scaling = Scaling(kind="fixed", low=(low,) * len(channels), high=(high,) * len(channels))
        return scaling, f"Scaling fixed, {low:g} to {high:g}: your setting."
    is_ct = all(name.lower() in ("ct", "hu") for name in channels) or _looks_like_ct(report)
    if not is_ct and config.scaling != "window":
        return zscore, "Scaling zscore: the intensities of MR and microscopes have no common unit."
    values = np.concatenate(
        [stats.foreground for stats in report.sample_stats["train"] if stats.foreground is not None]
        or [np.zeros((0, len(channels)), np.float32)]
    )
    if not len(values):
        return zscore, "Scaling zscore: no class but the background occurs, so there is no range of the foreground."
    low, high = np.percentile(values, WINDOW, axis=0)
    high = np.where(high > low, high, low + 1)
    scaling = Scaling(kind="window", low=tuple(low.tolist()), high=tuple(high.tolist()))
    unit = "Hounsfield units" if is_ct else "your setting"
    return scaling, f"Scaling window, {low[0]:.0f} to {high[0]:.0f}, which holds 99% of the classes' voxels: {unit}."


def _looks_like_ct(report: LintReport) -> bool:
    """Whether most volumes are integers from far below 0: air has -1000 Hounsfield units."""
    known = [stats for stats in report.sample_stats["train"] if stats.low]
    air = sum(
        stats.low[0] <= AIR and float(stats.low[0]).is_integer() and float(stats.high[0]).is_integer()
        for stats in known
    )
    return bool(known) and air > len(known) / 2


def _choose_channels(report: LintReport, config: TrainConfig) -> tuple[str, ...]:
    """Raises: ConfigError for a channel that the volumes do not have."""
    usual = Counter(stats.channels for stats in report.sample_stats["train"] if stats.channels)
    found: tuple[str, ...] = usual.most_common(1)[0][0] if usual else ("gray",)
    if config.channels is None:
        return found
    names = [name.lower() for name in found]
    if unknown := [name for name in config.channels if name.lower() not in names]:
        close = closest_names(unknown[0], found)
        hint = f"did you mean {close}? " if close else ""
        raise ConfigError(f"There is no channel {quoted(unknown[0])}; {hint}The volumes have {', '.join(found)}.")
    return tuple(found[names.index(name.lower())] for name in config.channels)


def choose_volume_network(plan: Plan, report: LintReport, rule: InputRule, machine: MachineProfile) -> None:
    """The network, its patch, and strides and kernels by axis."""
    if plan["weights"] in ("none", "imagenet"):
        plan.set("architecture", "unet", "the residual U-Net of nnU-Net")
    size = median_size(report, rule)
    spacing = np.array(rule.spacing.values if rule.spacing else (1.0, 1.0, 1.0))
    patch, why = choose_patch(size, spacing, PATCH_VOXELS[machine.device])
    plan.set("crop", list(patch), why)
    if plan["architecture"] != "unet":
        return
    strides, kernels = choose_topology(np.array(plan["crop"], np.float64), spacing)
    coarse = " flat kernels until the axes are alike;" if any(1 in kernel for kernel in kernels) else ""
    plan.set("strides", strides, f"{len(strides) - 1} times halved, while an axis keeps {MIN_MAP} voxels")
    plan.set("kernel", kernels, f"3 along every axis;{coarse} spacing {' x '.join(f'{step:.3g}' for step in spacing)}")
    plan.set("width", 32 if machine.device == "cuda" else 16, f"channels of the first stage; enough for {machine.name}")
    plan.set("aux", True, "deep supervision: every coarser stage learns too")


def choose_volume_resolution(plan: Plan, profiler: StepProfiler) -> float:
    """A first stage of stride 2 where the time is short, and a batch that fits into memory. Returns: seconds per step.

    Raises: ConfigError.
    """
    seconds = shrink_batch_to_fit(plan, profiler)
    patches, strides = profiler.samples_in_time(plan, seconds), plan["strides"]
    is_planned = plan["architecture"] == "unet" and not {"strides", "kernel", "width"} & set(plan.overrides)
    if not is_planned or patches >= PATCHES_FOR_FULL_RESOLUTION or len(strides) < 3:
        return seconds
    reason = (
        f"halved at once, {len(strides) - 1} times: at full resolution only {patches:,.0f} patches fit into the time"
    )
    plan.set("strides", strides[1:], reason)
    plan.set("kernel", plan["kernel"][1:], "3 along every axis, 1 along a coarse one")
    plan.set("width", HALF_RESOLUTION_WIDTH, "channels of the first stage; at half of the resolution they cost little")
    return shrink_batch_to_fit(plan, profiler)


def median_size(report: LintReport, rule: InputRule) -> NDArray[np.float64]:
    """The median lengths D, H, W of the training volumes at the network's spacing."""
    sizes = []
    for stats in report.sample_stats["train"]:
        if stats.size:
            factor = np.array(stats.spacing) / rule.spacing.values if rule.spacing and stats.spacing else np.ones(3)
            sizes.append(np.maximum(1, np.rint(np.array(stats.size) * factor)))
    return np.asarray(np.median(np.array(sizes), axis=0))


def choose_patch(size: NDArray[np.float64], spacing: NDArray[np.float64], voxels: int) -> tuple[tuple[int, ...], str]:
    """The patch in voxels: a cube in mm of the number of voxels that fits, at most the median volume, by the strides."""
    patch = np.minimum((voxels * spacing.prod()) ** (1 / 3) / spacing, size)
    for _ in range(8):  # what an axis does not need, the others may have
        free = patch < size
        if not free.any() or patch.prod() >= 0.95 * voxels:
            break
        grow = (voxels / patch.prod()) ** (1 / free.sum())
        patch = np.where(free, np.minimum(patch * grow, size), patch)
    strides, _ = choose_topology(patch, spacing)
    multiple = np.prod(strides, axis=0)
    rounded = np.maximum(multiple, np.ceil(np.maximum(patch, 1) / multiple) * multiple)
    while rounded.prod() > 1.25 * voxels and (rounded > multiple).any():
        axis = int(np.argmax(np.where(rounded > multiple, rounded / size, 0)))
        rounded[axis] -= multiple[axis]
    whole = (rounded >= size).all()
    listed = " x ".join(f"{length:.0f}" for length in size)
    reason = (
        f"the whole median volume, {listed}" if whole else f"part of the median volume, {listed}: {voxels:,} voxels fit"
    )
    return tuple(int(length) for length in rounded), reason


def choose_topology(
    patch: NDArray[np.float64], spacing: NDArray[np.float64]
) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernels of each stage by axis, as nnU-Net's `get_pool_and_conv_props`.

    Axes whose spacing is less than twice the finest are halved together; a coarser one waits, with kernels of one voxel.
    """
    strides, kernels = [[1, 1, 1]], [_kernels(spacing)]
    length, step, pools = np.array(patch, np.float64), np.array(spacing, np.float64), np.zeros(3, int)
    while True:
        possible = (length >= 2 * MIN_MAP) & (pools < MAX_POOLS)
        if not possible.any():
            return strides, kernels
        halved = possible & (step < SAME_SPACING * step[possible].min())
        if halved.sum() == 1 and length[halved.argmax()] < 3 * MIN_MAP:
            return strides, kernels
        strides.append([2 if axis else 1 for axis in halved])
        length, step, pools = (
            np.where(halved, np.ceil(length / 2), length),
            np.where(halved, 2 * step, step),
            pools + halved,
        )
        before = np.array(kernels[-1]) == 3
        kernels.append([3 if axis else 1 for axis in before | (np.array(_kernels(step)) == 3)])


def _kernels(spacing: NDArray[np.float64]) -> list[int]:
    return [3 if step < SAME_SPACING * spacing.min() else 1 for step in spacing]


def choose_volume_batch(plan: Plan, num_train: int, machine: MachineProfile) -> None:
    """As many patches as make up the voxels of a usual batch."""
    devices, voxels = plan["devices"], int(np.prod(plan["crop"]))
    batch = min(MAX_BATCH, max(MIN_BATCH, BATCH_VOXELS[machine.device] // voxels), max(MIN_BATCH, num_train // 4))
    plan.set("batch", batch * devices, f"{batch * voxels:,} voxels: enough for the statistics of batch norm")
    plan.set("accumulate", 1, "the batch fits into memory")


def choose_volume_loss(plan: Plan) -> None:
    """Cross-entropy and Dice, as in nnU-Net."""
    plan.set("loss", "ce+dice", "nnU-Net's loss; dice weights all classes alike")
    plan.set("class_weights", "none", "dice has the same effect, without predicting rare classes too often")


def choose_volume_augmentation(plan: Plan, report: LintReport, rule: InputRule) -> None:
    """nnU-Net's augmentations; mirrors only along axes whose halves the data shows to be alike."""
    axes, why = symmetric_axes(report)
    plan.set("flip_axes", axes, why)
    plan.set("rotate", 30.0, "patients lie differently; nnU-Net's default")
    plan.set("scale", [0.7, 1.4], "sizes vary; nnU-Net's default")
    plan.set("noise", 15.0, "up to a quarter of the intensities' deviation")
    plan.set("blur", 1.0, "sharpness varies; sigma up to one voxel")
    plan.set("color_jitter", 0.25, "brightness and contrast vary; nnU-Net's default")
    plan.set("gamma", 0.4, "the contrast of tissues varies: exponents 0.67 to 1.5")
    plan.set("low_resolution", 0.5, "resolutions vary; nnU-Net's default")
    if rule.scaling.kind == "zscore":
        plan.set("bias_field", 0.2, "coils of MR scanners brighten one side")
    plan.set(
        "class_balanced_crops", FOREGROUND_PATCHES, "a third of the patches are centered on a class, as in nnU-Net"
    )


def symmetric_axes(report: LintReport) -> tuple[str, str]:
    """The axes, of D, H and W, that volumes may be mirrored along, and why not along the others."""
    tables = [stats.halves for stats in report.sample_stats["train"] if stats.halves is not None]
    oriented = all(stats.orientation for stats in report.sample_stats["train"] if stats.size)
    named = [entry.name for entry in report.classes if SIDES.search(entry.name)]
    if len(tables) < 8:
        return "", "too few volumes to tell whether their halves are alike"
    counts = np.array(tables, np.float64)[:, 1 : len(report.classes)]  # N x classes x 3 x 2
    allowed, reasons = "", []
    for index, axis in enumerate("DHW"):
        first, second = counts[:, :, index, 0], counts[:, :, index, 1]
        total = first + second
        label, difference = _largest_asymmetry(first, second, total)
        if label is not None:
            side = AXIS_NAMES[axis][int(difference > 0)] if oriented else "one"
            reasons.append(f"{axis}: {report.classes[label + 1].name} lies mostly in the {side} half")
        elif axis == "W" and oriented and named:
            reasons.append(f"W: the class {named[0]} is of one side")
        else:
            allowed += axis
    alike = f"alike along {allowed}" if allowed else "alike along no axis"
    return allowed, "; ".join([f"the halves are {alike}", *reasons])


def _largest_asymmetry(
    first: NDArray[np.float64], second: NDArray[np.float64], total: NDArray[np.float64]
) -> tuple[int | None, float]:
    """The class, 0 for the first of the foreground, whose halves differ the most significantly; None if none does."""
    best = 0.0
    found: tuple[int | None, float] = (None, 0.0)
    for label in range(total.shape[1]):
        present = total[:, label] > 0
        if present.sum() < 4:
            continue
        difference = (second[present, label] - first[present, label]) / total[present, label]
        mean, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(present.sum())) + 1e-9
        if abs(mean) > MIN_ASYMMETRY and abs(mean) / error > max(MIN_STANDARD_ERRORS, best):
            best, found = abs(mean) / error, (label, mean)
    return found
