"""Augmentation of signals: labels follow the values, each disturbance is of its size, and a seed repeats a crop."""

import numpy as np
import pytest

from models.spec import InputRule, Scaling, Spacing
from training.augment.signals import augment_signal
from training.config import TrainConfig

RULE = InputRule(
    rule="native", axes="T", channels=("x", "y"), dtype="float32", scaling=Scaling(kind="zscore", low=(), high=()),
    spacing=Spacing(values=(250.0,), unit="Hz"),
)  # fmt: skip
OFF = {"stretch": 0.0, "gain": 0.0, "wander": 0.0, "hum": 0.0, "noise": 0.0, "lead_dropout": 0.0}
STATISTICS = np.array([[5, -5], [2, 4]], np.float32)
STEPS = np.arange(2000)
VALUES = np.stack([STEPS, -STEPS], axis=1).astype(np.float32)
LABELS = (STEPS // 100).astype(np.uint8)


def augment(
    seed: int = 0, crop: int = 500, values: np.ndarray = VALUES, labels: np.ndarray = LABELS, **settings: float
) -> tuple[np.ndarray, np.ndarray]:
    config = TrainConfig(**(OFF | settings))
    return augment_signal(values, labels, np.random.default_rng(seed), crop, config, RULE, STATISTICS)


def test_without_disturbances_a_crop_is_a_part_of_the_recording() -> None:
    starts = set()
    for seed in range(20):
        values, labels = augment(seed)
        start = int(values[0, 0])
        starts.add(start)
        np.testing.assert_array_equal(values, VALUES[start : start + 500])
        np.testing.assert_array_equal(labels, LABELS[start : start + 500])
    assert len(starts) > 15


def test_a_short_recording_lies_within_the_crop_and_the_rest_is_ignored() -> None:
    values, labels = augment(crop=3000)
    inside = labels != 255
    np.testing.assert_array_equal(labels[inside], LABELS)
    np.testing.assert_array_equal(values[inside], VALUES)
    np.testing.assert_array_equal(values[~inside], np.broadcast_to(STATISTICS[0], (1000, 2)))


def test_stretched_labels_stay_at_their_values() -> None:
    paces = []
    for seed in range(20):
        values, labels = augment(seed, stretch=0.5)
        np.testing.assert_array_equal(labels, np.floor(values[:, 0] + 0.5).astype(int) // 100)
        paces.append(float(np.diff(values[:, 0]).mean()))
    assert 0.66 < min(paces) < 0.8 and 1.25 < max(paces) < 1.5


@pytest.mark.parametrize(
    ("name", "value", "most"), [("wander", 2.0, 2.0), ("hum", 0.5, 0.5), ("noise", 29.0, 0.5 * 4.5)]
)  # fmt: skip
def test_disturbances_are_in_deviations_of_the_lead(name: str, value: float, most: float) -> None:
    largest = []
    for seed in range(30):
        plain, changed = augment(seed)[0], augment(seed, **{name: value})[0]
        difference = (changed - plain) / STATISTICS[1]
        largest.append(float(np.abs(difference).max()))
    assert most / 4 < max(largest) <= most and min(largest) < max(largest) / 2


def test_hum_has_the_frequency_of_the_mains() -> None:
    changed = augment(3, crop=1000, values=np.zeros((2000, 2), np.float32), hum=1.0)[0]
    peak = np.abs(np.fft.rfft(changed[:, 0])).argmax() * 250 / 1000
    assert min(abs(peak - 50), abs(peak - 60)) < 1


def test_gain_keeps_the_mean_and_dropout_leaves_a_lead() -> None:
    values = np.broadcast_to(STATISTICS[0] + STATISTICS[1], (2000, 2)).astype(np.float32)
    factors = [(augment(seed, values=values, gain=1.0)[0][0] - STATISTICS[0]) / STATISTICS[1] for seed in range(50)]
    assert 0.5 <= np.min(factors) < 0.6 and 1.7 < np.max(factors) <= 2.0
    blank = [
        (augment(seed, values=values, lead_dropout=1.0)[0] == STATISTICS[0]).all(axis=0).tolist() for seed in range(20)
    ]
    assert {tuple(each) for each in blank} == {(True, False), (False, True)}


def test_balanced_crops_have_the_rare_class() -> None:
    labels = np.zeros(2000, np.uint8)
    labels[1700:1710] = 7
    share = []
    for chance in (0.0, 1.0):
        found = [(augment(seed, labels=labels, class_balanced_crops=chance)[1] == 7).any() for seed in range(60)]
        share.append(float(np.mean(found)))
    assert share[0] < 0.4 and 0.5 < share[1] < 0.9


def test_a_seed_repeats_a_crop() -> None:
    everything = {"stretch": 0.2, "gain": 0.3, "wander": 0.3, "hum": 0.1, "noise": 5.0, "lead_dropout": 0.3}
    first, again, other = (augment(seed, **everything) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    assert first[0].dtype == np.float32
