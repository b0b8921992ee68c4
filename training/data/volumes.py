"""Volumes of a data set and their labels: in canonical orientation, at the spacing that the network takes.

A volume may be in several files, one for each channel (nnU-Net's `_0000`, `_0001`), or a folder of slices. Its labels are a
volume of whole numbers on the same grid.
"""

from dataclasses import dataclass, replace

import numpy as np

from models.errors import DataError
from models.imaging.decode import Labels, decode_file
from models.readers import read_file, read_sample
from models.readers.names import is_generic
from models.readers.prepare import prepare_sample
from models.readers.volume_channels import describe_mismatch, stack_channels
from models.readers.volume_spacing import resize_nearest, to_spacing
from models.sample import Sample
from models.spec import InputRule
from training.data.dataset import Pair
from training.data.mask_decoding import RawMask, check_gray


def read_volume(pair: Pair, channels: tuple[str, ...] = ()) -> Sample:
    """A volume as it is, D x H x W x C: all its channels, named by `channels` where the files do not name them.

    Raises: ImageError, DataError.
    """
    parts = [
        decode_file(file, read_sample, read=read_file, axes="DHW") for file in (pair.image, *pair.further_channels)
    ]
    for file, part in zip(pair.further_channels, parts[1:], strict=True):
        if problem := describe_mismatch(parts[0], part):
            raise DataError(
                f"{pair.image} and {file} are channels of one volume, but {problem}. Resample one to the other."
            )
    sample = stack_channels(parts)
    if len(channels) == len(sample.channels) and all(map(is_generic, sample.channels)):
        sample = replace(sample, channels=channels)
    return sample


def at_network_spacing(sample: Sample, labels: Labels | None, rule: InputRule | None) -> tuple[Sample, Labels | None]:
    """A volume as the network takes it: the channels of the rule, at its spacing; labels by nearest voxel.

    Raises: ChannelsError, ImageTooLargeError.
    """
    if rule is None:
        return sample, labels
    resampled = to_spacing(prepare_sample(sample, rule), rule.spacing)
    return resampled, None if labels is None else np.asarray(resize_nearest(labels, resampled.size), np.uint8)


@dataclass(frozen=True)
class VolumeMaskReader:
    """Reads the labels of a pair as stored, D x H x W in canonical orientation. Two of one `digest` read alike."""

    digest: str = "volumes"

    def __call__(self, pair: Pair) -> RawMask:
        """Raises: DataError, ImageError."""
        sample = read_mask_sample(pair)
        return RawMask(check_gray(sample.values[..., 0], pair.mask))


def read_mask_sample(pair: Pair) -> Sample:
    """The label volume as it is, D x H x W x 1. Raises: DataError, ImageError."""
    sample = decode_file(pair.mask, read_sample, read=read_file, axes="DHW")
    if len(sample.channels) != 1:
        raise DataError(
            f"{pair.mask} has {len(sample.channels)} channels; expected one, with a label in each voxel. Merge them into one."
        )
    return sample
