"""The cache of decoded images."""

import shutil
from collections import namedtuple
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from models.spec import InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from training.config_io import load_config
from training.data import load_split
from training.data.decoded_cache import DecodedCache, create_cache_folder, decoded_bytes, fits_on_disk, removed_on_exit
from training.data.loader import SampleIndex, TransformedDataset
from training.data.synthetic import generate_dataset
from training.engine.checkpoint import read_checkpoint
from training.run_folder import LAST_CHECKPOINT
from training.train import train

OVERRIDES = [
    "epochs=2",
    "batch=4",
    "workers=1",
    "crop=32,64",
    "encoder=tu-lcnet_035",
    "precision=f32",
    "tensorboard=false",
]
RULE = InputRule(rule="fit", side=40)


@pytest.fixture
def small_dataset(tmp_path: Path) -> Path:
    generate_dataset(tmp_path / "few", counts={"train": 6, "val": 2}, size=(48, 64))
    return tmp_path / "few"


def test_cached_images_equal_decoded_ones(small_dataset: Path, tmp_path: Path) -> None:
    samples, cache = load_split(small_dataset, "train"), DecodedCache(create_cache_folder(tmp_path / "cache") / "train")
    plain, cached = TransformedDataset(samples, RULE), TransformedDataset(samples, RULE, decoded_cache=cache)
    for index in range(len(samples)):
        assert cache.get(index) is None
        for _ in range(2):
            expected, found = plain[SampleIndex(index, 0)], cached[SampleIndex(index, 0)]
            np.testing.assert_array_equal(expected.image, found.image)
            np.testing.assert_array_equal(expected.labels, found.labels)
        assert cache.get(index) is not None
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) == decoded_bytes([(48, 64)] * 6, RULE)


def test_cached_image_is_not_decoded_again(small_dataset: Path, tmp_path: Path) -> None:
    samples = load_split(small_dataset, "train")
    cached = TransformedDataset(
        samples, RULE, decoded_cache=DecodedCache(create_cache_folder(tmp_path / "cache") / "train")
    )
    before = cached[SampleIndex(3, 0)].image
    samples.pairs[3].image.unlink()
    np.testing.assert_array_equal(cached[SampleIndex(3, 0)].image, before)


def test_cache_does_not_change_the_training_and_a_small_disk_turns_it_off(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, [*OVERRIDES, "cache_decoded=true", "deterministic=true"])
    cached, small_disk, output = tmp_path / "cached", tmp_path / "small", StringIO()
    train(small_dataset, cached, config, console=QUIET_CONSOLE, log_mode="quiet")
    assert not (cached / "images").exists()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 0, 10))
    assert not fits_on_disk(tmp_path / "not" / "there", 6)
    assert fits_on_disk(tmp_path, 5)
    train(small_dataset, small_disk, config, console=Console(file=output, width=200), log_mode="quiet")
    assert "cache_decoded is off: it needs" in output.getvalue()
    first, second = (read_checkpoint(run / LAST_CHECKPOINT)["network"] for run in (cached, small_disk))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_cache_is_removed_when_a_training_fails(tmp_path: Path) -> None:
    folder = create_cache_folder(tmp_path / "images")
    (folder / "train" / "7").write_bytes(b"of a killed training")
    assert not list((create_cache_folder(folder) / "train").iterdir())
    with pytest.raises(RuntimeError), removed_on_exit(folder):
        raise RuntimeError
    assert not folder.exists()


def test_lost_cache_folder_is_not_an_error(small_dataset: Path, tmp_path: Path) -> None:
    samples, folder = load_split(small_dataset, "train"), create_cache_folder(tmp_path / "cache") / "train"
    cached = TransformedDataset(samples, RULE, decoded_cache=DecodedCache(folder))
    shutil.rmtree(folder)
    for _ in range(2):
        assert cached[SampleIndex(0, 0)].image.shape == (30, 40, 3)
    assert cached.decoded_cache is not None
    assert cached.decoded_cache.full
