"""The result of the lint: findings, and the statistics that it computed."""

from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.spec import ClassInfo
from training.data.dataset import SegmentationDataset
from training.data.scan.label_stats import LabelStats
from training.data.scan.sample_stats import content_digest

if TYPE_CHECKING:
    from training.lint.label_noise import LabelQuality

LEVELS = (
    "error",
    "warning",
    "note",
)  # training refuses to start on errors; warnings need a review; notes are information

# What to do about each kind of finding, in the order of the report.
ADVICE = {
    "unreadable file": "Save the file again from its source (split it if it is too large), or delete image and mask.",
    "unknown classes": "Name the classes in classes.csv, or repair the masks that the other errors name.",
    "image without mask": "Add a mask with the name of the image, or delete the image.",
    "size mismatch": "Export the masks again at the size of their images; to resize masks, use nearest neighbor.",
    "mask ignores EXIF rotation": "The camera stored the image rotated and noted that in its EXIF; the mask was drawn on the "
    "unrotated pixels. Rotate the masks as the EXIF says, or save the images without EXIF as the annotation tool shows them.",
    "lossy mask": "JPEG, AVIF and lossy WebP change labels at every border. Export the masks as PNG; if that is not possible, "
    "`maskserve data remap --nearest` recovers most labels.",
    "label out of range": "Name all classes in the class file, or else in classes.csv, or map the label to a class or to void with "
    "`maskserve data remap`.",
    "color not in class list": "Add the color to the class file (classes.csv: `name,r,g,b`; labelmap.txt: `name:r,g,b::`), or "
    "export the masks without anti-aliasing.",
    "mask values 0 and 255": "255 is ignored, so these masks teach only class 0. If 255 is the second class, map it to 1 "
    "with `maskserve data remap`; if the masks have more classes, export labels instead of an image for viewing.",
    "mixed 0/1 and 0/255 masks": "If 255 means class 1, map it: `maskserve data remap DATA OUT 255=1`. Otherwise it is ignored.",
    "inconsistent palettes": "If the colors are the classes, name them in classes.csv (`name,r,g,b`). Otherwise the palette "
    "indices are the labels.",
    "no labeled pixels": "Label some pixels: every pixel is ignored, so there is nothing to learn.",
    "single class": "Label at least two classes, or export the masks as labels: a network learns to tell classes apart.",
    "all masks are equal": "Check that these are labels: the field of view of a camera is the same in every image. If another "
    "folder has the labels, move this one away.",
    "instance numbers": "If each number is one object, merge them into one class: `maskserve data remap DATA OUT` with a rule "
    "such as `2,3,4=1`; or export masks of classes.",
    "different channels": "Save all images with the same channels in one type, or move the others away. Channels with names may be "
    "in any order; name a subset that all have with channels=NAME,NAME.",
    "different scales": "Find out by which factor some files were scaled, and save all with one. Otherwise training chooses "
    "scaling=zscore, with which each image's own scale does not matter.",
    "missing pixels": "They are missing data: ignored in training, void in predictions. Repair the files if they should be "
    "values.",
    "image without data": "Delete image and mask: there is nothing to learn from.",
    "suspected nodata": "If this value marks missing pixels, train with nodata=VALUE: they are then ignored, and void in "
    "predictions.",
    "constant channel": "Check that the channel was written. Leave it out with channels=NAME,NAME of the others, unless it varies "
    "in the images to come.",
    "georeference differs": "Warp the mask to its image (`gdalwarp -te ... -tr ... -r near`): their pixels do not lie on each "
    "other.",
    "stretched samples": "Nothing to do: predictions use the same range, which the bundle keeps.",
    "nodata": "Nothing to do: these pixels are ignored in training and evaluation, and void in predictions.",
    "assumption": "Check that this is right. If not, write the labels as intended with `maskserve data remap`.",
    "same image in two splits": "Keep it in one split: a network cannot be evaluated on images that it was trained on.",
    "near duplicates in two splits": "Keep frames of one video, or crops of one image, in one split (`maskserve data split`).",
    "same image, different masks": "Keep the correct mask: a network cannot learn both.",
    "class only in val or test": "Move some images with this class to train: a network does not find what it never saw.",
    "absent class": "Remove the class, or add images with it.",
    "labels look scaled": "Number the labels 0, 1, 2 and so on (`maskserve data remap`): these look scaled for viewing.",
    "rare class": "Add images with this class, or expect a low IoU; class weights and repeated images help a little.",
    "few images": "Label more images: a few dozen are the minimum for training, and val needs its own.",
    "no val split": "Hold out some images as val (`maskserve data split`): they select the best checkpoint.",
    "mostly unlabeled": "Check that this is intended: ignored pixels are neither trained on nor evaluated.",
    "unlabeled mask": "Label the image or delete it.",
    "ambiguous EXIF rotation": "Check that mask and image match: their sizes agree with and without the rotation. Images "
    "without EXIF avoid this.",
    "tiny image": "Check that it is not a thumbnail or an icon: a network sees little in fewer than 32 pixels.",
    "extreme aspect ratio": "Split the image: large parts of its crops would be padding.",
    "mask without image": "Add the image, or delete the mask.",
    "same image twice": "Delete the copies: they only increase the weight of one image.",
    "broken link": "Restore what it links to, or delete it.",
    "link out of the folder": "It is followed. To copy or archive the data set, copy what it links to as well.",
    "label noise suspect": "Compare mask and prediction, and correct the mask where it is wrong. The network knows the images that "
    "it was trained on: train on other folds (`maskserve data split --folds`) to check those.",
    "masks of other images": "Check the pairs: the borders in a mask should lie on the edges in its image. Masks of the next "
    "frame, names that are off by one, and masks that are shifted or flipped look like this.",
    "values only at borders": "JPEG, anti-aliasing and resizing with interpolation leave such values between two classes. Export "
    "the masks again as PNG; `maskserve data remap --nearest` helps if the classes are named and the values are not theirs.",
    "images without objects": "If they were not labeled, label or delete them. If they have no objects, they are useful.",
    "objects cut at borders": "Nothing needs to be done; their sizes and shapes are not those of whole objects.",
    "images not read": "They belong to no layout that was recognized, or to no split. Move them if they should be read.",
    "near duplicates within a split": "Usually frames of a video; they add less information than their number suggests.",
    "recording without labels": "Add its label file, or move the recording away: it is not trained on.",
    "flat lead": "Check the electrode: a lead that does not change teaches nothing. Leave it out with channels=NAME,NAME.",
    "clipped lead": "The amplifier was at its limit. Nothing to do if it is rare; otherwise leave these recordings out.",
    "missing samples": "Nothing to do if it is short: a lead's gap holds its mean, and time without any lead is ignored.",
    "events outside the recording": "Check the unit of the times (seconds or samples) and the sampling rate: the rest is cut off.",
    "overlapping events": "Of two events at one time the later one counts. Correct the times if that is not meant.",
    "event ends before it begins": "Correct the order of the two times, or delete the event.",
    "no labeled time": "Label some of it: all of the recording is ignored, so there is nothing to learn.",
    "no sampling rate": "Give it with rate=HERTZ, or write it into the files: without it, times are in samples only.",
    "mixed rates": "Nothing to do: all are resampled to the rate of the training, and answers come back at the rate of the file.",
    "mixed units": "Convert all recordings to one unit, or train with scaling=zscore: the scale of a lead does not matter then.",
    "different scales of signals": "Nothing to do with scaling=zscore, the default; otherwise check the gains of the files.",
    "very short events": "Check that they are meant: after resampling they may vanish.",
    "unannotated stretches": "Nothing to do: they are ignored in training and evaluation.",
    "same patient in two splits": "Keep a patient's recordings or volumes in one split: list them in splits.csv "
    "(record,split,patient).",
    "labels on another grid": "Resample the labels to the grid of their volume, by nearest neighbor; or correct the wrong header.",
    "missing voxels": "They are ignored in training, and void in predictions. Repair the volume if they should be values.",
    "constant volume": "Check the file: there is nothing to learn from. Delete the volume and its labels, or export it again.",
    "volume without objects": "Useful if the volume has none of the classes; otherwise label it.",
    "volume of one slice": "Check that the file is complete. Slices are better trained on as images.",
    "mixed orientations": "Nothing to do: all volumes are turned into one orientation, and predictions back. "
    "Files that state none are taken as they are: convert them to NIfTI with their orientation.",
    "different scales of volumes": "Nothing to do with scaling=zscore, the default; CT must have one scale: check the files.",
    "different spacings": "Nothing to do: all volumes are resampled to the spacing of the training, and predictions back.",
    "no spacing": "Write it into the files (NIfTI, NRRD): without it, volumes of other resolutions are segmented worse.",
    "float labels": "Nothing to do; integers take less space.",
    "same volume in two splits": "Keep it in one split: a network cannot be evaluated on what it was trained on.",
    "same volume twice": "Delete the copies: they only increase the weight of one volume.",
    "same recording in two splits": "Keep it in one split: a network cannot be evaluated on what it was trained on.",
    "same recording twice": "Delete the copies: they only increase the weight of one recording.",
}


@dataclass(frozen=True)
class Finding:
    """One problem in one or more files."""

    level: str  # one of LEVELS
    kind: str  # a key of ADVICE; the report groups findings by kind
    detail: str  # names the file and the problem
    weight: float = 0.0  # sorts the findings of one kind, worst (highest) first
    locations: tuple[tuple[str, int], ...] = ()  # (split, index) of the images concerned, at most two


@dataclass
class LintReport:
    """Findings and statistics of a data set. The dictionaries are by split."""

    classes: list[ClassInfo]
    findings: list[Finding] = field(default_factory=list)
    image_counts: dict[str, int] = field(default_factory=dict)
    pixel_counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # 256, by label; 255 is ignored
    images_with_label: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # 256: images with each label
    edge_counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # 256: pixels of each label next to another
    cut_objects: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # 256: runs of each label on image borders
    images_with_cuts: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # 256: images with such runs
    background_images: dict[str, int] = field(default_factory=dict)  # images that have only label 0, or ignored pixels
    train_image_sizes: list[tuple[int, ...]] = field(default_factory=list)  # (height, width); of a signal (time steps,)
    train_label_stats: list[LabelStats] = field(default_factory=list)  # of the training images without errors
    labels_in_errors: dict[str, set[int]] = field(
        default_factory=dict
    )  # in masks that are not counted, for other errors
    num_unreadable_masks: int = 0
    not_read: str = ""  # the files that were passed over, by folder and suffix
    label_quality: "LabelQuality | None" = None  # the comparison with a network (`--bundle`)
    datasets: dict[str, SegmentationDataset] = field(default_factory=dict, repr=False)
    # In the order of the pairs; for signals `SignalStats`, which have the same fields for sizes, digests and errors.
    sample_stats: dict[str, list[Any]] = field(default_factory=dict, repr=False)

    def select_splits(self, splits: tuple[str, ...]) -> "LintReport":
        """The statistics of these splits; the findings stay those of the whole data set."""
        kept: dict[str, Any]
        by_split = [field.name for field in fields(self) if isinstance(getattr(self, field.name), dict)]
        kept = {
            name: {split: value for split, value in getattr(self, name).items() if split in splits} for name in by_split
        }
        return replace(self, **kept)

    def content_digests(self) -> dict[str, str]:
        """Digest of the pixels of all images and masks, by split."""
        return {split: content_digest(self.datasets[split], stats) for split, stats in self.sample_stats.items()}

    @property
    def errors(self) -> list[Finding]:
        """The findings that prevent training."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def has_unknown_values(self) -> bool:
        """Whether half of the training masks have values that are no class, so that counts of classes say little."""
        kinds = ("color not in class list", "label out of range", "lossy mask")
        split_of_errors = [each.locations[0][0] for each in self.errors if each.kind in kinds and each.locations]
        return 2 * split_of_errors.count("train") >= self.image_counts.get("train", 0) > 0

    @property
    def has_rates(self) -> bool:
        """Whether all training recordings state a sampling rate."""
        return all(stats.rate for stats in self.sample_stats.get("train", []) if stats.size)

    @property
    def axes(self) -> str:
        """HW for images, T for signals, DHW for volumes."""
        return next((dataset.axes for dataset in self.datasets.values()), "HW")

    def durations(self, label: int) -> NDArray[np.float64]:
        """The seconds of all whole events of a class in the training recordings (time steps without a rate), sorted."""
        found = [stats.durations for stats in self.sample_stats.get("train", [])] if self.axes == "T" else []
        events = np.concatenate([np.zeros((0, 2)), *found])
        return np.sort(events[events[:, 0] == label, 1])

    def all_image_sizes(self) -> list[tuple[int, ...]]:
        """The size of every readable image or signal of all splits: (height, width), or (time steps,)."""
        return [stats.size for split in self.sample_stats.values() for stats in split if stats.size]

    def findings_by_kind(self) -> list[tuple[str, str, list[Finding]]]:
        """(level, kind, findings with the worst first); errors before warnings before notes."""
        by_kind: dict[tuple[str, str], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            by_kind[finding.level, finding.kind].append(finding)
        order = {kind: index for index, kind in enumerate(ADVICE)}
        ranked = sorted(by_kind, key=lambda key: (LEVELS.index(key[0]), order[key[1]]))
        return [
            (level, kind, sorted(by_kind[level, kind], key=lambda finding: -finding.weight)) for level, kind in ranked
        ]
