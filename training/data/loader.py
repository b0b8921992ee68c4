"""Samples to batches: fitted, augmented, in an order that depends on the seed and the step alone.

Training knows no epochs here: one permutation of the images follows another, and a batch may span two. So every batch
is full, and what the step `n` sees is a function of (seed, n), from wherever a run begins or is resumed.
"""

import functools
import signal
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from models.errors import DataError, MaskserveError, first_line
from models.imaging.decode import RGB, Labels
from models.inference.geometry import network_input_size, resize_image, resize_labels
from models.spec import IGNORE_INDEX, InputRule
from training.augment import (
    AugmentParams,
    AugmentPolicy,
    BatchedAugmentParams,
    cpu,
    crop_to_source_window,
    pad_and_stack,
)
from training.config import TrainConfig
from training.data.dataset import SegmentationDataset
from training.data.decoded_cache import DecodedCache
from training.oom import is_out_of_memory

STRIDE = 32  # the deepest feature map's; a validation batch is padded to its multiple
MAX_VALIDATION_SIDE = (
    1536  # pixels, the longest side of what a validation sees; `maskserve evaluate` sees all, by tiles
)
ORDER_STREAM, AUGMENT_STREAM = 0, 1  # what a seed is for: the two draw from streams of their own


class Batch(NamedTuple):
    """Images uint8 N x H x W x 3 RGB and labels uint8 N x H x W, 255 is void; whose they are, by name."""

    images: Tensor
    labels: Tensor
    names: list[str]
    augment_params: BatchedAugmentParams | None = (
        None  # of what is still to be augmented, where that is done by the batch
    )


class Sample(NamedTuple):
    """What a worker hands over: RGB uint8 H x W x 3, labels uint8 H x W, the name; and the draw, if it is still to be laid on."""

    image: RGB
    labels: Labels
    name: str
    augment_params: AugmentParams | None = None


class SampleIndex(NamedTuple):
    """What a worker is asked for: an image's place in the split, and its number in the training, which seeds its draw."""

    image_index: int
    sequence_number: int


class SampleFailure(NamedTuple):
    """An error in a worker, as text: raised there, it would arrive as a page of another process's traceback."""

    message: str
    out_of_memory: bool = False


class TransformedDataset(Dataset[Any]):
    """One split, each image at the scale that the network sees; augmented where a policy is given."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        rule: InputRule,
        policy: AugmentPolicy | None = None,
        seed: int = 0,
        augment_on: str = "cpu",
        decoded_cache: DecodedCache | None = None,
    ) -> None:
        """`where`: "cpu" to augment here, "gpu" to draw here what will be done by the batch; `kept`: to read an image once."""
        self.dataset = dataset
        self.rule = rule
        self.policy = policy
        self.seed = seed
        self.augment_on = augment_on
        self.decoded_cache = decoded_cache

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: SampleIndex) -> Sample | SampleFailure:
        """One image, ready for its batch."""
        pair = self.dataset.pairs[item.image_index]
        try:
            return self._load_sample(item, pair.name)
        except MaskserveError as error:
            return SampleFailure(str(error))
        except Exception as error:  # a library's own, which would not say for which of ten thousand files
            sentence = f"{pair.image} or its mask {pair.mask}: {type(error).__name__}: {first_line(error)}"
            return SampleFailure(sentence, is_out_of_memory(error))

    def _load_sample(self, item: SampleIndex, name: str) -> Sample:
        image, labels = self._load_resized(item.image_index)
        if self.policy is None:
            look = center_crop(labels.shape)
            return Sample(np.array(image[look]), np.array(labels[look]), name)
        draw = self.policy.sample_params(
            (labels.shape[0], labels.shape[1]),
            labels,
            np.random.default_rng((self.seed, AUGMENT_STREAM, item.sequence_number)),
        )
        if self.augment_on == "gpu":
            window, mask, draw = crop_to_source_window(image, labels, draw, self.policy.crop_size)
            return Sample(np.ascontiguousarray(window), np.ascontiguousarray(mask), name, draw)
        return Sample(*cpu.augment_image(image, labels, draw, self.policy.crop_size), name)

    def _load_resized(self, place: int) -> tuple[RGB, Labels]:
        """An image and its labels at the network's scale."""
        if self.decoded_cache and (kept := self.decoded_cache.get(place)):
            return kept
        image, labels = self.dataset.image(place), self.dataset.labels(place)
        if image.shape[:2] != labels.shape:
            raise DataError(f"{self.dataset.pairs[place].mask} has not the size of its image.")
        size = network_input_size(labels.shape, self.rule)
        image, labels = resize_image(image, size), resize_labels(labels, size)
        if self.decoded_cache:
            self.decoded_cache.put(place, image, labels)
        return image, labels


def center_crop(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """What a validation looks at of an image H x W: a large one's middle, since it goes through the network in one piece."""
    starts = [max(0, (length - MAX_VALIDATION_SIDE) // 2) for length in shape]
    return slice(starts[0], starts[0] + MAX_VALIDATION_SIDE), slice(starts[1], starts[1] + MAX_VALIDATION_SIDE)


class StepSampler(Sampler[list[SampleIndex]]):
    """The batches of the steps from `start` to before `stop`, or without end; each device takes its part of each."""

    def __init__(
        self,
        dataset_size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`length`: images in the split; `batch`: images at a time, over all `world` devices."""
        self.dataset_size, self.batch_size, self.seed = dataset_size, batch_size, seed
        self.start, self.stop = start, stop
        self.rank, self.world_size = rank, world_size
        self._epoch, self._order = -1, np.arange(dataset_size)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        step = self.start
        while self.stop is None or step < self.stop:
            numbers = range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size)
            yield [SampleIndex(self._image_index(number), number) for number in numbers]
            step += 1

    def _image_index(self, number: int) -> int:
        """Which image comes as the `number`-th of the whole training."""
        epoch, index = divmod(number, self.dataset_size)
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, ORDER_STREAM, epoch)).permutation(self.dataset_size)
        return int(self._order[index])


def build_train_loader(
    samples: SegmentationDataset, rule: InputRule, crop: tuple[int, int], config: TrainConfig, augment_on: str = "cpu",
    start: int = 0, rank: int = 0, world_size: int = 1, cache_folder: Path | None = None,
) -> DataLoader[Batch]:  # fmt: skip
    """Batches without end, from the batch number `start`: augmented, or with the draws to do it by (`where`, as in Fitted).

    kept: a folder to keep images in (`kept.py`).
    """
    return _build_loader(
        TransformedDataset(
            samples,
            rule,
            AugmentPolicy(config, crop),
            config.seed,
            augment_on,
            DecodedCache(cache_folder / "train") if cache_folder else None,
        ),
        config,
        batch_sampler=StepSampler(len(samples), config.batch, config.seed, start, rank=rank, world_size=world_size),
        collate_fn=functools.partial(collate, crop=crop),
    )


def build_val_loader(
    samples: SegmentationDataset,
    rule: InputRule,
    config: TrainConfig,
    rank: int = 0,
    world_size: int = 1,
    cache_folder: Path | None = None,
) -> DataLoader[Batch]:
    """Images in order, of large ones the middle, padded with void to a common size; each device takes every `world`-th."""
    mine = [SampleIndex(place, place) for place in range(rank, len(samples), world_size)]
    size = max(1, config.batch // world_size)
    return _build_loader(
        TransformedDataset(samples, rule, decoded_cache=DecodedCache(cache_folder / "val") if cache_folder else None),
        config,
        batch_sampler=[mine[start : start + size] for start in range(0, len(mine), size)],
        collate_fn=pad_and_collate,
    )


def _build_loader(data: TransformedDataset, config: TrainConfig, **how: Any) -> DataLoader[Batch]:
    with suppress_worker_warning():
        return DataLoader(
            data,
            num_workers=config.workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=use_pinned_memory(config),
            **how,
        )


def use_pinned_memory(config: TrainConfig) -> bool:
    """Whether batches lie in memory that a GPU copies from by itself; asking for it costs a training on the CPU a context."""
    return config.device != "cpu" and torch.cuda.is_available()


@contextmanager
def suppress_worker_warning() -> Iterator[None]:
    """Few cores on purpose: torch's own threads compute while the workers read. Torch warns of it when it counts them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def ignore_stop_signals(worker: int) -> None:
    """A stop is told to every process of a group (Ctrl-C, torchrun, a scheduler): a worker reads on for the last step.

    It ends with its loader, or when the training's process is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def collate(items: list[Sample | SampleFailure], crop: tuple[int, int]) -> Batch | SampleFailure:
    """A batch of items; a failure among them is the batch. `crop` is (height, width) of what is still to be augmented."""
    good, failures = _separate_failures(items)
    if failures:
        return failures[0]
    names = [item.name for item in good]
    drawn = [(item.image, item.labels, item.augment_params) for item in good if item.augment_params is not None]
    if drawn:
        images, labels, draws = pad_and_stack(drawn, crop)
        return Batch(images, labels, names, draws)
    return Batch(
        torch.from_numpy(np.stack([item.image for item in good])),
        torch.from_numpy(np.stack([item.labels for item in good])),
        names,
    )


def pad_and_collate(items: list[Sample | SampleFailure]) -> Batch | SampleFailure:
    """Repeat each image's last row and column up to the largest height and width, rounded up to the stride."""
    good, failures = _separate_failures(items)
    if failures:
        return failures[0]
    height, width = (max(item.labels.shape[axis] for item in good) for axis in (0, 1))
    height, width = height + -height % STRIDE, width + -width % STRIDE
    padded: list[Sample | SampleFailure] = []
    for item in good:
        margins = ((0, height - item.labels.shape[0]), (0, width - item.labels.shape[1]))
        image = np.pad(item.image, (*margins, (0, 0)), mode="edge")
        padded.append(Sample(image, np.pad(item.labels, margins, constant_values=IGNORE_INDEX), item.name))
    return collate(padded, (height, width))


def _separate_failures(items: list[Sample | SampleFailure]) -> tuple[list[Sample], list[SampleFailure]]:
    good = [item for item in items if isinstance(item, Sample)]
    return good, [item for item in items if isinstance(item, SampleFailure)]


def iterate_batches(loader: DataLoader[Batch]) -> Generator[Batch]:
    """The loader's batches; close it, and its processes end.

    Raises: DataError with the name of the file that a worker could not read; MemoryError.
    """
    with suppress_worker_warning():
        batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, SampleFailure):
                raise MemoryError(batch.message) if batch.out_of_memory else DataError(batch.message)
            yield batch
    finally:
        del batches  # its processes end with it, also where an error keeps this frame
