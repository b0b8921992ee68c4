"""Augmentation of any channels and dtype: the geometry of photographs, color only where there is red, green and blue."""

import cv2
import numpy as np
import pytest

from models.spec import IGNORE_INDEX, InputRule, Scaling
from training.augment import AugmentPolicy, cpu
from training.augment.params import AugmentParams
from training.augment.samples import augment_sample
from training.config import TrainConfig

CROP = (40, 56)
RANDOM = np.random.default_rng(0)
IMAGE = cv2.resize(RANDOM.integers(0, 256, (6, 8, 3)).astype(np.uint8), (64, 48))
LABELS = np.kron(RANDOM.integers(0, 3, (6, 8)), np.ones((8, 8))).astype(np.uint8)
WARP = TrainConfig(rotate=30, vflip=0.5, elastic=0.05, color_jitter=0)


def rule(*channels: str, dtype: str = "uint16", factor: float = 1.0) -> InputRule:
    scaling = Scaling(kind="window", low=(0,) * len(channels), high=(255 * factor,) * len(channels))
    return InputRule(rule="native", channels=channels, dtype=dtype, scaling=scaling)  # type: ignore[arg-type]


def params(config: TrainConfig, seed: int) -> AugmentParams:
    return AugmentPolicy(config, CROP).sample_params((48, 64), LABELS, np.random.default_rng(seed))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_geometry_is_that_of_photographs(dtype: str) -> None:
    values = np.concatenate([IMAGE, IMAGE[:, :, ::-1]], axis=2).astype(dtype)
    wanted = rule("a", "b", "c", "d", "e", "f", dtype=dtype)
    for seed in range(8):
        drawn = params(WARP, seed)
        expected, labels = cpu.augment_image(IMAGE, LABELS, drawn, CROP)
        moved, found = augment_sample(values, LABELS, drawn, CROP, wanted)
        assert moved.dtype == dtype and np.array_equal(found, labels)
        inside = labels != IGNORE_INDEX
        inside[1:-1, 1:-1] &= (labels[:-2, 1:-1] != IGNORE_INDEX) & (labels[2:, 1:-1] != IGNORE_INDEX)
        difference = np.abs(moved[:, :, :3].astype(float) - expected)[inside]
        assert np.quantile(difference, 0.99) <= 1.5
        assert (
            np.abs(moved[:, :, 3:].astype(float) - moved[:, :, 2::-1]).max() <= 3
        )  # OpenCV rounds 2 and 4 channels otherwise


def test_colors_change_and_other_channels_do_not() -> None:
    config = TrainConfig(color_jitter=0.5, hue=0.1, scale=(1, 1), flip=0)
    values = np.dstack([IMAGE, IMAGE[:, :, 0]]).astype(np.uint16) * 16
    drawn = params(config, 3)
    assert drawn.color_factors != (1.0, 1.0, 1.0)
    plain = drawn._replace(color_factors=(1.0, 1.0, 1.0), hue_shift=0.0)
    wanted = rule("nir", "red", "green", "blue", factor=16)
    jittered, _ = augment_sample(values, LABELS, drawn, CROP, wanted)
    unchanged, _ = augment_sample(values, LABELS, plain, CROP, wanted)
    assert np.array_equal(jittered[:, :, 0], unchanged[:, :, 0])
    assert (jittered[:, :, 1:] != unchanged[:, :, 1:]).mean() > 0.9
    no_color, _ = augment_sample(values, LABELS, drawn, CROP, rule("a", "b", "c", "d", factor=16))
    assert np.array_equal(no_color, unchanged)


def test_noise_and_blur_are_in_levels_of_the_range() -> None:
    flat = np.full((48, 64, 2), 2000, np.int16)
    drawn = AugmentParams((48, 64), np.eye(2, 3), noise_std=10.0, noise_seed=5)
    noisy, _ = augment_sample(flat, LABELS, drawn, (48, 64), rule("hh", "hv", dtype="int16", factor=16))
    assert noisy.std() == pytest.approx(160, rel=0.05)
    zscore = InputRule(
        rule="native", channels=("hh", "hv"), dtype="int16", scaling=Scaling(kind="zscore", low=(), high=())
    )
    statistics = np.array([[2000, 2000], [58, 580]], np.float32)
    noisy, _ = augment_sample(flat, LABELS, drawn, (48, 64), zscore, statistics)
    assert noisy[:, :, 1].std() == pytest.approx(10 * noisy[:, :, 0].std(), rel=0.1)
    step = np.zeros((48, 64, 2), np.float32)
    step[:, 32:] = 1
    blurred, _ = augment_sample(
        step, LABELS, drawn._replace(noise_std=0.0, blur_sigma=2.0), (48, 64), rule("a", "b", dtype="float32")
    )
    assert 0.1 < blurred[20, 31, 0] < 0.5 < blurred[20, 32, 1] < 0.9


def test_outside_of_the_image_is_the_middle_and_ignored() -> None:
    shifted = AugmentParams((48, 64), np.array([[1.0, 0, -20], [0, 1, 0]]))
    values, labels = augment_sample(np.ones((48, 64, 7), np.uint16), LABELS, shifted, CROP, rule(*"abcdefg", factor=16))
    assert (values[:, :19] == 2040).all() and (labels[:, :19] == IGNORE_INDEX).all() and (values[:, 21:] == 1).all()
