import itertools

import numpy as np
import pytest

from models.spec import ClassInfo
from training.metrics.volumes import CaseMetrics, compute_volume_metrics, measure_case, summarize, surface_voxels


def brute_force(
    target: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float]:
    """Surface Dice and HD95 of two masks by comparing every pair of surface voxels."""

    def surface(mask: np.ndarray) -> np.ndarray:
        found = []
        for voxel in np.argwhere(mask):
            for axis, step in itertools.product(range(3), (-1, 1)):
                neighbor = voxel.copy()
                neighbor[axis] += step
                if not (neighbor >= 0).all() or not (neighbor < mask.shape).all() or not mask[tuple(neighbor)]:
                    found.append(voxel * np.array(spacing))
                    break
        return np.array(found)

    one, two = surface(target), surface(prediction)
    pairs = np.sqrt(((one[:, None] - two[None]) ** 2).sum(axis=2))
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    within = (there <= tolerance).sum() + (back <= tolerance).sum()
    return within / (len(one) + len(two)), max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 3, (2, 3, 3, 2))
    target, prediction = coarse.repeat(3, 1).repeat(2, 2).repeat(3, 3).astype(np.uint8)
    spacing = (2.5, 1.0, 0.7)
    case = measure_case(target, prediction, 4, spacing, tolerance=1.2)
    for label in range(3):
        one, two = target == label, prediction == label
        surface_dice, hd95 = brute_force(one, two, spacing, 1.2)
        assert case.surface_dice[label] == pytest.approx(surface_dice) and case.hd95[label] == pytest.approx(hd95)
        assert case.dice[label] == pytest.approx(2 * (one & two).sum() / (one.sum() + two.sum()))
        assert case.volume_error[label] == pytest.approx((two.sum() - one.sum()) * 2.5 * 0.7 / 1000)
    assert np.isnan([case.dice[3], case.surface_dice[3], case.hd95[3], case.volume_error[3]]).all()


def test_class_in_one_mask_only_and_ignored_voxels() -> None:
    target, prediction = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    target[1:3, 1:3, 1:3], target[3] = 1, 255
    prediction[3], prediction[0, 0, 0] = 1, 2
    case = measure_case(target, prediction, 3, (1, 1, 1))
    assert case.dice[1:].tolist() == [0.0, 0.0] and case.surface_dice[1:].tolist() == [0.0, 0.0]
    assert np.isnan(case.hd95[1:]).all()
    assert case.volume_error[1] == -0.008  # what is predicted on ignored voxels does not count
    again = CaseMetrics.from_rows(case.to_rows(), 3)
    np.testing.assert_allclose(again.dice, case.dice, atol=1e-6)
    np.testing.assert_allclose(again.hd95, case.hd95, atol=1e-6)
    perfect = measure_case(target, np.where(target == 255, 2, target), 3, (1, 1, 1))
    assert perfect.dice[1] == 1 and perfect.surface_dice[1] == 1 and perfect.hd95[1] == 0


def test_shift_by_two_voxels_is_two_steps_of_the_spacing() -> None:
    target, prediction = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.uint8)
    target[2:8, 2:8, 2:8], prediction[4:10, 2:8, 2:8] = 1, 1
    case = measure_case(target, prediction, 2, (3.0, 1.0, 1.0), tolerance=0.5)
    assert case.hd95[1] == 6.0 and case.volume_error[1] == 0 and case.volume[1] == pytest.approx(216 * 3 / 1000)
    assert surface_voxels(target == 1).sum() == 6**3 - 4**3


def test_summary_over_cases_leaves_out_absent_classes_and_resamples_patients() -> None:
    def case(*dice: float) -> CaseMetrics:
        rest = np.zeros(3)
        return CaseMetrics(np.array(dice), rest, rest, rest, rest)

    cases = [*(case(1, 0.5 + 0.1 * (index // 2), np.nan) for index in range(10)), case(1, 0.0, 0.4)]
    patients, single = [*(f"p{index // 2}" for index in range(10)), "p9"], [str(index) for index in range(11)]
    foreground = np.array([False, True, True])
    found = summarize(cases, patients, "dice", foreground)
    assert found.mean.tolist() == pytest.approx([1, 7 / 11, 0.4]) and found.median[1] == pytest.approx(0.7)
    assert found.cases.tolist() == [11, 11, 1] and found.foreground == pytest.approx((7 / 11 + 0.4) / 2)
    alone = summarize(cases, single, "dice", foreground)
    width, single_width = (float(np.diff(each.interval[:, 1])[0]) for each in (found, alone))
    assert 0 < single_width < width  # two cases of one patient say less than two patients
    assert found.interval[0, 1] < found.mean[1] < found.interval[1, 1]
    classes = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("background", "one", "two", "three")]
    absent = [CaseMetrics(*(np.append(values, np.nan) for values in (each.dice, *[np.zeros(3)] * 4))) for each in cases]
    metrics = compute_volume_metrics(absent, patients, classes, 1.0)
    assert metrics.per_class["three"]["dice"].mean is None and list(metrics.per_class) == ["one", "two", "three"]
    assert metrics.dice == pytest.approx((7 / 11 + 0.4) / 2, abs=1e-6)
