"""What the lint found and measured."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.spec import ClassInfo
from training.data.dataset import SegmentationDataset
from training.data.scan.label_stats import LabelStats
from training.data.scan.scanner import SampleStats

LEVELS = ("error", "warning", "note")  # an error forbids training, a warning is worth a look, a note is good to know

# What to do about each kind of finding. The kinds stand in the order in which they are told.
ADVICE = {
    "unreadable file": "Save the file anew from its source (cut one that is too large), or take image and mask away.",
    "image without mask": "Add a mask of the image's name, or take the image away.",
    "size mismatch": "Export the masks again at their images' size; if they must be resized, by nearest neighbour.",
    "mask in the raw frame": "The camera held the image turned, and its EXIF says so; the masks were drawn before it was turned. "
    "Turn the masks as the images' EXIF says, or write the images without EXIF as the masks' tool shows them.",
    "lossy mask": "JPEG, AVIF and lossy WebP change labels at every border. Export the masks as PNG anew; where that "
    "cannot be, `maskserve data remap --nearest` mends what it can.",
    "label out of range": "Name all classes in classes.csv, or send the label to a class or to void by `maskserve data remap`.",
    "colour without meaning": "Give the colour to a class in classes.csv (`name,r,g,b`); or export without anti-aliasing.",
    "masks of 0 and 255": "255 is void, so these masks teach class 0 alone. Where 255 is meant as the second class, send it to 1 "
    "by `maskserve data remap`; where the masks have more classes, export labels, not an image to look at.",
    "0/1 and 0/255 mixed": "Where 255 is meant as class 1, send it there: `maskserve data remap DATA OUT 255=1`. Else 255 is void.",
    "palettes that differ": "Where colours say the class, name them in classes.csv (`name,r,g,b`). Else places are labels.",
    "no labels": "Label some pixels: where all are void there is nothing to learn.",
    "one class alone": "A network learns to tell classes apart: label at least two, or export the masks as labels.",
    "understood as": "Nothing, where that is meant; or else write the labels as meant by `maskserve data remap`.",
    "same image in two splits": "Take it out of all splits but one: what was trained on cannot tell how good the network is.",
    "near duplicates in two splits": "Keep frames of one video, or crops of one image, in one split (`maskserve data split`).",
    "same image, other masks": "Keep the right mask: a network cannot learn both.",
    "class only outside train": "Move some images that hold it into train: what is never shown is never found.",
    "class that never occurs": "Take the class away, or add images that hold it.",
    "labels far apart": "Write labels as 0, 1, 2 and so on (`maskserve data remap`): these look scaled, to be seen by eye.",
    "rare class": "Add images that hold it, or expect a low IoU; class weights and copies of its images help a little.",
    "few images": "Label more: some tens are the least that generalises, and val needs its own.",
    "no val split": "Hold some images out as val (`maskserve data split`): the best checkpoint is chosen by them.",
    "much void": "Check that void is meant: pixels that are not labelled teach nothing and count nowhere.",
    "all void": "Label the image or take it away.",
    "rotation that cannot be told": "Look whether mask and image fit: both ways have one size. Images without EXIF are safe.",
    "tiny image": "Check that it is no thumbnail or icon: a network sees little in fewer than 32 pixels.",
    "extreme shape": "Cut it into pieces: much of a crop of it is padding.",
    "mask without image": "Add the image, or take the mask away.",
    "same image twice": "Take the copies away: they only weigh more than the others.",
    "near duplicates within a split": "Frames of a video are such; they add less than their number says.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and with which file."""

    level: str  # of LEVELS
    kind: str  # a key of ADVICE; findings are counted by it
    detail: str  # names the file and what it holds
    weight: float = 0.0  # of two of one kind the heavier is worse, and told first
    locations: tuple[tuple[str, int], ...] = ()  # (split, index) of the images that it speaks of, two at most


@dataclass
class LintReport:
    """What the lint saw."""

    classes: list[ClassInfo]
    findings: list[Finding] = field(default_factory=list)
    image_counts: dict[str, int] = field(default_factory=dict)  # by split
    pixel_counts: dict[str, NDArray[np.int64]] = field(
        default_factory=dict
    )  # by split: 256 counts, by label; 255 is void
    images_with_label: dict[str, NDArray[np.int64]] = field(
        default_factory=dict
    )  # by split: images that hold each label, 256
    edge_counts: dict[str, NDArray[np.int64]] = field(
        default_factory=dict
    )  # by split: pixels of each label beside another, 256
    train_image_sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of the training images
    train_label_stats: list[LabelStats] = field(
        default_factory=list
    )  # of the training images that are readable and right
    datasets: dict[str, SegmentationDataset] = field(default_factory=dict, repr=False)  # by split
    sample_stats: dict[str, list[SampleStats]] = field(default_factory=dict, repr=False)  # by split, as in samples

    @property
    def errors(self) -> list[Finding]:
        """The findings that forbid training."""
        return [finding for finding in self.findings if finding.level == "error"]

    def all_image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every image that could be read, of all splits."""
        return [facts.size for split in self.sample_stats.values() for facts in split if facts.size]

    def findings_by_kind(self) -> list[tuple[str, str, list[Finding]]]:
        """Level, kind and its findings, the worst first; errors before warnings before notes."""
        by_kind: dict[tuple[str, str], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            by_kind[finding.level, finding.kind].append(finding)
        order = {kind: place for place, kind in enumerate(ADVICE)}
        ranked = sorted(by_kind, key=lambda key: (LEVELS.index(key[0]), order[key[1]]))
        return [(level, kind, sorted(by_kind[level, kind], key=lambda each: -each.weight)) for level, kind in ranked]
