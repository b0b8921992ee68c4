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
from models.readers.volume_spacing import resize_nearest, to_spacing
from models.sample import Sample, VolumeGrid
from models.spec import InputRule
from training.data.dataset import Pair
from training.data.mask_decoding import RawMask, check_gray

MAX_GRID_SHIFT = 0.1  # voxels by which the grids of two files may differ: headers are written in float32


def read_volume(pair: Pair, channels: tuple[str, ...] = ()) -> Sample:
    """A volume as it is, D x H x W x C: all its channels, named by `channels` where the files do not name them.

    Raises: ImageError, DataError.
    """
    parts = [
        decode_file(file, read_sample, read=read_file, axes="DHW") for file in (pair.image, *pair.further_channels)
    ]
    sample = parts[0]
    for file, part in zip(pair.further_channels, parts[1:], strict=True):
        if problem := describe_mismatch(sample, part):
            raise DataError(
                f"{pair.image} and {file} are channels of one volume, but {problem}. Resample one to the other."
            )
    if len(parts) > 1:
        dtype = np.result_type(*(part.values.dtype for part in parts))
        dtype = dtype if dtype.name in ("uint8", "uint16", "int16") else np.dtype(np.float32)
        values = np.concatenate([part.values.astype(dtype, copy=False) for part in parts], axis=-1)
        names = tuple(f"band{index + 1}" for index in range(values.shape[-1]))
        sample = replace(sample, values=values, channels=names)
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


def describe_mismatch(one: Sample, other: Sample) -> str:
    """How the grids of two volumes differ, such as "have the shapes 35 x 51 x 35 and 35 x 50 x 35"; empty if they are one."""
    if one.size != other.size:
        shapes = " and ".join(" x ".join(map(str, file_shape(each))) for each in (one, other))
        return f"they have the shapes {shapes}"
    grids = [each.frame.grid if each.frame else None for each in (one, other)]
    if grids[0] and grids[1]:
        shift = grid_shift(grids[0], grids[1])
        if shift > MAX_GRID_SHIFT:
            return f"their affines put the same voxel up to {shift:.1f} voxels apart"
    elif one.spacing and other.spacing and not np.allclose(one.spacing.values, other.spacing.values, rtol=0.01):
        spacings = " and ".join(
            " x ".join(f"{step:g}" for step in each.spacing.values) for each in (one, other) if each.spacing
        )
        return f"they have the spacings {spacings}"
    return ""


def grid_shift(one: VolumeGrid, other: VolumeGrid) -> float:
    """How far the corners of two grids of one shape lie apart, in voxels of the first."""
    first, second = np.array(one.affine), np.array(other.affine)
    last = np.array(one.shape) - 1
    corners = np.array([[*(last * [a, b, c]), 1.0] for a in (0, 1) for b in (0, 1) for c in (0, 1)]).T
    distance = np.linalg.norm(((first - second) @ corners)[:3], axis=0).max()
    return float(distance / np.linalg.norm(first[:3, :3], axis=0).min())


def file_shape(sample: Sample) -> tuple[int, ...]:
    """The shape of a volume in its file's order of axes."""
    return sample.frame.grid.shape if sample.frame and sample.frame.grid else sample.size
