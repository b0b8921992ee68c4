"""The plan of signals: the rate follows from the shortest events, the crop from the longest; and a planned training runs."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from models.errors import ConfigError
from models.readers.annotations import Interval, from_intervals, write_annotations
from models.spec import InputRule
from training.config import TrainConfig
from training.data.synthetic_signals import write_record
from training.lint import LintReport, lint
from training.plan.input_channels import apply_input
from training.plan.rules import Plan
from training.plan.signals import (
    choose_rate,
    choose_signal_augmentation,
    choose_signal_crop,
    choose_signal_events,
    choose_signal_input,
    longest_event,
    narrowest_class,
)

SILENT = Console(quiet=True)


def make_report(
    root: Path, rate: float = 1000.0, short: float = 0.05, long: float = 0.5, steps: int = 8000
) -> LintReport:
    """Recordings of two leads with events of two durations, in seconds."""
    for split, count in (("train", 8), ("val", 2)):
        (root / split).mkdir(parents=True)
        for index in range(count):
            random = np.random.default_rng((count, index))
            write_record(root / split, f"{split}{index}", random.normal(size=(steps, 2)).astype(np.float32), rate=rate)
            events = []
            for start in range(200, steps - 1000, 1500):
                events.append(Interval(start, start + round(short * rate), "short"))
                events.append(Interval(start + 600, start + 600 + round(long * rate), "long"))
            (root / split / f"{split}{index}.atr").write_bytes(write_annotations(from_intervals(events)))
    return lint(root)


@pytest.mark.parametrize(
    ("rate", "short", "expected"),
    [(1000.0, 0.05, 200.0), (1000.0, 0.1, 100.0), (500.0, 0.05, 250.0), (100.0, 0.2, 50.0), (50.0, 0.1, 50.0)],
)
def test_the_rate_leaves_ten_steps_to_a_short_event(tmp_path: Path, rate: float, short: float, expected: float) -> None:
    report = make_report(tmp_path, rate, short, steps=4000)
    assert narrowest_class(report) == ("short", pytest.approx(short))
    assert choose_rate(report, TrainConfig())[0] == expected
    assert choose_rate(report, TrainConfig(rate=77.0)) == (77.0, "your setting.")


def test_input_crop_and_augmentation_follow_from_the_recordings(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    rule, reason = choose_signal_input(report, TrainConfig())
    assert (rule.axes, rule.channels, rule.dtype, rule.rate, rule.scaling.kind) == (
        "T",
        ("front", "side"),
        "float32",
        200.0,
        "zscore",
    )
    assert "200 Hz: 1/5 of the recorded 1000 Hz; a short short (50 ms) still has 10 time steps." in reason
    assert longest_event(report) == ("long", pytest.approx(0.5))
    plan = Plan({"minutes": 1})
    choose_signal_crop(plan, report, rule)
    assert plan["crop"] == (1024,)
    choose_signal_augmentation(plan, report, rule)
    assert plan["lead_dropout"] == 0.1 and plan["hum"] == 0.1
    slow = rule.model_copy(
        update={"channels": ("lead",), "spacing": rule.spacing and rule.spacing.model_copy(update={"values": (50.0,)})}
    )
    assert report.durations(1).size == 40  # too few for a quantile
    choose_signal_events(plan, report, rule)
    assert plan["min_duration"] is None
    other = Plan({})
    choose_signal_crop(other, report, slow)
    choose_signal_augmentation(other, report, slow)
    assert other["crop"] == (416,) and other["lead_dropout"] == 0.0 and other["hum"] == 0.0


def test_what_is_much_shorter_than_the_events_of_a_class_is_removed(tmp_path: Path) -> None:
    report = make_report(tmp_path, steps=22000)
    rule, _ = choose_signal_input(report, TrainConfig())
    plan = Plan({})
    choose_signal_events(plan, report, rule)
    assert plan["min_duration"] == {"short": 0.03, "long": 0.3}
    choose_signal_events(own := Plan({"min_duration": "long:0"}), report, rule)
    assert own["min_duration"] == {"long": 0}


def test_the_data_sets_read_at_the_chosen_rate(tmp_path: Path) -> None:
    report = make_report(tmp_path, steps=4000)
    console = Console(file=(printed := io.StringIO()), width=200)
    applied = apply_input(report, TrainConfig(channels=("side",)), console)
    rule = applied.datasets["train"].input
    assert isinstance(rule, InputRule) and rule.channels == ("side",)
    sample, labels = applied.datasets["train"].sample_and_labels(0)
    assert sample.values.shape == (800, 1) and labels.shape == (800,) and sample.rate == 200.0
    assert "Scaling zscore" in printed.getvalue()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"channels": ("sid",)}, "There is no lead 'sid'; did you mean side?"),
        ({"scaling": "window"}, "scaling=window is for images"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(tmp_path: Path, settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        choose_signal_input(make_report(tmp_path, steps=4000), TrainConfig(**settings))


def test_files_without_a_rate_have_that_of_the_setting(tmp_path: Path) -> None:
    for name in "abcd":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(ord(name)).normal(size=(400, 1)).astype(np.float32))
        (tmp_path / f"{name}.events.csv").write_text("onset,offset,class\n0.5,1.25,x\n")
    assert "states no sampling rate; give it with `rate=`" in lint(tmp_path).errors[0].detail
    config = TrainConfig(rate=100.0)
    report = lint(tmp_path, rate=config.rate)
    assert not report.errors
    dataset = apply_input(report, config, SILENT).datasets["train"]
    sample, labels = dataset.sample_and_labels(0)
    assert sample.rate == 100.0 and np.flatnonzero(labels)[[0, -1]].tolist() == [50, 124]
