"""Batched augmentation: no invented labels, and no effect of other samples, padding or the source window."""

import pickle

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX
from training.augment import (
    FILL_COLOR,
    AugmentParams,
    AugmentPolicy,
    BatchedAugmentParams,
    batched,
    choose_augment_device,
    cpu,
    crop_to_source_window,
    pad_and_stack,
    stack_params,
)
from training.augment.batched_color import cached_tensor
from training.augment.noise import gaussian_noise
from training.augment.params import gaussian_kernel
from training.config import TrainConfig
from training.data.synthetic import generate_scene

ALL_AUGMENTATIONS = TrainConfig(
    rotate=180,
    vflip=0.5,
    elastic=0.08,
    color_jitter=0.4,
    hue=0.1,
    blur=3,
    noise=30,
    scale=(0.4, 2.5),
    class_balanced_crops=0.5,
)
CROP = (96, 128)
IDENTITY = np.eye(3)[:2]

Item = tuple[RGB, Labels, AugmentParams]


def make_items(count: int = 8, config: TrainConfig = ALL_AUGMENTATIONS, mixed: bool = True) -> list[Item]:
    """Images of mixed sizes or of one size, with parameters."""
    policy, made = AugmentPolicy(config, CROP), []
    for seed in range(count):
        random = np.random.default_rng(seed)
        size = (100 + 17 * seed, 210 - 13 * seed) if mixed else (144, 192)
        image, labels = generate_scene(random, size)
        made.append((image, labels, policy.sample_params(size, labels, random)))
    return made


def augment_items(items: list[Item], crop: tuple[int, int] = CROP) -> tuple[torch.Tensor, torch.Tensor]:
    return batched.augment_batch(*pad_and_stack(items, crop), crop)


def max_level_difference(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def test_batch_has_the_crops_size_and_is_contiguous() -> None:
    images, labels = augment_items(make_items())
    assert images.shape == (8, *CROP, 3) and labels.shape == (8, *CROP)
    assert images.dtype == labels.dtype == torch.uint8
    assert images.is_contiguous() and labels.is_contiguous()


@pytest.mark.parametrize("implementation", ["cpu", "batched"])
def test_no_label_is_invented(implementation: str) -> None:
    """albumentations #175, kornia #3090: interpolated masks have labels between those of two neighbors."""
    random = np.random.default_rng(0)
    labels = random.choice(np.array([0, 7, 200], np.uint8), (80, 90))
    image = np.zeros((80, 90, 3), np.uint8)
    policy = AugmentPolicy(ALL_AUGMENTATIONS, CROP)
    for _ in range(20):
        params = policy.sample_params(labels.shape, labels, random)
        mask = (
            cpu.augment_image(image, labels, params, CROP)[1]
            if implementation == "cpu"
            else augment_items([(image, labels, params)])[1]
        )
        assert set(np.unique(mask).tolist()) <= {0, 7, 200, IGNORE_INDEX}


def test_area_outside_the_image_is_ignored_and_filled() -> None:
    config = TrainConfig(scale=(0.3, 0.6), rotate=90, color_jitter=0)
    for image, labels, params in make_items(6, config):
        images, masks = augment_items([(image, labels, params)])
        x, y = np.tensordot(
            params.matrix, np.stack([*np.meshgrid(np.arange(128), np.arange(96)), np.ones(CROP)]), axes=1
        )
        height, width = labels.shape
        outside = torch.from_numpy((x < -1.001) | (y < -1.001) | (x > width + 0.001) | (y > height + 0.001))
        assert outside.any()
        assert (masks[0][outside] == IGNORE_INDEX).all()
        assert (images[0][outside] == torch.tensor(FILL_COLOR, dtype=torch.uint8)).all()


def test_identity_mirror_and_doubling_are_exact() -> None:
    """Ultralytics #24617: coordinates are those of pixel centers."""
    image, labels, _ = make_items(1)[0]
    height, width = labels.shape
    same = augment_items([(image, labels, AugmentParams(labels.shape, IDENTITY))], labels.shape)
    assert (same[0][0].numpy() == image).all() and (same[1][0].numpy() == labels).all()
    across = np.array([[-1.0, 0, width - 1], [0, 1, 0]])
    mirrored = augment_items([(image, labels, AugmentParams(labels.shape, across))], labels.shape)
    assert (mirrored[0][0].numpy() == image[:, ::-1]).all() and (mirrored[1][0].numpy() == labels[:, ::-1]).all()
    twice = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]])
    doubled = augment_items([(image, labels, AugmentParams(labels.shape, twice))], (2 * height, 2 * width))
    assert (doubled[1][0].numpy() == labels.repeat(2, 0).repeat(2, 1)).all()


@pytest.mark.parametrize("config", [ALL_AUGMENTATIONS, TrainConfig()])
def test_sample_does_not_depend_on_its_batch(config: TrainConfig) -> None:
    """Even if only the other samples are blurred, colored or moved."""
    items = make_items(8, config, mixed=False)
    items[3] = (*items[3][:2], AugmentParams(items[3][2].size, items[3][2].matrix))
    images, labels = augment_items(items)
    for index, item in enumerate(items):
        alone = augment_items([item])
        assert (alone[0][0] == images[index]).all()
        assert (alone[1][0] == labels[index]).all()


def test_sizes_may_be_mixed_and_padding_is_not_read() -> None:
    items = make_items(8, ALL_AUGMENTATIONS.model_copy(update={"color_jitter": 0, "hue": 0}))
    images, labels, params = pad_and_stack(items, CROP)
    for index, (_, mask, _) in enumerate(items):
        images[index, mask.shape[0] :], images[index, :, mask.shape[1] :] = 255, 255
        labels[index, mask.shape[0] :], labels[index, :, mask.shape[1] :] = 3, 3
    batch = batched.augment_batch(images, labels, params, CROP)
    for index, item in enumerate(items):
        alone = augment_items([item])
        assert max_level_difference(alone[0][0], batch[0][index]) <= 1
        assert (alone[1][0] == batch[1][index]).all()


@pytest.mark.parametrize("elastic", [0, 0.1])
def test_source_window_gives_the_result_of_the_whole_image(elastic: float) -> None:
    config = TrainConfig(scale=(0.8, 4), rotate=180, vflip=0.5, elastic=elastic, blur=2, color_jitter=0)
    policy, saved = AugmentPolicy(config, CROP), []
    image, labels = generate_scene(np.random.default_rng(0), (300, 401))
    for seed in range(12):
        random = np.random.default_rng(seed)
        params = policy.sample_params(labels.shape, labels, random)
        window = crop_to_source_window(image, labels, params, CROP)
        whole, part = augment_items([(image, labels, params)]), augment_items([window])
        assert (whole[1] == part[1]).all()
        assert max_level_difference(whole[0], part[0]) <= 1
        assert (cpu.augment_image(*window, CROP)[1] == cpu.augment_image(image, labels, params, CROP)[1]).mean() > 0.999
        saved.append(1 - window[1].size / labels.size)
    assert np.mean(saved) > 0.3


def test_window_of_a_crop_outside_the_image_is_a_pixel() -> None:
    image, labels, _ = make_items(1)[0]
    outside = AugmentParams(labels.shape, np.array([[1.0, 0, 5000], [0, 1, -9000]]))
    window = crop_to_source_window(image, labels, outside, CROP)
    assert window[1].shape == (1, 1)
    assert (augment_items([window])[1] == IGNORE_INDEX).all()


def test_coordinates_are_float32_under_autocast() -> None:
    """bfloat16 has no odd numbers above 256."""
    items = make_items(3)
    expected = augment_items(items)
    with torch.autocast("cpu", torch.bfloat16):
        found = augment_items(items)
    assert all((one == other).all() for one, other in zip(expected, found, strict=True))


def test_gpu_never_waits_for_a_value() -> None:
    """Fake tensors raise when a value is read or devices are mixed, and need no GPU."""
    real = pad_and_stack(make_items(), CROP)
    assert all(each.numel() for each in real[2])
    cached_tensor.cache_clear()
    try:
        with FakeTensorMode():
            images, labels, *rest = (
                torch.empty(each.shape, dtype=each.dtype, device="cuda") for each in (*real[:2], *real[2])
            )
            found = batched.augment_batch(images, labels, BatchedAugmentParams(*rest), CROP)
            assert [each.device.type for each in found] == ["cuda", "cuda"]
            with pytest.raises(Exception, match=r"item|_local_scalar_dense"):
                images.max().item()
    finally:
        cached_tensor.cache_clear()  # it would keep fake tensors


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_images_of_one_pixel(size: tuple[int, int]) -> None:
    policy = AugmentPolicy(ALL_AUGMENTATIONS, CROP)
    image, labels = np.full((*size, 3), 200, np.uint8), np.full(size, 5, np.uint8)
    for seed in range(5):
        params = policy.sample_params(size, labels, np.random.default_rng(seed))
        window = crop_to_source_window(image, labels, params, CROP)
        mask = augment_items([window])[1]
        assert set(mask.unique().tolist()) <= {5, IGNORE_INDEX}
        assert (mask[0].numpy() == cpu.augment_image(image, labels, params, CROP)[1]).mean() > 0.999


def test_crop_of_one_pixel() -> None:
    image, labels, _ = make_items(1)[0]
    params = AugmentPolicy(ALL_AUGMENTATIONS, (1, 1)).sample_params(labels.shape, labels, np.random.default_rng(0))
    assert augment_items([(image, labels, params)], (1, 1))[0].shape == (1, 1, 1, 3)
    assert cpu.augment_image(image, labels, params, (1, 1))[0].shape == (1, 1, 3)


def test_images_need_not_be_contiguous() -> None:
    image, labels, params = make_items(1)[0]
    strided_inputs = image[::-1, ::-1].copy()[::-1, ::-1], labels.T.copy().T
    for one, other in zip(
        cpu.augment_image(*strided_inputs, params, CROP), cpu.augment_image(image, labels, params, CROP), strict=True
    ):
        assert (one == other).all()
    images, masks, params = pad_and_stack([(image, labels, params)], CROP)
    strided = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), masks.mT.contiguous().mT
    for one, other in zip(
        batched.augment_batch(*strided, params, CROP), batched.augment_batch(images, masks, params, CROP), strict=True
    ):
        assert (one == other).all()


class SmallDataset(torch.utils.data.Dataset[Item]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Item:
        image, labels, params = make_items(4)[index]
        return crop_to_source_window(image, labels, params, CROP)


def collate_items(items: list[Item]) -> tuple[torch.Tensor, torch.Tensor, BatchedAugmentParams]:
    return pad_and_stack(items, CROP)


@pytest.mark.parametrize("workers", [0, 1])
def test_parameters_pass_through_workers(workers: int) -> None:
    loader = DataLoader(SmallDataset(), 4, collate_fn=collate_items, num_workers=workers)
    images, labels, params = next(iter(loader))
    assert isinstance(params, BatchedAugmentParams)
    expected = augment_items([SmallDataset()[index] for index in range(4)])
    assert (batched.augment_batch(images, labels, params, CROP)[0] == expected[0]).all()
    assert len(pickle.dumps(SmallDataset()[0][2])) < 2000


def test_what_no_sample_asks_for_is_empty() -> None:
    params = stack_params([AugmentParams((8, 8), IDENTITY)] * 3, CROP)
    assert [
        each.numel()
        for each in (params.elastic_grid, params.color_factors, params.hue_shift, params.blur_kernel, params.noise_std)
    ] == [0] * 5


def test_noise_has_the_right_deviation_and_differs_by_seed_and_channel() -> None:
    one, other, none = gaussian_noise(torch.tensor([1, 2, 3]), torch.tensor([20.0, 20.0, 0.0]), (200, 200))
    assert abs(float(one.mean())) < 0.5 and abs(float(one.std()) - 20) < 0.3
    assert not none.any()
    variants = torch.stack(
        [one[..., 0].flatten(), one[..., 1].flatten(), other[..., 0].flatten(), one[..., 0].roll(1).flatten()]
    )
    assert (torch.corrcoef(variants) - torch.eye(4)).abs().max() < 0.02


def test_gaussian_kernel_equals_albumentations() -> None:
    from albumentations.augmentations.blur.functional import create_gaussian_kernel_1d

    for sigma in (0.1, 0.5, 1.7, 8.0):
        assert np.allclose(gaussian_kernel(sigma), create_gaussian_kernel_1d(sigma))
    assert gaussian_kernel(0).tolist() == [1]


def test_auto_augments_on_the_gpu_if_there_is_one() -> None:
    assert [choose_augment_device("auto", device) for device in ("cuda", "cuda:1", "cpu")] == ["gpu", "gpu", "cpu"]
    assert choose_augment_device("gpu", "cpu") == "gpu" and choose_augment_device("cpu", "cuda") == "cpu"
