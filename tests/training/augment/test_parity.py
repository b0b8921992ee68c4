"""One draw, three hands: albumentations' own transforms, `cpu.py` and `batch.py` give the same masks and images."""

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
MAX_LEVEL_DIFFERENCE, MIN_EQUAL_FRACTION = (
    1,
    0.999,
)  # of images the largest difference, of masks the smallest share of equal pixels


@cache
def scene_sample(seed: int) -> tuple[RGB, Labels]:
    return generate_scene(np.random.default_rng(seed))


def noise_sample(seed: int) -> tuple[RGB, Labels]:
    """Black and white, and a class at each pixel: what the slightest shift shows in."""
    random = np.random.default_rng(seed)
    size = random.integers(40, 200, 2)
    return random.integers(0, 2, (*size, 3), dtype=np.uint8) * 255, random.integers(0, 12, size, dtype=np.uint8)


IMAGES: list[Callable[[int], tuple[RGB, Labels]]] = [scene_sample, noise_sample]


def augment_as_batch(image: RGB, labels: Labels, draw: AugmentParams, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    images, masks = batched.augment_batch(*pad_and_stack([(image, labels, draw)], crop), crop)
    return images[0].numpy(), masks[0].numpy()


def differences(one: tuple[RGB, Labels], other: tuple[RGB, Labels]) -> tuple[int, float]:
    """The largest difference of levels, and the share of equal labels."""
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
        pytest.param(GEOMETRY_ONLY.model_copy(update={"elastic": 0.08}), id="all that moves"),
    ],
)
def test_batch_equals_albumentations_functions(
    config: TrainConfig, images: Callable[[int], tuple[RGB, Labels]]
) -> None:
    crop = (96, 131)
    policy = AugmentPolicy(config, crop)
    for seed in range(40):
        image, labels = images(seed % 8)
        draw = policy.sample_params(labels.shape, labels, np.random.default_rng(seed))
        levels, share = differences(
            cpu.augment_image(image, labels, draw, crop), augment_as_batch(image, labels, draw, crop)
        )
        assert levels <= MAX_LEVEL_DIFFERENCE and share >= MIN_EQUAL_FRACTION, (seed, levels, share)


def test_all_at_once_strays_at_few_pixels() -> None:
    """A level that one step rounds otherwise is drawn further apart by contrast, saturation and hue after it."""
    config = TrainConfig(rotate=45, vflip=0.5, elastic=0.05, hue=0.1, blur=2, noise=20, class_balanced_crops=0.5)
    policy, strayed = AugmentPolicy(config, (96, 131)), []
    for seed in range(40):
        image, labels = scene_sample(seed % 8)
        draw = policy.sample_params(labels.shape, labels, np.random.default_rng(seed))
        one, other = (each(image, labels, draw, (96, 131)) for each in (cpu.augment_image, augment_as_batch))
        assert differences(one, other)[1] >= MIN_EQUAL_FRACTION
        strayed.append(float((np.abs(one[0].astype(int) - other[0]) > MAX_LEVEL_DIFFERENCE).mean()))
    assert np.mean(strayed) < 0.001 and max(strayed) < 0.01


@pytest.mark.parametrize("images", IMAGES)
def test_batch_equals_albumentations_affine(images: Callable[[int], tuple[RGB, Labels]]) -> None:
    for seed in range(30):
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
        theirs = (affine.apply(image, **given), affine.apply_to_mask(labels, **given))
        draw = AugmentParams(labels.shape, np.linalg.inv(given["matrix"])[:2])
        levels, share = differences(theirs, augment_as_batch(image, labels, draw, labels.shape))
        assert levels <= MAX_LEVEL_DIFFERENCE and share >= MIN_EQUAL_FRACTION, (seed, levels, share)


@pytest.mark.parametrize("images", IMAGES)
@given(
    pad=st.integers(0, 60),
    x=st.integers(0, 39),
    y=st.integers(0, 39),
    across=st.booleans(),
    down=st.booleans(),
    seed=st.integers(0, 7),
)
@settings(max_examples=25, deadline=None)
def test_batch_equals_albumentations_pad_crop_and_flip(
    images: Callable[[int], tuple[RGB, Labels]], pad: int, x: int, y: int, across: bool, down: bool, seed: int
) -> None:
    """Exactly: whole pixels are not interpolated."""
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
    theirs = compose(image=image, mask=labels)
    matrix = np.array([[1.0, 0, x - pad], [0, 1, y - pad]])
    if across:
        matrix[0] = -1, 0, x - pad + width - 1
    if down:
        matrix[1] = 0, -1, y - pad + height - 1
    mine = augment_as_batch(image, labels, AugmentParams(labels.shape, matrix), (height, width))
    assert (mine[1] == theirs["mask"]).all()
    assert (mine[0] == theirs["image"]).all()


def test_masks_differ_at_ties_alone() -> None:
    """Where a mask differs at all, the position lies within float32's rounding of the middle between two pixels."""
    policy, found = AugmentPolicy(GEOMETRY_ONLY, (120, 160)), 0
    for seed in range(150):
        image, labels = noise_sample(seed)
        draw = policy.sample_params(labels.shape, labels, np.random.default_rng(seed))
        mine, theirs = (each(image, labels, draw, (120, 160))[1] for each in (augment_as_batch, cpu.augment_image))
        rows, columns = np.nonzero(mine != theirs)
        positions = draw.matrix @ np.stack([columns, rows, np.ones_like(rows)])
        assert (np.abs(np.abs(positions - np.rint(positions)) - 0.5).min(axis=0) < 1e-4).all()
        found += len(rows)
    assert found < 1e-4 * 150 * 120 * 160


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    crop = (96, 128)
    policy = AugmentPolicy(ALL_AUGMENTATIONS, crop)
    items = []
    for seed in range(16):
        image, labels = IMAGES[seed % 2](seed)
        items.append((image, labels, policy.sample_params(labels.shape, labels, np.random.default_rng(seed))))
    images, masks, draws = pad_and_stack(items, crop)
    here = batched.augment_batch(images, masks, draws, crop)
    there = batched.augment_batch(images.cuda(), masks.cuda(), type(draws)(*(each.cuda() for each in draws)), crop)
    assert (here[1] == there[1].cpu()).float().mean() >= MIN_EQUAL_FRACTION
    assert ((here[0].int() - there[0].cpu().int()).abs() <= 1).float().mean() >= 0.999
