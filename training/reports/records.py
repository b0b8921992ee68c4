"""The worst and the best recordings: the trace, with ground truth and prediction as colored spans, as SVG."""

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.inference.events import find_runs
from models.inference.segmenter import Segmenter
from models.inference.signals import segment_signal
from models.sample import Sample, Values
from models.spec import IGNORE_INDEX
from training.data import SegmentationDataset
from training.metrics.bootstrap import ImageCounts, PerImageCounts
from training.metrics.events import FALSE, MATCHED, MISSED
from training.reports.gallery import worst_and_best
from training.reports.layout import render
from training.reports.line_chart import nice_step
from training.reports.traces import envelope

WINDOW_SECONDS, WINDOW_STEPS = 10.0, 5000  # that are shown, of recordings with a rate and of others
MAX_LEADS = 3  # of a recording
WIDTH, LEAD_HEIGHT, BAND = 1000, 110, 18  # units of the SVG: of the time axis, of a lead, of a row of spans


def records_section(segmenter: Segmenter, samples: SegmentationDataset, tally: PerImageCounts) -> Markup:
    """The recordings with the lowest and the highest mIoU; of long ones the stretch with the most errors."""
    worst, best = worst_and_best(tally)
    occurring: set[int] = set()
    groups = [
        {
            "title": title,
            "cards": [_card(segmenter, samples, tally.images[index], index, occurring) for index in indices],
        }
        for title, indices in (("Worst", worst), ("Best", best))
        if indices
    ]
    legend = [samples.classes[label] for label in sorted(occurring)]
    return render("records.html", groups=groups, legend=legend, width=WIDTH, band=BAND)


def _card(
    segmenter: Segmenter, samples: SegmentationDataset, counts: ImageCounts, index: int, occurring: set[int]
) -> dict[str, Any]:
    """The content of a recording's card; adds the labels of its spans to `occurring`."""
    sample, target = samples.record_and_labels(index)
    prediction = segment_signal(segmenter, sample).labels
    wrong = (target != IGNORE_INDEX) & (target != prediction)
    rate = sample.rate or segmenter.rule.rate
    start, stop = worst_window(wrong, round(WINDOW_SECONDS * rate) if rate else WINDOW_STEPS)
    target, prediction, wrong = target[start:stop], prediction[start:stop], wrong[start:stop]
    occurring |= {label for label in np.union1d(target, prediction).tolist() if 0 < label < len(samples.classes)}
    colors = [entry.rgb for entry in samples.classes]
    missed, false = (int(counts.events[..., kind].sum()) for kind in (MISSED, FALSE))
    return {
        "name": counts.name,
        "miou": counts.miou,
        "missed": missed,
        "false": false,
        "annotated": missed + int(counts.events[..., MATCHED].sum()),
        "leads": _leads(sample, sample.values[start:stop]),
        "height": LEAD_HEIGHT * min(MAX_LEADS, sample.values.shape[1]),
        "target": [(x, width, colors[label]) for label, x, width in spans(target) if 0 < label < len(colors)],
        "unlabeled": [(x, width) for label, x, width in spans(target) if label == IGNORE_INDEX],
        "prediction": [(x, width, colors[label]) for label, x, width in spans(prediction) if 0 < label < len(colors)],
        "errors": [(x, width) for is_wrong, x, width in spans(wrong.astype(np.uint8)) if is_wrong],
        "ticks": _ticks(start, stop, rate),
        "unit": "s" if rate else "time steps",
    }


def worst_window(wrong: NDArray[np.bool_], length: int) -> tuple[int, int]:
    """Start and stop of the `length` time steps with the most errors; the first of them if several have."""
    if len(wrong) <= length:
        return 0, len(wrong)
    before = np.concatenate([[0], np.cumsum(wrong)])
    start = int(np.argmax(before[length:] - before[:-length]))
    return start, start + length


def spans(labels: Labels) -> list[tuple[int, str, str]]:
    """Label, x and width of each stretch of equal labels, in units of the SVG."""
    runs, scale = find_runs(labels), WIDTH / max(1, len(labels))
    return [
        (label, f"{start * scale:.2f}", f"{length * scale:.2f}")
        for label, start, length in zip(*(column.tolist() for column in runs), strict=True)
    ]


def _leads(sample: Sample, values: Values) -> list[dict[str, Any]]:
    """The path of each lead, scaled to its own range."""
    leads = []
    for number, name in enumerate(sample.channels[:MAX_LEADS]):
        low, high = envelope(values[:, number].astype(np.float32), WIDTH)
        known = np.isfinite(low)
        bottom, top = (float(low[known].min()), float(high[known].max())) if known.any() else (0.0, 1.0)
        scale = (LEAD_HEIGHT - 12) / (top - bottom or 1.0)
        path, gap = "", True
        for x in range(WIDTH):
            if not known[x]:
                gap = True
                continue
            ends = sorted(
                {round(LEAD_HEIGHT * (number + 1) - 6 - (float(each[x]) - bottom) * scale, 1) for each in (low, high)}
            )
            for y in ends if x % 2 else ends[::-1]:
                path += f"{'M' if gap else 'L'}{x} {y:g}"
                gap = False
        leads.append({"name": name, "path": path, "y": LEAD_HEIGHT * number + 14})
    return leads


def _ticks(start: int, stop: int, rate: float | None) -> list[tuple[str, str]]:
    """x and label of round times, in seconds (time steps without a rate)."""
    first, last = start / (rate or 1.0), stop / (rate or 1.0)
    if last <= first:
        return []
    step = nice_step((last - first) / 10)
    times = np.arange(np.ceil(first / step), np.floor(last / step) + 1) * step
    return [(f"{(time - first) / (last - first) * WIDTH:.1f}", f"{time:g}") for time in times.tolist()]
