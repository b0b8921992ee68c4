"""Raster images of a training: curves and sample panels as PNG, and the confusion matrix for TensorBoard.

Reports show curves and confusion matrix as SVG (`line_chart.py`, `confusion_matrix.py`); TensorBoard takes no SVG.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from models.imaging.decode import RGB, Labels
from models.outputs.overlay import blend
from models.spec import ClassInfo, palette
from training.metrics.confusion import ConfusionMatrix
from training.reports.line_chart import MAX_LARGE_DOTS, read_charts

GAP = 8  # pixels between images of a panel
LEGEND_CELL = (110, 18)  # (width, height) in pixels
MAX_CLASSES_WITH_TEXT = 20


def save_curves(table: Path, target: Path, monitor: str = "miou") -> None:
    """Draw the charts of a `metrics.csv` over the epochs as a PNG. Every value has a marker, so that one epoch is visible."""
    charts = read_charts(table, monitor)
    figure = Figure(figsize=(5 * max(1, len(charts)), 4), layout="constrained")  # not pyplot, which looks for a screen
    axes = np.atleast_1d(figure.subplots(1, max(1, len(charts))))
    for axis, (title, lines, top) in zip(axes, charts, strict=False):
        for name, series in lines.items():
            epochs, values = zip(*series, strict=True)
            axis.plot(epochs, values, marker="o", markersize=4 if len(series) <= MAX_LARGE_DOTS else 2, label=name)
        last = max(epoch for series in lines.values() for epoch, _ in series)
        axis.set(title=title, xlabel="epoch", xlim=(0, 1.03 * max(1.0, last)), ylim=(0, top))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(loc="lower right")
    figure.savefig(target, dpi=110)


def plot_confusion_matrix(matrix: ConfusionMatrix, classes: list[ClassInfo]) -> Figure:
    """The confusion matrix, each row (a class of the ground truth) as fractions of its pixels."""
    counts = matrix.counts.astype(np.float64)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [entry.name for entry in classes]
    side = min(16.0, max(4.0, 0.55 * len(names) + 2))  # inches
    figure = Figure(figsize=(side, side), layout="constrained")  # not pyplot, which looks for a screen
    axes = figure.subplots()
    axes.imshow(fractions, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="prediction", ylabel="ground truth")
    if len(names) <= MAX_CLASSES_WITH_TEXT:
        for (row, column), fraction in np.ndenumerate(fractions):
            if fraction >= 0.005:
                color = "white" if fraction > 0.6 else "black"
                axes.text(column, row, f"{fraction:.2f}", ha="center", va="center", fontsize=8, color=color)
    return figure


def draw_panel(image: RGB, target: Labels, prediction: Labels, classes: list[ClassInfo], caption: str) -> Image.Image:
    """Image, ground truth and prediction side by side, above a legend of the classes in them.

    `image` is RGB uint8 H x W x 3, the masks are uint8 H x W.
    """
    colors = palette(classes)
    height, width = image.shape[:2]
    occurring = [label for label in np.union1d(target, prediction).tolist() if label < len(classes)]
    panel_width, (cell_width, cell_height) = 3 * width + 2 * GAP, LEGEND_CELL
    columns = max(1, panel_width // cell_width)
    rows = -(-len(occurring) // columns)
    panel = Image.new("RGB", (panel_width, height + 20 + cell_height * rows), "white")
    for index, part in enumerate((image, blend(image, target, colors, 0.6), blend(image, prediction, colors, 0.6))):
        panel.paste(Image.fromarray(part), (index * (width + GAP), 0))
    pen = ImageDraw.Draw(panel)
    pen.text((2, height + 4), f"image | ground truth | prediction    {caption}", fill="black")
    for index, label in enumerate(occurring):
        x, y = index % columns * cell_width, height + 20 + index // columns * cell_height
        pen.rectangle((x + 2, y + 2, x + 14, y + 14), fill=colors[label], outline="black")
        pen.text((x + 19, y + 2), classes[label].name, fill="black")
    return panel
