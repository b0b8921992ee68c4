"""The result of every data set format: pairs of image and mask, and the classes in the masks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.errors import DataError
from models.imaging.decode import RGB, Labels
from models.inference.geometry import Image
from models.readers import read_input_file
from models.readers.composite import read_preview, to_rgb
from models.sample import Sample
from models.spec import AXES, IGNORE_INDEX, ClassInfo, InputRule
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding, RawMask, read_raw_mask

SPLITS = ("train", "val", "test")
PHOTOGRAPHS = InputRule(rule="native")


@dataclass(frozen=True)
class Pair:
    """An image and its mask, or a recording and its labels; `name` is unique in the data set."""

    name: str
    image: Path
    mask: Path  # the file that the mask is read from; for COCO, a JSON file that holds many
    group: str = ""  # what stays in one split, such as a patient; empty for the name
    lead: str = ""  # of a recording, the one channel that is read; empty for all
    further_channels: tuple[Path, ...] = ()  # of a volume, the files of its other channels


def read_pair_mask(pair: Pair) -> RawMask:
    """Read the mask file of a pair."""
    return read_raw_mask(pair.mask)


@dataclass(frozen=True)
class SegmentationDataset:
    """One split of a data set."""

    pairs: list[Pair]
    classes: list[ClassInfo]  # empty if the format does not name them (`infer_classes.py`)
    mask_encoding: MaskEncoding = IDENTITY_ENCODING
    mask_reader: Callable[[Pair], RawMask] = read_pair_mask  # formats without mask images rasterize here
    unmatched_images: tuple[Path, ...] = ()  # images without a mask, for the lint
    unmatched_masks: tuple[Path, ...] = ()  # masks without an image, for the lint
    notes: tuple[str, ...] = ()  # assumptions made while reading, for the lint to warn about
    files: tuple[Path, ...] = ()  # the other files that were read: classes, lists, annotations, further masks
    input: InputRule | None = (
        None  # what is read of each image; None until it is chosen: photographs, signals as they are
    )
    default_rate: float | None = None  # Hz, of recordings whose files state no rate
    axes: str = "HW"  # HW for images, T for signals, DHW for volumes
    channels: tuple[str, ...] = ()  # names of the channels of volumes, whose files do not name them

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int) -> Sample:
        """An image as the network takes it, with missing pixels marked; a signal at the rate of the rule.

        Raises: ImageError, DataError.
        """
        if self.axes == "T":
            return self._signal_and_labels(index, with_labels=False)[0]
        if self.axes == "DHW":
            return self._volume_and_labels(index, with_labels=False)[0]
        return read_input_file(self.pairs[index].image, self.input or PHOTOGRAPHS)

    def image(self, index: int) -> Image:
        """The values of the sample, H x W x C: of a photograph, RGB uint8. Raises: ImageError, DataError."""
        return self.sample(index).values

    def rgb(self, index: int) -> RGB:
        """The image for display, RGB uint8 H x W x 3: of a photograph, its pixels. Raises: ImageError, DataError."""
        if self.input is None:
            return read_preview(self.pairs[index].image)
        return to_rgb(self.image(index), self.input)

    def sample_and_labels(self, index: int) -> tuple[Sample, Labels]:
        """An image and its labels, which ignore what is missing in the image. Raises: ImageError, DataError."""
        if self._has_tracks:
            sample, labels = self._signal_and_labels(index)
        elif self.axes == "DHW":
            sample, labels = self._volume_and_labels(index)
        else:
            sample, labels = self.sample(index), self.labels(index)
        return sample, _without_missing(sample, labels)

    def record_and_labels(self, index: int) -> tuple[Sample, Labels]:
        """A recording or a volume as the network takes it, but at its own rate or spacing, and its labels.

        Raises: ImageError, DataError.
        """
        if self.axes == "DHW":
            sample, labels = self._volume_and_labels(index, at_own_spacing=True)
        else:
            sample, labels = self._signal_and_labels(index, at_own_rate=True)
        return sample, _without_missing(sample, labels)

    def evenly_spaced_indices(self, max_count: int) -> list[int]:
        """Up to `max_count` indices, spread evenly over the split."""
        indices: list[int] = np.unique(np.linspace(0, len(self) - 1, max_count).astype(int)).tolist()
        return indices

    def raw_mask(self, index: int) -> RawMask:
        """The mask as stored, before `mask_encoding` is applied. Raises: DataError, ImageError."""
        return self.mask_reader(self.pairs[index])

    def labels(self, index: int) -> Labels:
        """uint8 H x W, of a signal T: class indices, 255 for what is ignored. Raises: DataError, ImageError."""
        if self._has_tracks:
            return self._signal_and_labels(index)[1]
        if self.axes == "DHW":
            return self._volume_and_labels(index)[1]
        return self.mask_encoding.decode(self.raw_mask(index), self.pairs[index].mask)

    def _volume_and_labels(
        self, index: int, with_labels: bool = True, at_own_spacing: bool = False
    ) -> tuple[Sample, Labels]:
        """A volume and its labels, at the spacing of the rule if it states one."""
        from training.data.volumes import at_network_spacing, read_volume  # which imports `Pair`

        sample = read_volume(self.pairs[index], self.channels)
        labels = self.mask_encoding.decode(self.raw_mask(index), self.pairs[index].mask) if with_labels else None
        rule = self.input and self.input.model_copy(update={"spacing": None} if at_own_spacing else {})
        sample, labels = at_network_spacing(sample, labels, rule)
        return sample, np.zeros(sample.size, np.uint8) if labels is None else labels

    @property
    def _has_tracks(self) -> bool:
        """Whether sample and labels are read together: events need the length and the rate of their recording."""
        return self.axes == "T" and hasattr(self.mask_reader, "labels")

    def _signal_and_labels(
        self, index: int, with_labels: bool = True, at_own_rate: bool = False
    ) -> tuple[Sample, Labels]:
        """A recording and its labels, at the rate of the rule if it states one."""
        from training.data.signals import read_recording  # which imports `Pair`

        reader = self.mask_reader if with_labels else None
        return read_recording(self.pairs[index], reader, self.input, at_own_rate, self.default_rate)


def _without_missing(sample: Sample, labels: Labels) -> Labels:
    """The labels, which ignore what is missing in the sample."""
    if sample.valid is None or sample.valid.shape != labels.shape:
        return labels
    return np.where(sample.valid, labels, np.uint8(IGNORE_INDEX))


def merge_splits(splits: dict[str, SegmentationDataset]) -> SegmentationDataset:
    """Several splits of a data set, with equal classes, as one. If two share a name, every name begins with its split."""
    counts = Counter(pair.name for dataset in splits.values() for pair in dataset.pairs)
    prefix = any(count > 1 for count in counts.values())
    originals = {
        replace(pair, name=f"{split}/{pair.name}" if prefix else pair.name): (dataset.mask_reader, pair)
        for split, dataset in splits.items()
        for pair in dataset.pairs
    }

    def read_mask(pair: Pair) -> RawMask:
        reader, original = originals[pair]
        return reader(original)

    unmatched = dict.fromkeys(path for dataset in splits.values() for path in dataset.unmatched_images)
    first = next(iter(splits.values()))
    reader = first.mask_reader if first._has_tracks else read_mask  # tracks go by their files, not by names
    return replace(first, pairs=list(originals), mask_reader=reader, unmatched_images=tuple(unmatched))


def check_has_images(root: Path, dataset: SegmentationDataset) -> None:
    """Raises: DataError for a data set of signals or volumes, whose layout and labels no tool for images can write."""
    if dataset.axes != "HW":
        raise DataError(
            f"{root} has {AXES[dataset.axes]}; `data remap` and `data convert` are for images. Edit the label files themselves."
        )


def check_same_classes(samples: SegmentationDataset, expected: list[ClassInfo], data: Path) -> None:
    """Raises: DataError if the classes of the data set `data` are not those that are `expected` by a bundle."""
    names, bundle_names = ([entry.name for entry in classes] for classes in (samples.classes, expected))
    if names != bundle_names:
        raise DataError(
            f"{data} has the classes {', '.join(names)}, the bundle {', '.join(bundle_names)}; use data of the bundle's "
            "classes, in their order."
        )
