"""`data remap`: the same pictures in a new data set whose masks hold other labels; from any format to the `folder` layout.

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
from models.outputs.png import indexed
from models.spec import VOID, ClassInfo, default_rgb
from training.data import Samples, has_split, load_splits
from training.data.class_file import FILE, parse_classes
from training.data.dataset import SPLITS, Pair
from training.data.mask_decoding import Kind, Meaning, Values

Progress = Callable[[int, int], None]
NOWHERE = -1
VOID_NAMES = ("void", str(VOID))


@dataclass(frozen=True)
class Recipe:
    """From old labels to new ones."""

    classes: list[ClassInfo]
    table: NDArray[np.int16]  # 256, by old label; -1 for one that is no class, and that no rule names


def remap(
    root: Path,
    out: Path,
    rules: Sequence[str] = (),
    classes: Path | None = None,
    nearest: bool = False,
    format: str = "auto",
    progress: Progress | None = None,
) -> tuple[Recipe, dict[str, Samples]]:
    """Write the new data set, whole or not at all: pictures as links where the disk can, masks as PNG with a palette.

    `nearest` gives a value without a class that of the nearest one: for masks that were saved as JPEG.
    Returns: what became of the labels, and what there was, by split.
    Raises: DataError, ConfigError for a rule that says nothing.
    """
    if out.exists():
        raise DataError(f"{out} is there already; give a new folder, or take that one away first.")
    there = [split for split in SPLITS if split == "train" or has_split(root, split, format)]
    opened = load_splits(root, there, format, progress)
    recipe = read_rules(rules, opened["train"].classes, parse_classes(classes) if classes else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        draft = around / out.name
        draft.mkdir()
        _write(draft, opened, recipe, nearest, progress)
        draft.rename(out)
    finally:
        shutil.rmtree(around, ignore_errors=True)
    return recipe, opened


def describe(recipe: Recipe, opened: dict[str, Samples]) -> list[str]:
    """What became of each class, a line each, and what was left behind."""
    old = [entry.name for entry in opened["train"].classes]
    new = {VOID: f"void ({VOID})"} | {label: f"{entry.name} ({label})" for label, entry in enumerate(recipe.classes)}
    lines = [f"{name} ({label}) -> {new[int(recipe.table[label])]}" for label, name in enumerate(old)]
    alone = sum(len(samples.unpaired) for samples in opened.values())
    return [*lines, *([f"{alone} pictures without a mask were left out"] if alone else [])]


def read_rules(rules: Sequence[str], classes: list[ClassInfo], wanted: list[ClassInfo] | None = None) -> Recipe:
    """What rules say of the labels of these classes; `wanted`: the new classes. Raises: ConfigError."""
    goes: dict[int, str] = {}
    for rule in rules:
        before, equals, after = rule.rpartition("=")
        if not (equals and before.strip() and after.strip()):
            raise ConfigError(f"{rule!r} is no rule; wanted is FROM=TO, such as 2=void, road=0 or tree,bush=plants.")
        names = [entry.name for entry in classes]
        for word in [before] if before.strip() in names else before.split(","):
            label = _label(word.strip(), names, rule)
            if goes.setdefault(label, after.strip()) != after.strip():
                raise ConfigError(f"{rule!r}: {word.strip()} goes to {goes[label]} already; leave one of the two.")
    return _to(goes, classes, wanted) if wanted else _among(goes, classes)


def _label(word: str, names: list[str], rule: str) -> int:
    if word in names:
        return names.index(word)
    if word in VOID_NAMES:
        return VOID
    if word.isdecimal() and int(word) < VOID:
        return int(word)
    raise ConfigError(f"{rule!r}: {word!r} is no class and no label; the classes are {', '.join(names)}.")


def _to(goes: dict[int, str], classes: list[ClassInfo], wanted: list[ClassInfo]) -> Recipe:
    """To the classes of a file."""
    names = [entry.name for entry in wanted]
    table = np.full(VOID + 1, NOWHERE, np.int16)
    table[VOID] = VOID
    for label, entry in enumerate(classes):
        if label not in goes and entry.name not in names:
            raise ConfigError(
                f"The new class file has no {entry.name}; say where it goes, {entry.name}=NAME or {entry.name}=void."
            )
        table[label] = VOID if label in goes else names.index(entry.name)
    for label, after in goes.items():
        number = int(after) if after.isdecimal() and int(after) < len(names) else None
        if after not in (*names, *VOID_NAMES) and number is None:
            raise ConfigError(f"{after!r} is no class of the new class file; it has {', '.join(names)}.")
        table[label] = names.index(after) if after in names else VOID if number is None else number
    return Recipe(wanted, table)


def _among(goes: dict[int, str], classes: list[ClassInfo]) -> Recipe:
    """To one another, and to new names."""
    names = [entry.name for entry in classes]
    aims: dict[int, int | str] = {label: label for label in (*range(len(classes)), VOID)}
    for label, after in goes.items():
        if after in names:
            aims[label] = names.index(after)
        elif after in VOID_NAMES or not after.isdecimal():
            aims[label] = VOID if after in VOID_NAMES else after
        elif int(after) < len(classes):
            aims[label] = int(after)
        else:
            raise ConfigError(f"There is no class {after}; give a label below {len(classes)}, void, or a new name.")
    first: dict[int | str, int] = {}  # of each class that is left, its place in the old order
    for label, aim in sorted(aims.items()):
        first.setdefault(aim, label if isinstance(aim, str) else aim)
    first.pop(VOID, None)
    order = sorted(first, key=lambda aim: (first[aim], isinstance(aim, str)))
    if not 2 <= len(order) <= VOID:
        raise ConfigError(f"These rules leave {len(order)} classes; wanted are 2 to {VOID}.")
    kept: list[ClassInfo] = []
    for aim in order:
        entry = classes[first[aim]] if first[aim] < len(classes) else None
        taken = {other.rgb for other in kept} | {classes[other].rgb for other in order if isinstance(other, int)}
        if isinstance(aim, int):
            kept.append(classes[aim])
        elif entry and entry.rgb not in taken:
            kept.append(ClassInfo(name=aim, rgb=entry.rgb))
        else:
            free = next(rgb for rgb in map(default_rgb, range(1, VOID)) if rgb not in taken)
            kept.append(ClassInfo(name=aim, rgb=free))
    table = np.full(VOID + 1, NOWHERE, np.int16)
    for label, aim in aims.items():
        table[label] = VOID if aim == VOID else order.index(aim)
    return Recipe(kept, table)


def _write(draft: Path, opened: dict[str, Samples], recipe: Recipe, nearest: bool, progress: Progress | None) -> None:
    total, done = sum(map(len, opened.values())), 0
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [("name", "r", "g", "b"), *((entry.name, *entry.rgb) for entry in recipe.classes)]
    )
    (draft / FILE).write_text(table.getvalue(), encoding="utf-8")
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


def _write_pair(draft: Path, name: str, samples: Samples, index: int, recipe: Recipe, nearest: bool) -> None:
    pair = samples.pairs[index]
    values = samples.values(index)
    meaning = samples.meaning
    labels = nearest_labels(values, meaning, len(samples.classes)) if nearest else meaning.labels(values, pair.mask)
    picture, mask = draft / "images" / f"{name}{pair.image.suffix.lower()}", draft / "masks" / f"{name}.png"
    for path in (picture, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    _link(pair.image, picture)
    indexed(_changed(labels, recipe, pair), recipe.classes).save(mask)


def _changed(labels: Labels, recipe: Recipe, pair: Pair) -> Labels:
    new = np.take(recipe.table, labels)
    if new.min(initial=0) < 0:
        label = int(labels[new < 0][0])
        raise DataError(
            f"{pair.mask}: holds the label {label}, which no class has; say where it goes, such as {label}=void."
        )
    return new.astype(np.uint8)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def nearest_labels(values: Values, meaning: Meaning, classes: int) -> Labels:
    """The labels of a mask whose values are only nearly right; uint8 H x W.

    Nearest by the difference of grey values, or by the distance of colours in RGB.
    """
    array, kind = values.array, values.kind
    if kind == "palette" and meaning.by_palette:
        array, kind = np.array(values.palette + (0,) * 256, np.uint32)[array], "colour"
    elif kind == "colour" and meaning.grey_colours:
        array, kind = (array >> 8 & 255).astype(np.uint8), "grey"
    known = _known(meaning, classes, kind)
    wanted = _points(np.array(list(known), np.int64), kind)
    there, places = np.unique(array, return_inverse=True)
    chosen = np.concatenate([
        ((_points(part, kind)[:, None] - wanted[None]) ** 2).sum(axis=-1).argmin(axis=1)
        for part in np.array_split(there.astype(np.int64), len(there) // 4096 + 1)
    ])  # fmt: skip
    labels = np.array(list(known.values()), np.uint8)[chosen]
    return np.take(labels, places).reshape(array.shape)


def _known(meaning: Meaning, classes: int, kind: Kind) -> dict[int, int]:
    """The values that mean something, with their labels."""
    if kind == "colour":
        return dict(meaning.colours)
    told = dict(meaning.grey)
    own = {label: label for label in (*range(classes), VOID) if label not in told and label not in told.values()}
    return own | told


def _points(values: NDArray[np.int64], kind: Kind) -> NDArray[np.int64]:
    """K x 1 grey values, or K x 3 colours."""
    return np.stack([values >> 16, values >> 8 & 255, values & 255], axis=-1) if kind == "colour" else values[:, None]
