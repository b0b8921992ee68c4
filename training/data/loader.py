"""Samples to batches: fitted, augmented, in an order that depends on the seed and the step alone.

Training knows no epochs here: one permutation of the pictures follows another, and a batch may span two. So every batch
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
from models.inference.geometry import fitted_size, resize_labels, resize_picture
from models.spec import VOID, InputRule
from training.augment import Draw, Draws, Policy, collate, cpu, cut
from training.config import TrainConfig
from training.data.dataset import Samples
from training.data.decoded_cache import Kept
from training.engine.runtime import is_out_of_memory

STRIDE = 32  # the deepest feature map's; a validation batch is padded to its multiple
LOOK = 1536  # pixels, the longest side of what a validation sees; `maskserve evaluate` sees all, by tiles
ORDER, DRAW = 0, 1  # what a seed is for: the two draw from streams of their own


class Batch(NamedTuple):
    """Pictures uint8 N x H x W x 3 RGB and labels uint8 N x H x W, 255 is void; whose they are, by name."""

    pictures: Tensor
    labels: Tensor
    names: list[str]
    draws: Draws | None = None  # of what is still to be augmented, where that is done by the batch


class Sample(NamedTuple):
    """What a worker hands over: RGB uint8 H x W x 3, labels uint8 H x W, the name; and the draw, if it is still to be laid on."""

    picture: RGB
    labels: Labels
    name: str
    draw: Draw | None = None


class Item(NamedTuple):
    """What a worker is asked for: a picture's place in the split, and its number in the training, which seeds its draw."""

    place: int
    number: int


class Failure(NamedTuple):
    """An error in a worker, as text: raised there, it would arrive as a page of another process's traceback."""

    sentence: str
    out_of_memory: bool = False


class Fitted(Dataset[Any]):
    """One split, each picture at the scale that the network sees; augmented where a policy is given."""

    def __init__(
        self,
        samples: Samples,
        rule: InputRule,
        policy: Policy | None = None,
        seed: int = 0,
        where: str = "cpu",
        kept: Kept | None = None,
    ) -> None:
        """`where`: "cpu" to augment here, "gpu" to draw here what will be done by the batch; `kept`: to read a picture once."""
        self.samples = samples
        self.rule = rule
        self.policy = policy
        self.seed = seed
        self.where = where
        self.kept = kept

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: Item) -> Sample | Failure:
        """One picture, ready for its batch."""
        pair = self.samples.pairs[item.place]
        try:
            return self._read(item, pair.name)
        except MaskserveError as error:
            return Failure(str(error))
        except Exception as error:  # a library's own, which would not say for which of ten thousand files
            sentence = f"{pair.image} or its mask {pair.mask}: {type(error).__name__}: {first_line(error)}"
            return Failure(sentence, is_out_of_memory(error))

    def _read(self, item: Item, name: str) -> Sample:
        picture, labels = self._fitted(item.place)
        if self.policy is None:
            look = middle(labels.shape)
            return Sample(np.array(picture[look]), np.array(labels[look]), name)
        draw = self.policy.draw(
            (labels.shape[0], labels.shape[1]), labels, np.random.default_rng((self.seed, DRAW, item.number))
        )
        if self.where == "gpu":
            window, mask, draw = cut(picture, labels, draw, self.policy.crop)
            return Sample(np.ascontiguousarray(window), np.ascontiguousarray(mask), name, draw)
        return Sample(*cpu.apply(picture, labels, draw, self.policy.crop), name)

    def _fitted(self, place: int) -> tuple[RGB, Labels]:
        """A picture and its labels at the network's scale."""
        if self.kept and (kept := self.kept.get(place)):
            return kept
        picture, labels = self.samples.picture(place), self.samples.labels(place)
        if picture.shape[:2] != labels.shape:
            raise DataError(f"{self.samples.pairs[place].mask} has not the size of its picture.")
        size = fitted_size(labels.shape, self.rule)
        picture, labels = resize_picture(picture, size), resize_labels(labels, size)
        if self.kept:
            self.kept.put(place, picture, labels)
        return picture, labels


def middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """What a validation looks at of a picture H x W: a large one's middle, since it goes through the network in one piece."""
    starts = [max(0, (length - LOOK) // 2) for length in shape]
    return slice(starts[0], starts[0] + LOOK), slice(starts[1], starts[1] + LOOK)


class Steps(Sampler[list[Item]]):
    """The batches of the steps from `start` to before `stop`, or without end; each device takes its part of each."""

    def __init__(
        self, length: int, batch: int, seed: int, start: int = 0, stop: int | None = None, rank: int = 0, world: int = 1
    ) -> None:
        """`length`: pictures in the split; `batch`: pictures at a time, over all `world` devices."""
        self.length, self.batch, self.seed = length, batch, seed
        self.start, self.stop = start, stop
        self.rank, self.world = rank, world
        self._epoch, self._order = -1, np.arange(length)

    def __iter__(self) -> Iterator[list[Item]]:
        step = self.start
        while self.stop is None or step < self.stop:
            numbers = range(step * self.batch + self.rank, (step + 1) * self.batch, self.world)
            yield [Item(self._place(number), number) for number in numbers]
            step += 1

    def _place(self, number: int) -> int:
        """Which picture comes as the `number`-th of the whole training."""
        epoch, index = divmod(number, self.length)
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, ORDER, epoch)).permutation(self.length)
        return int(self._order[index])


def training_batches(
    samples: Samples, rule: InputRule, crop: tuple[int, int], config: TrainConfig, where: str = "cpu",
    start: int = 0, rank: int = 0, world: int = 1, kept: Path | None = None,
) -> DataLoader[Batch]:  # fmt: skip
    """Batches without end, from the batch number `start`: augmented, or with the draws to do it by (`where`, as in Fitted).

    kept: a folder to keep pictures in (`kept.py`).
    """
    return _loader(
        Fitted(samples, rule, Policy(config, crop), config.seed, where, Kept(kept / "train") if kept else None),
        config,
        batch_sampler=Steps(len(samples), config.batch, config.seed, start, rank=rank, world=world),
        collate_fn=functools.partial(together, crop=crop),
    )


def validation_batches(
    samples: Samples, rule: InputRule, config: TrainConfig, rank: int = 0, world: int = 1, kept: Path | None = None
) -> DataLoader[Batch]:
    """Pictures in order, of large ones the middle, padded with void to a common size; each device takes every `world`-th."""
    mine = [Item(place, place) for place in range(rank, len(samples), world)]
    size = max(1, config.batch // world)
    return _loader(
        Fitted(samples, rule, kept=Kept(kept / "val") if kept else None),
        config,
        batch_sampler=[mine[start : start + size] for start in range(0, len(mine), size)],
        collate_fn=pad_together,
    )


def _loader(data: Fitted, config: TrainConfig, **how: Any) -> DataLoader[Batch]:
    with few_cores():
        return DataLoader(
            data, num_workers=config.workers, worker_init_fn=leave_signals, pin_memory=pinned(config), **how
        )


def pinned(config: TrainConfig) -> bool:
    """Whether batches lie in memory that a GPU copies from by itself; asking for it costs a training on the CPU a context."""
    return config.device != "cpu" and torch.cuda.is_available()


@contextmanager
def few_cores() -> Iterator[None]:
    """Few cores on purpose: torch's own threads compute while the workers read. Torch warns of it when it counts them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def leave_signals(worker: int) -> None:
    """A stop is told to every process of a group (Ctrl-C, torchrun, a scheduler): a worker reads on for the last step.

    It ends with its loader, or when the training's process is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def together(items: list[Sample | Failure], crop: tuple[int, int]) -> Batch | Failure:
    """A batch of items; a failure among them is the batch. `crop` is (height, width) of what is still to be augmented."""
    good, failures = _sorted_out(items)
    if failures:
        return failures[0]
    names = [item.name for item in good]
    drawn = [(item.picture, item.labels, item.draw) for item in good if item.draw is not None]
    if drawn:
        pictures, labels, draws = collate(drawn, crop)
        return Batch(pictures, labels, names, draws)
    return Batch(
        torch.from_numpy(np.stack([item.picture for item in good])),
        torch.from_numpy(np.stack([item.labels for item in good])),
        names,
    )


def pad_together(items: list[Sample | Failure]) -> Batch | Failure:
    """Repeat each picture's last row and column up to the largest height and width, rounded up to the stride."""
    good, failures = _sorted_out(items)
    if failures:
        return failures[0]
    height, width = (max(item.labels.shape[axis] for item in good) for axis in (0, 1))
    height, width = height + -height % STRIDE, width + -width % STRIDE
    padded: list[Sample | Failure] = []
    for item in good:
        margins = ((0, height - item.labels.shape[0]), (0, width - item.labels.shape[1]))
        picture = np.pad(item.picture, (*margins, (0, 0)), mode="edge")
        padded.append(Sample(picture, np.pad(item.labels, margins, constant_values=VOID), item.name))
    return together(padded, (height, width))


def _sorted_out(items: list[Sample | Failure]) -> tuple[list[Sample], list[Failure]]:
    good = [item for item in items if isinstance(item, Sample)]
    return good, [item for item in items if isinstance(item, Failure)]


def opened(loader: DataLoader[Batch]) -> Generator[Batch]:
    """The loader's batches; close it, and its processes end.

    Raises: DataError with the name of the file that a worker could not read; MemoryError.
    """
    with few_cores():
        batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, Failure):
                raise MemoryError(batch.sentence) if batch.out_of_memory else DataError(batch.sentence)
            yield batch
    finally:
        del batches  # its processes end with it, also where an error keeps this frame
