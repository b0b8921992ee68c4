"""Events and their post-processing: exact cases by hand."""

import time

import numpy as np
import pytest

from models.inference.events import Event, apply_postprocess, apply_postprocess_rows, find_event_columns, find_events
from models.spec import IGNORE_INDEX, EventRule


def labels_of(text: str) -> np.ndarray:
    """Labels of a signal, a character each: a dot is background, ? is unlabeled."""
    codes = {".": 0, "?": IGNORE_INDEX}
    return np.array([codes.get(letter) if letter in codes else int(letter) for letter in text], np.uint8)


def text_of(labels: np.ndarray) -> str:
    return "".join({0: ".", IGNORE_INDEX: "?"}.get(label, str(label)) for label in labels.tolist())


def test_events_are_stretches_of_a_class_with_their_mean_confidence() -> None:
    labels = labels_of("11..2213??")
    confidence = np.array([1, 0.5, 1, 1, 0.25, 0.75, 0.5, 0.125, 0, 0], np.float32)
    assert find_events(labels, confidence) == [
        Event(1, 0, 2, 0.75), Event(2, 4, 6, 0.5), Event(1, 6, 7, 0.5), Event(3, 7, 8, 0.125),
    ]  # fmt: skip
    assert find_events(labels[:4]) == [Event(1, 0, 2, None)]
    assert find_events(labels[:4], background=1) == [Event(0, 2, 4, None)]


def test_mean_confidence_of_events_that_cross_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.inference.events.BLOCK_STEPS", 4)
    confidence = np.arange(12, dtype=np.float32)
    found = find_events(labels_of("111122222223"), confidence)
    assert [event.confidence for event in found] == [1.5, 7, 11]


def test_signals_in_rows_are_post_processed_each_on_its_own() -> None:
    rules = {1: EventRule(min_duration=0.2, max_gap=0.2), 2: EventRule(min_duration=0.3)}
    rows = np.stack([labels_of(text) for text in ("11.11..1", "1..11?.1", ".1121122", "????....", "11111111")])
    expected = [text_of(apply_postprocess(row, rules, 10)) for row in rows]
    assert [text_of(row) for row in apply_postprocess_rows(rows, rules, 10)] == expected
    assert expected[0] == "11111111" and expected[2] == ".11111.."


def test_signal_without_time_steps_or_events_has_no_events() -> None:
    empty = np.zeros(0, np.uint8)
    assert find_events(empty, np.zeros(0, np.float32)) == []
    assert find_events(labels_of("?..")) == []
    assert apply_postprocess(empty, {1: EventRule(max_gap=1)}, 10).size == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("11..11...11", "111111...11"),  # a gap as long as max_gap is filled, a longer one not
        ("1..2.1.1", "1..2.111"),  # a gap that holds another class is none
        ("..11..?11", "..11..?11"),  # neither are missing data, nor what is before the first event
        ("22..22", "22..22"),  # class 2 has no rule
    ],
)
def test_gaps_are_filled(before: str, after: str) -> None:
    assert text_of(apply_postprocess(labels_of(before), {1: EventRule(max_gap=0.2)}, 10)) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (".111.11.111", ".111....111"),  # as long as min_duration stays
        ("111211", "111111"),  # within another event it joins it
        ("2.1112", "2.1112"),  # class 2 has no rule
        ("22122..221.", "22222..22.."),  # at the edge of another event it becomes background
        ("11.222.1", "...222.."),  # also where the record's end cuts it
        ("?1?.", "?.?."),
    ],
)
def test_short_events_are_removed(before: str, after: str) -> None:
    rules = {1: EventRule(min_duration=0.3)}
    if before == "111211":
        rules = {2: EventRule(min_duration=0.2)}
    assert text_of(apply_postprocess(labels_of(before), rules, 10)) == after


def test_gaps_are_filled_before_short_events_are_removed() -> None:
    """In the other order nothing would be left."""
    rules = {1: EventRule(min_duration=0.5, max_gap=0.1)}
    assert text_of(apply_postprocess(labels_of("..11.11..1.1.."), rules, 10)) == "..11111......."


def test_short_events_that_alternate_do_not_swap_places() -> None:
    rules = {1: EventRule(min_duration=0.3), 2: EventRule(min_duration=0.3)}
    assert text_of(apply_postprocess(labels_of("1212121"), rules, 10)) == "1222221".replace("1", ".")


def test_durations_are_exact_at_any_rate() -> None:
    """0.07 s at 100 Hz is 7.000000000000001 time steps."""
    seven = labels_of(".1111111.1")
    assert text_of(apply_postprocess(seven, {1: EventRule(min_duration=0.07)}, 100)) == ".1111111.."
    gap = labels_of("1" + "." * 29 + "1")  # 0.29 s at 100 Hz is 28.999999999999996
    assert text_of(apply_postprocess(gap, {1: EventRule(max_gap=0.29)}, 100)) == "1" * 31


def test_labels_without_a_rule_are_returned_as_they_are() -> None:
    labels = labels_of("1.1")
    assert apply_postprocess(labels, {}, 10) is labels
    assert apply_postprocess(labels, {1: EventRule()}, 10) is labels


def test_a_day_takes_less_than_a_second() -> None:
    """24 h at 250 Hz with 90 beats a minute of three waves, and noise."""
    beat = np.repeat([0, 1, 0, 2, 0, 3, 0], [20, 25, 10, 25, 20, 40, 27]).astype(np.uint8)
    labels = np.resize(beat, 24 * 3600 * 250)
    labels[::1013] = 0
    rules = {label: EventRule(min_duration=0.02, max_gap=0.01) for label in (1, 2, 3)}
    confidence = np.full(labels.shape, 0.5, np.float32)
    start = time.process_time()
    columns = find_event_columns(apply_postprocess(labels, rules, 250), confidence)
    assert time.process_time() - start < 1  # 0.4 s on a quiet core
    assert 3 * 129_000 < len(columns.labels) < 3 * 130_000
