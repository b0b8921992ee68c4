"""Images that are read once and kept while a training lasts."""

import os
import shutil
from collections import namedtuple
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from models.spec import InputRule
from training.config_io import load_config
from training.data import load_split
from training.data.decoded_cache import DecodedCache, create_cache_folder, decoded_bytes, fits_on_disk, removed_on_exit
from training.data.loader import SampleIndex, TransformedDataset
from training.data.synthetic import generate_dataset
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


def test_what_is_kept_is_what_was_read(small_dataset: Path, tmp_path: Path) -> None:
    samples, kept = load_split(small_dataset, "train"), DecodedCache(create_cache_folder(tmp_path / "kept") / "train")
    plain, keeping = TransformedDataset(samples, RULE), TransformedDataset(samples, RULE, decoded_cache=kept)
    for place in range(len(samples)):
        assert kept.get(place) is None
        for _ in range(2):
            wanted, given = plain[SampleIndex(place, 0)], keeping[SampleIndex(place, 0)]
            np.testing.assert_array_equal(wanted.image, given.image)
            np.testing.assert_array_equal(wanted.labels, given.labels)
        assert kept.get(place) is not None
    assert sum(file.stat().st_size for file in kept.folder.iterdir()) == decoded_bytes([(48, 64)] * 6, RULE)


def test_a_kept_image_is_not_decoded_again(small_dataset: Path, tmp_path: Path) -> None:
    samples = load_split(small_dataset, "train")
    keeping = TransformedDataset(
        samples, RULE, decoded_cache=DecodedCache(create_cache_folder(tmp_path / "kept") / "train")
    )
    before = keeping[SampleIndex(3, 0)].image
    samples.pairs[3].image.unlink()
    np.testing.assert_array_equal(keeping[SampleIndex(3, 0)].image, before)


def test_a_training_that_keeps_is_the_training_that_does_not(small_dataset: Path, tmp_path: Path) -> None:
    results = []
    for keep in ("true", "false"):
        out = tmp_path / keep
        config = load_config(None, [*OVERRIDES, f"cache_decoded={keep}", "deterministic=true"])
        train(small_dataset, out, config, console=Console(quiet=True), log_mode="quiet")
        results.append(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["network"])
        assert not (out / "images").exists()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[1])


def test_what_a_training_kept_goes_when_it_fails(tmp_path: Path) -> None:
    left = create_cache_folder(tmp_path / "images")
    (left / "train" / "7").write_bytes(b"of a killed training")
    assert not list((create_cache_folder(left) / "train").iterdir())
    with pytest.raises(RuntimeError), removed_on_exit(left):
        raise RuntimeError
    assert not left.exists()


def test_a_folder_that_is_gone_or_full_costs_reading_anew(small_dataset: Path, tmp_path: Path) -> None:
    samples, folder = load_split(small_dataset, "train"), create_cache_folder(tmp_path / "kept") / "train"
    keeping = TransformedDataset(samples, RULE, decoded_cache=DecodedCache(folder))
    shutil.rmtree(folder)
    for _ in range(2):
        assert keeping[SampleIndex(0, 0)].image.shape == (30, 40, 3)
    assert keeping.decoded_cache is not None
    assert keeping.decoded_cache.full


def test_a_small_disk_is_told_of_and_nothing_is_kept(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 0, 10))
    assert not fits_on_disk(tmp_path / "not" / "there", 6)
    assert fits_on_disk(tmp_path, 5)
    said, out = StringIO(), tmp_path / "run"
    config = load_config(None, [*OVERRIDES, "cache_decoded=true", "epochs=1"])
    train(small_dataset, out, config, console=Console(file=said, width=200), log_mode="quiet")
    assert "cache_decoded is off: it needs" in said.getvalue()
    assert os.listdir(out / "checkpoints")
