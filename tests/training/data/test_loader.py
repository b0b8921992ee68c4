import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from models.errors import DataError
from models.inference.segmenter import Segmenter
from models.spec import IGNORE_INDEX, InputRule
from tests.fixtures_bundles import synthetic_image
from training import augment
from training.config import TrainConfig
from training.data import load_split
from training.data.dataset import SegmentationDataset
from training.data.loader import (
    MAX_VALIDATION_SIDE,
    Sample,
    SampleIndex,
    StepSampler,
    TransformedDataset,
    build_train_loader,
    build_val_loader,
    center_crop,
    collate_by_size,
    iterate_batches,
)
from training.data.synthetic import generate_dataset
from training.engine.runtime import translate_errors

RULE, CROP = InputRule(rule="native"), (32, 48)


@pytest.fixture
def small_dataset(tmp_path: Path) -> Path:
    generate_dataset(tmp_path / "few", counts={"train": 6, "val": 3}, size=(48, 64))
    return tmp_path / "few"


@pytest.fixture
def samples(small_dataset: Path) -> SegmentationDataset:
    return load_split(small_dataset, "train")


def test_each_image_comes_once_before_any_comes_twice() -> None:
    items = [item for batch in StepSampler(10, 4, seed=1, stop=10) for item in batch]
    assert [item.sequence_number for item in items] == list(range(40))
    indices = [item.image_index for item in items]
    assert all(sorted(indices[start : start + 10]) == list(range(10)) for start in range(0, 40, 10))
    assert indices[:10] != indices[10:20]


def test_batch_of_a_step_depends_only_on_seed_and_step() -> None:
    whole = list(StepSampler(7, 4, seed=1, stop=9))
    for start in range(9):
        assert list(StepSampler(7, 4, seed=1, start=start, stop=9)) == whole[start:]
    assert list(StepSampler(7, 4, seed=2, stop=9)) != whole


def test_every_batch_is_full() -> None:
    """pytorch-semseg #214: a last batch of one breaks batch norm."""
    assert {len(batch) for batch in StepSampler(9, 4, seed=0, stop=50)} == {4}
    assert {len(batch) for batch in StepSampler(1, 4, seed=0, stop=5)} == {4}


@pytest.mark.parametrize("augment_on", ["cpu", "gpu"])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_resume_anywhere(samples: SegmentationDataset, augment_on: str, workers: int) -> None:
    config = TrainConfig(batch=4, workers=workers, rotate=10, blur=1, noise=5, elastic=0.05)

    def read_images(start: int, count: int) -> list[torch.Tensor]:
        stream, found = iterate_batches(build_train_loader(samples, RULE, CROP, config, augment_on, start)), []
        for _ in range(count):
            batch = next(stream)
            found.append(batch.images)
            assert len(batch.names) == 4
            assert (batch.augment_params is not None) == (augment_on == "gpu")
            if batch.augment_params is not None:
                found.append(augment.batched.augment_batch(batch.images, batch.labels, batch.augment_params, CROP)[0])
        stream.close()
        return found

    whole, later = read_images(0, 4), read_images(2, 2)
    assert all(torch.equal(one, other) for one, other in zip(later, whole[-len(later) :], strict=True))


def test_image_is_augmented_differently_in_each_epoch(samples: SegmentationDataset) -> None:
    """By the product's augmentations, and by the user's transforms alone."""
    gamma = TrainConfig(transforms=[{"name": "RandomGamma", "p": 1.0}], scale=(1, 1), flip=0, color_jitter=0)
    for config, crop in ((TrainConfig(), CROP), (gamma, (48, 64))):
        dataset = build_train_loader(samples, RULE, crop, config).dataset
        first, again, next_epoch = (dataset[SampleIndex(2, number)].image for number in (2, 2, 8))
        assert (first == again).all()
        assert (first != next_epoch).any()


def test_second_ctrl_c_while_the_workers_end_leaves_none(
    samples: SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers ignore signals: one that was not told to end would keep Python's exit waiting forever."""

    def interrupt(iterator: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    batches = iterate_batches(build_train_loader(samples, RULE, CROP, TrainConfig(batch=2, workers=2)))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    iterator = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(iterator, "_shutdown_workers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        batches.close()
    for worker in workers:
        worker.join(timeout=10)
        assert not worker.is_alive()


def test_augmentation_on_the_device_equals_that_in_a_worker(samples: SegmentationDataset) -> None:
    config = TrainConfig(batch=6, workers=0, rotate=20, color_jitter=0)
    raw, expected = (
        next(iterate_batches(build_train_loader(samples, RULE, CROP, config, device))) for device in ("gpu", "cpu")
    )
    assert raw.augment_params is not None
    images, labels = augment.batched.augment_batch(raw.images, raw.labels, raw.augment_params, CROP)
    assert raw.names == expected.names
    assert (labels == expected.labels).float().mean() > 0.999
    assert (images.int() - expected.images.int()).abs().max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_error_in_a_worker_names_the_file_in_one_line(small_dataset: Path, workers: int) -> None:
    """nnU-Net #2659: the cause in a worker was hidden."""
    samples = load_split(small_dataset, "train")
    samples.pairs[3].image.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match=r"train_0003.jpg") as caught:
        for _, batch in zip(
            range(3),
            iterate_batches(build_train_loader(samples, RULE, CROP, TrainConfig(workers=workers))),
            strict=False,
        ):
            assert batch.names
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_error_of_a_library_names_the_file(samples: SegmentationDataset) -> None:
    class Faulty(SegmentationDataset):
        def labels(self, index: int) -> np.ndarray:
            raise ZeroDivisionError("deep inside")

    faulty = Faulty(samples.pairs, samples.classes)
    with pytest.raises(DataError, match=r"train_000\d.jpg or its mask .*ZeroDivisionError: deep inside"):
        next(iterate_batches(build_train_loader(faulty, RULE, CROP, TrainConfig(workers=0))))


def test_mask_of_another_size_is_named(samples: SegmentationDataset) -> None:
    Image.new("L", (5, 5)).save(samples.pairs[2].mask)
    with pytest.raises(DataError, match=r"train_0002.png is 5 x 5 and its image is 64 x 48"):
        list(iterate_batches(build_val_loader(samples, RULE, TrainConfig(workers=0))))


class CrashingSamples(SegmentationDataset):
    """Kills the process that reads an image, as a system without memory does."""

    def sample(self, index: int) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_killed_worker_is_reported(samples: SegmentationDataset) -> None:
    crashing = CrashingSamples(samples.pairs, samples.classes)
    config = TrainConfig(workers=1)
    with pytest.raises(DataError, match=r"was killed .*set workers=1 or workers=0"), translate_errors(config, CROP):
        next(iterate_batches(build_train_loader(crashing, RULE, CROP, config)))


def test_each_process_validates_its_part(samples: SegmentationDataset) -> None:
    parts = [
        [
            name
            for batch in iterate_batches(build_val_loader(samples, RULE, TrainConfig(workers=0), (rank, 4)))
            for name in batch.names
        ]
        for rank in range(4)
    ]
    assert sorted(sum(parts, [])) == sorted(pair.name for pair in samples.pairs)  # noqa: RUF017 # four short lists
    assert [len(part) for part in parts] == [2, 2, 1, 1]


def test_validation_pads_each_image_as_the_segmenter_does() -> None:
    """smp #146: a size that is not a multiple of the stride."""
    sizes = [(33, 50), (20, 70), (64, 64)]
    items = [Sample(synthetic_image(h, w), np.ones((h, w), np.uint8), str(h)) for h, w in sizes]
    batches = collate_by_size(list(items), InputRule(rule="native"))
    assert isinstance(batches, list)
    assert [(batch.names, batch.images.shape) for batch in batches] == [
        (["33", "64"], (2, 64, 64, 3)), (["20"], (1, 32, 96, 3)),
    ]  # fmt: skip
    inputs: list[np.ndarray] = []

    def run(images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, None]:
        inputs.append(images[0])
        return images[..., 0], None

    for item in items:
        Segmenter(run, InputRule(rule="native")).segment(item.image)
    for image, served in zip((batches[0].images[0], batches[1].images[0], batches[0].images[1]), inputs, strict=True):
        np.testing.assert_array_equal(image, served)
    assert (batches[0].labels[0, :33, :50] == 1).all()
    assert (batches[0].labels == IGNORE_INDEX).sum() == 64 * 64 - 33 * 50


def test_image_without_a_policy_is_unchanged(samples: SegmentationDataset) -> None:
    sample = TransformedDataset(samples, RULE)[SampleIndex(2, 0)]
    assert isinstance(sample, Sample)
    assert (sample.image == samples.image(2)).all()
    assert (sample.labels == samples.labels(2)).all()


def test_validation_uses_the_center_of_a_large_image() -> None:
    longest = MAX_VALIDATION_SIDE["HW"]
    assert center_crop((300, 200), "HW") == (slice(0, longest), slice(0, longest))
    rows, columns = center_crop((longest + 10, 3 * longest), "HW")
    assert (rows.start, columns.start) == (5, longest)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (longest, longest)
