"""albumentations' own transforms, `cpu.py` and `batched.py` give the same masks and images for the same parameters."""

from collections.abc import Callable
from functools import cache

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX
from training.augment import FILL_COLOR, AugmentParams, AugmentPolicy, batched, cpu, pad_and_stack
from training.config import TrainConfig
from training.data.synthetic import generate_scene

ALL_AUGMENTATIONS = TrainConfig(
    rotate=180,
    vflip=0.5,
    elastic=0.08,
    color_jitter=0.8,
    hue=0.5,
    blur=3,
    noise=30,
    scale=(0.4, 2.5),
    class_balanced_crops=0.5,
)
GEOMETRY_ONLY = ALL_AUGMENTATIONS.model_copy(update={"elastic": 0, "color_jitter": 0, "hue": 0, "blur": 0, "noise": 0})
NO_AUGMENTATION = TrainConfig(scale=(1, 1), flip=0, color_jitter=0)
MAX_LEVEL_DIFFERENCE = 1  # of images
MIN_EQUAL_FRACTION = 0.999  # of the pixels of a mask


@cache
def scene_sample(seed: int) -> tuple[RGB, Labels]:
    return generate_scene(np.random.default_rng(seed))


def noise_sample(seed: int) -> tuple[RGB, Labels]:
    """Black and white noise with random labels: sensitive to the smallest shift."""
    random = np.random.default_rng(seed)
    size = random.integers(40, 200, 2)
    return random.integers(0, 2, (*size, 3), dtype=np.uint8) * 255, random.integers(0, 12, size, dtype=np.uint8)


IMAGES: list[Callable[[int], tuple[RGB, Labels]]] = [scene_sample, noise_sample]


def augment_as_batch(image: RGB, labels: Labels, params: AugmentParams, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    images, masks = batched.augment_batch(*pad_and_stack([(image, labels, params)], crop), crop)
    return images[0].numpy(), masks[0].numpy()


def differences(one: tuple[RGB, Labels], other: tuple[RGB, Labels]) -> tuple[int, float]:
    """The largest difference of levels, and the fraction of equal labels."""
    assert one[0].shape == other[0].shape and one[1].shape == other[1].shape
    return int(np.abs(one[0].astype(int) - other[0]).max()), float((one[1] == other[1]).mean())


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(GEOMETRY_ONLY, id="affine, crop and flip"),
        pytest.param(NO_AUGMENTATION.model_copy(update={"color_jitter": 0.8}), id="color"),
        pytest.param(NO_AUGMENTATION.model_copy(update={"hue": 0.5}), id="hue"),
        pytest.param(NO_AUGMENTATION.model_copy(update={"elastic": 0.08}), id="elastic"),
        pytest.param(NO_AUGMENTATION.model_copy(update={"blur": 4}), id="blur"),
        pytest.param(NO_AUGMENTATION.model_copy(update={"noise": 40}), id="noise"),
        pytest.param(GEOMETRY_ONLY.model_copy(update={"elastic": 0.08}), id="all geometry"),
    ],
)
def test_batch_equals_albumentations_functions(
    config: TrainConfig, images: Callable[[int], tuple[RGB, Labels]]
) -> None:
    crop = (96, 131)
    policy = AugmentPolicy(config, crop)
    for seed in range(16):
        image, labels = images(seed % 8)
        params = policy.sample_params(labels.shape, labels, np.random.default_rng(seed))
        levels, equal = differences(
            cpu.augment_image(image, labels, params, crop), augment_as_batch(image, labels, params, crop)
        )
        assert levels <= MAX_LEVEL_DIFFERENCE and equal >= MIN_EQUAL_FRACTION, (seed, levels, equal)


def test_all_augmentations_together_differ_at_few_pixels() -> None:
    """Contrast, saturation and hue amplify a level that an earlier step rounded differently."""
    config = TrainConfig(rotate=45, vflip=0.5, elastic=0.05, hue=0.1, blur=2, noise=20, class_balanced_crops=0.5)
    policy, differing = AugmentPolicy(config, (96, 131)), []
    for seed in range(20):
        image, labels = scene_sample(seed % 8)
        params = policy.sample_params(labels.shape, labels, np.random.default_rng(seed))
        one, other = (augment(image, labels, params, (96, 131)) for augment in (cpu.augment_image, augment_as_batch))
        assert differences(one, other)[1] >= MIN_EQUAL_FRACTION
        differing.append(float((np.abs(one[0].astype(int) - other[0]) > MAX_LEVEL_DIFFERENCE).mean()))
    assert np.mean(differing) < 0.001 and max(differing) < 0.01


@pytest.mark.parametrize("images", IMAGES)
def test_batch_equals_albumentations_affine(images: Callable[[int], tuple[RGB, Labels]]) -> None:
    for seed in range(16):
        image, labels = images(seed % 8)
        random = np.random.default_rng(seed)
        affine = A.Affine(
            scale=random.uniform(0.4, 2.5),
            rotate=random.uniform(-180, 180),
            shear={"x": random.uniform(-20, 20), "y": random.uniform(-20, 20)},
            translate_px={"x": int(random.integers(-40, 40)), "y": int(random.integers(-40, 40))},
            border_mode=cv2.BORDER_CONSTANT,
            fill=FILL_COLOR,
            fill_mask=IGNORE_INDEX,
            p=1,
        )
        given = affine.get_params_dependent_on_data({"shape": image.shape}, {})
        expected = (affine.apply(image, **given), affine.apply_to_mask(labels, **given))
        params = AugmentParams(labels.shape, np.linalg.inv(given["matrix"])[:2])
        levels, equal = differences(expected, augment_as_batch(image, labels, params, labels.shape))
        assert levels <= MAX_LEVEL_DIFFERENCE and equal >= MIN_EQUAL_FRACTION, (seed, levels, equal)


@pytest.mark.parametrize("images", IMAGES)
@given(
    pad=st.integers(0, 60),
    x=st.integers(0, 39),
    y=st.integers(0, 39),
    across=st.booleans(),
    down=st.booleans(),
    seed=st.integers(0, 7),
)
@settings(max_examples=10, deadline=None)
def test_batch_equals_albumentations_pad_crop_and_flip(
    images: Callable[[int], tuple[RGB, Labels]], pad: int, x: int, y: int, across: bool, down: bool, seed: int
) -> None:
    """Exactly, because shifts by whole pixels are not interpolated."""
    image, labels = images(seed)
    height, width = labels.shape[0] + 2 * pad - y, labels.shape[1] + 2 * pad - x
    compose = A.Compose(
        [
            A.Pad(pad, fill=FILL_COLOR, fill_mask=IGNORE_INDEX),
            A.Crop(x, y, x + width, y + height),
            A.HorizontalFlip(p=float(across)),
            A.VerticalFlip(p=float(down)),
        ]
    )
    expected = compose(image=image, mask=labels)
    matrix = np.array([[1.0, 0, x - pad], [0, 1, y - pad]])
    if across:
        matrix[0] = -1, 0, x - pad + width - 1
    if down:
        matrix[1] = 0, -1, y - pad + height - 1
    batch_result = augment_as_batch(image, labels, AugmentParams(labels.shape, matrix), (height, width))
    assert (batch_result[1] == expected["mask"]).all()
    assert (batch_result[0] == expected["image"]).all()


def test_masks_differ_only_at_ties() -> None:
    """Where masks differ, the source is within float32 rounding of the midpoint between two pixels."""
    policy, found = AugmentPolicy(GEOMETRY_ONLY, (120, 160)), 0
    for seed in range(60):
        image, labels = noise_sample(seed)
        params = policy.sample_params(labels.shape, labels, np.random.default_rng(seed))
        batch_result, expected = (
            augment(image, labels, params, (120, 160))[1] for augment in (augment_as_batch, cpu.augment_image)
        )
        rows, columns = np.nonzero(batch_result != expected)
        positions = params.matrix @ np.stack([columns, rows, np.ones_like(rows)])
        assert (np.abs(np.abs(positions - np.rint(positions)) - 0.5).min(axis=0) < 1e-4).all()
        found += len(rows)
    assert found < 1e-4 * 60 * 120 * 160


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_result_of_the_cpu() -> None:
    crop = (96, 128)
    policy = AugmentPolicy(ALL_AUGMENTATIONS, crop)
    items = []
    for seed in range(16):
        image, labels = IMAGES[seed % 2](seed)
        items.append((image, labels, policy.sample_params(labels.shape, labels, np.random.default_rng(seed))))
    images, masks, params = pad_and_stack(items, crop)
    on_cpu = batched.augment_batch(images, masks, params, crop)
    on_gpu = batched.augment_batch(images.cuda(), masks.cuda(), type(params)(*(each.cuda() for each in params)), crop)
    assert (on_cpu[1] == on_gpu[1].cpu()).float().mean() >= MIN_EQUAL_FRACTION
    assert ((on_cpu[0].int() - on_gpu[0].cpu().int()).abs() <= 1).float().mean() >= 0.999
