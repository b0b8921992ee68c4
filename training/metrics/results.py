"""Pydantic models of an evaluation's results: the file `metrics.json`.

Every rate is 0..1 with six digits; None where there is nothing to count (an absent class).
"""

import json
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.atomic_write import write_atomically
from models.errors import RunError
from models.setting_errors import plain_reason
from models.spec import Calibration

METRICS_FILE = "metrics.json"

Rate = float | None
Interval = tuple[float, float] | None  # lower and upper end; None where the class is absent or on too few images
Point = Literal["onset", "offset"]  # of an event
PointCounts = tuple[int, int, int, float, float]  # matched, missed, false; sums of the errors, ms, and of their squares
RateByClass = dict[str, Rate]  # by class name
IntervalByClass = dict[str, Interval]


class _Strict(BaseModel):
    """Unknown and missing keys are errors: they mean that the file is of another version."""

    model_config = ConfigDict(extra="forbid")


class Intervals(_Strict):
    """Bootstrap intervals of the metrics of the same names."""

    level: float  # 0.95
    resamples: int
    seed: int
    min_images: int  # fewer images (or groups of them) give no interval
    miou: Interval
    pixel_accuracy: Interval
    mean_dice: Interval
    mean_precision: Interval
    mean_recall: Interval
    foreground_miou: Interval
    foreground_dice: Interval
    boundary_iou: Interval
    mean_image_miou: Interval
    per_class_iou: IntervalByClass
    per_class_dice: IntervalByClass
    per_class_precision: IntervalByClass
    per_class_recall: IntervalByClass
    per_class_boundary_iou: IntervalByClass
    per_class_specificity: IntervalByClass
    per_class_false_positive_rate: IntervalByClass
    recall_by_size: IntervalByClass
    ece: Interval
    average_precision: Interval = None


class ThresholdPoint(_Strict):
    """A class of two where its probability is at least the threshold; 0.5 gives the labels."""

    threshold: float
    precision: Rate
    recall: Rate
    f1: Rate


class SplitMetrics(_Strict):
    """The metrics of a split."""

    miou: Rate  # mean over the classes that occur
    pixel_accuracy: Rate
    mean_dice: Rate
    mean_precision: Rate  # over the classes that are predicted
    mean_recall: Rate  # over the classes in the ground truth; also called mean class accuracy
    foreground_miou: Rate  # without the class named background; None if there is none
    foreground_dice: Rate
    boundary_iou: Rate
    mean_image_miou: Rate  # mean of the images' mIoU
    per_class_iou: RateByClass
    per_class_dice: RateByClass
    per_class_precision: RateByClass  # of the pixels predicted as the class, the fraction that is of it
    per_class_recall: RateByClass  # of the pixels of the class, the fraction that is predicted as it
    per_class_boundary_iou: RateByClass
    per_class_specificity: (
        RateByClass  # of the pixels of other classes, the fraction that is not predicted as the class
    )
    per_class_false_positive_rate: RateByClass  # of the images without the class, the fraction on which it is predicted
    recall_by_size: RateByClass  # of the pixels of objects of a thickness (pixels), the fraction that is right
    ece: Rate  # expected calibration error of the confidence (arXiv 1706.04599)
    average_precision: Rate = (
        None  # of two classes: of the second, over thresholds on its probability; None for more classes
    )
    threshold_curve: list[ThresholdPoint] = []  # of two classes
    absent: list[str]  # classes without a pixel in the ground truth
    intervals: Intervals


class PointMetrics(_Strict):
    """The onsets or the offsets of a class's events (`training/metrics/events.py`); None where there is nothing to count."""

    RATES: ClassVar = ("sensitivity", "ppv", "f1", "mean_ms", "sd_ms")

    matched: int
    missed: int  # annotated, not found within the tolerance
    false: int  # predicted, not annotated within the tolerance
    sensitivity: Rate  # of the annotated ones, the fraction that is found
    ppv: Rate  # of the predicted ones, the fraction that is annotated
    f1: Rate
    mean_ms: Rate  # of the matched ones, the mean of predicted minus annotated time
    sd_ms: Rate  # and its standard deviation
    sensitivity_interval: Interval
    ppv_interval: Interval
    f1_interval: Interval
    mean_ms_interval: Interval
    sd_ms_interval: Interval


class EventMetrics(_Strict):
    """The events of signals."""

    tolerance_ms: float
    event_f1: Rate  # mean over the classes without the background, onsets and offsets
    event_f1_interval: Interval
    per_class: dict[str, dict[Point, PointMetrics]]  # by class name


class CaseMetric(_Strict):
    """One metric of volumes over the cases, without those that have no value."""

    mean: Rate
    median: Rate
    interval: Interval  # of the mean
    cases: int


class VolumeMetrics(_Strict):
    """The metrics of volumes by case (`training/metrics/volumes.py`). Dice is 0..1, HD95 in mm, volumes in ml."""

    tolerance_mm: float  # of the surface Dice
    dice: Rate  # mean over the classes without the background of the mean over the cases
    dice_interval: Interval
    surface_dice: Rate
    hd95: Rate
    per_class: dict[str, dict[Literal["dice", "surface_dice", "hd95", "volume_error"], CaseMetric]]  # by class name


class EvaluatedBundle(_Strict):
    """The bundle that was evaluated, and what ran it."""

    name: str
    hash: str
    engine: str
    device: str
    precision: str
    reason: str  # why this engine
    calibration: Calibration | None = None  # in the graph; its figures are of validation images


class ImageResult(_Strict):
    """One image; `counts` has a row for each class that occurs: label, then the six counts of `PerImageCounts`."""

    name: str
    miou: Rate
    counts: list[tuple[int, int, int, int, int, int, int]]
    digest: str = ""  # of the pixels of image and ground truth
    reliability: list[
        tuple[int, float, float, float]
    ] = []  # bin of confidence, pixels, sum of the confidence, right ones
    sizes: list[tuple[int, int, int]] = []  # bin of object thickness, pixels, wrong ones
    group: str = ""  # the patient of a record: records of one patient are resampled together
    events: list[
        tuple[int, PointCounts, PointCounts]
    ] = []  # label, and the counts of its onsets and offsets (`training/metrics/events.py`)
    volumes: list[
        tuple[int, Rate, Rate, Rate, Rate, float]
    ] = []  # label, Dice, surface Dice, HD95 (mm), error of the volume (ml), true volume (ml)
    scores: list[tuple[int, int, int]] = []  # of two classes: bin of the second's probability, its pixels, others


class EvaluationMetrics(SplitMetrics):
    """The content of `metrics.json`. Of signals, a pixel is a time step of a record, and an image is a record."""

    axes: str = "HW"  # of the images: HW; of signals: T; of volumes: DHW
    events: EventMetrics | None = None  # of signals
    volumes: VolumeMetrics | None = None  # of volumes
    split: str
    images: int
    images_without_mask: int
    ignored_pixels: int
    data: str  # name of the data set's folder
    tta: str | None  # test-time augmentation, as in `flip,0.75,1,1.25`
    bundle: EvaluatedBundle
    per_image: list[ImageResult]

    def save(self, file: Path) -> None:
        """Write as JSON, with one line per image. Raises: OSError, with the file as it was."""
        rows = ",\n".join(f"    {json.dumps(row.model_dump(mode='json'))}" for row in self.per_image)
        head = json.dumps(self.model_dump(mode="json", exclude={"per_image"}), indent=2)
        write_atomically(file, f'{head[:-2]},\n  "per_image": [\n{rows}\n  ]\n}}\n'.encode())

    @classmethod
    def load(cls, file: Path) -> "EvaluationMetrics":
        """Read a `metrics.json`. Raises: RunError for any other file, also for one of an older maskserve."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise RunError(
                f"{file} is no evaluation by this version of maskserve: {_reason(error)}. Evaluate the bundle again."
            ) from error


def _reason(error: OSError | ValidationError) -> str:
    """The first thing that is wrong with a file, in a few words."""
    if isinstance(error, OSError):
        return error.strerror or "it cannot be read"
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {plain_reason(first)}" if key else "it is not JSON"
