"""`evaluate` and `compare` of signals: events at the recording's own rate, groups, the report's recordings."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from models.errors import RunError
from models.inference.segmenter import Segmenter
from models.sample import Sample
from models.spec import IGNORE_INDEX, ClassInfo, EventRule, InputRule, Scaling, Spacing
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.training.fake_dataset import make_metrics
from training.compare import compare
from training.data.dataset import Pair, SegmentationDataset
from training.evaluate import evaluate_split
from training.metrics.events import compute_event_metrics
from training.metrics.results import EvaluationMetrics
from training.reports.console import print_metrics
from training.reports.records import records_section, worst_window

RATE, OWN_RATE = 100.0, 200.0  # Hz: of the network, and of the recordings
CLASSES = [ClassInfo(name=name, rgb=(index * 80, 9, 9)) for index, name in enumerate(("background", "P<", "T"))]
RULE = InputRule(
    rule="native", axes="T", channels=("lead",), dtype="float32", scaling=Scaling(kind="fixed", low=(0,), high=(2,)),
    spacing=Spacing(values=(RATE,), unit="Hz"), divisor=1,
)  # fmt: skip


def predict_levels(
    signals: np.ndarray, logits: bool = False, statistics: np.ndarray | None = None
) -> tuple[np.ndarray, Any]:
    """An inference function, N x T x 1: the label is the value, as it is drawn here."""
    labels = np.clip(np.rint(signals[..., 0]), 0, 2).astype(np.uint8)
    scores = 9.0 * np.eye(3, dtype=np.float32)[labels].transpose(0, 2, 1) if logits else None
    return labels, scores


@dataclass(frozen=True)
class FakeRecordings(SegmentationDataset):
    """Recordings of 4 s at 200 Hz with an event of each class a second, which is drawn `shift` time steps too late."""

    shift: int = 0

    def record_and_labels(self, index: int) -> tuple[Sample, np.ndarray]:
        labels = np.zeros(800, np.uint8)
        for start in range(100, 800, 200):
            labels[start : start + 40], labels[start + 80 : start + 140] = 1, 2
        drawn = np.roll(labels, self.shift)
        if index % 3 == 0:  # one event is not found
            drawn[300:400] = 0
        labels[:100] = labels[640:] = IGNORE_INDEX
        return Sample(drawn[:, None].astype(np.float32), "T", ("lead",), Spacing(values=(OWN_RATE,), unit="Hz")), labels


def recordings(shift: int, number: int = 12) -> FakeRecordings:
    pairs = [
        Pair(f"r{index}", Path(f"r{index}"), Path(f"r{index}.csv"), f"patient {index // 2}") for index in range(number)
    ]
    return FakeRecordings(pairs, CLASSES, input=RULE, axes="T", shift=shift)


def evaluated(shift: int, **changes: Any) -> tuple[EvaluationMetrics, str]:
    """The metrics of an evaluation, and what is printed."""
    samples = recordings(shift)
    matrix, tally = evaluate_split(Segmenter(predict_levels, RULE), samples, QUIET_CONSOLE, all_metrics=True)
    events = compute_event_metrics(tally, CLASSES, 150)
    metrics = make_metrics(matrix, tally, CLASSES, axes="T", events=events, **changes)
    stream = io.StringIO()
    print_metrics(metrics, matrix, Console(file=stream, width=200))
    return metrics, stream.getvalue()


def test_events_are_measured_at_the_recordings_own_rate() -> None:
    """At the network's rate, an error of 3 time steps of 5 ms would look like one of 2 or 4."""
    metrics, output = evaluated(3)
    assert metrics.events is not None
    onset, offset = metrics.events.per_class["P<"]["onset"], metrics.events.per_class["P<"]["offset"]
    assert (onset.matched, onset.missed, onset.false) == (8 * 3 + 4 * 2, 4, 0)
    assert onset.mean_ms == pytest.approx(15, abs=2.5) and onset.sd_ms is not None and onset.sd_ms <= 2.5
    assert offset.f1 == onset.f1 == pytest.approx(2 * 32 / (2 * 32 + 4))
    assert onset.f1_interval is not None  # six patients
    assert re.search(r"P< onset\s+0\.9412", output) and "12 recordings (6 groups)" in output
    assert "boundary IoU" not in output


def test_groups_are_kept_in_the_rows() -> None:
    metrics, _ = evaluated(0)
    assert [row.group for row in metrics.per_image] == [f"patient {index // 2}" for index in range(12)]
    assert EvaluationMetrics.model_validate_json(metrics.model_dump_json()) == metrics


def test_evaluation_applies_the_bundles_post_processing() -> None:
    samples, segmenter = recordings(0), Segmenter(predict_levels, RULE)
    segmenter.event_rules = {2: EventRule(min_duration=0.31)}  # T lasts 0.3 s
    _, tally = evaluate_split(segmenter, samples, QUIET_CONSOLE, all_metrics=True)
    sums = tally.events.sum(axis=0)
    assert sums[1, :, 0].tolist() == [0, 0] and sums[0, 0, 0] > 0


def test_compare_pairs_the_events_by_patient(tmp_path: Path) -> None:
    for name, shift in (("good", 0), ("late", 35)):
        (tmp_path / name).mkdir()
        metrics, _ = evaluated(shift)
        rows = [
            row.model_copy(update={"digest": ""}) for row in metrics.per_image
        ]  # the same recordings, another network
        metrics.model_copy(update={"per_image": rows}).save(tmp_path / name / "metrics.json")
    stream = io.StringIO()
    compare([tmp_path / "good", tmp_path / "late"], False, Console(file=stream, width=200))
    output = stream.getvalue()
    assert "paired by group" in output
    first, second = (line for line in output.splitlines() if line.startswith("event F1"))
    assert "0.9706" in first and re.search(r"-0\.\d+ \[-0\.\d+\.\.-0\.\d+\]", second)
    other = evaluated(0)[0]
    assert other.events is not None
    (tmp_path / "wide").mkdir()
    wide = other.model_copy(update={"events": other.events.model_copy(update={"tolerance_ms": 40.0})})
    wide.save(tmp_path / "wide" / "metrics.json")
    with pytest.raises(RunError, match="tolerances differ, 150 ms and 40 ms"):
        compare([tmp_path / "good", tmp_path / "wide"], False, Console(file=stream))


def test_report_draws_the_worst_and_the_best_recordings() -> None:
    samples, segmenter = recordings(3), Segmenter(predict_levels, RULE)
    _, tally = evaluate_split(segmenter, samples, QUIET_CONSOLE, all_metrics=True)
    html = records_section(segmenter, samples, tally)
    figures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    assert len(figures) == 12
    worst = figures[0]
    assert {rect.get("class") for rect in worst.iter("rect")} == {"span", "tint", "unlabeled", "error"}
    truth = [rect for rect in worst.iter("rect") if rect.get("class") == "span" and rect.get("y") == "0"]
    assert [float(rect.get("x", "")) for rect in truth[:2]] == [125, 225]  # 100 and 180 of 800 time steps, of 1000
    assert [path.get("d", "")[:2] for path in worst.iter("path")] == ["M0"]
    assert "P&lt;" in html and "P<<" not in html
    assert "of 12 onsets and offsets 2 missed, and 0 false" in html


def test_long_recordings_show_the_stretch_with_the_most_errors() -> None:
    wrong = np.zeros(1000, bool)
    wrong[[5, 700, 710, 720]] = True
    start, stop = worst_window(wrong, 100)
    assert stop - start == 100 and start <= 700 and stop > 720
    assert worst_window(wrong, 5000) == (0, 1000)
