"""Images of how a training went; `training/page/` draws an evaluation."""

import csv
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from models.imaging.decode import RGB, Labels
from models.outputs.overlay import blend
from models.spec import ClassInfo, palette
from training.metrics.confusion import ConfusionMatrix

matplotlib.use("Agg")  # no screen is needed
from matplotlib import pyplot as plt  # the backend must be chosen first

GAP = 8  # pixels between images of a panel


def plot_curves(table: Path, target: Path) -> None:
    """Draw the loss, the mIoU and the accuracy of `metrics.csv` over the epochs, as a PNG."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    epochs = [float(row["epoch"]) for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    left.plot(epochs, [float(row["loss"]) for row in rows], color="tab:blue")
    left.set(title="training loss", xlabel="epoch", ylim=(0, None))
    for name, label in (("miou", "mIoU"), ("pixel_accuracy", "pixel accuracy")):
        right.plot(epochs, [float(row[name] or "nan") for row in rows], label=label)
    right.set(title="validation", xlabel="epoch", ylim=(0, 1))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def plot_confusion_matrix(matrix: ConfusionMatrix, classes: list[ClassInfo]) -> Figure:
    """The confusion matrix, each row (a class of the truth) as shares of its pixels."""
    counts = matrix.counts.astype(np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [entry.name for entry in classes]
    side = min(16.0, max(4.0, 0.55 * len(names) + 2))  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="answer", ylabel="truth")
    if len(names) <= 20:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(
                    column,
                    row,
                    f"{share:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share > 0.6 else "black",
                )
    return figure


def draw_panel(image: RGB, truth: Labels, answer: Labels, classes: list[ClassInfo], caption: str) -> Image.Image:
    """The image, its truth and the answer side by side, above a legend of the classes that occur in them."""
    colours = palette(classes)
    height, width = image.shape[:2]
    occurring = [label for label in np.union1d(truth, answer).tolist() if label < len(classes)]
    columns = max(1, (3 * width + 2 * GAP) // 110)
    sheet = Image.new("RGB", (3 * width + 2 * GAP, height + 20 + 18 * -(-len(occurring) // columns)), "white")
    for place, part in enumerate((image, blend(image, truth, colours, 0.6), blend(image, answer, colours, 0.6))):
        sheet.paste(Image.fromarray(part), (place * (width + GAP), 0))
    pen = ImageDraw.Draw(sheet)
    pen.text((2, height + 4), f"image | truth | answer    {caption}", fill="black")
    for place, label in enumerate(occurring):
        x, y = place % columns * 110, height + 20 + place // columns * 18
        pen.rectangle((x + 2, y + 2, x + 14, y + 14), fill=colours[label], outline="black")
        pen.text((x + 19, y + 2), classes[label].name, fill="black")
    return sheet
