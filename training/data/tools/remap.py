"""`data remap`: writes a new data set with the same images and other labels; from any format to the `folder` layout.

A rule is `FROM=TO`. FROM is a class, by name or label, or several separated by commas, or a label without a class; TO is a class by
name or label, the name of a new class, or `void` (ignored). Labels without a rule stay the same. Classes without any remaining
label are removed, and the others are renumbered in their old order. With a class file, TO is a class of that file, and a class
without a rule maps to the class of the same name.
"""

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.cgroup_limits import usable_cores
from models.errors import ConfigError, DataError, closest_names, quoted
from models.imaging.decode import Labels
from models.outputs.png import to_palette_image
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data import SegmentationDataset, load_available_splits
from training.data.class_file import class_table, read_class_file
from training.data.dataset import SPLITS, Pair, check_has_images
from training.data.mask_decoding import MaskEncoding, MaskKind, RawMask
from training.data.tools.separate import read_instances, separate_touching
from training.data.tree import CLASS_FILE

ProgressCallback = Callable[[int, int], None]
UNMAPPED = -1
VOID_NAMES = ("void", str(IGNORE_INDEX))


@dataclass(frozen=True)
class LabelMapping:
    """Maps old labels to new ones."""

    classes: list[ClassInfo]
    lookup_table: NDArray[np.int16]  # 256, by old label; -1 for labels without a class or a rule


def remap_dataset(
    root: Path,
    out: Path,
    rules: Sequence[str] = (),
    classes: Path | None = None,
    nearest: bool = False,
    data_format: str = "auto",
    progress: ProgressCallback | None = None,
    separate: bool = False,
) -> tuple[LabelMapping, dict[str, SegmentationDataset]]:
    """Write the new data set, completely or not at all: images as hard links if possible, masks as palette PNGs.

    `nearest` maps a value without a class to the nearest value with one: for masks that were saved as JPEG. `separate` draws a
    line of label 0 between touching objects of one class (`separate.py`).
    Returns: the mapping, and the old data set by split.
    Raises: DataError; ConfigError for an invalid rule.
    """
    if out.exists():
        raise DataError(f"{out} already exists; choose a new folder, or delete it first.")
    opened = load_available_splits(root, SPLITS, data_format, progress)
    check_has_images(root, opened["train"])
    mapping = parse_rules(rules, opened["train"].classes, read_class_file(classes) if classes else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        draft = temporary / out.name
        draft.mkdir()
        _write_dataset(draft, opened, mapping, nearest, separate, progress)
        draft.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return mapping, opened


def describe_mapping(mapping: LabelMapping, opened: dict[str, SegmentationDataset]) -> list[str]:
    """One line per old class with its new class, and one about images that were left out."""
    new_names = {IGNORE_INDEX: f"void ({IGNORE_INDEX})"} | {
        label: f"{entry.name} ({label})" for label, entry in enumerate(mapping.classes)
    }
    lines = [
        f"{entry.name} ({label}) -> {new_names[int(mapping.lookup_table[label])]}"
        for label, entry in enumerate(opened["train"].classes)
    ]
    unmatched = sum(len(dataset.unmatched_images) for dataset in opened.values())
    return [*lines, *([f"Left out {unmatched} images without a mask"] if unmatched else [])]


def parse_rules(
    rules: Sequence[str], classes: list[ClassInfo], new_classes: list[ClassInfo] | None = None
) -> LabelMapping:
    """The mapping that rules define for `classes`; to `new_classes`, if given. Raises: ConfigError."""
    targets: dict[int, str] = {}
    names = [entry.name for entry in classes]
    for rule in rules:
        source, equals, target = (part.strip() for part in rule.rpartition("="))
        if not (equals and source and target):
            raise ConfigError(
                f"Invalid rule {quoted(rule)}; expected FROM=TO, such as 2=void, road=0 or tree,bush=plants."
            )
        for word in [source] if source in names else map(str.strip, source.split(",")):
            label = _parse_label(word, names, rule)
            if targets.setdefault(label, target) != target:
                raise ConfigError(
                    f"{quoted(rule)}: another rule maps {word} to {targets[label]}; delete one of the two."
                )
    return _map_to_class_file(targets, classes, new_classes) if new_classes else _map_within_classes(targets, classes)


def _parse_label(word: str, names: list[str], rule: str) -> int:
    if word in names:
        return names.index(word)
    if word in VOID_NAMES:
        return IGNORE_INDEX
    if word.isdecimal() and int(word) < IGNORE_INDEX:
        return int(word)
    similar = closest_names(word, names)
    hint = f"; did you mean {similar}?" if similar else "."
    raise ConfigError(
        f"{quoted(rule)}: {quoted(word)} is neither a class nor a label; the classes are {', '.join(names)}{hint}"
    )


def _map_to_class_file(targets: dict[int, str], classes: list[ClassInfo], new_classes: list[ClassInfo]) -> LabelMapping:
    """The mapping to the classes of a class file."""
    names = [entry.name for entry in new_classes]
    table = np.full(IGNORE_INDEX + 1, UNMAPPED, np.int16)
    table[IGNORE_INDEX] = IGNORE_INDEX
    for label, entry in enumerate(classes):
        if label not in targets and entry.name not in names:
            raise ConfigError(
                f"The class file has no class {entry.name}; add a rule {entry.name}=NAME or {entry.name}=void."
            )
        table[label] = IGNORE_INDEX if label in targets else names.index(entry.name)
    for label, target in targets.items():
        number = int(target) if target.isdecimal() and int(target) < len(names) else None
        if target not in (*names, *VOID_NAMES) and number is None:
            raise ConfigError(f"{quoted(target)} is not in the class file; its classes are {', '.join(names)}.")
        table[label] = names.index(target) if target in names else IGNORE_INDEX if number is None else number
    return LabelMapping(new_classes, table)


def _map_within_classes(targets: dict[int, str], classes: list[ClassInfo]) -> LabelMapping:
    """The mapping to existing classes and new names."""
    names = [entry.name for entry in classes]
    # Old label -> old label that it becomes, or the name of a new class.
    merged: dict[int, int | str] = {label: label for label in (*range(len(classes)), IGNORE_INDEX)}
    for label, target in targets.items():
        if target in names:
            merged[label] = names.index(target)
        elif target in VOID_NAMES or not target.isdecimal():
            merged[label] = IGNORE_INDEX if target in VOID_NAMES else target
        elif int(target) < len(classes):
            merged[label] = int(target)
        else:
            raise ConfigError(f"There is no class {target}; use a label below {len(classes)}, void, or a new name.")
    first_label: dict[int | str, int] = {}  # the old label that determines the position of a remaining class
    for label, new in sorted(merged.items()):
        first_label.setdefault(new, label if isinstance(new, str) else new)
    first_label.pop(IGNORE_INDEX, None)
    order = sorted(first_label, key=lambda new: (first_label[new], isinstance(new, str)))
    if not 2 <= len(order) <= IGNORE_INDEX:
        raise ConfigError(f"These rules leave {len(order)} classes; expected 2 to {IGNORE_INDEX}.")
    new_classes: list[ClassInfo] = []
    for new in order:
        entry = classes[first_label[new]] if first_label[new] < len(classes) else None
        used = {other.rgb for other in new_classes} | {classes[other].rgb for other in order if isinstance(other, int)}
        if isinstance(new, int):
            new_classes.append(classes[new])
        elif entry and entry.rgb not in used:
            new_classes.append(ClassInfo(name=new, rgb=entry.rgb))
        else:
            free = next(rgb for rgb in map(default_rgb, range(1, IGNORE_INDEX)) if rgb not in used)
            new_classes.append(ClassInfo(name=new, rgb=free))
    table = np.full(IGNORE_INDEX + 1, UNMAPPED, np.int16)
    for label, new in merged.items():
        table[label] = IGNORE_INDEX if new == IGNORE_INDEX else order.index(new)
    return LabelMapping(new_classes, table)


def _write_dataset(
    draft: Path,
    opened: dict[str, SegmentationDataset],
    mapping: LabelMapping,
    nearest: bool,
    separate: bool,
    progress: ProgressCallback | None,
) -> None:
    total, done = sum(map(len, opened.values())), 0
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(class_table(mapping.classes))
    (draft / CLASS_FILE).write_text(table.getvalue(), encoding="utf-8")
    # If all names start with the same folder, such as `images/` in a table, drop it.
    folders = [os.path.dirname(pair.name) for dataset in opened.values() for pair in dataset.pairs]
    common = os.path.commonpath(folders) if all(folders) else ""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for split, dataset in opened.items():
            names = [os.path.relpath(pair.name, common) if common else pair.name for pair in dataset.pairs]
            jobs = [
                pool.submit(_write_pair, draft, f"{split}/{name}", dataset, index, mapping, nearest, separate)
                for index, name in enumerate(names)
            ]
            try:
                for job in jobs:
                    job.result()
                    done += 1
                    if progress:
                        progress(done, total)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_pair(
    draft: Path,
    name: str,
    dataset: SegmentationDataset,
    index: int,
    mapping: LabelMapping,
    nearest: bool,
    separate: bool,
) -> None:
    pair, encoding = dataset.pairs[index], dataset.mask_encoding
    raw = dataset.raw_mask(index)
    labels = nearest_labels(raw, encoding, len(dataset.classes)) if nearest else encoding.decode(raw, pair.mask)
    image, mask = draft / "images" / f"{name}{pair.image.suffix.lower()}", draft / "masks" / f"{name}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(pair.image, image)
    mapped = _apply_mapping(labels, mapping, pair)
    if separate:
        mapped = separate_touching(mapped, read_instances(dataset, index))
    to_palette_image(mapped, mapping.classes).save(mask)


def _apply_mapping(labels: Labels, mapping: LabelMapping, pair: Pair) -> Labels:
    new = np.take(mapping.lookup_table, labels)
    if new.min(initial=0) < 0:
        label = int(labels[new < 0][0])
        raise DataError(f"{pair.mask}: the label {label} belongs to no class; add a rule for it, such as {label}=void.")
    return new.astype(np.uint8)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy of it where there can be none."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)


def nearest_labels(mask: RawMask, encoding: MaskEncoding, num_classes: int) -> Labels:
    """The labels of a mask with inexact values, uint8 H x W: those of the nearest gray value, or of the nearest color in RGB."""
    array, kind = mask.array, mask.kind
    if kind == "palette" and encoding.use_palette_colors:
        array, kind = np.array(mask.palette + (0,) * 256, np.uint32)[array], "color"
    elif kind == "color" and encoding.accept_gray_rgb:
        array, kind = (array >> 8 & 255).astype(np.uint8), "gray"
    label_by_value = _labels_by_value(encoding, num_classes, kind)
    known = _as_vectors(np.array(list(label_by_value), np.int64), kind)
    values, inverse = np.unique(array, return_inverse=True)
    nearest = np.concatenate([
        ((_as_vectors(part, kind)[:, None] - known[None]) ** 2).sum(axis=-1).argmin(axis=1)
        for part in np.array_split(values.astype(np.int64), len(values) // 4096 + 1)
    ])  # fmt: skip
    labels = np.array(list(label_by_value.values()), np.uint8)[nearest]
    return np.take(labels, inverse).reshape(array.shape)


def _labels_by_value(encoding: MaskEncoding, num_classes: int, kind: MaskKind) -> dict[int, int]:
    """The values that have a label, with their labels."""
    if kind == "color":
        return dict(encoding.color_to_label)
    mapped = dict(encoding.gray_to_label)
    unmapped = {
        label: label
        for label in (*range(num_classes), IGNORE_INDEX)
        if label not in mapped and label not in mapped.values()
    }
    return unmapped | mapped


def _as_vectors(values: NDArray[np.int64], kind: MaskKind) -> NDArray[np.int64]:
    """K x 1 gray values, or K x 3 colors."""
    return np.stack([values >> 16, values >> 8 & 255, values & 255], axis=-1) if kind == "color" else values[:, None]
