"""Sampled parameters: within the limits of the config, independent of each other, and with class-balanced crops."""

import numpy as np
import pytest

from models.errors import ConfigError
from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX
from training.augment import AugmentParams, AugmentPolicy, cpu
from training.augment.policy import sample_class_balanced_pixel
from training.config import TrainConfig
from training.config_io import load_config

ALL_AUGMENTATIONS = TrainConfig(
    rotate=30, vflip=0.5, elastic=0.08, color_jitter=0.4, hue=0.2, blur=3, noise=30, scale=(0.5, 2)
)
SIZE, CROP = (150, 200), (96, 128)


def sample_many(
    config: TrainConfig, count: int, labels: Labels | None = None, crop: tuple[int, int] = CROP
) -> list[AugmentParams]:
    policy = AugmentPolicy(config, crop)
    size = SIZE if labels is None else labels.shape
    return [policy.sample_params(size, labels, np.random.default_rng(seed)) for seed in range(count)]


def scale_of(params: AugmentParams) -> float:
    return float(abs(np.linalg.det(params.matrix[:, :2])) ** -0.5)


def center_of(params: AugmentParams, crop: tuple[int, int] = CROP) -> np.ndarray:
    """(x, y) in pixels from the image's edge."""
    return params.matrix @ np.array([(crop[1] - 1) / 2, (crop[0] - 1) / 2, 1]) + 0.5


def sparse_labels() -> Labels:
    """An image of one class, with a patch of 100 pixels of another, and an ignored band."""
    labels = np.zeros((300, 400), np.uint8)
    labels[:40] = IGNORE_INDEX
    labels[250:260, 370:380] = 9
    return labels


def test_parameters_are_independent() -> None:
    rows = []
    for params in sample_many(ALL_AUGMENTATIONS.model_copy(update={"scale": (1.0, 1.2)}), 2000):
        linear = params.matrix[:, :2]
        spread = 0.0 if params.elastic_grid is None else float(params.elastic_grid.std())
        angle = float(np.abs(np.arctan2(linear[0, 1], abs(linear[0, 0]))))
        mirrored = float(np.linalg.det(linear) > 0)
        position = center_of(params) * scale_of(params) / np.array(SIZE[::-1]) / scale_of(params)
        rows.append(
            [scale_of(params), angle, linear[0, 0] > 0, mirrored, *position, *params.color_factors, params.hue_shift]
        )
        rows[-1] += [spread, params.blur_sigma, params.noise_std, params.noise_seed]
    correlations = np.corrcoef(np.array(rows, float).T)
    # Factors of images without color change are all 1, which relates their spread, not their values.
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.1


def test_parameters_are_within_the_limits() -> None:
    samples = sample_many(ALL_AUGMENTATIONS, 500)
    scales = [scale_of(params) for params in samples]
    assert 0.5 <= min(scales) < 0.55 and 1.9 < max(scales) <= 2
    assert 2.8 < max(params.blur_sigma for params in samples) <= 3
    assert 28 < max(params.noise_std for params in samples) <= 30
    assert 0.19 < max(abs(params.hue_shift) for params in samples) <= 0.2
    factors = np.array([params.color_factors for params in samples])
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    assert (
        7 < max(np.abs(params.elastic_grid).max() for params in samples if params.elastic_grid is not None) <= 0.08 * 96
    )
    assert 0.4 < np.mean([params.elastic_grid is None for params in samples]) < 0.6


def test_equal_generators_give_equal_parameters() -> None:
    one, again = (
        AugmentPolicy(ALL_AUGMENTATIONS, CROP).sample_params(SIZE, None, np.random.default_rng(4)) for _ in range(2)
    )
    assert (one.matrix == again.matrix).all() and one[4:] == again[4:]
    assert len({params.noise_seed for params in sample_many(ALL_AUGMENTATIONS, 100)}) == 100


def test_larger_image_fills_the_crop_and_smaller_one_is_inside() -> None:
    labels = np.zeros((100, 200), np.uint8)
    image = np.zeros((100, 200, 3), np.uint8)
    crop = (130, 150)
    tops = set()
    for params in sample_many(TrainConfig(scale=(1, 1)), 60, labels, crop):
        mask = cpu.augment_image(image, labels, params, crop)[1]
        assert (mask == 0).sum() == 100 * 150
        tops.add(int(np.argmax(mask[:, 0] == 0)))
    assert min(tops) <= 2 and max(tops) >= 28


def test_class_balanced_crops_contain_rare_classes() -> None:
    labels = sparse_labels()
    image = np.zeros((*labels.shape, 3), np.uint8)

    def fraction_with_rare_class(balance: float) -> float:
        config = TrainConfig(scale=(0.8, 1.5), rotate=20, class_balanced_crops=balance)
        masks = [cpu.augment_image(image, labels, params, CROP)[1] for params in sample_many(config, 80, labels)]
        return float(np.mean([(mask == 9).any() for mask in masks]))

    assert fraction_with_rare_class(0) < 0.2
    assert fraction_with_rare_class(1) > 0.5


def test_class_balanced_pixel_is_anywhere_in_the_crop() -> None:
    labels = np.zeros((300, 400), np.uint8)
    labels[150, 200] = 1
    spots = []
    for params in sample_many(TrainConfig(scale=(1, 1), class_balanced_crops=1), 600, labels):
        x, y = np.linalg.solve(params.matrix[:, :2], np.array([200, 150]) - params.matrix[:, 2])
        if 0 <= x < CROP[1] and 0 <= y < CROP[0]:
            spots.append((x / CROP[1], y / CROP[0]))
    assert len(spots) > 250
    assert np.abs(np.mean(spots, axis=0) - 0.5).max() < 0.06
    assert np.abs(np.std(spots, axis=0) - 12**-0.5).max() < 0.05


@pytest.mark.parametrize("scale", [(1, 1), (0.3, 3)])
def test_class_balanced_crops_include_no_more_outside_area(scale: tuple[float, float]) -> None:
    """The crop has a position that is also possible without balance."""
    labels = sparse_labels()
    height, width = labels.shape
    for params in sample_many(TrainConfig(scale=scale, rotate=45, class_balanced_crops=1), 300, labels):
        spare = np.array([width, height]) * scale_of(params) - CROP[::-1]
        offset = center_of(params) * scale_of(params) - np.array(CROP[::-1]) / 2
        assert (offset >= np.minimum(0, spare) - 1e-6).all()
        assert (offset <= np.maximum(0, spare) + 1e-6).all()


def test_ignored_image_has_no_class_balanced_pixel() -> None:
    labels = np.full((20, 20), IGNORE_INDEX, np.uint8)
    assert sample_class_balanced_pixel(labels, np.random.default_rng(0)) is None
    assert sample_many(TrainConfig(class_balanced_crops=1), 1, labels)[0].size == (20, 20)


def test_class_balanced_pixels_are_sampled_by_class() -> None:
    labels, random = sparse_labels(), np.random.default_rng(0)
    found = [sample_class_balanced_pixel(labels, random) for _ in range(300)]
    classes = [labels[int(each[1]), int(each[0])] for each in found if each is not None]
    assert 0.4 < np.mean(np.array(classes) == 9) < 0.6
    assert IGNORE_INDEX not in classes


@pytest.mark.parametrize(
    "override",
    [
        "hue=0.6",
        "hue=-0.1",
        "vflip=2",
        "elastic=0.2",
        "blur=-1",
        "noise=101",
        "class_balanced_crops=1.5",
        "augment=tpu",
    ],
)
def test_settings_out_of_range_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        load_config(None, [override])
