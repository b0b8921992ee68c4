"""From a volume to labels on its own grid: the one function of evaluation, export, service and predict."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.imaging.decode import Labels
from models.inference.components import apply_component_rules
from models.inference.postprocess import Confidence
from models.inference.segmenter import Prediction, Segmenter, never_stop
from models.readers.orientation import to_file_grid, voxel_ml
from models.readers.volume_spacing import resize_nearest, to_spacing
from models.sample import MM3_PER_ML, Sample, VolumeGrid
from models.spec import InputRule


@dataclass(frozen=True)
class VolumePrediction:
    """The labels of a volume and the grid of its file, without the volume itself, which may be large."""

    labels: Labels  # uint8 D x H x W in canonical orientation; 255 is unlabeled
    confidence: Confidence | None  # float32 D x H x W: softmax probability of each label, if requested
    grid: VolumeGrid
    is_positioned: bool = True  # whether the file says how it lies; otherwise the grid is that of `orientation.grid_of`
    has_spacing: bool = True  # whether it states the size of its voxels

    @property
    def file_labels(self) -> Labels:
        """The labels in the order of the file's axes, i x j x k: a view."""
        return to_file_grid(self.labels, self.grid)

    @property
    def voxel_ml(self) -> float | None:
        """The volume of a voxel in ml; None if it is not known."""
        return voxel_ml(self.grid.affine) if self.has_spacing else None


def segment_volume(
    segmenter: Segmenter, sample: Sample, confidence: bool = False, should_stop: Callable[[], bool] = never_stop
) -> Prediction:
    """Predict a label for every voxel of a volume of any spacing, D x H x W x C, in the network's channels and dtype.

    The volume is in canonical orientation, as the readers give it; `orientation.to_file_grid` takes labels into the order of the
    file. It is resampled to the network's spacing and segmented; labels come back by nearest voxel, and are then post-processed
    by the rules of the bundle. A volume that states no spacing is taken as one of the network's.

    Returns: labels uint8 D x H x W and, if requested, confidence float32 D x H x W, for the values of `sample` as they are.
    Raises: as `Segmenter.segment`; ImageTooLargeError for a volume that would become too large.
    """
    resampled = to_spacing(sample, segmenter.rule.spacing, in_windows=True)
    found = segmenter.segment(resampled, confidence, should_stop)
    labels = np.asarray(resize_nearest(found.labels, sample.size), np.uint8)
    apply_component_rules(labels, segmenter.component_rules, _voxel_volume(segmenter.rule, sample))
    probabilities = found.confidence if found.confidence is None else resize_nearest(found.confidence, sample.size)
    return Prediction(sample.values, labels, probabilities)


def _voxel_volume(rule: InputRule, sample: Sample) -> float:
    """The volume of a voxel of the sample in ml; 1 for a network without a spacing, whose rules count voxels."""
    if rule.spacing is None:
        return 1.0
    return math.prod((sample.spacing or rule.spacing).values) / MM3_PER_ML
