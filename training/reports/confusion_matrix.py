"""The confusion matrix as an SVG: a row a class of the truth, shaded by the share of its pixels."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from models.spec import ClassInfo
from training.metrics.confusion import ConfusionMatrix

CELL_SIZES = {12: 44, 24: 30, 60: 17, 255: 10}  # pixels a side, by the largest number of classes that they are for
MIN_TEXT_CELL = 30  # pixels a side from which on a cell has its share written into it
MAX_COLUMNS_BESIDE_LIST = 24  # columns that leave room for the list beside them
MAX_CELLS_PER_ROW = 40  # cells of a row that are drawn, the largest: 200 classes would else be 40,000 of them
MAX_NAME_LENGTH = 22  # letters of a name before it is cut
NUM_LISTED = 10  # confusions in words


def confusion_section(matrix: ConfusionMatrix, classes: list[ClassInfo]) -> str:
    """The matrix, and its largest confusions in words."""
    names = [entry.name for entry in classes]
    truth = matrix.class_counts[1]
    lost = truth - matrix.counts.sum(axis=1)
    counts = np.column_stack([matrix.counts, lost]) if lost.any() else matrix.counts
    columns = [*names, "no class"][: counts.shape[1]]
    few = f" Of a row the {MAX_CELLS_PER_ROW} largest are drawn." if len(columns) > MAX_CELLS_PER_ROW else ""
    beside = ' class="split"' if len(columns) <= MAX_COLUMNS_BESIDE_LIST else ""
    return (
        '<p class="note">Each row is a class of the truth, and its cells say what its pixels were answered as, in percent of the '
        f"row. Blue is right, red is wrong. Point at a cell for the count.{few}</p>"
        f'<div{beside}><div><div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">'
        f'{_draw_matrix(counts, truth, names, columns)}</div><output id="cell" aria-live="polite"></output></div>'
        f"<div><h3>Largest confusions</h3>{_largest_confusions(counts, truth, names, columns)}</div></div>"
    )


def _draw_matrix(counts: NDArray[np.int64], truth: NDArray[np.int64], names: list[str], columns: list[str]) -> str:
    side = next(pixels for most, pixels in CELL_SIZES.items() if len(names) <= most)
    letter = min(13, max(9, side - 3))
    room = 14 + round(0.6 * letter * min(MAX_NAME_LENGTH, max(map(len, columns))))  # for the longest name
    tilt = -50 if side >= MIN_TEXT_CELL else -90
    width, height = room + side * len(columns) + (room * 2 // 3 if tilt > -90 else 4), room + side * len(names) + 4
    parts = []
    for place, name in enumerate(columns):
        at = f"translate({room + side * (place + 0.5) + letter / 3:.0f} {room - 6}) rotate({tilt})"
        parts.append(f'<text transform="{at}" font-size="{letter}">{_truncate(name)}</text>')
    for row, name in enumerate(names):
        y = room + side * row
        at = f'x="{room - 7}" y="{y + side / 2 + letter / 3:.1f}" text-anchor="end" font-size="{letter}"'
        parts.append(f"<text {at}>{_truncate(name)}</text>")
        parts.append(f'<path class="grid" d="M{room} {y}h{side * len(columns)}"/>')
        for column in np.argsort(-counts[row])[:MAX_CELLS_PER_ROW]:
            if counts[row, column]:
                told = f"{name} answered as {columns[column]}"
                parts.append(
                    _draw_cell(room + side * int(column), y, side, counts[row, column], truth[row], row == column, told)
                )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg class="heat" {size} role="img" aria-label="Confusion matrix, truth by answer">{"".join(parts)}</svg>'


def _draw_cell(x: int, y: int, side: int, count: int, total: int, right: bool, told: str) -> str:
    share = count / total
    title = f"<title>{escape(told)}: {count:,} pixels, {share:.2%} of the class</title>"
    shade = f'class="{"hit" if right else "miss"}" fill-opacity="{max(0.04, share):.2f}"'
    cell = f'<rect x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}" {shade}>{title}</rect>'
    if side >= MIN_TEXT_CELL and share >= 0.005:
        kind = " class=on" if share > 0.55 else ""
        at = f'x="{x + side / 2:.0f}" y="{y + side / 2 + 4:.0f}" text-anchor="middle" pointer-events="none"'
        cell += f"<text{kind} {at}>{100 * share:.0f}</text>"
    return cell


def _largest_confusions(
    counts: NDArray[np.int64], truth: NDArray[np.int64], names: list[str], columns: list[str]
) -> str:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    lines = []
    for place in np.argsort(-wrong, axis=None)[:NUM_LISTED]:
        row, column = divmod(int(place), len(columns))
        if wrong[row, column]:
            share = wrong[row, column] / truth[row]
            lines.append(
                f"<li>{escape(names[row])} answered as {escape(columns[column])}: {share:.1%} of {escape(names[row])}, "
                f'<span class="muted">{wrong[row, column]:,} pixels</span></li>'
            )
    return f"<ol>{''.join(lines)}</ol>" if lines else "<p>None: every pixel that counts is right.</p>"


def _truncate(name: str) -> str:
    return escape(name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…")
