"""`data remap`: the same images in a new data set whose masks hold other labels; from any format to the `folder` layout.

A rule is `FROM=TO`. FROM is a class, by name or label, or several with commas between them, or a label that no class has; TO is a
class by name or label, the name of a new class, or `void`. What no rule names stays what it is. Classes that nothing is left of
go, and the others are numbered anew in their old order. With a class file of its own TO is a class of that file, and
a class that no rule names goes to the class of its name.
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

from models.cpu_quota import usable_cores
from models.errors import ConfigError, DataError
from models.imaging.decode import Labels
from models.outputs.png import to_palette_image
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data import SegmentationDataset, has_split, load_splits
from training.data.class_file import CLASS_FILE, read_class_file
from training.data.dataset import SPLITS, Pair
from training.data.mask_decoding import MaskEncoding, MaskKind, RawMask

ProgressCallback = Callable[[int, int], None]
UNMAPPED = -1
VOID_NAMES = ("void", str(IGNORE_INDEX))


@dataclass(frozen=True)
class LabelMapping:
    """From old labels to new ones."""

    classes: list[ClassInfo]
    lookup_table: NDArray[np.int16]  # 256, by old label; -1 for one that is no class, and that no rule names


def remap_dataset(
    root: Path,
    out: Path,
    rules: Sequence[str] = (),
    classes: Path | None = None,
    nearest: bool = False,
    data_format: str = "auto",
    progress: ProgressCallback | None = None,
) -> tuple[LabelMapping, dict[str, SegmentationDataset]]:
    """Write the new data set, whole or not at all: images as links where the disk can, masks as PNG with a palette.

    `nearest` gives a value without a class that of the nearest one: for masks that were saved as JPEG.
    Returns: what became of the labels, and what there was, by split.
    Raises: DataError, ConfigError for a rule that says nothing.
    """
    if out.exists():
        raise DataError(f"{out} is there already; give a new folder, or take that one away first.")
    there = [split for split in SPLITS if split == "train" or has_split(root, split, data_format)]
    opened = load_splits(root, there, data_format, progress)
    recipe = parse_rules(rules, opened["train"].classes, read_class_file(classes) if classes else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        draft = around / out.name
        draft.mkdir()
        _write_dataset(draft, opened, recipe, nearest, progress)
        draft.rename(out)
    finally:
        shutil.rmtree(around, ignore_errors=True)
    return recipe, opened


def describe_mapping(recipe: LabelMapping, opened: dict[str, SegmentationDataset]) -> list[str]:
    """What became of each class, a line each, and what was left behind."""
    old = [entry.name for entry in opened["train"].classes]
    new = {IGNORE_INDEX: f"void ({IGNORE_INDEX})"} | {
        label: f"{entry.name} ({label})" for label, entry in enumerate(recipe.classes)
    }
    lines = [f"{name} ({label}) -> {new[int(recipe.lookup_table[label])]}" for label, name in enumerate(old)]
    alone = sum(len(samples.unmatched_images) for samples in opened.values())
    return [*lines, *([f"{alone} images without a mask were left out"] if alone else [])]


def parse_rules(rules: Sequence[str], classes: list[ClassInfo], wanted: list[ClassInfo] | None = None) -> LabelMapping:
    """What rules say of the labels of these classes; `wanted`: the new classes. Raises: ConfigError."""
    goes: dict[int, str] = {}
    for rule in rules:
        before, equals, after = rule.rpartition("=")
        if not (equals and before.strip() and after.strip()):
            raise ConfigError(f"{rule!r} is no rule; wanted is FROM=TO, such as 2=void, road=0 or tree,bush=plants.")
        names = [entry.name for entry in classes]
        for word in [before] if before.strip() in names else before.split(","):
            label = _parse_label(word.strip(), names, rule)
            if goes.setdefault(label, after.strip()) != after.strip():
                raise ConfigError(f"{rule!r}: {word.strip()} goes to {goes[label]} already; leave one of the two.")
    return _map_to_class_file(goes, classes, wanted) if wanted else _map_within_classes(goes, classes)


def _parse_label(word: str, names: list[str], rule: str) -> int:
    if word in names:
        return names.index(word)
    if word in VOID_NAMES:
        return IGNORE_INDEX
    if word.isdecimal() and int(word) < IGNORE_INDEX:
        return int(word)
    raise ConfigError(f"{rule!r}: {word!r} is no class and no label; the classes are {', '.join(names)}.")


def _map_to_class_file(goes: dict[int, str], classes: list[ClassInfo], wanted: list[ClassInfo]) -> LabelMapping:
    """To the classes of a file."""
    names = [entry.name for entry in wanted]
    table = np.full(IGNORE_INDEX + 1, UNMAPPED, np.int16)
    table[IGNORE_INDEX] = IGNORE_INDEX
    for label, entry in enumerate(classes):
        if label not in goes and entry.name not in names:
            raise ConfigError(
                f"The new class file has no {entry.name}; say where it goes, {entry.name}=NAME or {entry.name}=void."
            )
        table[label] = IGNORE_INDEX if label in goes else names.index(entry.name)
    for label, after in goes.items():
        number = int(after) if after.isdecimal() and int(after) < len(names) else None
        if after not in (*names, *VOID_NAMES) and number is None:
            raise ConfigError(f"{after!r} is no class of the new class file; it has {', '.join(names)}.")
        table[label] = names.index(after) if after in names else IGNORE_INDEX if number is None else number
    return LabelMapping(wanted, table)


def _map_within_classes(goes: dict[int, str], classes: list[ClassInfo]) -> LabelMapping:
    """To one another, and to new names."""
    names = [entry.name for entry in classes]
    aims: dict[int, int | str] = {label: label for label in (*range(len(classes)), IGNORE_INDEX)}
    for label, after in goes.items():
        if after in names:
            aims[label] = names.index(after)
        elif after in VOID_NAMES or not after.isdecimal():
            aims[label] = IGNORE_INDEX if after in VOID_NAMES else after
        elif int(after) < len(classes):
            aims[label] = int(after)
        else:
            raise ConfigError(f"There is no class {after}; give a label below {len(classes)}, void, or a new name.")
    first: dict[int | str, int] = {}  # of each class that is left, its place in the old order
    for label, aim in sorted(aims.items()):
        first.setdefault(aim, label if isinstance(aim, str) else aim)
    first.pop(IGNORE_INDEX, None)
    order = sorted(first, key=lambda aim: (first[aim], isinstance(aim, str)))
    if not 2 <= len(order) <= IGNORE_INDEX:
        raise ConfigError(f"These rules leave {len(order)} classes; wanted are 2 to {IGNORE_INDEX}.")
    kept: list[ClassInfo] = []
    for aim in order:
        entry = classes[first[aim]] if first[aim] < len(classes) else None
        taken = {other.rgb for other in kept} | {classes[other].rgb for other in order if isinstance(other, int)}
        if isinstance(aim, int):
            kept.append(classes[aim])
        elif entry and entry.rgb not in taken:
            kept.append(ClassInfo(name=aim, rgb=entry.rgb))
        else:
            free = next(rgb for rgb in map(default_rgb, range(1, IGNORE_INDEX)) if rgb not in taken)
            kept.append(ClassInfo(name=aim, rgb=free))
    table = np.full(IGNORE_INDEX + 1, UNMAPPED, np.int16)
    for label, aim in aims.items():
        table[label] = IGNORE_INDEX if aim == IGNORE_INDEX else order.index(aim)
    return LabelMapping(kept, table)


def _write_dataset(
    draft: Path,
    opened: dict[str, SegmentationDataset],
    recipe: LabelMapping,
    nearest: bool,
    progress: ProgressCallback | None,
) -> None:
    total, done = sum(map(len, opened.values())), 0
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [("name", "r", "g", "b"), *((entry.name, *entry.rgb) for entry in recipe.classes)]
    )
    (draft / CLASS_FILE).write_text(table.getvalue(), encoding="utf-8")
    # Names may all begin with one folder, a table's `images/` say.
    folders = [os.path.dirname(pair.name) for samples in opened.values() for pair in samples.pairs]
    shared = os.path.commonpath(folders) if all(folders) else ""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for split, samples in opened.items():
            names = [os.path.relpath(pair.name, shared) if shared else pair.name for pair in samples.pairs]
            jobs = [
                pool.submit(_write_pair, draft, f"{split}/{name}", samples, index, recipe, nearest)
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
    draft: Path, name: str, samples: SegmentationDataset, index: int, recipe: LabelMapping, nearest: bool
) -> None:
    pair = samples.pairs[index]
    values = samples.raw_mask(index)
    meaning = samples.mask_encoding
    labels = nearest_labels(values, meaning, len(samples.classes)) if nearest else meaning.decode(values, pair.mask)
    image, mask = draft / "images" / f"{name}{pair.image.suffix.lower()}", draft / "masks" / f"{name}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    _link_or_copy(pair.image, image)
    to_palette_image(_apply_mapping(labels, recipe, pair), recipe.classes).save(mask)


def _apply_mapping(labels: Labels, recipe: LabelMapping, pair: Pair) -> Labels:
    new = np.take(recipe.lookup_table, labels)
    if new.min(initial=0) < 0:
        label = int(labels[new < 0][0])
        raise DataError(
            f"{pair.mask}: holds the label {label}, which no class has; say where it goes, such as {label}=void."
        )
    return new.astype(np.uint8)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def nearest_labels(values: RawMask, meaning: MaskEncoding, classes: int) -> Labels:
    """The labels of a mask whose values are only nearly right; uint8 H x W.

    Nearest by the difference of grey values, or by the distance of colours in RGB.
    """
    array, kind = values.array, values.kind
    if kind == "palette" and meaning.use_palette_colors:
        array, kind = np.array(values.palette + (0,) * 256, np.uint32)[array], "colour"
    elif kind == "colour" and meaning.accept_gray_rgb:
        array, kind = (array >> 8 & 255).astype(np.uint8), "grey"
    known = _labels_by_value(meaning, classes, kind)
    wanted = _as_vectors(np.array(list(known), np.int64), kind)
    there, places = np.unique(array, return_inverse=True)
    chosen = np.concatenate([
        ((_as_vectors(part, kind)[:, None] - wanted[None]) ** 2).sum(axis=-1).argmin(axis=1)
        for part in np.array_split(there.astype(np.int64), len(there) // 4096 + 1)
    ])  # fmt: skip
    labels = np.array(list(known.values()), np.uint8)[chosen]
    return np.take(labels, places).reshape(array.shape)


def _labels_by_value(meaning: MaskEncoding, classes: int, kind: MaskKind) -> dict[int, int]:
    """The values that mean something, with their labels."""
    if kind == "colour":
        return dict(meaning.color_to_label)
    told = dict(meaning.gray_to_label)
    own = {
        label: label for label in (*range(classes), IGNORE_INDEX) if label not in told and label not in told.values()
    }
    return own | told


def _as_vectors(values: NDArray[np.int64], kind: MaskKind) -> NDArray[np.int64]:
    """K x 1 grey values, or K x 3 colours."""
    return np.stack([values >> 16, values >> 8 & 255, values & 255], axis=-1) if kind == "colour" else values[:, None]
