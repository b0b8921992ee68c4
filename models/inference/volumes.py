"""From a volume to labels on its own grid: the one function of evaluation, export, service and predict."""

import math
from collections.abc import Callable

import numpy as np

from models.inference.components import apply_component_rules
from models.inference.segmenter import Prediction, Segmenter, never_stop
from models.readers.volume_spacing import resize_nearest, to_spacing
from models.sample import MM3_PER_ML, Sample
from models.spec import InputRule


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
    resampled = to_spacing(sample, segmenter.rule.spacing)
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
