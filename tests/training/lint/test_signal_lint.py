"""The lint of signals names what is wrong with leads, events and splits; and its report has no images in it."""

import json
from pathlib import Path

import numpy as np
import pytest

from models.console import Console
from models.readers.annotations import Interval, from_intervals, write_annotations
from training.data.scan.signal_stats import check_events
from training.data.synthetic_signals import generate_signals, write_record
from training.data.tracks import Event, Track
from training.lint import lint, print_lint_report
from training.lint.html_report import write_html_report
from training.lint.inspection import inspect_dataset
from training.lint.json_report import lint_json
from training.lint.stats import dataset_stats, print_stats

EVENTS = [Interval(100, 200, "a"), Interval(300, 330, "b"), Interval(500, 560, "a")]


def write(
    root: Path, name: str, values: np.ndarray | None = None, events: list[Interval] = EVENTS, rate: float = 250.0
) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(len(name)).normal(size=(1000, 2)).astype(np.float32) * hash_free(name)
    write_record((root / name).parent, Path(name).name, values, rate=rate)
    (root / f"{name}.atr").write_bytes(write_annotations(from_intervals(events)))


def hash_free(name: str) -> float:
    """A height that differs between records, so that none are copies."""
    return 1 + sum(map(ord, name)) / 10_000


def findings(root: Path) -> dict[str, tuple[str, str]]:
    return {finding.kind: (finding.level, finding.detail) for finding in lint(root).findings}


def base(root: Path) -> None:
    for split, count in (("train", 9), ("val", 2), ("test", 2)):
        for index in range(count):
            write(root, f"{split}/{split[:2]}{index}x")


def test_a_clean_set_has_nothing_but_what_is_small(tmp_path: Path) -> None:
    base(tmp_path)
    assert findings(tmp_path) == {}


def bad_values(kind: str) -> np.ndarray:
    values = np.random.default_rng(5).normal(size=(1000, 2)).astype(np.float32)
    if kind == "flat":
        values[:, 1] = 0.5
    elif kind == "clipped":
        values[:, 1] = np.clip(np.sin(np.arange(1000) / 20), -0.5, 0.5)
    elif kind == "missing":
        values[100:200, 1] = -32.768  # what format 16 marks as invalid
    return values


@pytest.mark.parametrize(
    ("kind", "finding", "expected"),
    [
        ("flat", ("warning", "flat lead"), "train/odd.hea, lead side: does not change for 100.0% of the time."),
        (
            "clipped",
            ("warning", "clipped lead"),
            "train/odd.hea, lead side: is cut off at its highest or lowest value for",
        ),
    ],
)
def test_leads(tmp_path: Path, kind: str, finding: tuple[str, str], expected: str) -> None:
    base(tmp_path)
    write(tmp_path, "train/odd", bad_values(kind))
    found = findings(tmp_path)
    assert found[finding[1]][0] == finding[0] and expected in found[finding[1]][1]
    assert set(found) == {finding[1]}


@pytest.mark.parametrize(
    ("events", "kind", "expected"),
    [
        ([*EVENTS, Interval(990, 1020, "b")], "events outside the recording", "steps of 1,000, in time steps: b at 990 to 1020."),
        ([*EVENTS, Interval(700, 701, "a")], "very short events", "1 events have fewer than 3 time steps"),
    ],
)  # fmt: skip
def test_events(tmp_path: Path, events: list[Interval], kind: str, expected: str) -> None:
    base(tmp_path)
    write(tmp_path, "train/odd", events=events)
    found = findings(tmp_path)
    assert expected in found[kind][1] and set(found) == {kind}


def test_events_that_overlap_or_end_before_they_begin() -> None:
    events = (Event(300, 290, "c"), Event(100, 200, "a"), Event(150, 250, "b"), Event(249, 260, "d"))
    assert check_events(Track(events), 1000) == ((), ("b at 150 to 250 and a at 100 to 200",), ("c at 300 to 290",))


def test_rates_units_and_copies_and_patients(tmp_path: Path) -> None:
    base(tmp_path)
    write(tmp_path, "train/odd", rate=360.0)
    header = (tmp_path / "train/odd.hea").read_text().replace("/mV", "/uV")
    (tmp_path / "train/odd.hea").write_text(header)
    values = np.random.default_rng(9).normal(size=(1000, 2)).astype(np.float32)
    write(tmp_path, "train/p7_1", values)
    write(tmp_path, "test/p7_2", values)
    found = findings(tmp_path)
    assert set(found) == {"mixed rates", "mixed units", "same patient in two splits", "same recording in two splits"}
    assert "2 sampling rates: 250 Hz 15" in found["mixed rates"][1]
    assert "p7: train/p7_1 (train), test/p7_2 (test)." in found["same patient in two splits"][1]


def test_unreadable_files_are_errors(tmp_path: Path) -> None:
    base(tmp_path)
    (tmp_path / "train/tr0x.dat").unlink()
    (tmp_path / "val/va0x.dat").write_bytes(bytes(4000))
    report = lint(tmp_path)
    details = sorted(finding.detail for finding in report.errors)
    assert len(details) == 2 and "its signal file 'tr0x.dat' cannot be read" in details[0] and "checksum" in details[1]


def test_each_report_of_a_generated_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_signals(tmp_path / "data", counts={"train": 8, "val": 2, "test": 2}, seconds=10)
    report = lint(tmp_path / "data")
    assert not report.errors and report.axes == "T"
    assert report.pixel_counts["train"].sum() == 8 * 2500 and report.train_image_sizes == [(2500,)] * 8
    assert set(report.content_digests()) == {"train", "val", "test"}
    assert set(report.select_splits(("train",)).datasets) == {"train"}
    durations = report.durations(2)
    assert len(durations) > 5 and 0.05 < durations.min() <= durations.max() < 0.12
    console = Console()
    print_lint_report(report, console)
    print_stats(dataset_stats(report), console)
    printed = capsys.readouterr().out
    assert "12 recordings; percentage of time" in printed and "spike" in printed and "10 s" in printed
    assert json.loads(json.dumps(lint_json(report)))["classes"][2]["duration"]["events"] == len(durations)
    (tmp_path / "data/train/p001_1.dat").unlink()
    write_html_report(tmp_path / "lint.html", lint(tmp_path / "data"), tmp_path / "data")
    assert "cannot be read" in (tmp_path / "lint.html").read_text()
    lines = inspect_dataset(tmp_path / "data", sheet=tmp_path / "sheet.png")
    assert "recordings: train 8, val 2, test 2" in lines
    from PIL import Image

    colors = {color for _, color in Image.open(tmp_path / "sheet.png").getcolors(1 << 20) or []}
    assert len(colors) > 4  # the spans of three classes, beside ink and paper
