"""Draws recordings: a curve for each lead, with the labels as colored spans behind it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.imaging.decode import RGB, Labels
from models.sample import Values
from models.spec import IGNORE_INDEX, ClassInfo

MAX_LEADS = 12  # curves in one image
INK, PAPER, UNLABELLED = (30, 30, 30), (255, 255, 255), (225, 225, 225)
SPAN_OPACITY = 0.45
QUANTILES = (0.005, 0.995)  # of a lead, which lie at the lower and upper end of its strip


def draw_trace(
    values: Values, labels: Labels, classes: list[ClassInfo], size: tuple[int, int], names: tuple[str, ...] = ()
) -> RGB:
    """A recording T x C with labels uint8 T as an image of `size`, (height, width): RGB uint8 H x W x 3.

    Background is white, what is not labelled gray.
    """
    height, width = size
    pixels = np.empty((height, width, 3), np.float32)
    columns = span_colors(labels, classes, width)
    pixels[:] = columns[None]
    page = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(page)
    count = min(values.shape[1], MAX_LEADS)
    strip = height / count
    for index in range(count):
        low, high = envelope(values[:, index], width)
        bottom, top = _range(values[:, index])
        scale = strip * 0.84 / (top - bottom)
        center = strip * (index + 0.92)
        points = []
        for x in range(width):
            if np.isfinite(low[x]):
                points.append((x, center - (float(high[x]) - bottom) * scale))
                points.append((x, center - (float(low[x]) - bottom) * scale))
        if points:
            draw.line(points, INK, 1)
        if names:
            draw.text((2, strip * index), names[index], INK)
    return np.asarray(page)


def span_colors(labels: Labels, classes: list[ClassInfo], width: int) -> NDArray[np.float32]:
    """The color of each column, W x 3: of the class at most of its time steps."""
    colors = np.full((256, 3), PAPER, np.float32)
    for label, entry in enumerate(classes[1:], 1):
        colors[label] = np.array(entry.rgb) * SPAN_OPACITY + np.array(PAPER) * (1 - SPAN_OPACITY)
    colors[IGNORE_INDEX] = UNLABELLED
    edges = np.linspace(0, len(labels), width + 1)
    middles = ((edges[:-1] + edges[1:]) / 2).astype(np.int64)
    return np.asarray(colors[labels[np.minimum(middles, len(labels) - 1)]])


def envelope(values: NDArray[np.float32], width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest value of the time steps behind each column; NaN for a column without a value."""
    if len(values) < width:
        steps = np.minimum((np.arange(width) * len(values) / width).astype(int), len(values) - 1)
        return values[steps], values[steps]
    starts = (np.arange(width) * len(values) / width).astype(int)
    finite = np.isfinite(values)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    missing = low > high
    return np.where(missing, np.nan, low), np.where(missing, np.nan, high)


def _range(values: NDArray[np.float32]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, QUANTILES)
    margin = 0.15 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
