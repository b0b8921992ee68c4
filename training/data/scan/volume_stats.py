"""Reads a volume and its labels once and computes statistics that replace them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cgroup_limits import usable_cores
from models.readers.orientation import axis_names
from models.readers.prepare import find_valid
from models.readers.volume_channels import describe_mismatch, file_shape
from models.sample import Sample, Values, VolumeGrid
from models.spec import IGNORE_INDEX
from training.data.dataset import SegmentationDataset
from training.data.mask_decoding import check_gray
from training.data.scan.pixel_stats import pixel_digest
from training.data.scan.sample_stats import error_message
from training.data.volumes import read_mask_sample, read_volume

WINDOW = (0.5, 99.5)  # percentiles of the foreground, as in nnU-Net
MAX_SAMPLED = 100_000  # voxels of a volume whose percentiles are computed
NUM_LABELS = 256


@dataclass(frozen=True)
class VolumeStats:
    """Statistics of one pair. `size`, `digest`, `mask_digest` and `errors` are as in `SampleStats`. Arrays are by channel, C."""

    size: tuple[int, ...] | None  # D, H, W in canonical orientation; None if it cannot be read
    shape: tuple[int, ...] = ()  # in the order of the file
    spacing: tuple[float, ...] | None = None  # mm along D, H, W
    orientation: str = ""  # directions of the file's axes, such as RAS; empty if it does not say
    dtype: str = ""
    mask_dtype: str = ""
    channels: tuple[str, ...] = ()
    mismatch: str = ""  # how the grid of the labels differs; empty if it does not
    fractional: bool = False  # whether the labels are stored as floats
    low: tuple[float, ...] = ()  # smallest value
    high: tuple[float, ...] = ()  # largest value
    foreground: NDArray[np.float32] | None = None  # K x C: values of some voxels of classes other than 0
    valid: float = 1.0  # fraction of voxels that are numbers
    label_counts: NDArray[np.int64] | None = None  # 256: voxels of each label; None if the labels cannot be read
    halves: NDArray[np.int64] | None = (
        None  # 256 x 3 x 2: voxels of each label in the first and the second half of D, H, W
    )
    unknown_values: tuple[int, ...] = ()  # of labels that are no class
    digest: str = ""
    mask_digest: str = ""
    errors: tuple[str, ...] = ()

    @property
    def is_valid(self) -> bool:
        """Whether both could be read, and lie on one grid."""
        return not self.errors and not self.mismatch


def scan_volumes(dataset: SegmentationDataset, progress: Callable[[int, int], None] | None = None) -> list[VolumeStats]:
    """The statistics of each pair, in order."""
    found: list[VolumeStats] = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for stats in pool.map(lambda index: compute_volume_stats(dataset, index), range(len(dataset))):
            found.append(stats)
            if progress:
                progress(len(found), len(dataset))
    return found


def compute_volume_stats(dataset: SegmentationDataset, index: int) -> VolumeStats:
    """The statistics of a volume with its labels. Raises nothing: problems are in `errors`."""
    pair = dataset.pairs[index]
    try:
        sample = read_volume(pair, dataset.channels)
    except Exception as error:  # one broken file must not stop the scan
        return VolumeStats(None, errors=(error_message(pair.image, error),))
    grid = sample.frame.grid if sample.frame else None
    valid = find_valid(sample.values, sample.valid, {sample.nodata} - {None})
    measured = sample.values.reshape(-1, sample.values.shape[-1]) if valid is None else sample.values[valid]
    extremes = [measured.min(axis=0), measured.max(axis=0)] if len(measured) else [np.zeros(len(sample.channels))] * 2
    common: dict[str, Any] = {
        "size": sample.size,
        "shape": file_shape(sample),
        "spacing": sample.spacing.values if sample.spacing else None,
        "orientation": _orientation(grid),
        "dtype": grid.dtype if grid else sample.dtype,
        "channels": sample.channels,
        "low": tuple(extremes[0].astype(float).tolist()),
        "high": tuple(extremes[1].astype(float).tolist()),
        "valid": 1.0 if valid is None else float(valid.mean()),
        "digest": pixel_digest(sample.values),
    }
    try:
        mask = read_mask_sample(pair)
        mismatch = describe_mismatch(sample, mask)
        raw = check_gray(np.ascontiguousarray(mask.values[..., 0]), pair.mask)
        labels, unknown = _known_labels(raw, dataset)
    except Exception as error:
        return VolumeStats(**common, errors=(error_message(pair.mask, error),))
    same_size = labels.shape == sample.size
    return VolumeStats(
        **common,
        mask_dtype=_stored_dtype(mask),
        mismatch=mismatch,
        fractional=_stored_dtype(mask).lstrip("<>=|").startswith("f"),
        foreground=_foreground_values(sample.values, labels) if same_size else None,
        label_counts=np.bincount(labels.reshape(-1), minlength=NUM_LABELS).astype(np.int64),
        halves=_count_halves(labels),
        unknown_values=unknown,
        mask_digest=pixel_digest(raw),
    )


def _orientation(grid: VolumeGrid | None) -> str:
    return axis_names(grid.affine) if grid else ""


def _stored_dtype(sample: Sample) -> str:
    return sample.frame.grid.dtype if sample.frame and sample.frame.grid else sample.dtype


def _known_labels(
    raw: NDArray[np.unsignedinteger], dataset: SegmentationDataset
) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """The labels, 255 where a value is no class; and these values."""
    values = np.unique(raw)
    classes = len(dataset.classes) or NUM_LABELS - 1
    unknown, mapped = [], []
    for value in values.tolist():
        label = dataset.mask_encoding.decode_value(value, "gray")
        if label is None or not (0 <= label < classes or label == IGNORE_INDEX):
            unknown.append(value)
            label = IGNORE_INDEX
        mapped.append(label)
    return np.array(mapped, np.uint8)[np.searchsorted(values, raw)], tuple(unknown)


def _foreground_values(values: Values, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """K x C: the values of up to MAX_SAMPLED voxels of classes other than 0, evenly spread."""
    indices = np.flatnonzero((labels > 0) & (labels != IGNORE_INDEX))
    chosen = indices[:: max(1, -(-len(indices) // MAX_SAMPLED))]
    where = np.unravel_index(chosen, labels.shape)
    return np.asarray(values[where], np.float32)


def _count_halves(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts = np.zeros((NUM_LABELS, 3, 2), np.int64)
    for axis in range(3):
        moved, half = np.moveaxis(labels, axis, 0), labels.shape[axis] // 2
        for side, part in enumerate((moved[:half], moved[labels.shape[axis] - half :])):
            counts[:, axis, side] = np.bincount(part.reshape(-1), minlength=NUM_LABELS)
    return counts
