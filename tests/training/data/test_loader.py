import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.errors import DataError
from models.spec import VOID, InputRule
from training import augment
from training.config import TrainConfig
from training.data import load
from training.data.dataset import Samples
from training.data.loader import (
    LOOK,
    Fitted,
    Item,
    Sample,
    Steps,
    middle,
    opened,
    pad_together,
    training_batches,
    validation_batches,
)
from training.data.synthetic import draw
from training.engine.runtime import named

RULE, CROP = InputRule(rule="native"), (32, 48)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    draw(tmp_path / "few", counts={"train": 6, "val": 3}, size=(48, 64))
    return tmp_path / "few"


@pytest.fixture
def samples(few: Path) -> Samples:
    return load(few, "train")


def test_each_picture_comes_once_before_any_comes_twice() -> None:
    numbers = [item for batch in Steps(10, 4, seed=1, stop=10) for item in batch]
    assert [item.number for item in numbers] == list(range(40))
    places = [item.place for item in numbers]
    assert all(sorted(places[start : start + 10]) == list(range(10)) for start in range(0, 40, 10))
    assert places[:10] != places[10:20]


def test_what_a_step_sees_depends_on_the_seed_and_the_step_alone() -> None:
    whole = list(Steps(7, 4, seed=1, stop=9))
    for start in range(9):
        assert list(Steps(7, 4, seed=1, start=start, stop=9)) == whole[start:]
    assert list(Steps(7, 4, seed=2, stop=9)) != whole


def test_every_batch_is_full_and_of_more_than_one() -> None:
    """pytorch-semseg #214: a last batch of one breaks batch norm."""
    assert {len(batch) for batch in Steps(9, 4, seed=0, stop=50)} == {4}
    assert {len(batch) for batch in Steps(1, 4, seed=0, stop=5)} == {4}


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_resume_anywhere(samples: Samples, where: str, workers: int) -> None:
    config = TrainConfig(batch=4, workers=workers, rotate=10, blur=1, noise=5, elastic=0.05)

    def some(start: int, count: int) -> list[torch.Tensor]:
        stream, found = opened(training_batches(samples, RULE, CROP, config, where, start)), []
        for _ in range(count):
            batch = next(stream)
            found.append(batch.pictures)
            assert len(batch.names) == 4
            assert (batch.draws is not None) == (where == "gpu")
            if batch.draws is not None:
                found.append(augment.batched.apply(batch.pictures, batch.labels, batch.draws, CROP)[0])
        stream.close()
        return found

    whole, later = some(0, 4), some(2, 2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(later, whole[-len(later) :], strict=True))


def test_by_the_batch_it_is_what_a_worker_would_have_made(samples: Samples) -> None:
    config = TrainConfig(batch=6, workers=0, rotate=20, colour=0)
    (there,), (here,) = (
        [next(opened(training_batches(samples, RULE, CROP, config, where)))] for where in ("gpu", "cpu")
    )
    pictures, labels = augment.batched.apply(there.pictures, there.labels, there.draws, CROP)
    assert there.names == here.names
    assert (labels == here.labels).float().mean() > 0.999
    assert (pictures.int() - here.pictures.int()).abs().max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_names_the_file_in_one_line(few: Path, workers: int) -> None:
    """nnU-Net #2659: a worker's true error was hidden."""
    samples = load(few, "train")
    samples.pairs[3].image.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match=r"train_0003.jpg") as caught:
        for _, batch in zip(
            range(3), opened(training_batches(samples, RULE, CROP, TrainConfig(workers=workers))), strict=False
        ):
            assert batch.names
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_an_error_of_a_library_names_the_file_too(samples: Samples) -> None:
    class Faulty(Samples):
        def labels(self, index: int) -> np.ndarray:
            raise ZeroDivisionError("deep inside")

    faulty = Faulty(samples.pairs, samples.classes)
    with pytest.raises(DataError, match=r"train_000\d.jpg or its mask .*ZeroDivisionError: deep inside"):
        next(opened(training_batches(faulty, RULE, CROP, TrainConfig(workers=0))))


def test_a_mask_that_changed_its_size_since_the_lint_is_named(samples: Samples) -> None:
    Image.new("L", (5, 5)).save(samples.pairs[2].mask)
    with pytest.raises(DataError, match=r"train_0002.png has not the size"):
        list(opened(validation_batches(samples, RULE, TrainConfig(workers=0))))


class Deadly(Samples):
    """Its pictures kill the process that reads them, as a system that is short of memory does."""

    def picture(self, index: int) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_was_killed_is_a_sentence(samples: Samples) -> None:
    deadly = Deadly(samples.pairs, samples.classes)
    config = TrainConfig(workers=1)
    with pytest.raises(DataError, match=r"ended from outside .*set workers=1 or 0"), named(config, CROP):
        next(opened(training_batches(deadly, RULE, CROP, config)))


def test_each_device_validates_its_share(samples: Samples) -> None:
    parts = [
        [
            name
            for batch in opened(validation_batches(samples, RULE, TrainConfig(workers=0), rank, 4))
            for name in batch.names
        ]
        for rank in range(4)
    ]
    assert sorted(sum(parts, [])) == sorted(pair.name for pair in samples.pairs)  # noqa: RUF017 # four short lists
    assert [len(part) for part in parts] == [2, 2, 1, 1]


def test_validation_pads_with_void_to_the_stride() -> None:
    """smp #146: a size that the stride does not divide."""
    items = [
        Sample(np.full((h, w, 3), 9, np.uint8), np.ones((h, w), np.uint8), str(h)) for h, w in ((33, 50), (20, 70))
    ]
    batch = pad_together(list(items))
    assert batch.pictures.shape == (2, 64, 96, 3)
    assert (batch.labels[0, :33, :50] == 1).all()
    assert (batch.labels == VOID).sum() == 2 * 64 * 96 - 33 * 50 - 20 * 70
    assert (batch.pictures == 9).all()


def test_a_picture_without_a_policy_is_as_it_is(samples: Samples) -> None:
    sample = Fitted(samples, RULE)[Item(2, 0)]
    assert isinstance(sample, Sample)
    assert (sample.picture == samples.picture(2)).all()
    assert (sample.labels == samples.labels(2)).all()


def test_a_validation_looks_at_the_middle_of_a_large_picture() -> None:
    assert middle((300, 200)) == (slice(0, LOOK), slice(0, LOOK))
    rows, columns = middle((LOOK + 10, 3 * LOOK))
    assert (rows.start, columns.start) == (5, LOOK)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (LOOK, LOOK)
