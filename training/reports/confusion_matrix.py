"""The confusion matrix as an SVG: a row per class of the ground truth, shaded by the fraction of its pixels.

TensorBoard takes only raster images, so its confusion matrix is drawn by matplotlib (`training/reports/plots.py`).
"""

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from models.spec import ClassInfo
from training.metrics.confusion import ConfusionMatrix
from training.reports.layout import render

CELL_SIZES = {12: 44, 24: 30, 60: 17, 255: 10}  # pixels per side, by the largest number of classes that they are for
MIN_TEXT_CELL = 30  # pixels per side from which a cell shows its percentage
MAX_COLUMNS_BESIDE_LIST = 24  # with more columns, the list goes below the matrix
MAX_CELLS_PER_ROW = 40  # only the largest cells of a row are drawn: 200 classes would otherwise give 40,000
MIN_MARGIN = 110  # pixels
MAX_NAME_LENGTH = 22  # characters
NUM_LISTED = 10  # confusions listed as text


def confusion_section(matrix: ConfusionMatrix, classes: list[ClassInfo]) -> Markup:
    """The matrix, and a list of its largest confusions."""
    names = [entry.name for entry in classes]
    target = matrix.class_counts[1]
    no_class = target - matrix.counts.sum(axis=1)  # predictions of 255
    counts = np.column_stack([matrix.counts, no_class]) if no_class.any() else matrix.counts
    columns = [*names, "no class"][: counts.shape[1]]
    return render(
        "confusion.html",
        num_columns=len(columns),
        max_cells=MAX_CELLS_PER_ROW,
        max_columns_beside_list=MAX_COLUMNS_BESIDE_LIST,
        largest=_largest_confusions(counts, target, names, columns),
        **_matrix_geometry(counts, target, names, columns),
    )


def _matrix_geometry(
    counts: NDArray[np.int64], target: NDArray[np.int64], names: list[str], columns: list[str]
) -> dict[str, Any]:
    """Positions in pixels of the SVG's labels and cells."""
    side = next(pixels for most, pixels in CELL_SIZES.items() if len(names) <= most)
    font_size = min(13, max(9, side - 3))
    # For the longest name, and for the titles of both axes in the corner.
    margin = max(MIN_MARGIN, 14 + round(0.6 * font_size * min(MAX_NAME_LENGTH, max(map(len, columns)))))
    tilt = -50 if side >= MIN_TEXT_CELL else -90
    cells = [
        _cell(margin + side * int(column), margin + side * row, side, counts[row, column], target[row], row == column)
        | {"title": _cell_title(name, columns[column], counts[row, column], target[row])}
        for row, name in enumerate(names)
        for column in np.argsort(-counts[row])[:MAX_CELLS_PER_ROW]
        if counts[row, column]
    ]
    return {
        "font_size": font_size,
        "margin": margin,
        "width": margin + side * len(columns) + (margin * 2 // 3 if tilt > -90 else 4),
        "height": margin + side * len(names) + 4,
        "columns": [
            {
                "x": f"{margin + side * (index + 0.5) + font_size / 3:.0f}",
                "y": margin - 6,
                "tilt": tilt,
                "name": _truncate(name),
            }
            for index, name in enumerate(columns)
        ],
        "rows": [
            {
                "x": margin,
                "y": margin + side * row,
                "width": side * len(columns),
                "text_x": margin - 7,
                "text_y": f"{margin + side * row + side / 2 + font_size / 3:.1f}",
                "name": _truncate(name),
            }
            for row, name in enumerate(names)
        ],
        "cells": cells,
    }


def _cell(x: int, y: int, side: int, count: int, total: int, correct: bool) -> dict[str, Any]:
    fraction = count / total
    return {
        "x": x + 1,
        "y": y + 1,
        "side": side - 2,
        "correct": correct,
        "opacity": f"{max(0.04, fraction):.2f}",
        "percent": f"{100 * fraction:.0f}" if side >= MIN_TEXT_CELL and fraction >= 0.005 else None,
        "dark": fraction > 0.55,  # the text must contrast with the cell
        "text_x": f"{x + side / 2:.0f}",
        "text_y": f"{y + side / 2 + 4:.0f}",
    }


def _cell_title(target: str, prediction: str, count: int, total: int) -> str:
    return f"{target} predicted as {prediction}: {count:,} pixels, {count / total:.2%} of the class"


def _largest_confusions(
    counts: NDArray[np.int64], target: NDArray[np.int64], names: list[str], columns: list[str]
) -> list[dict[str, Any]]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    largest = (divmod(int(index), len(columns)) for index in np.argsort(-wrong, axis=None)[:NUM_LISTED])
    return [
        {
            "target": names[row],
            "prediction": columns[column],
            "fraction": wrong[row, column] / target[row],
            "pixels": int(wrong[row, column]),
        }
        for row, column in largest
        if wrong[row, column]
    ]


def _truncate(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"
