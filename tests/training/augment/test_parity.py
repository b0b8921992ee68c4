"""One draw, three hands: albumentations' own transforms, `cpu.py` and `batch.py` give the same masks and pictures."""

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
from models.spec import VOID
from training.augment import FILL, Draw, Policy, batched, collate, cpu
from training.config import TrainConfig
from training.data.synthetic import scene

EVERYTHING = TrainConfig(
    rotate=180, vflip=0.5, elastic=0.08, colour=0.8, hue=0.5, blur=3, noise=30, scale=(0.4, 2.5), balance=0.5
)
GEOMETRY = EVERYTHING.model_copy(update={"elastic": 0, "colour": 0, "hue": 0, "blur": 0, "noise": 0})
STILL = TrainConfig(scale=(1, 1), flip=0, colour=0)
LEVEL, SHARE = 1, 0.999  # of pictures the largest difference, of masks the smallest share of equal pixels


@cache
def drawn(seed: int) -> tuple[RGB, Labels]:
    return scene(np.random.default_rng(seed))


def checkered(seed: int) -> tuple[RGB, Labels]:
    """Black and white, and a class at each pixel: what the slightest shift shows in."""
    random = np.random.default_rng(seed)
    size = random.integers(40, 200, 2)
    return random.integers(0, 2, (*size, 3), dtype=np.uint8) * 255, random.integers(0, 12, size, dtype=np.uint8)


PICTURES: list[Callable[[int], tuple[RGB, Labels]]] = [drawn, checkered]


def by_batch(picture: RGB, labels: Labels, draw: Draw, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    pictures, masks = batched.apply(*collate([(picture, labels, draw)], crop), crop)
    return pictures[0].numpy(), masks[0].numpy()


def differences(one: tuple[RGB, Labels], other: tuple[RGB, Labels]) -> tuple[int, float]:
    """The largest difference of levels, and the share of equal labels."""
    assert one[0].shape == other[0].shape and one[1].shape == other[1].shape
    return int(np.abs(one[0].astype(int) - other[0]).max()), float((one[1] == other[1]).mean())


@pytest.mark.parametrize("pictures", PICTURES)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(GEOMETRY, id="affine, crop and flip"),
        pytest.param(STILL.model_copy(update={"colour": 0.8}), id="colour"),
        pytest.param(STILL.model_copy(update={"hue": 0.5}), id="hue"),
        pytest.param(STILL.model_copy(update={"elastic": 0.08}), id="elastic"),
        pytest.param(STILL.model_copy(update={"blur": 4}), id="blur"),
        pytest.param(STILL.model_copy(update={"noise": 40}), id="noise"),
        pytest.param(GEOMETRY.model_copy(update={"elastic": 0.08}), id="all that moves"),
    ],
)
def test_batch_equals_albumentations_functions(
    config: TrainConfig, pictures: Callable[[int], tuple[RGB, Labels]]
) -> None:
    crop = (96, 131)
    policy = Policy(config, crop)
    for seed in range(40):
        picture, labels = pictures(seed % 8)
        draw = policy.draw(labels.shape, labels, np.random.default_rng(seed))
        levels, share = differences(cpu.apply(picture, labels, draw, crop), by_batch(picture, labels, draw, crop))
        assert levels <= LEVEL and share >= SHARE, (seed, levels, share)


def test_all_at_once_strays_at_few_pixels() -> None:
    """A level that one step rounds otherwise is drawn further apart by contrast, saturation and hue after it."""
    config = TrainConfig(rotate=45, vflip=0.5, elastic=0.05, hue=0.1, blur=2, noise=20, balance=0.5)
    policy, strayed = Policy(config, (96, 131)), []
    for seed in range(40):
        picture, labels = drawn(seed % 8)
        draw = policy.draw(labels.shape, labels, np.random.default_rng(seed))
        one, other = (each(picture, labels, draw, (96, 131)) for each in (cpu.apply, by_batch))
        assert differences(one, other)[1] >= SHARE
        strayed.append(float((np.abs(one[0].astype(int) - other[0]) > LEVEL).mean()))
    assert np.mean(strayed) < 0.001 and max(strayed) < 0.01


@pytest.mark.parametrize("pictures", PICTURES)
def test_batch_equals_albumentations_affine(pictures: Callable[[int], tuple[RGB, Labels]]) -> None:
    for seed in range(30):
        picture, labels = pictures(seed % 8)
        random = np.random.default_rng(seed)
        affine = A.Affine(
            scale=random.uniform(0.4, 2.5),
            rotate=random.uniform(-180, 180),
            shear={"x": random.uniform(-20, 20), "y": random.uniform(-20, 20)},
            translate_px={"x": int(random.integers(-40, 40)), "y": int(random.integers(-40, 40))},
            border_mode=cv2.BORDER_CONSTANT,
            fill=FILL,
            fill_mask=VOID,
            p=1,
        )
        given = affine.get_params_dependent_on_data({"shape": picture.shape}, {})
        theirs = (affine.apply(picture, **given), affine.apply_to_mask(labels, **given))
        draw = Draw(labels.shape, np.linalg.inv(given["matrix"])[:2])
        levels, share = differences(theirs, by_batch(picture, labels, draw, labels.shape))
        assert levels <= LEVEL and share >= SHARE, (seed, levels, share)


@pytest.mark.parametrize("pictures", PICTURES)
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
    pictures: Callable[[int], tuple[RGB, Labels]], pad: int, x: int, y: int, across: bool, down: bool, seed: int
) -> None:
    """Exactly: whole pixels are not interpolated."""
    picture, labels = pictures(seed)
    height, width = labels.shape[0] + 2 * pad - y, labels.shape[1] + 2 * pad - x
    compose = A.Compose(
        [
            A.Pad(pad, fill=FILL, fill_mask=VOID),
            A.Crop(x, y, x + width, y + height),
            A.HorizontalFlip(p=float(across)),
            A.VerticalFlip(p=float(down)),
        ]
    )
    theirs = compose(image=picture, mask=labels)
    matrix = np.array([[1.0, 0, x - pad], [0, 1, y - pad]])
    if across:
        matrix[0] = -1, 0, x - pad + width - 1
    if down:
        matrix[1] = 0, -1, y - pad + height - 1
    mine = by_batch(picture, labels, Draw(labels.shape, matrix), (height, width))
    assert (mine[1] == theirs["mask"]).all()
    assert (mine[0] == theirs["image"]).all()


def test_masks_differ_at_ties_alone() -> None:
    """Where a mask differs at all, the position lies within float32's rounding of the middle between two pixels."""
    policy, found = Policy(GEOMETRY, (120, 160)), 0
    for seed in range(150):
        picture, labels = checkered(seed)
        draw = policy.draw(labels.shape, labels, np.random.default_rng(seed))
        mine, theirs = (each(picture, labels, draw, (120, 160))[1] for each in (by_batch, cpu.apply))
        rows, columns = np.nonzero(mine != theirs)
        positions = draw.matrix @ np.stack([columns, rows, np.ones_like(rows)])
        assert (np.abs(np.abs(positions - np.rint(positions)) - 0.5).min(axis=0) < 1e-4).all()
        found += len(rows)
    assert found < 1e-4 * 150 * 120 * 160


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    crop = (96, 128)
    policy = Policy(EVERYTHING, crop)
    items = []
    for seed in range(16):
        picture, labels = PICTURES[seed % 2](seed)
        items.append((picture, labels, policy.draw(labels.shape, labels, np.random.default_rng(seed))))
    pictures, masks, draws = collate(items, crop)
    here = batched.apply(pictures, masks, draws, crop)
    there = batched.apply(pictures.cuda(), masks.cuda(), type(draws)(*(each.cuda() for each in draws)), crop)
    assert (here[1] == there[1].cpu()).float().mean() >= SHARE
    assert ((here[0].int() - there[0].cpu().int()).abs() <= 1).float().mean() >= 0.999
