"""`data inspect`: what was recognized in a folder and why, and a contact sheet of images with their masks.

It reads only a few of the files.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.errors import DataError, MaskserveError
from models.imaging.decode import RGB
from models.inference.geometry import network_input_size, resize_image
from models.spec import IGNORE_INDEX, InputRule, palette
from training.data import SegmentationDataset, load_available_splits, recognize_dataset
from training.data.dataset import read_pair_mask
from training.data.infer_classes import UnknownClassesError
from training.lint.coverage import describe_unread, unread_files
from training.reports.planes import three_planes
from training.reports.traces import draw_trace

SHEET_IMAGES, COLUMNS = 12, 4
SIGNAL_COLUMNS, SIGNAL_TILE = 2, (190, 616)  # recordings are wide: (height, width) in pixels
TILE, MARGIN, LINE = 300, 8, 16  # pixels: side of a tile, space between tiles, height of a line of text
MASK_OPACITY = 0.5
MAX_LISTED = 3
SAMPLED = " (from the values of a few masks; `data lint` reads all)"
MAX_LEGEND = 24  # classes below the sheet
INK, ERROR_INK, PAPER = (30, 30, 30), (170, 0, 0), (250, 250, 250)


def inspect_dataset(root: Path, data_format: str = "auto", sheet: Path | None = None) -> list[str]:
    """Describe a data set in lines of text, and write the contact sheet, a PNG. Raises: DataError, ConfigError."""
    recognition = recognize_dataset(root, data_format)
    lines = [f"format: {recognition.format} ({recognition.evidence.summary})"]
    lines += [f"also fits: {name} ({evidence.summary})" for name, evidence in recognition.others.items()]
    error = ""
    try:
        opened = load_available_splits(root, data_format=data_format, recognition=recognition, sample=True)
    except UnknownClassesError as unknown:
        opened, error = unknown.datasets, str(unknown)
    train = opened["train"]
    nouns = {"HW": ("images", "mask"), "T": ("recordings", "label file"), "DHW": ("volumes", "label volume")}
    images, masks = nouns[train.axes]
    lines.append(f"{images}: " + ", ".join(f"{split} {len(dataset):,}" for split, dataset in opened.items()))
    classes = ", ".join(f"{label} {entry.name}" for label, entry in enumerate(train.classes))
    # Formats that draw their masks know the classes; those of mask files are known from a class file alone.
    guessed = (
        train.mask_reader is read_pair_mask
        and bool(train.classes)
        and all(entry.name.startswith(("class", "color_")) for entry in train.classes)
    )
    lines.append(f"classes: {classes}{SAMPLED if guessed else ''}" if classes else f"classes: unknown. {error}")
    lines += [f"pair: {_relative(pair.image, recognition.tree.root)} with {_relative(pair.mask, recognition.tree.root)}"
              for pair in train.pairs[:MAX_LISTED]]  # fmt: skip
    for title, paths in (
        (f"{images} without a {masks}", [path for dataset in opened.values() for path in dataset.unmatched_images]),
        (
            "masks without an image",
            list(dict.fromkeys(p for dataset in opened.values() for p in dataset.unmatched_masks)),
        ),
    ):
        if paths:
            lines.append(f"{title}: {len(paths):,}, such as {', '.join(map(str, paths[:MAX_LISTED]))}")
    lines += [f"note: {note}" for note in dict.fromkeys(note for dataset in opened.values() for note in dataset.notes)]
    if unread := describe_unread(unread_files(recognition.tree, opened.values())):
        lines.append(f"not read: {unread}")
    tiles = [_make_tile(dataset, index) for _, dataset, index in _spread(opened)]
    if problems := [tile.problem for tile in tiles if tile.problem]:
        lines.append(f"problem: {len(problems)} of {len(tiles)} {images} that were read, such as: {problems[0]}")
    if sheet:
        write_contact_sheet(sheet, opened, tiles)
        lines.append(f"contact sheet: {sheet}")
    return lines


class Tile(NamedTuple):
    """An image of the sheet, None if it cannot be shown, and what is wrong with it or its mask."""

    image: Image.Image | None
    problem: str = ""


def write_contact_sheet(file: Path, opened: dict[str, SegmentationDataset], tiles: list[Tile]) -> None:
    """Write images of every split with their masks on top, and the colors of the classes. Raises: DataError."""
    chosen = _spread(opened)
    is_signal = next(iter(opened.values())).axes == "T"
    most, tile_width = (SIGNAL_COLUMNS, SIGNAL_TILE[1]) if is_signal else (COLUMNS, TILE)
    columns = min(most, len(chosen))
    rows = -(-len(chosen) // columns)
    classes = next(iter(opened.values())).classes[:MAX_LEGEND]
    width = columns * (tile_width + MARGIN) + MARGIN
    cells = _legend_cells([entry.name for entry in classes], width)
    legend = (max((row for _, row in cells), default=-1) + 1) * (LINE + 4)
    least = SIGNAL_TILE[0] if is_signal else TILE // 2
    cell_height = max([least, *(tile.image.height for tile in tiles if tile.image)]) + LINE + MARGIN
    page = Image.new("RGB", (width, rows * cell_height + MARGIN + legend), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (split, dataset, index) in enumerate(chosen):
        left = MARGIN + number % columns * (tile_width + MARGIN)
        top = MARGIN + number // columns * cell_height
        title = f"{split}: {dataset.pairs[index].name}"
        draw.text((left, top), title if len(title) < 44 else f"{title[:20]}...{title[-20:]}", INK)
        tile = tiles[number]
        if tile.image:
            page.paste(tile.image, (left, top + LINE))
        else:
            draw.multiline_text((left, top + LINE), _wrap(tile.problem), ERROR_INK)
    for entry, (x, row) in zip(classes, cells, strict=True):
        y = rows * cell_height + MARGIN + row * (LINE + 4)
        draw.rectangle((x, y, x + LINE, y + LINE), fill=entry.rgb, outline=INK)
        draw.text((x + LINE + 4, y + 2), entry.name, INK)
    try:
        page.save(file, "PNG")
    except OSError as error:
        raise DataError(
            f"{file}: cannot be written ({error.strerror}); choose a file in an existing folder."
        ) from error


def _make_tile(dataset: SegmentationDataset, index: int) -> Tile:
    try:
        image = Image.fromarray(overlay(dataset, index))
        values = np.unique(dataset.labels(index)) if dataset.axes == "HW" and dataset.classes else np.zeros(0, np.uint8)
    except (MaskserveError, OSError) as error:
        return Tile(None, str(error))
    unknown = values[(values >= len(dataset.classes)) & (values != IGNORE_INDEX)].tolist()
    if not unknown:
        return Tile(image)
    listed = ", ".join(map(str, unknown[:MAX_LISTED])) + (" and more" if len(unknown) > MAX_LISTED else "")
    return Tile(
        image, f"{dataset.pairs[index].mask} has the labels {listed}, but there are {len(dataset.classes)} classes"
    )


def overlay(dataset: SegmentationDataset, index: int) -> RGB:
    """An image with its mask on top, at most TILE pixels wide and high, uint8 H x W x 3.

    Of a signal, its curves with the labels behind them; of a volume, three slices.
    Raises: DataError, ImageError; DataError for a mask of another size.
    """
    if dataset.axes == "T":
        sample, track = dataset.sample_and_labels(index)
        return draw_trace(sample.values, track, dataset.classes, SIGNAL_TILE, sample.channels)
    if dataset.axes == "DHW":
        sample, volume_labels = dataset.record_and_labels(index)
        check_same_shape(dataset, index, sample.size, volume_labels.shape)
        image, (labels,) = three_planes(sample, volume_labels)
    else:
        image, labels = dataset.rgb(index), dataset.labels(index)
    if labels.shape != image.shape[:2]:
        raise DataError(
            f"{dataset.pairs[index].image} has {image.shape[1]} x {image.shape[0]} pixels, its mask {labels.shape[1]} x "
            f"{labels.shape[0]}"
        )
    size = network_input_size((image.shape[0], image.shape[1]), InputRule(rule="fit", side=TILE))
    small = resize_image(image, size).astype(np.float32)
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(int)
    shown = labels[rows[:, None], columns[None]]
    colors = np.asarray(palette(dataset.classes), np.float32)[shown]
    opacity = np.where(shown[..., None] == 0, MASK_OPACITY / 3, MASK_OPACITY)  # class 0 is most often the background
    mixed: NDArray[np.float32] = small * (1 - opacity) + colors * opacity
    edges = np.zeros(shown.shape, bool)
    edges[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    edges[1:] |= shown[1:] != shown[:-1]
    mixed[edges] = colors[edges]
    return mixed.round().astype(np.uint8)


def check_same_shape(dataset: SegmentationDataset, index: int, size: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raises: DataError for a label volume of another shape than its volume."""
    if size != mask:
        shapes = [" x ".join(map(str, each)) for each in (size, mask)]
        raise DataError(f"{dataset.pairs[index].image} has {shapes[0]} voxels, its labels {shapes[1]}")


def _spread(opened: dict[str, SegmentationDataset]) -> list[tuple[str, SegmentationDataset, int]]:
    """The images of the sheet: about half from train, the rest from the other splits."""
    other = max(1, SHEET_IMAGES // max(1, 2 * (len(opened) - 1)))
    counts = {split: min(len(dataset), other) for split, dataset in opened.items() if split != "train"}
    counts["train"] = min(len(opened["train"]), SHEET_IMAGES - sum(counts.values()))
    return [
        (split, dataset, index)
        for split, dataset in opened.items()
        for index in dataset.evenly_spaced_indices(counts[split])
    ]


def _legend_cells(names: list[str], width: int) -> list[tuple[int, int]]:
    """(x, row) of each class in the legend."""
    cells, x, row = [], MARGIN, 0
    for name in names:
        needed = LINE + 16 + 7 * len(name)
        if x + needed > width and x > MARGIN:
            x, row = MARGIN, row + 1
        cells.append((x, row))
        x += needed
    return cells


def _wrap(text: str, length: int = 44) -> str:
    return "\n".join(text[start : start + length] for start in range(0, min(len(text), 8 * length), length))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
