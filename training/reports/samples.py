"""A sample with ground truth and prediction as one image, whatever its axes: an image, a trace, the middle slice of a volume."""

import numpy as np
from PIL import Image, ImageDraw

from models.imaging.decode import RGB, Labels
from models.readers.composite import to_rgb
from models.sample import Sample, Values
from models.spec import ClassInfo, InputRule, palette
from training.reports.plots import draw_panel

WIDTH, LEAD_HEIGHT, BAND = 1200, 120, 14  # pixels of a trace, of each of its leads, and of the colored bands below them
MAX_LEADS, MAX_STEPS = 4, 5000  # that are drawn, from the middle of the recording


def draw_sample(
    sample: Sample, target: Labels, prediction: Labels, classes: list[ClassInfo], caption: str, rule: InputRule
) -> Image.Image:
    """Draw a sample in the network's channels, with labels uint8 [*axes]."""
    if rule.axes == "HW":
        return draw_panel(to_rgb(sample.values, rule), target, prediction, classes, caption)
    if rule.axes == "T":
        return draw_trace_panel(sample.values, target, prediction, classes, caption)
    middle = len(target) // 2
    return draw_panel(gray(sample.values[middle, :, :, 0]), target[middle], prediction[middle], classes, caption)


def draw_trace_panel(
    values: Values, target: Labels, prediction: Labels, classes: list[ClassInfo], caption: str
) -> Image.Image:
    """The leads of a signal T x C, one below the other, above a band of the true and one of the predicted labels."""
    start = max(0, (len(values) - MAX_STEPS) // 2)
    values, target, prediction = (part[start : start + MAX_STEPS] for part in (values, target, prediction))
    leads, colors = min(MAX_LEADS, values.shape[1]), palette(classes)
    top = leads * LEAD_HEIGHT
    panel = Image.new("RGB", (WIDTH, top + 2 * BAND + 26), "white")
    pen = ImageDraw.Draw(panel)
    columns = np.arange(len(values)) * WIDTH // len(values)
    for lead in range(leads):
        trace = values[:, lead].astype(np.float64)
        low, high = float(trace.min()), float(trace.max())
        heights = (high - trace) / ((high - low) or 1.0) * (LEAD_HEIGHT - 12) + 6 + lead * LEAD_HEIGHT
        pen.line(list(zip(columns.tolist(), heights.tolist(), strict=True)), fill="black")
    steps = np.arange(WIDTH) * len(values) // WIDTH
    for row, labels in enumerate((target, prediction)):
        band = np.array(colors, np.uint8)[labels[steps]]
        panel.paste(Image.fromarray(np.repeat(band[None], BAND - 2, axis=0)), (0, top + row * BAND))
    pen.text((2, top + 2 * BAND + 6), f"ground truth above prediction    {caption}", fill="black")
    x = 330
    for label in np.union1d(target, prediction).tolist():
        if label < len(classes):
            pen.rectangle((x, top + 2 * BAND + 6, x + 12, top + 2 * BAND + 18), fill=colors[label], outline="black")
            pen.text((x + 17, top + 2 * BAND + 6), classes[label].name, fill="black")
            x += 30 + 7 * len(classes[label].name)
    return panel


def gray(plane: Values) -> RGB:
    """A slice H x W, stretched between its percentiles 1 and 99, as RGB uint8 H x W x 3."""
    low, high = np.percentile(plane, (1, 99))
    levels = np.clip((plane - low) / ((high - low) or 1.0), 0, 1) * 255
    return np.repeat(levels.astype(np.uint8)[:, :, None], 3, axis=2)
