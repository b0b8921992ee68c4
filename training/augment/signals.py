"""Augmentation of signals: stretch of time and crop, then what electrodes, amplifiers and bodies do to a recording.

Amplitudes are in deviations: the standard deviation of the lead with `zscore`, 58 of the 255 levels of the range otherwise, as
for images (`samples.py`). All random numbers come from the given generator, so that an epoch can be repeated.
"""

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.readers.prepare import fill_values
from models.sample import Statistics, Values
from models.spec import IGNORE_INDEX, InputRule
from training.augment.samples import LEVELS_PER_DEVIATION, sample_levels, to_dtype
from training.config import TrainConfig

WANDER_HERTZ, WANDER_WAVES = (0.05, 0.7), 3  # breathing and movements (Friesen et al. 1990)
MAINS_HERTZ = (50.0, 60.0)
NORMAL_RATE = 250.0  # Hz, where a recording states none


def augment_signal(
    values: Values, labels: Labels, random: np.random.Generator, crop: int, config: TrainConfig, rule: InputRule,
    statistics: Statistics | None = None,
) -> tuple[Values, Labels]:  # fmt: skip
    """Augment T x C, in the channels and dtype of the rule, and labels uint8 T to `crop` time steps.

    `statistics`: mean and scale of the whole sample, for `zscore`. What lies outside of the recording holds each channel's
    middle, and is ignored.
    """
    fill = fill_values(rule).astype(np.float32) if statistics is None else statistics[0]
    stretch = float(np.exp(random.uniform(-1, 1) * np.log1p(config.stretch)))
    start = choose_start(labels, random, crop, crop * stretch, config.class_balanced_crops)
    result, labels = cut(values, labels, start, stretch, crop, fill)
    unit = sample_levels(rule, statistics) * np.float32(LEVELS_PER_DEVIATION)
    changed = np.asarray(result, np.float32)
    if config.gain:
        factors = np.exp(random.uniform(-1, 1, changed.shape[1]) * np.log1p(config.gain)).astype(np.float32)
        changed = (changed - fill) * factors + fill
    changed = changed + disturbance(random, changed.shape, config, rule.rate or NORMAL_RATE) * unit
    if config.lead_dropout and changed.shape[1] > 1:
        dropped = np.asarray(random.random(changed.shape[1]) < config.lead_dropout)
        dropped[random.integers(changed.shape[1])] = False  # one lead at least is left
        changed = np.where(dropped, fill, changed)
    return to_dtype(changed, values.dtype), labels


def choose_start(labels: Labels, random: np.random.Generator, crop: int, source: float, balanced: float) -> float:
    """The first time step of a crop from `source` steps; of a shorter recording, one before its beginning.

    With the probability `balanced` the crop holds a step of a class that is drawn from those of the recording.
    """
    free = len(labels) - source
    if free <= 0:
        return float(random.uniform(free, 0))
    if balanced and random.random() < balanced:
        present = np.setdiff1d(np.unique(labels), [IGNORE_INDEX])
        if present.size:
            step = int(random.choice(np.flatnonzero(labels == random.choice(present))))
            return float(np.clip(step - random.uniform(0, source), 0, free))
    return float(random.uniform(0, free))


def cut(
    values: Values, labels: Labels, start: float, stretch: float, crop: int, fill: NDArray[np.float32]
) -> tuple[Values, Labels]:
    """`crop` time steps from `start`, each `stretch` of the recording's: values linear, labels by nearest step."""
    if stretch == 1.0:
        start = float(np.floor(start))
    positions = start + stretch * np.arange(crop)
    nearest = np.floor(positions + 0.5).astype(np.int64)
    inside = (nearest >= 0) & (nearest < len(labels))
    below = np.clip(np.floor(positions).astype(np.int64), 0, len(labels) - 1)
    above = np.minimum(below + 1, len(labels) - 1)
    weight = np.clip(positions - below, 0, 1).astype(np.float32)[:, None]
    result = values[below] if stretch == 1.0 else values[below] * (1 - weight) + values[above] * weight
    if not inside.all():
        result = np.where(inside[:, None], result, fill)
    return result, np.where(inside, labels[np.clip(nearest, 0, len(labels) - 1)], np.uint8(IGNORE_INDEX))


def disturbance(
    random: np.random.Generator, shape: tuple[int, ...], config: TrainConfig, rate: float
) -> NDArray[np.float32]:
    """Baseline wander, mains hum and noise, float32 T x C, in deviations."""
    length, channels = shape
    times = np.arange(length)[:, None] / rate
    result = np.zeros(shape, np.float32)
    if config.wander:
        for _ in range(WANDER_WAVES):
            frequency = random.uniform(*WANDER_HERTZ)
            height = random.uniform(0, config.wander, channels) / WANDER_WAVES
            result += height * np.sin(2 * np.pi * (frequency * times + random.random(channels)))
    mains = float(random.choice(MAINS_HERTZ)) * random.uniform(0.995, 1.005)
    if config.hum and 2 * mains < rate:
        result += random.uniform(0, config.hum, channels) * np.sin(
            2 * np.pi * (mains * times + random.random(channels))
        )
    if config.noise:
        deviation = random.uniform(0, config.noise) / LEVELS_PER_DEVIATION
        result += random.standard_normal(shape, np.float32) * np.float32(deviation)
    return result
