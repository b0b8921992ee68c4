"""The setting `transforms`: which albumentations transforms are accepted, and that they are reproducible."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import ConfigError, DataError
from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX, InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from training.augment import FILL_COLOR
from training.augment.user_transforms import UserTransforms
from training.config import TrainConfig
from training.config_io import load_config, save_config
from training.data import load_split
from training.data.loader import Batch, build_train_loader, iterate_batches
from training.data.synthetic import generate_dataset, generate_scene
from training.train import train

FOG_AND_AFFINE: list[dict[str, Any]] = [
    {"name": "RandomFog", "p": 0.8},
    {"name": "Affine", "rotate": [-40, 40], "p": 0.8},
]


@pytest.fixture(scope="module")
def scene() -> tuple[RGB, Labels]:
    return generate_scene(np.random.default_rng(3), (72, 96))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "Affine", "rotate": [30, 30], "scale": 0.6},
        {"name": "GridDistortion", "distort_limit": 0.4},
        {"name": "ElasticTransform", "alpha": 200, "sigma": 10},
        {"name": "Perspective", "scale": [0.3, 0.4]},
        {"name": "SafeRotate", "limit": [20, 20]},
    ],
    ids=lambda settings: settings["name"],
)
def test_mask_moves_by_nearest_neighbor_and_new_area_is_ignored(
    settings: dict[str, Any], scene: tuple[RGB, Labels]
) -> None:
    image, labels = scene
    transforms = UserTransforms([{**settings, "p": 1}])
    transforms.check()
    known = set(np.unique(labels).tolist())
    filled = 0
    for seed in range(4):
        new_image, new_labels = transforms(image, labels, (seed,))
        assert new_image.shape == image.shape and new_labels.shape == labels.shape
        assert set(np.unique(new_labels).tolist()) <= known | {IGNORE_INDEX}
        assert (new_labels != labels).any()
        filled += int((new_labels == IGNORE_INDEX).sum())
        if settings["name"] == "Affine":
            outside = new_labels == IGNORE_INDEX
            assert outside[0, 0] and (new_image[0, 0] == FILL_COLOR).all()
    if settings["name"] in ("Affine", "SafeRotate"):
        assert filled > 0


def test_affine_moves_image_and_mask_together() -> None:
    labels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((24, 24), np.uint8))
    image = np.stack([labels * 20] * 3, axis=2)
    new_image, new_labels = UserTransforms([{"name": "Affine", "rotate": [15, 15], "p": 1}])(image, labels, (0,))
    inside = new_labels != IGNORE_INDEX
    assert 0.6 < inside.mean() < 1
    assert np.mean(np.abs(new_image[..., 0].astype(int) - new_labels * 20)[inside] <= 2) > 0.9


def test_image_only_transform_leaves_the_mask(scene: tuple[RGB, Labels]) -> None:
    image, labels = scene
    image.setflags(write=False)  # as a cached image
    new_image, new_labels = UserTransforms([{"name": "RandomFog", "p": 1}])(image, labels, (0,))
    assert (new_image != image).mean() > 0.3
    assert (new_labels == labels).all()


def test_probability_and_seed_decide(scene: tuple[RGB, Labels]) -> None:
    transforms = UserTransforms([{"name": "HorizontalFlip", "p": 0.3}])
    flipped = [bool((transforms(*scene, (seed,))[1] != scene[1]).any()) for seed in range(200)]
    assert 0.2 < np.mean(flipped) < 0.4
    assert flipped == [bool((transforms(*scene, (seed,))[1] != scene[1]).any()) for seed in range(200)]
    both = UserTransforms([{"name": "HorizontalFlip", "p": 0.5}, {"name": "InvertImg", "p": 0.5}])
    results = [both(*scene, (seed,)) for seed in range(200)]
    flips = [(labels != scene[1]).any() for _, labels in results]
    inverted = [abs(image.mean() + scene[0].mean() - 255) < 1e-6 for image, _ in results]
    assert abs(np.corrcoef(flips, inverted)[0, 1]) < 0.2  # each transform has random numbers of its own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "RandomFogg"}, r"'RandomFogg' is not known; did you mean RandomFog"),
        ({"name": "xyzzy"}, r"'xyzzy' is not known; names are those of albumentations 2\.0\.8"),
        ({"name": "BasicTransform"}, r"'BasicTransform' is not known"),
        (
            {"name": "RandomFog", "fog": 1},
            r"RandomFog has no argument 'fog'; it has .*fog_coef_range",
        ),
        ({"name": "RandomFog", "p": 7}, r"RandomFog has a wrong argument: .*less than or equal to 1"),
        ({"name": "Affine", "mask_interpolation": 1}, r"Affine would mix labels with mask_interpolation=1"),
        ({"name": "Affine", "fill_mask": 0}, r"Affine would invent labels with fill_mask=0; only 255"),
        ({"name": "PixelDropout", "mask_drop_value": 9, "dropout_prob": 0.5}, r"PixelDropout invents labels \(9\)"),
        (
            {"name": "RandomCrop", "height": 32, "width": 32},
            r"RandomCrop turns the image from .* settings crop and scale",
        ),
        ({"name": "RandomRotate90"}, r"RandomRotate90 turns the image from uint8 .* into uint8"),
        ({"name": "ToGray", "num_output_channels": 1}, r"ToGray turns the image from uint8 97 x 131 x 3"),
        ({"name": "ToFloat"}, r"ToFloat turns the image from uint8 .* into float32"),
        ({"name": "RandomCrop", "height": 999, "width": 999}, r"RandomCrop fails on an RGB image uint8 of 131 x 97"),
        ({"name": "HistogramMatching"}, r"HistogramMatching needs hm_metadata, which training cannot give"),
        ({"name": "RandomSizedBBoxSafeCrop", "height": 32, "width": 32}, r"RandomSizedBBoxSafeCrop"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_unusable_transform_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UserTransforms([settings]).check()


def test_refused_before_the_data_is_read(tmp_path: Path) -> None:
    config = load_config(None, ["transforms=[{name: RandomScale}]"])
    with pytest.raises(ConfigError, match="RandomScale turns the image"):
        train(tmp_path / "no-data", tmp_path / "run", config, console=QUIET_CONSOLE)
    assert not (tmp_path / "run").exists()


def test_size_change_during_training_is_refused_by_name(scene: tuple[RGB, Labels]) -> None:
    with pytest.raises(ConfigError, match="Transpose turns the image"):
        UserTransforms([{"name": "Transpose", "p": 1}])(*scene, (0,))


def test_setting_is_read_as_yaml_and_json_and_saved(tmp_path: Path) -> None:
    config = load_config(None, ["transforms=[{name: RandomFog, p: 0.1}]"])
    assert config == load_config(None, ['transforms=[{"name": "RandomFog", "p": 0.1}]'])
    assert config.transforms == [{"name": "RandomFog", "p": 0.1}]
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", []) == config
    for wrong in ("transforms=[{p: 0.1}]", "transforms=[RandomFog]", "transforms={name: RandomFog}"):
        with pytest.raises(ConfigError, match="transforms"):
            load_config(None, [wrong])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "few"
    generate_dataset(folder, counts={"train": 6, "val": 2}, size=(48, 64))
    return folder


def read_batches(data: Path, start: int, stop: int, workers: int, **settings: Any) -> list[Batch]:
    config = TrainConfig(batch=4, workers=workers, transforms=FOG_AND_AFFINE, **settings)
    loader = build_train_loader(load_split(data, "train"), InputRule(rule="native"), (32, 48), config, "cpu", start)
    batches = iterate_batches(loader)
    found = [next(batches) for _ in range(start, stop)]
    batches.close()
    return found


def test_batches_do_not_depend_on_the_start_and_the_workers(data: Path) -> None:
    whole = read_batches(data, 0, 4, workers=0)
    for later in (read_batches(data, 2, 4, workers=0), read_batches(data, 2, 4, workers=2)):
        for one, other in zip(later, whole[2:], strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    plain = TrainConfig(batch=4, workers=0)
    loader = build_train_loader(load_split(data, "train"), InputRule(rule="native"), (32, 48), plain)
    assert not torch.equal(next(iterate_batches(loader)).images, whole[0].images)
    assert not torch.equal(read_batches(data, 0, 1, workers=0, seed=1)[0].images, whole[0].images)


def test_error_in_a_worker_names_the_transform(data: Path) -> None:
    config = TrainConfig(batch=4, workers=0, transforms=[{"name": "Transpose", "p": 1}])
    loader = build_train_loader(load_split(data, "train"), InputRule(rule="native"), (32, 48), config)
    with pytest.raises(DataError, match="Transpose turns the image"):
        next(iterate_batches(loader))
