"""The batched augmentation of any channels and dtype gives what `samples.py` gives for one sample."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.sample import Statistics, Values
from models.spec import IGNORE_INDEX, InputRule, Scaling
from training.augment import AugmentPolicy, BatchedAugmentParams, crop_to_source_window, pad_and_stack
from training.augment.batched_color import cached_tensor
from training.augment.batched_samples import augment_samples
from training.augment.samples import augment_sample
from training.config import TrainConfig
from training.data.synthetic import generate_scene

CROP = (72, 96)
NOTHING = TrainConfig(scale=(1, 1), flip=0, color_jitter=0)
CHANGES = {
    "geometry": NOTHING.model_copy(
        update={"scale": (0.5, 2), "rotate": 90, "vflip": 0.5, "flip": 0.5, "elastic": 0.05}
    ),
    "color": NOTHING.model_copy(update={"color_jitter": 0.6, "hue": 0.3}),
    "blur": NOTHING.model_copy(update={"blur": 3}),
    "noise": NOTHING.model_copy(update={"noise": 30}),
}
FACTORS = {"uint8": 1.0, "uint16": 16.0, "int16": 8.0, "float32": 1 / 255}
CHANNELS = ("nir", "Red", "green", "blue", "swir1", "swir2")


def make_rule(dtype: str, kind: str = "window") -> InputRule:
    count, high = len(CHANNELS), 255 * FACTORS[dtype]
    scaling = (
        Scaling(kind=kind, low=(0,) * count, high=(high,) * count)
        if kind == "window"
        else Scaling(kind=kind, low=(), high=())
    )
    return InputRule(rule="native", channels=CHANNELS, dtype=dtype, scaling=scaling)  # type: ignore[arg-type]


def make_sample(seed: int, dtype: str) -> tuple[Values, Values]:
    """Six channels of a scene, and its labels."""
    image, labels = generate_scene(np.random.default_rng(seed), (100 + 9 * seed, 150 - 7 * seed))
    values = np.concatenate([image[:, :, ::-1], image], axis=2)[:, :, [0, 3, 4, 5, 1, 2]]
    return (values * FACTORS[dtype]).astype(dtype), labels


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", FACTORS)
def test_batch_equals_single_samples(dtype: str, change: str) -> None:
    rule, policy, items, expected = make_rule(dtype), AugmentPolicy(CHANGES[change], CROP), [], []
    for seed in range(6):
        values, labels = make_sample(seed, dtype)
        params = policy.sample_params(labels.shape, labels, np.random.default_rng(seed))
        expected.append(augment_sample(values, labels, params, CROP, rule))
        items.append(crop_to_source_window(values, labels, params, CROP))
    images, masks = augment_samples(*pad_and_stack(items, CROP), CROP, rule)
    assert str(images.dtype) == f"torch.{dtype}" and images.is_contiguous() and masks.is_contiguous()
    for image, mask, (one, other) in zip(images.numpy(), masks.numpy(), expected, strict=True):
        assert (mask == other).mean() > 0.999
        levels = np.abs(image.astype(float) - one) / FACTORS[dtype]
        # OpenCV rounds the coordinates of 2 and of 4 channels to 1/32 pixel.
        assert levels.max() <= 4.5 and np.quantile(levels, 0.99) <= 1.5 and levels.mean() < 0.25
    assert len({item[0].tobytes() for item in expected}) == 6


def test_zscore_takes_fill_and_levels_from_each_sample() -> None:
    rule = make_rule("int16", "zscore")
    config = CHANGES["geometry"].model_copy(update={"noise": 20, "scale": (0.3, 0.4)})
    items, expected, statistics = [], [], []
    for seed in range(4):
        values, labels = make_sample(seed, "int16")
        measured: Statistics = np.stack([values.mean((0, 1)), values.std((0, 1))]).astype(np.float32)
        params = AugmentPolicy(config, CROP).sample_params(labels.shape, labels, np.random.default_rng(seed))
        expected.append(augment_sample(values, labels, params, CROP, rule, measured))
        items.append(crop_to_source_window(values, labels, params, CROP))
        statistics.append(measured)
    images, masks = augment_samples(*pad_and_stack(items, CROP), CROP, rule, torch.from_numpy(np.stack(statistics)))
    for image, mask, (one, other) in zip(images.numpy(), masks.numpy(), expected, strict=True):
        assert (mask == IGNORE_INDEX).any() and (mask == other).mean() > 0.999
        assert np.abs(image.astype(int) - one).max() <= 4.5 * FACTORS["int16"]


def test_gpu_never_waits_for_a_value() -> None:
    """As in test_batched.py."""
    config = TrainConfig(rotate=90, elastic=0.05, color_jitter=0.5, hue=0.2, blur=2, noise=20)
    policy, rule, items = AugmentPolicy(config, CROP), make_rule("float32"), []
    for seed in range(8):
        values, labels = make_sample(seed % 4, "float32")
        items.append((values, labels, policy.sample_params(labels.shape, labels, np.random.default_rng(seed))))
    real = pad_and_stack(items, CROP)
    assert all(each.numel() for each in real[2])
    cached_tensor.cache_clear()
    try:
        with FakeTensorMode():
            images, labels, *rest = (
                torch.empty(each.shape, dtype=each.dtype, device="cuda") for each in (*real[:2], *real[2])
            )
            found = augment_samples(images, labels, BatchedAugmentParams(*rest), CROP, rule)
            assert [each.device.type for each in found] == ["cuda", "cuda"]
    finally:
        cached_tensor.cache_clear()  # it would keep fake tensors
