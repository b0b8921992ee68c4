"""Event metrics: exact small cases by hand, the matching against a general solver, and intervals by patient."""

import time

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from models.spec import IGNORE_INDEX, ClassInfo
from training.metrics.bootstrap import PerImageCounts, compute_metrics
from training.metrics.events import bootstrap_events, compute_event_metrics, count_events, event_rates, match_points
from training.metrics.resampling import NUM_RESAMPLES
from training.metrics.results import EventMetrics, ImageResult

RATE = 100.0  # Hz: a time step is 10 ms
CLASSES = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("background", "P")]


def signal(*events: tuple[int, int, int], length: int = 200, annotated: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 labels from (label, start, end); unlabeled outside of `annotated`."""
    labels = np.zeros(length, np.uint8)
    for label, start, end in events:
        labels[start:end] = label
    if annotated:
        labels[: annotated[0]] = labels[annotated[1] :] = IGNORE_INDEX
    return labels


def counted(target: np.ndarray, prediction: np.ndarray, tolerance_ms: float = 150, label: int = 1) -> list[list[float]]:
    """The counts of the onsets and the offsets of a class, of two without the background."""
    found: list[list[float]] = count_events(target, prediction, RATE, 3, tolerance_ms)[label - 1].tolist()
    return found


def test_errors_are_predicted_minus_annotated_time() -> None:
    target, prediction = signal((1, 50, 60), (1, 100, 110)), signal((1, 52, 59), (1, 97, 110))
    assert counted(target, prediction) == [[2, 0, 0, -10, 400 + 900], [2, 0, 0, -10, 100]]
    rates = event_rates(count_events(target, prediction, RATE, 3))
    assert rates["mean_ms"][0].tolist() == [-5, -5]
    assert rates["sd_ms"][0].tolist() == [25, 5]  # of +20 and -30; of -10 and 0
    assert np.isnan(rates["f1"][1]).all() and rates["event_f1"] == 1


@pytest.mark.parametrize(("shift", "matched"), [(15, 1), (-15, 1), (16, 0), (-16, 0)])
def test_tolerance_holds_its_border(shift: int, matched: int) -> None:
    target, prediction = signal((1, 50, 60)), signal((1, 50 + shift, 60 + shift))
    for found in counted(target, prediction):
        assert found[:3] == [matched, 1 - matched, 1 - matched]


def test_tolerance_that_is_no_whole_number_of_steps() -> None:
    """0.15 s at 360 Hz is 54 steps, and 54.000000000000004 or less in floats."""
    target, prediction = signal((1, 5, 60), length=300), signal((1, 59, 114), length=300)
    assert count_events(target, prediction, 360, 2, 150)[0, 0, 0] == 1
    assert count_events(target, prediction, 360, 2, 149)[0, 0, 0] == 0


def test_another_class_does_not_match() -> None:
    target, prediction = signal((1, 50, 60)), signal((2, 50, 60))
    assert [point[:3] for point in counted(target, prediction)] == [[0, 1, 0]] * 2
    assert [point[:3] for point in counted(target, prediction, label=2)] == [[0, 0, 1]] * 2


def test_each_matches_one_at_most_and_the_nearest() -> None:
    """A split event has an onset and an offset too many, and those that remain are the nearest."""
    target, prediction = signal((1, 50, 60)), signal((1, 48, 52), (1, 54, 61))
    assert counted(target, prediction) == [[1, 0, 1, -20, 400], [1, 0, 1, 10, 100]]


def test_as_many_as_possible_are_matched() -> None:
    """The nearest to 60 is 58, but 50 can only match that one."""
    assert match_points(np.array([46, 60]), np.array([58, 70]), 12).tolist() == [0, 1]


def test_matching_equals_a_general_solver() -> None:
    """Most pairs, then the least total error, on random points that are often crowded."""
    random = np.random.default_rng(0)
    for _ in range(400):
        true, found = (np.sort(random.choice(120, random.integers(0, 9), replace=False)) for _ in range(2))
        tolerance = float(random.integers(0, 30))
        partner = match_points(true, found, tolerance)
        pairs = [(index, each) for index, each in enumerate(partner.tolist()) if each >= 0]
        errors = [abs(int(true[one] - found[two])) for one, two in pairs]
        assert len({two for _, two in pairs}) == len(pairs) and max(errors, default=0) <= tolerance
        distances = np.abs(true[:, None] - found[None])
        allowed = distances <= tolerance
        rows, columns = linear_sum_assignment(np.where(allowed, distances - 10_000, 0))
        best = allowed[rows, columns]
        assert len(pairs) == best.sum()
        assert sum(errors) == distances[rows, columns][best].sum()


def test_matching_of_a_day_is_fast_also_if_the_prediction_is_torn() -> None:
    """24 h at 250 Hz: 100,000 events, and a prediction of ten pieces for each."""
    true = np.arange(100_000) * 216 + 50
    start = time.process_time()
    assert (match_points(true, true + 3, 37.5) == np.arange(100_000)).all()
    assert time.process_time() - start < 1
    torn = np.sort(np.concatenate([true[:2000] + shift for shift in range(-10, 200, 20)]))
    assert (np.abs(torn[match_points(true[:2000], torn, 37.5)] - true[:2000]) == 10).all()
    assert time.process_time() - start < 3


def test_what_is_not_annotated_is_not_judged() -> None:
    target = signal((1, 50, 60), (1, 100, 110), annotated=(50, 110))
    outside = signal((1, 20, 28), (1, 50, 60), (1, 100, 110), (1, 150, 160))
    assert [point[:3] for point in counted(target, outside)] == [[2, 0, 0]] * 2
    inside = signal((1, 50, 60), (1, 75, 79), (1, 100, 110))
    assert [point[:3] for point in counted(target, inside)] == [[2, 0, 1]] * 2


def test_an_event_at_the_border_matches_with_its_true_error() -> None:
    """Cutting the prediction at the border would hide its error of 40 ms; an event across the border is never wrong."""
    target = signal((1, 50, 60), (1, 100, 110), annotated=(50, 110))
    assert counted(target, signal((1, 46, 60), (1, 100, 113))) == [[2, 0, 0, -40, 1600], [2, 0, 0, 30, 900]]
    across = signal((2, 40, 53), (1, 53, 60), (1, 100, 110))
    assert [point[:3] for point in counted(target, across, label=2)] == [[0, 0, 0]] * 2


def test_an_event_that_the_record_cuts_has_no_onset_or_offset_there() -> None:
    target, same = signal((1, 0, 10), (1, 190, 200)), signal((1, 0, 12), (1, 190, 200))
    assert counted(target, same) == [[1, 0, 0, 0, 0], [1, 0, 0, 20, 400]]
    nothing = signal()
    assert [point[:3] for point in counted(target, nothing)] == [[0, 1, 0]] * 2
    assert [point[:3] for point in counted(nothing, target)] == [[0, 0, 1]] * 2


def test_records_without_events_or_labels() -> None:
    unlabeled = np.full(200, IGNORE_INDEX, np.uint8)
    for target, prediction in ((unlabeled, signal((1, 50, 60))), (signal(), signal()), (unlabeled[:0], unlabeled[:0])):
        assert not count_events(target, prediction, RATE, 3).any()


def tally_of(patients: int, records: int, groups: bool) -> PerImageCounts:
    """Records of patients: all of a patient are alike, and every second patient has twice as many events missed."""
    tally, random = PerImageCounts(2), np.random.default_rng(1)
    for patient in range(patients):
        missed = int(random.integers(0, 10))
        for record in range(records):
            events = np.array([[[20 - missed, missed, 1, 5.0, 40.0], [20, 0, 0, 0.0, 20.0]]])
            tally.add(
                f"{patient}/{record}",
                *[np.ones((3, 2), np.int64)] * 2,
                events=events,
                group=f"p{patient}" if groups else "",
            )
    return tally


def test_intervals_by_patient_are_wider_where_records_repeat_a_patient() -> None:
    """12 leads of a patient are alike: as records of their own they would seem to prove much more."""
    widths = []
    for groups in (False, True):
        metrics = compute_event_metrics(tally_of(20, 12, groups), CLASSES, 150)
        onset = metrics.per_class["P"]["onset"]
        assert onset.sensitivity is not None and onset.sensitivity_interval is not None
        low, high = onset.sensitivity_interval
        assert low < onset.sensitivity < high
        widths.append(high - low)
    assert 2.5 < widths[1] / widths[0] < 4.5  # sqrt(12) is 3.5


def test_pixel_metrics_are_resampled_by_patient_too() -> None:
    five = tally_of(5, 12, groups=True)
    assert compute_metrics(five, CLASSES).intervals.miou is None  # five patients prove nothing, 60 records or not
    assert compute_metrics(tally_of(5, 12, groups=False), CLASSES).intervals.miou is not None


def test_event_metrics_by_hand() -> None:
    tally = tally_of(1, 2, groups=False)
    metrics = compute_event_metrics(tally, CLASSES, 100)
    assert EventMetrics.model_validate_json(metrics.model_dump_json()) == metrics
    onset, offset = metrics.per_class["P"]["onset"], metrics.per_class["P"]["offset"]
    missed = int(np.random.default_rng(1).integers(0, 10))
    assert (onset.matched, onset.missed, onset.false) == (2 * (20 - missed), 2 * missed, 2)
    assert (
        onset.sensitivity == round(1 - missed / 20, 6) and offset.f1 == 1 and offset.mean_ms == 0 and offset.sd_ms == 1
    )
    assert metrics.event_f1 == pytest.approx(((onset.f1 or 0) + 1) / 2, abs=1e-6)
    assert onset.f1_interval is None and metrics.event_f1_interval is None  # two records


def test_rows_keep_events_and_groups() -> None:
    tally = tally_of(7, 2, groups=True)
    rows = [ImageResult.model_validate_json(row.model_dump_json()) for row in tally.to_rows()]
    restored = PerImageCounts.from_rows(rows, 2)
    assert (restored.events == tally.events).all() and (restored.group_indices == tally.group_indices).all()
    f1 = bootstrap_events(restored)["f1"]
    assert f1.shape == (NUM_RESAMPLES, 1, 2) and (f1 == bootstrap_events(tally)["f1"]).all()
