"""`data convert`: writes a data set in the layout of another tool. The labels of every pixel stay the same.

Class 0 is left out of formats that store objects if it is named background; pixels without an object are background there.
Formats that cannot say "ignored" refuse a data set with ignored pixels, so that nothing is lost in silence.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from models.errors import ConfigError, DataError, closest_names, quoted
from models.imaging.decode import Labels, decode_file, read_image
from models.imaging.file_header import read_header
from models.spec import IGNORE_INDEX, ClassInfo
from training.data import SegmentationDataset, load_available_splits
from training.data.dataset import SPLITS, check_has_images
from training.data.formats.shapes import BACKGROUND_NAMES
from training.data.tools import writers
from training.data.tools.remap import link_or_copy, remap_dataset

ProgressCallback = Callable[[int, int], None]
# Each is given every image in turn, and finishes with the files of the whole data set.
WRITERS: dict[str, type[writers.Writer]] = {
    "coco": writers.CocoWriter,
    "voc": writers.VocWriter,
    "yolo": writers.YoloWriter,
    "labelme": writers.LabelmeWriter,
    "label-studio": writers.LabelStudioWriter,
    "cvat": writers.CvatWriter,
    "nnunet": writers.NnunetWriter,
}
TARGETS = ("folder", *WRITERS)


@dataclass
class ConversionReport:
    """What was written."""

    counts: dict[str, int] = field(default_factory=dict)  # images by split
    left_out: int = 0  # images without a mask


def convert_dataset(
    root: Path, out: Path, target: str, data_format: str = "auto", progress: ProgressCallback | None = None
) -> ConversionReport:
    """Write the data set `root` to the new folder `out`, completely or not at all.

    `target`: one of TARGETS. Images are hard links if possible, except where a format needs PNG.
    Raises: ConfigError for an unknown target; DataError, also for ignored pixels that the target cannot store.
    """
    if target not in TARGETS:
        similar = closest_names(target, TARGETS)
        hint = f"; did you mean {similar}?" if similar else "."
        raise ConfigError(f"Unknown target {quoted(target)}; choose from {', '.join(TARGETS)}{hint}")
    if target == "folder":
        _, opened = remap_dataset(root, out, data_format=data_format, progress=progress)
        return _report(opened)
    if out.exists():
        raise DataError(f"{out} already exists; choose a new folder, or delete it first.")
    opened = load_available_splits(root, SPLITS, data_format, progress)
    check_has_images(root, opened["train"])
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        draft = temporary / out.name
        draft.mkdir()
        _write(draft, opened, target, progress)
        draft.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _report(opened)


def _write(draft: Path, opened: dict[str, SegmentationDataset], target: str, progress: ProgressCallback | None) -> None:
    classes = opened["train"].classes
    writer = WRITERS[target](draft, classes, _object_labels(classes))
    total, done = sum(map(len, opened.values())), 0
    names: set[str] = set()
    for split, dataset in opened.items():
        for index, pair in enumerate(dataset.pairs):
            labels = dataset.labels(index)
            _check_labels(labels, classes, str(pair.mask), target, writer.stores_ignored)
            # One folder holds all images of a split, or of the data set.
            name = pair.name.replace("/", "__")
            while name in names:
                name = f"{name}_2"
            names.add(name)
            writer.add(split, name, _place_image(pair.image, writer, split, name), labels)
            done += 1
            if progress:
                progress(done, total)
    writer.finish()


def _place_image(source: Path, writer: writers.Writer, split: str, name: str) -> Path:
    """Link or write the image where the format wants it. Its pixels are upright, as the mask is."""
    rotated = decode_file(source, read_header).orientation != 1
    if rotated or writer.needs_png:
        target = writer.image_path(split, name, ".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(read_image(source)).save(target)
    else:
        target = writer.image_path(split, name, source.suffix.lower())
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source, target)
    return target


def _check_labels(labels: Labels, classes: list[ClassInfo], mask: str, target: str, stores_ignored: bool) -> None:
    invalid = labels[(labels >= len(classes)) & (labels != IGNORE_INDEX)]
    if invalid.size:
        raise DataError(f"{mask} has the label {invalid.flat[0]}, which is no class; see `maskserve data lint`.")
    if not stores_ignored and (labels == IGNORE_INDEX).any():
        raise DataError(
            f"{mask} has ignored pixels, which {target} cannot store. Make them a class first, such as "
            f"`maskserve data remap DATA OUT 255={classes[0].name}`, or convert to folder, voc, coco or nnunet."
        )


def _object_labels(classes: list[ClassInfo]) -> list[int]:
    """The labels that become objects: all but a background."""
    return [label for label, entry in enumerate(classes) if label or entry.name.lower() not in BACKGROUND_NAMES]


def _report(opened: dict[str, SegmentationDataset]) -> ConversionReport:
    return ConversionReport(
        {split: len(dataset) for split, dataset in opened.items()},
        sum(len(dataset.unmatched_images) for dataset in opened.values()),
    )
