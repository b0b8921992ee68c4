import numpy as np
import pytest

from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX
from training.augment import FILL_COLOR, AugmentPolicy, cpu
from training.config import TrainConfig
from training.data.synthetic import generate_scene

NO_AUGMENTATION = TrainConfig(scale=(1, 1), flip=0, rotate=0, color_jitter=0)


class Augmenter:
    """Sample and apply in one call, as a worker does."""

    def __init__(self, config: TrainConfig, crop: tuple[int, int]) -> None:
        self.policy = AugmentPolicy(config, crop)

    def __call__(self, image: RGB, labels: Labels, seed: int) -> tuple[RGB, Labels]:
        params = self.policy.sample_params(labels.shape, labels, np.random.default_rng(seed))
        return cpu.augment_image(image, labels, params, self.policy.crop_size)


@pytest.fixture
def sample() -> tuple[RGB, Labels]:
    return generate_scene(np.random.default_rng(3))


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(rotate=45), TrainConfig(scale=(0.3, 0.5))])
@pytest.mark.parametrize("crop", [(96, 128), (224, 160)])
def test_size_is_the_crops_and_no_label_is_invented(
    config: TrainConfig, crop: tuple[int, int], sample: tuple[RGB, Labels]
) -> None:
    augment = Augmenter(config, crop)
    known = set(np.unique(sample[1]).tolist()) | {IGNORE_INDEX}
    for seed in range(8):
        image, labels = augment(*sample, seed)
        assert image.shape == (*crop, 3)
        assert labels.shape == crop
        assert image.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels).tolist()) <= known


def test_area_outside_the_image_is_ignored(sample: tuple[RGB, Labels]) -> None:
    image, labels = Augmenter(NO_AUGMENTATION, (200, 300))(*sample, 0)
    assert (labels == IGNORE_INDEX).sum() == 200 * 300 - 144 * 192
    assert (image[labels == IGNORE_INDEX] == FILL_COLOR).all()


def test_without_augmentation_nothing_changes(sample: tuple[RGB, Labels]) -> None:
    image, labels = Augmenter(NO_AUGMENTATION, (144, 192))(*sample, 0)
    assert (image == sample[0]).all()
    assert (labels == sample[1]).all()


def test_flip_mirrors_image_and_mask(sample: tuple[RGB, Labels]) -> None:
    image, labels = Augmenter(NO_AUGMENTATION.model_copy(update={"flip": 1.0}), (144, 192))(*sample, 0)
    assert (image == sample[0][:, ::-1]).all()
    assert (labels == sample[1][:, ::-1]).all()


def test_image_and_mask_move_together() -> None:
    """The image encodes each pixel's column and row, and neighbors have different labels: half a pixel would show."""
    rows, columns = np.indices((144, 192))
    labels = ((columns + 17 * rows) % 200).astype(np.uint8)
    image = np.stack([columns, rows, columns], axis=2).astype(np.uint8)
    for elastic in (0.0, 0.03):
        augment = Augmenter(TrainConfig(color_jitter=0, scale=(0.7, 1.6), rotate=30, elastic=elastic), (144, 192))
        for seed in range(10):
            moved, mask = augment(image, labels, seed)
            inside = mask != IGNORE_INDEX
            expected = labels[moved[..., 1].clip(max=143), moved[..., 0].clip(max=191)]
            assert np.mean((mask == expected)[inside]) > 0.85, (elastic, seed)


def test_scale_position_and_flip_are_independent() -> None:
    """Albumentations' own seeding correlates them by up to 1.0."""
    labels = np.zeros((96, 96), np.uint8)
    labels[40:56, 20:36] = 1
    labels[40:56, 60:76] = 2
    image = np.stack([labels] * 3, axis=2)
    augment = Augmenter(TrainConfig(color_jitter=0, scale=(0.8, 1.2)), (96, 96))
    scales, heights, flips = [], [], []
    for seed in range(400):
        mask = augment(image, labels, seed)[1]
        (rows, ones), twos = np.nonzero(mask == 1), np.nonzero(mask == 2)[1]
        if ones.size and twos.size:
            scales.append(ones.size)
            heights.append(rows.mean())
            flips.append(ones.mean() > twos.mean())
    assert 0.4 < np.mean(flips) < 0.6
    correlations = np.corrcoef(np.array([scales, heights, flips], float))
    assert np.abs(correlations - np.eye(3)).max() < 0.2


def test_seed_decides(sample: tuple[RGB, Labels]) -> None:
    augment = Augmenter(TrainConfig(), (96, 96))
    first, again, other = (augment(*sample, seed)[0] for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()
