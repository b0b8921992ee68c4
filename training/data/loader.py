"""Samples to batches: resized, augmented, in an order that depends only on the seed and the step.

Where shapes say H x W here, signals have T, and volumes D x H x W.

Training has no epochs here: one permutation of the images follows another, and a batch may span two. So every batch
is full, and the batch of step `n` is a function of (seed, n), wherever a run starts or resumes.
"""

import functools
import signal
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from models.errors import DataError, MaskserveError, first_line
from models.imaging.decode import Labels
from models.imaging.sandbox import enable_sandbox
from models.inference.geometry import (
    Image,
    canvas_size,
    network_input_size,
    resize_and_pad,
    resize_image,
    resize_labels,
)
from models.inference.windows import pad_values, padded_lengths
from models.sample import Statistics
from models.spec import IGNORE_INDEX, InputRule
from training.augment import (
    AugmentParams,
    AugmentPolicy,
    BatchedAugmentParams,
    cpu,
    crop_to_source_window,
    pad_and_stack,
)
from training.augment.axes import AxesPolicy
from training.augment.samples import augment_sample
from training.augment.user_transforms import UserTransforms
from training.config import TrainConfig
from training.data.dataset import SegmentationDataset
from training.data.decoded_cache import DecodedCache
from training.oom import is_out_of_memory

STRIDE = 32  # of the deepest feature map, in pixels
# Pixels, time steps or voxels along each axis: validation sees the center of larger samples; `maskserve evaluate` sees all of it.
MAX_VALIDATION_SIDE = {"HW": 1536, "T": 2**17, "DHW": 192}
ORDER_STREAM, AUGMENT_STREAM, TRANSFORM_STREAM = 0, 1, 2  # separate random streams of one seed


class Batch(NamedTuple):
    """Images N x H x W x C (of photographs, RGB uint8), labels uint8 N x H x W (255 is ignored), and the images' names."""

    images: Tensor
    labels: Tensor
    names: list[str]
    augment_params: BatchedAugmentParams | None = None  # to apply on the device, with `augment=gpu`
    statistics: Tensor | None = (
        None  # float32 N x 2 x C: shift and scale of the whole samples, for the scaling `zscore`
    )


class Sample(NamedTuple):
    """A worker's result: H x W x C, labels uint8 H x W, and the image's name."""

    image: Image
    labels: Labels
    name: str
    augment_params: AugmentParams | None = None  # to apply on the device, with `augment=gpu`
    statistics: Statistics | None = None  # float32 2 x C, of the whole sample


class SampleIndex(NamedTuple):
    """The key of a sample: the image's index in the split, and the sample's number in the training, which seeds it."""

    image_index: int
    sequence_number: int


class SampleFailure(NamedTuple):
    """A worker's error as text: an exception would arrive with the other process's traceback as its message."""

    message: str
    out_of_memory: bool = False


class TransformedDataset(Dataset[Any]):
    """One split, each image resized by the input rule; augmented if a policy is given."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        rule: InputRule,
        policy: AugmentPolicy | AxesPolicy | None = None,
        seed: int = 0,
        augment_on: str = "cpu",
        decoded_cache: DecodedCache | None = None,
        transforms: UserTransforms | None = None,
    ) -> None:
        """`augment_on`: "cpu" augments here; "gpu" only samples the parameters. `transforms` are applied before, here."""
        self.dataset = dataset
        self.rule = rule
        self.policy = policy
        self.seed = seed
        self.augment_on = augment_on
        self.decoded_cache = decoded_cache
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: SampleIndex) -> Sample | SampleFailure:
        """Load one image and its mask, ready to collate."""
        pair = self.dataset.pairs[item.image_index]
        try:
            return self._load_sample(item, pair.name)
        except MaskserveError as error:
            return SampleFailure(str(error))
        except Exception as error:  # a library's own error, which does not name the file
            message = f"{pair.image} or its mask {pair.mask}: {type(error).__name__}: {first_line(error)}"
            return SampleFailure(message, is_out_of_memory(error))

    def _load_sample(self, item: SampleIndex, name: str) -> Sample:
        image, labels, statistics = self._load_resized(item.image_index)
        if self.policy is None:
            center = center_crop(labels.shape, self.rule.axes)
            return Sample(np.array(image[center]), np.array(labels[center]), name, statistics=statistics)
        if isinstance(self.policy, AxesPolicy):
            random = np.random.default_rng((self.seed, AUGMENT_STREAM, item.sequence_number))
            augmented = self.policy.augment(image, labels, random, self.rule, statistics)
            return Sample(*augmented, name, statistics=statistics)
        if self.transforms:
            image, labels = self.transforms(image, labels, (self.seed, TRANSFORM_STREAM, item.sequence_number))
        generator = np.random.default_rng((self.seed, AUGMENT_STREAM, item.sequence_number))
        params = self.policy.sample_params((labels.shape[0], labels.shape[1]), labels, generator)
        if self.augment_on == "gpu":
            image, labels, params = crop_to_source_window(image, labels, params, self.policy.crop_size)
            return Sample(np.ascontiguousarray(image), np.ascontiguousarray(labels), name, params, statistics)
        crop = self.policy.crop_size
        if self.rule.is_photograph:
            return Sample(*cpu.augment_image(image, labels, params, crop), name)
        return Sample(*augment_sample(image, labels, params, crop, self.rule, statistics), name, statistics=statistics)

    def _load_resized(self, index: int) -> tuple[Image, Labels, Statistics | None]:
        """An image and its labels at the network's scale, and the statistics of the whole image for `zscore`."""
        if self.decoded_cache and (cached := self.decoded_cache.get(index)):
            return cached
        sample, labels = self.dataset.sample_and_labels(index)
        image = sample.values
        if self.rule.axes != "HW":
            if image.shape[:-1] != labels.shape:
                raise DataError(
                    f"{self.dataset.pairs[index].mask} has {format_lengths(labels.shape)} labels and its data "
                    f"{format_lengths(image.shape[:-1])}; they must be equal."
                )
            return image, labels, sample.statistics
        if image.shape[:2] != labels.shape:
            (rows, columns), (height, width) = labels.shape, image.shape[:2]
            raise DataError(
                f"{self.dataset.pairs[index].mask} is {columns} x {rows} and its image is {width} x {height}; they must be equal."
            )
        size = network_input_size(labels.shape, self.rule)
        image, labels = resize_image(image, size), resize_labels(labels, size)
        if self.decoded_cache:
            self.decoded_cache.put(index, image, labels, sample.statistics)
        return image, labels, sample.statistics


def center_crop(shape: tuple[int, ...], axes: str) -> tuple[slice, ...]:
    """The part of an image H x W that validation sees: the center of a large one, because it is not tiled here."""
    longest = MAX_VALIDATION_SIDE[axes]
    starts = (max(0, (length - longest) // 2) for length in shape)
    return tuple(slice(start, start + longest) for start in starts)


def format_lengths(lengths: tuple[int, ...]) -> str:
    """Such as "35 x 51 x 35"."""
    return " x ".join(map(str, lengths))


class StepSampler(Sampler[list[SampleIndex]]):
    """Yields the batches from `start` to before `stop`, or without end; each process takes its part of each."""

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
        """`batch_size`: of all `world_size` processes together."""
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
        """The index of the image of sample `number` of the training."""
        epoch, index = divmod(number, self.dataset_size)
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, ORDER_STREAM, epoch)).permutation(self.dataset_size)
        return int(self._order[index])


def build_train_loader(
    dataset: SegmentationDataset,
    rule: InputRule,
    crop: tuple[int, ...],
    config: TrainConfig,
    augment_on: str = "cpu",
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    cache_folder: Path | None = None,
) -> DataLoader[Batch]:
    """Batches without end, from batch number `start`; augmented, or with the parameters to do so on the device.

    `crop`: one length per axis, (height, width); `shard`: (rank, number of processes); `cache_folder`: for decoded images.
    """
    return _build_loader(
        TransformedDataset(
            dataset,
            rule,
            AugmentPolicy(config, (crop[0], crop[1])) if rule.axes == "HW" else AxesPolicy(config, crop),
            config.seed,
            augment_on,
            DecodedCache(cache_folder / "train", rule) if cache_folder else None,
            UserTransforms(config.transforms, rule) if config.transforms else None,
        ),
        config,
        StepSampler(len(dataset), config.batch, config.seed, start, rank=shard[0], world_size=shard[1]),
        functools.partial(collate, crop=crop),
    )


def build_val_loader(
    dataset: SegmentationDataset,
    rule: InputRule,
    config: TrainConfig,
    shard: tuple[int, int] = (0, 1),
    cache_folder: Path | None = None,
) -> DataLoader[list[Batch]]:
    """Images in order, of large ones the center, padded as for the service; each process reads every `shard[1]`-th.

    Each item is a list of batches, one per size of the padded images.
    """
    rank, world_size = shard
    indices = [SampleIndex(index, index) for index in range(rank, len(dataset), world_size)]
    size = max(1, config.batch // world_size)
    return _build_loader(
        TransformedDataset(
            dataset, rule, decoded_cache=DecodedCache(cache_folder / "val", rule) if cache_folder else None
        ),
        config,
        [indices[start : start + size] for start in range(0, len(indices), size)],
        functools.partial(collate_by_size, rule=rule),
    )


def _build_loader(
    dataset: TransformedDataset,
    config: TrainConfig,
    batch_sampler: Iterable[list[SampleIndex]],
    collate_fn: Callable[[list[Sample | SampleFailure]], Batch | list[Batch] | SampleFailure],
) -> DataLoader[Any]:
    with suppress_worker_warning():
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate_fn,
            num_workers=config.workers,
            worker_init_fn=functools.partial(start_worker, sandbox=config.sandbox),
            # Only with a GPU: in a training on the CPU, pinning would create a CUDA context.
            pin_memory=config.device != "cpu" and torch.cuda.is_available(),
        )


@contextmanager
def suppress_worker_warning() -> Iterator[None]:
    """Silence torch's warning about more workers than cores: on small machines that is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def start_worker(worker: int, sandbox: bool) -> None:
    """Let a worker read on for the last step: Ctrl-C, torchrun and schedulers signal every process of the group.

    A worker ends with its loader, or when the training process is gone.
    """
    if sandbox:  # of a worker that was not forked
        enable_sandbox()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def collate(items: list[Sample | SampleFailure], crop: tuple[int, ...]) -> Batch | SampleFailure:
    """Stack samples to a batch; returns the first failure if there is one. `crop`: (height, width) for the parameters."""
    samples, failures = _separate_failures(items)
    if failures:
        return failures[0]
    names = [sample.name for sample in samples]
    unaugmented = [(one.image, one.labels, one.augment_params) for one in samples if one.augment_params is not None]
    if unaugmented:
        images, labels, params = pad_and_stack(unaugmented, (crop[0], crop[1]))
        return Batch(images, labels, names, params, _stack_statistics([sample.statistics for sample in samples]))
    return _stack(samples)


def collate_by_size(items: list[Sample | SampleFailure], rule: InputRule) -> list[Batch] | SampleFailure:
    """Pad samples as the Segmenter does, masks by 255, and stack those of equal size; returns the first failure, if any.

    One batch of all sizes would pad most images more than evaluation and service do.
    """
    samples, failures = _separate_failures(items)
    if failures:
        return failures[0]
    batches: defaultdict[tuple[int, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        if rule.axes == "HW":
            size = sample.labels.shape[0], sample.labels.shape[1]
            padded: tuple[int, ...] = canvas_size(size, rule)
            image = resize_and_pad(sample.image, size, canvas_size(size, rule))
        else:
            padded = padded_lengths(sample.labels.shape, rule)
            image = pad_values(sample.image, padded)
        labels = np.full(padded, IGNORE_INDEX, np.uint8)
        labels[tuple(map(slice, sample.labels.shape))] = sample.labels
        batches[padded].append(Sample(image, labels, sample.name, statistics=sample.statistics))
    return [_stack(batch) for batch in batches.values()]


def _stack(samples: list[Sample]) -> Batch:
    return Batch(
        torch.from_numpy(np.stack([sample.image for sample in samples])),
        torch.from_numpy(np.stack([sample.labels for sample in samples])),
        [sample.name for sample in samples],
        statistics=_stack_statistics([sample.statistics for sample in samples]),
    )


def _stack_statistics(found: list[Statistics | None]) -> Tensor | None:
    """float32 N x 2 x C; None without statistics."""
    return None if found[0] is None else torch.from_numpy(np.stack([each for each in found if each is not None]))


def _separate_failures(items: list[Sample | SampleFailure]) -> tuple[list[Sample], list[SampleFailure]]:
    samples = [item for item in items if isinstance(item, Sample)]
    return samples, [item for item in items if isinstance(item, SampleFailure)]


def iterate_batches(loader: DataLoader[Batch] | DataLoader[list[Batch]]) -> Generator[Batch]:
    """The loader's batches, those of its lists in turn; closing the generator ends the worker processes.

    Raises: DataError that names the file that a worker failed to read; MemoryError.
    """
    with suppress_worker_warning():
        batches = iter(loader)
    try:
        for item in batches:
            if isinstance(item, SampleFailure):
                raise MemoryError(item.message) if item.out_of_memory else DataError(item.message)
            yield from item if isinstance(item, list) else [item]
    finally:
        _end_workers(batches)
        del batches


def _end_workers(batches: Any) -> None:
    """End the worker processes of an iterator, also if a second Ctrl-C interrupts that.

    Python's exit would wait forever for workers that were not told to end, because they ignore signals.
    """
    workers = list(getattr(batches, "_workers", ()))
    try:
        if workers:
            batches._shutdown_workers()  # not by `del`, where Python prints a KeyboardInterrupt and continues
    finally:
        if any(worker.is_alive() for worker in workers):
            if batches._worker_pids_set:  # otherwise torch reports a killed worker as an error
                torch._C._remove_worker_pids(id(batches))
                batches._worker_pids_set = False
            for worker in workers:
                worker.kill()
