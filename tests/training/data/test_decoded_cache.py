"""Pictures that are read once and kept while a training lasts."""

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
from training.data import load
from training.data.decoded_cache import Kept, emptied, has_room, size_of, taken_away
from training.data.loader import Fitted, Item
from training.data.synthetic import draw
from training.train import train

WORDS = ["epochs=2", "batch=4", "workers=1", "crop=32,64", "encoder=tu-lcnet_035", "precision=f32", "tensorboard=false"]
RULE = InputRule(rule="fit", side=40)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    draw(tmp_path / "few", counts={"train": 6, "val": 2}, size=(48, 64))
    return tmp_path / "few"


def test_what_is_kept_is_what_was_read(few: Path, tmp_path: Path) -> None:
    samples, kept = load(few, "train"), Kept(emptied(tmp_path / "kept") / "train")
    plain, keeping = Fitted(samples, RULE), Fitted(samples, RULE, kept=kept)
    for place in range(len(samples)):
        assert kept.get(place) is None
        for _ in range(2):
            wanted, given = plain[Item(place, 0)], keeping[Item(place, 0)]
            np.testing.assert_array_equal(wanted.picture, given.picture)
            np.testing.assert_array_equal(wanted.labels, given.labels)
        assert kept.get(place) is not None
    assert sum(file.stat().st_size for file in kept.folder.iterdir()) == size_of([(48, 64)] * 6, RULE)


def test_a_kept_picture_is_not_decoded_again(few: Path, tmp_path: Path) -> None:
    samples = load(few, "train")
    keeping = Fitted(samples, RULE, kept=Kept(emptied(tmp_path / "kept") / "train"))
    before = keeping[Item(3, 0)].picture
    samples.pairs[3].image.unlink()
    np.testing.assert_array_equal(keeping[Item(3, 0)].picture, before)


def test_a_training_that_keeps_is_the_training_that_does_not(few: Path, tmp_path: Path) -> None:
    results = []
    for keep in ("true", "false"):
        out = tmp_path / keep
        config = load_config(None, [*WORDS, f"keep={keep}", "deterministic=true"])
        train(few, out, config, console=Console(quiet=True), log="quiet")
        results.append(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["network"])
        assert not (out / "pictures").exists()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[1])


def test_what_a_training_kept_goes_when_it_fails(tmp_path: Path) -> None:
    left = emptied(tmp_path / "pictures")
    (left / "train" / "7").write_bytes(b"of a killed training")
    assert not list((emptied(left) / "train").iterdir())
    with pytest.raises(RuntimeError), taken_away(left):
        raise RuntimeError
    assert not left.exists()


def test_a_folder_that_is_gone_or_full_costs_reading_anew(few: Path, tmp_path: Path) -> None:
    samples, folder = load(few, "train"), emptied(tmp_path / "kept") / "train"
    keeping = Fitted(samples, RULE, kept=Kept(folder))
    shutil.rmtree(folder)
    for _ in range(2):
        assert keeping[Item(0, 0)].picture.shape == (30, 40, 3)
    assert keeping.kept is not None
    assert keeping.kept.full


def test_a_small_disk_is_told_of_and_nothing_is_kept(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 0, 10))
    assert not has_room(tmp_path / "not" / "there", 6)
    assert has_room(tmp_path, 5)
    said, out = StringIO(), tmp_path / "run"
    config = load_config(None, [*WORDS, "keep=true", "epochs=1"])
    train(few, out, config, console=Console(file=said, width=200), log="quiet")
    assert "no room to keep" in said.getvalue()
    assert os.listdir(out / "checkpoints")
