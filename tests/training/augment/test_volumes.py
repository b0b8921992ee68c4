import numpy as np
import pytest
import torch
from scipy import ndimage

from models.spec import InputRule, Scaling, Spacing
from training.augment.volumes import (
    VolumeParams,
    apply_params,
    augment_volume,
    sample_params,
    sample_start,
    source_window,
)
from training.config import TrainConfig

RULE = InputRule(
    rule="native", axes="DHW", channels=("a", "b"), dtype="float32", scaling=Scaling(kind="zscore", low=(), high=())
)
NOTHING = dict.fromkeys(("rotate", "elastic", "blur", "noise", "color_jitter", "gamma", "bias_field"), 0)
STILL = TrainConfig.model_validate({**NOTHING, "scale": [1, 1], "low_resolution": 1, "class_balanced_crops": 0})
STRONG = TrainConfig(
    rotate=30, scale=(0.7, 1.4), elastic=0.05, noise=20, blur=1, color_jitter=0.25, gamma=0.4, bias_field=0.3,
    low_resolution=0.5, flip_axes="DHW", class_balanced_crops=0.33,
)  # fmt: skip


def make_volume(size: tuple[int, int, int] = (20, 24, 28)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    values = ndimage.gaussian_filter(random.normal(size=(*size, 2)), (2, 2, 2, 0)).astype(np.float32) * 50 + 100
    labels = (values[..., 0] > 100).astype(np.uint8) + (values[..., 1] > 105)
    return values, labels.astype(np.uint8)


def apply(
    values: np.ndarray, labels: np.ndarray, params: VolumeParams, fill: float = 7.0
) -> tuple[np.ndarray, np.ndarray]:
    window = source_window(params, labels.shape)
    inside = tuple(slice(*each) for each in window)
    image = torch.from_numpy(np.ascontiguousarray(values[inside])).movedim(-1, 0)
    units = torch.tensor([[fill] * 2, [100.0] * 2, [10.0] * 2])
    origin = np.array([first for first, _ in window])
    found, mask = apply_params(image, torch.from_numpy(np.ascontiguousarray(labels[inside])), params, origin, units)
    return found.movedim(0, -1).numpy(), mask.numpy()


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("start", [(2, 3, 4), (-5, 10, 20)])
def test_geometry_equals_that_of_scipy(bent: bool, start: tuple[int, int, int]) -> None:
    values, labels = make_volume()
    crop, random = (16, 18, 12), np.random.default_rng(1)
    matrix = np.eye(3) + random.normal(size=(3, 3)) * 0.2
    cells = random.uniform(-2, 2, (3, 4, 4, 4)).astype(np.float32) if bent else None
    found, mask = apply(values, labels, VolumeParams(start, crop, matrix, cells))
    middle = (np.array(crop) - 1) / 2
    offsets = np.stack(np.meshgrid(*map(np.arange, crop), indexing="ij")).astype(float) - middle[:, None, None, None]
    source = np.einsum("ij,jdhw->idhw", matrix, offsets) + (np.array(start) + middle)[:, None, None, None]
    if cells is not None:
        at = np.stack(np.meshgrid(*[np.linspace(0, 3, length) for length in crop], indexing="ij"))
        source += np.stack([ndimage.map_coordinates(each, at, order=1) for each in cells])
    for channel in range(2):
        expected = ndimage.map_coordinates(values[..., channel], source, order=1, mode="grid-constant", cval=7.0)
        np.testing.assert_allclose(found[..., channel], expected, atol=2e-2)
    expected = ndimage.map_coordinates(labels, source, order=0, mode="grid-constant", cval=255)
    assert (mask != expected).mean() < 1e-3 and (mask == 255).any() == (start[0] < 0 or (expected == 255).any())


def test_patch_without_changes_is_the_volume_itself_and_ignores_what_is_outside() -> None:
    values, labels = make_volume((9, 30, 10))
    statistics = np.array([[100.0, 90.0], [10.0, 10.0]], np.float32)
    for seed in range(5):
        patch, mask = augment_volume(values, labels, np.random.default_rng(seed), (16, 16, 16), STILL, RULE, statistics)
        inside = mask != 255
        assert inside.sum() == 9 * 16 * 10 and (patch[~inside] == [100, 90]).all()
        d, h, w = (np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
        whole = patch[d[0] : d[-1] + 1, h[0] : h[-1] + 1, w[0] : w[-1] + 1]
        starts = [row for row in range(15) if (values[:, row : row + 16] == whole).all()]
        assert len(starts) == 1 and (labels[:, starts[0] : starts[0] + 16] == mask[inside].reshape(9, 16, 10)).all()


def test_flips_move_image_and_labels_together_and_only_along_the_chosen_axes() -> None:
    values, labels = make_volume((8, 8, 8))
    statistics = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    for axis, name in enumerate("DHW"):
        config, mirrored = STILL.model_copy(update={"flip_axes": name}), 0
        for seed in range(12):
            patch, mask = augment_volume(
                values, labels, np.random.default_rng(seed), (8, 8, 8), config, RULE, statistics
            )
            same = (patch == values).all()
            mirrored += not same
            assert same or ((np.flip(patch, axis) == values).all() and (np.flip(mask, axis) == labels).all())
        assert 2 <= mirrored <= 10


def test_turns_are_in_mm_and_leave_coarse_axes_alone() -> None:
    config = STILL.model_copy(update={"rotate": 45.0})
    labels = np.zeros((16, 16, 16), np.uint8)

    def matrices(spacing: tuple[float, ...]) -> list[np.ndarray]:
        random = np.random.default_rng(0)
        found = [sample_params(labels, random, (8, 8, 8), config, spacing).matrix for _ in range(60)]
        return [each for each in found if each is not None]

    for matrix in matrices((2.0, 1.0, 1.0)):
        physical = np.diag([2.0, 1, 1]) @ matrix @ np.diag([0.5, 1, 1])
        np.testing.assert_allclose(physical @ physical.T, np.eye(3), atol=1e-12)
    coarse = matrices((5.0, 1.0, 1.0))
    assert len(coarse) > 3 and all((each[0] == [1, 0, 0]).all() and (each[:, 0] == [1, 0, 0]).all() for each in coarse)
    assert any(abs(each[1, 2]) > 0.1 for each in coarse)


def test_intensity_changes_equal_their_references() -> None:
    values, labels = make_volume((16, 16, 16))
    whole = {"start": (0, 0, 0), "crop": (16, 16, 16)}
    blurred, mask = apply(values, labels, VolumeParams(**whole, blur_sigma=(0.0, 1.2, 0.8)))
    for channel in range(2):
        expected = ndimage.gaussian_filter(values[..., channel], (0, 1.2, 0.8), mode="nearest")
        np.testing.assert_allclose(blurred[..., channel], expected, atol=1e-3)
    assert (mask == labels).all()
    noisy, _ = apply(values, labels, VolumeParams(**whole, noise_std=0.5, noise_seed=3))
    assert np.std(noisy - values) == pytest.approx(0.5 * 10, rel=0.05)
    darker, _ = apply(values, labels, VolumeParams(**whole, gamma=2.0))
    unit = (values - values.min((0, 1, 2))) / np.ptp(values, axis=(0, 1, 2))
    expected = unit**2
    expected = (expected - expected.mean((0, 1, 2))) / expected.std((0, 1, 2)) * values.std((0, 1, 2)) + values.mean(
        (0, 1, 2)
    )
    np.testing.assert_allclose(darker, expected, atol=0.02)
    contrast, _ = apply(values, labels, VolumeParams(**whole, contrast=1.5))
    means = values.mean((0, 1, 2))
    np.testing.assert_allclose(contrast, means + (values - means) * 1.5, atol=0.01)
    field, _ = apply(values, labels, VolumeParams(**whole, bias=np.full((4, 4, 4), np.log(1.3), np.float32)))
    lowest = values.min((0, 1, 2))
    np.testing.assert_allclose(field, lowest + (values - lowest) * 1.3, atol=0.01)
    coarse, _ = apply(values, labels, VolumeParams(**whole, zoom=0.5, in_plane=(False, True, True)))
    assert coarse.std() < values.std() and np.abs(coarse - values).mean() > 0.05


def test_a_third_of_the_patches_are_centered_on_a_class() -> None:
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[50, 50, 50], labels[10, 10, 10:13] = 1, 2
    random = np.random.default_rng(0)
    starts = [sample_start(labels, random, (12, 12, 12), 0.33) for _ in range(600)]
    ones, twos = (44, 44, 44), [(4, 4, column) for column in (4, 5, 6)]
    assert 0.11 < starts.count(ones) / 600 < 0.22 and 0.11 < sum(map(starts.count, twos)) / 600 < 0.22
    assert sample_start(np.zeros((9, 9, 9), np.uint8), random, (12, 12, 12), 1.0)[0] in range(-3, 1)


def test_integer_volumes_keep_their_type_and_labels_their_values() -> None:
    values, labels = make_volume()
    rule = RULE.model_copy(update={"dtype": "int16", "spacing": Spacing(values=(3.5, 1, 1), unit="mm")})
    statistics = np.array([[100.0, 100.0], [10.0, 10.0]], np.float32)
    for seed in range(10):
        patch, mask = augment_volume(
            values.astype(np.int16), labels, np.random.default_rng(seed), (16, 16, 16), STRONG, rule, statistics
        )
        assert patch.dtype == np.int16 and patch.shape == (16, 16, 16, 2) and set(np.unique(mask)) <= {0, 1, 2, 255}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_changes_a_patch_as_the_cpu_does() -> None:
    values, labels = make_volume()
    params = sample_params(
        labels, np.random.default_rng(11), (16, 16, 16), STRONG.model_copy(update={"noise": 0}), (1, 1, 1)
    )
    params = VolumeParams(
        (1, 2, 3), (16, 16, 16), np.eye(3) * 0.9, params.elastic, (True, False, True), gamma=1.3, zoom=0.6
    )
    units, origin = torch.tensor([[0.0] * 2, [100.0] * 2, [10.0] * 2]), np.zeros(3, np.int64)
    image, mask = torch.from_numpy(values).movedim(-1, 0), torch.from_numpy(labels)
    expected = apply_params(image, mask, params, origin, units)
    found = apply_params(image.cuda(), mask.cuda(), params, origin, units)
    torch.testing.assert_close(found[0].cpu(), expected[0], atol=1e-2, rtol=1e-4)
    assert (found[1].cpu() != expected[1]).float().mean() < 1e-3
