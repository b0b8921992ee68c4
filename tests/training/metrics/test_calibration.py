import numpy as np
import pytest

from training.metrics.calibration import expected_calibration_error, reliability_bins


def test_calibrated_probabilities_lie_on_the_diagonal() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0, 1, 400_000).astype(np.float32)
    right = random.uniform(0, 1, confidence.size) < confidence
    bins = reliability_bins(confidence, right)
    np.testing.assert_allclose(bins[1] / bins[0], bins[2] / bins[0], atol=0.01)
    assert expected_calibration_error(bins)[0] < 0.005
    ece, bias = expected_calibration_error(reliability_bins(confidence, right & (confidence < 0.5)))
    assert ece > 0.3 and bias == pytest.approx(ece, abs=0.005)  # overconfident in the upper half
