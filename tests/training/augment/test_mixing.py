"""Augmentation across the samples of a batch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import ConfigError
from models.spec import IGNORE_INDEX, InputRule, Scaling
from training.augment.mixing import BatchMixer, shrink_batch
from training.config import TrainConfig

PHOTOGRAPH = InputRule(rule="native")
CLASSES = 4


def make_batch(dtype: torch.dtype = torch.uint8, number: int = 6) -> tuple[Tensor, Tensor]:
    """Each pixel says from which sample it is, and its label, in its values: 1000 or 10 times the sample plus the label."""
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, (number, 32, 64)).astype(np.uint8))
    labels[:, :4] = IGNORE_INDEX
    factor = 10 if dtype == torch.uint8 else 1000
    samples = torch.arange(number)[:, None, None] * factor
    value = torch.where(labels == IGNORE_INDEX, 9, labels).to(torch.int64) + samples
    return value[..., None].expand(-1, -1, -1, 5).to(dtype), labels


def mix(
    images: Tensor, labels: Tensor, *seed: int, rule: InputRule = PHOTOGRAPH, **settings: float
) -> tuple[Tensor, Tensor]:
    return BatchMixer(TrainConfig.model_validate(settings), rule, CLASSES)(images, labels, *seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
@pytest.mark.parametrize("settings", [{"classmix": 1.0}, {"cutmix": 1.0}, {"classmix": 0.5, "cutmix": 0.5}])
def test_labels_belong_to_their_pixels(settings: dict[str, float], dtype: torch.dtype) -> None:
    """Wherever a pixel is copied from, its label comes along, and from the same place of one other sample."""
    images, labels = make_batch(dtype)
    mixed, target = mix(images, labels, 3, **settings)
    assert mixed.dtype == dtype and target.dtype == torch.uint8
    factor = 10 if dtype == torch.uint8 else 1000
    value = mixed[..., 0].to(torch.int64)
    assert torch.equal(torch.where(target == IGNORE_INDEX, 9, target).to(torch.int64), value % factor)
    source = value // factor
    own = torch.arange(len(images))[:, None, None]
    offsets = ((source - own) % len(images)).unique().tolist()
    assert len(offsets) == 2 and offsets[0] == 0
    for sample in range(len(images)):
        for row, column in ((0, 0), (10, 20), (31, 63)):
            assert mixed[sample, row, column].tolist() == images[source[sample, row, column], row, column].tolist()


def test_classmix_copies_whole_classes_and_never_ignored_pixels() -> None:
    images, labels = make_batch()
    mixed, _ = mix(images, labels, 1, classmix=1.0)
    source = mixed[..., 0].long() // 10
    for sample in range(6):
        copied = source[sample] != sample
        partner = labels[source[sample][copied][0]]
        taken = partner[copied].unique().tolist()
        assert len(taken) == CLASSES // 2 and IGNORE_INDEX not in taken
        assert torch.equal(copied, torch.isin(partner, torch.tensor(taken, dtype=torch.uint8)))


def test_erased_pixels_are_the_mean_and_ignored() -> None:
    images, labels = make_batch()
    erased, target = mix(images, labels, 1, erasing=1.0)
    changed = (target == IGNORE_INDEX) & (labels != IGNORE_INDEX)
    assert torch.equal(erased[~changed & (labels != IGNORE_INDEX)], images[~changed & (labels != IGNORE_INDEX)])
    for sample in range(6):
        assert 0.01 < changed[sample].float().mean() < 0.4
        mean = images[sample].float().mean(dim=(0, 1)).round().to(torch.uint8)
        assert (erased[sample][changed[sample]] == mean).all()


def test_what_is_drawn_follows_from_seed_step_and_process() -> None:
    images, labels = make_batch()
    settings = {"classmix": 0.5, "cutmix": 0.5, "erasing": 0.5}
    first, again = (mix(images, labels, 7, 1, 0, **settings) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for other in ((8, 1, 0), (7, 2, 0), (7, 1, 1)):
        assert not torch.equal(mix(images, labels, *other, **settings)[1], first[1])
    alone = mix(images[:1], labels[:1], 7, classmix=1.0, cutmix=1.0)
    assert torch.equal(alone[0], images[:1]) and torch.equal(alone[1], labels[:1])


def test_copies_between_scales_of_their_own_are_refused() -> None:
    rule = InputRule(rule="native", scaling=Scaling(kind="zscore", low=(), high=()))
    with pytest.raises(ConfigError, match="classmix and cutmix are not possible with scaling=zscore"):
        BatchMixer(TrainConfig(cutmix=0.1), rule, CLASSES)
    BatchMixer(TrainConfig(erasing=0.1), rule, CLASSES)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_a_smaller_batch_shows_the_same_places(dtype: torch.dtype) -> None:
    labels = torch.zeros(1, 96, 128, dtype=torch.uint8)
    labels[:, 48:, :64] = 1
    images = (labels[..., None] * 100).expand(-1, -1, -1, 2).to(dtype)
    small, target = shrink_batch(images, labels)
    assert small.shape == (1, 64, 64, 2) and target.shape == (1, 64, 64) and small.dtype == dtype
    assert target.sum() == 32 * 32 and target[0, 32:, :32].all()
    assert torch.equal(small[..., 0].to(torch.int64), target.to(torch.int64) * 100)
