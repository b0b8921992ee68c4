"""Chooses what the network takes: channels, type and scaling, from what the lint found in the training images.

Photographs (8 bits of gray or RGB) stay RGB uint8. Everything else is read with all its channels, in its own type.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from models.console import Console
from models.errors import ConfigError, DataError, closest_names, quoted
from models.imaging.decode import decode_file
from models.readers import read_sample
from models.readers.names import is_generic
from models.spec import RGB_CHANNELS, InputRule, Scaling, Spacing
from training.augment.samples import rgb_indices
from training.augment.user_transforms import UserTransforms
from training.config import TrainConfig
from training.data import SegmentationDataset
from training.data.scan.sample_format import EIGHT_BITS, QUANTILES, SampleFormat, describe_sample
from training.lint import LintReport
from training.lint.sample_format_rules import scale_gap
from training.plan.signals import choose_signal_input
from training.plan.volumes import choose_volume_input

EXTREME_IMAGES = 0.05  # of the images, whose range may exceed the window
MAX_READ_AGAIN = 64  # images that are read again for their range without nodata
TYPE_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "int16": (-32768.0, 32767.0), "float32": (0.0, 1.0)}


def apply_input(report: LintReport, config: TrainConfig, console: Console) -> LintReport:
    """The report, its data sets reading what the network takes; prints that, with reasons, unless it is photographs.

    Raises: ConfigError for settings that do not fit the channels; DataError for files that do not have them.
    """
    rule, reason = choose_input(report, config)
    if rule.is_photograph:
        return report
    console.print(f"Input: {rule.describe()}. {reason}", highlight=False, markup=False, soft_wrap=True)
    if rule.axes == "HW":
        check_augmentation(rule, config)
    for split, dataset in report.datasets.items():
        if len(dataset):
            replace(dataset, input=rule).sample(0)
        if rule.axes == "HW":
            _check_formats(report, split, rule)
    return replace(report, datasets={split: replace(each, input=rule) for split, each in report.datasets.items()})


def choose_input(report: LintReport, config: TrainConfig) -> tuple[InputRule, str]:
    """The input of the network, with the resize rule `native`, and why it is so. Raises: ConfigError."""
    if report.axes == "T":
        return choose_signal_input(report, config)
    if report.axes == "DHW":
        return choose_volume_input(report, config)
    photographs = InputRule(rule="native")
    formats = [stats.sample_format for stats in report.sample_stats.get("train", []) if stats.size]
    readable = [form for form in formats if form.channels]
    is_rgb = config.channels is None or _lower(config.channels) == RGB_CHANNELS
    if not readable and is_rgb and config.nodata is None:
        return photographs, ""
    usual = Counter((form.dtype, form.channels) for form in formats).most_common(1)
    dtype, found = usual[0][0] if usual else ("uint8", ())
    found = found or (RGB_CHANNELS if config.channels is None or len(config.channels) > 1 else ("gray",))
    channels = _choose_channels(found, config)
    nodata = _choose_nodata(readable, config)
    if readable and config.nodata is not None:  # the lint's ranges include this value
        readable = _read_formats(report.datasets["train"], config.nodata)
    valid = [form for form in readable if form.valid > 0]
    scaling, reason = choose_scaling(valid, found, channels, dtype, config)
    rule = InputRule(
        rule="native", channels=channels, dtype=dtype, scaling=scaling, nodata=nodata, spacing=_common_spacing(readable)
    )
    missing = f" Pixels of {nodata:g} are missing data." if nodata is not None else ""
    color = "" if rgb_indices(rule) else " No color jitter: the channels are not red, green and blue."
    return rule, f"{reason}{missing}{color}"


def choose_scaling(
    formats: list[SampleFormat], found: tuple[str, ...], channels: tuple[str, ...], dtype: str, config: TrainConfig
) -> tuple[Scaling, str]:
    """The scaling of the channels, from the training images' quantiles, and why."""
    count = len(channels)
    low, high = config.sample_range or TYPE_RANGES[dtype]
    fixed = Scaling(kind="fixed", low=(low,) * count, high=(high,) * count)
    if config.scaling == "fixed" or config.sample_range:
        return fixed, f"Scaling fixed, {low:g} to {high:g}: your setting."
    if config.scaling == "zscore":
        return Scaling(kind="zscore", low=(), high=()), "Scaling zscore: your setting."
    if config.scaling == "auto" and dtype == "uint8":
        return fixed, "Scaling fixed, 0 to 255: samples of 8 bits."
    if not formats:
        return fixed, f"Scaling fixed, {low:g} to {high:g}: the range of {dtype}."
    if config.scaling == "auto" and scale_gap(formats) is not None:
        reason = "the files have different scales; each image is scaled by its own mean and deviation"
        return Scaling(kind="zscore", low=(), high=()), f"Scaling zscore: {reason}."
    indices = list(range(count)) if len(found) == count and _lower(found) != _lower(channels) else None
    indices = indices or [_lower(found).index(name) for name in _lower(channels)]
    same = [form for form in formats if len(form.channels) == len(found)]
    lows = np.quantile(
        [[_value(form, found, form.low, index) for index in indices] for form in same], EXTREME_IMAGES, axis=0
    )
    highs = np.quantile(
        [[_value(form, found, form.high, index) for index in indices] for form in same], 1 - EXTREME_IMAGES, axis=0
    )
    highs = np.where(highs > lows, highs, lows + 1)
    ranges = ", ".join(f"{name} {one:.6g} to {two:.6g}" for name, one, two in zip(channels, lows, highs, strict=True))
    why = (
        "your setting" if config.scaling == "window" else f"samples of {dtype} seldom use the whole range of their type"
    )
    percent = f"{100 * QUANTILES[0]:g} to {100 * QUANTILES[1]:g}% of the training pixels"
    scaling = Scaling(kind="window", low=tuple(map(float, lows)), high=tuple(map(float, highs)))
    return scaling, f"Scaling window, {percent} ({ranges}): {why}."


def _value(form: SampleFormat, found: tuple[str, ...], values: tuple[float, ...], index: int) -> float:
    """A file's value for a channel, which may be in another place there."""
    names = _lower(form.channels)
    return values[names.index(found[index].lower()) if found[index].lower() in names else index]


def _choose_channels(found: tuple[str, ...], config: TrainConfig) -> tuple[str, ...]:
    """The names of the channels: of the files, or as set. Raises: ConfigError."""
    if config.channels is None:
        return found
    wanted, names = config.channels, _lower(found)
    unknown = [name for name in wanted if name.lower() not in names]
    if unknown and len(wanted) == len(found) and all(is_generic(name) for name in found):
        return wanted
    if unknown:
        close = closest_names(unknown[0], found)
        hint = f"did you mean {close}? " if close else ""
        all_of_them = f" Name all {len(found)} in their order, or some by these names." if is_generic(found[0]) else ""
        raise ConfigError(
            f"channels={','.join(wanted)}: the images have no channel {quoted(unknown[0])}; {hint}They have "
            f"{', '.join(found)}.{all_of_them}"
        )
    return tuple(found[names.index(name.lower())] for name in wanted)


def _read_formats(dataset: SegmentationDataset, nodata: float) -> list[SampleFormat]:
    """The formats of some images, without pixels of nodata. Raises: DataError, ImageError."""
    paths = [dataset.pairs[index].image for index in dataset.evenly_spaced_indices(MAX_READ_AGAIN)]
    return [describe_sample(decode_file(path, read_sample), nodata) for path in paths]


def _choose_nodata(formats: list[SampleFormat], config: TrainConfig) -> float | None:
    """The setting, or the one value that the files name."""
    named = {form.nodata for form in formats if form.nodata is not None}
    return config.nodata if config.nodata is not None else named.pop() if len(named) == 1 else None


def _common_spacing(formats: list[SampleFormat]) -> Spacing | None:
    spacings = {(form.spacing, form.unit) for form in formats}
    values, unit = spacings.pop() if len(spacings) == 1 else ((), "")
    return Spacing(values=values, unit=unit) if values else None


def _check_formats(report: LintReport, split: str, rule: InputRule) -> None:
    """Raises: DataError for the first image that does not have the channels; so the training does not stop halfway."""
    for index, stats in enumerate(report.sample_stats[split]):
        form = stats.sample_format
        names = _lower(form.channels)
        missing = [name for name in rule.channels if name.lower() not in names]
        if form.channels and missing and len(names) != len(rule.channels):
            raise DataError(
                f"{report.datasets[split].pairs[index].image} has no channel {quoted(missing[0])}: it has "
                f"{', '.join(form.channels)}. "
                "Name channels that all images have with channels=NAME,NAME, or remove the image."
            )
        if form is not EIGHT_BITS and form.channels and form.dtype != rule.dtype:
            raise DataError(
                f"{report.datasets[split].pairs[index].image} has samples of {form.dtype}, most images of {rule.dtype}; save all "
                "in one type and scale."
            )


def check_augmentation(rule: InputRule, config: TrainConfig) -> None:
    """Check that what is set can be done with these channels, before the training starts. Raises: ConfigError."""
    if config.hue and not rgb_indices(rule):
        raise ConfigError(
            f"hue={config.hue:g} needs the channels red, green and blue; the network takes {rule.describe()}."
        )
    if config.transforms:
        UserTransforms(config.transforms, rule).check()


def check_color_settings(rule: InputRule | None, settings: dict[str, Any]) -> None:
    """Raises: ConfigError if the user asks for color jitter of channels that are no colors."""
    if rule is not None and rule.axes == "HW" and settings.get("color_jitter") and not rgb_indices(rule):
        raise ConfigError(
            f"color_jitter={settings['color_jitter']} needs the channels red, green and blue; the network takes {rule.describe()}."
        )


def _lower(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.lower() for name in names)
