"""Thresholds for the best F1 and the temperature, fitted on validation images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.architectures import build
from models.errors import ConfigError
from models.spec import ClassInfo, InputRule
from tests.fixtures_bundles import QUIET_CONSOLE, synthetic_image
from tests.training.fake_dataset import FakeDataset, make_fake_dataset
from training.engine.model_factory import make_torch_segmenter
from training.evaluate import evaluate_split
from training.freezing import calibration
from training.freezing.calibration import BIASES, PixelScores, fit_biases, fit_calibration, fit_temperature, mean_f1

NATIVE = InputRule(rule="native")


def random_scores(classes: int, pixels: int = 3000) -> PixelScores:
    """Logits that are overconfident by a factor of 3, and underrate the last class, which is rare."""
    random = np.random.default_rng(classes)
    logits = random.normal(0, 2, (pixels, classes)) - np.array([*[0.0] * (classes - 1), 3])
    drawn = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return PixelScores(
        (3 * logits - np.array([*[0.0] * (classes - 1), 2])).astype(np.float32), drawn.astype(np.uint8), 1
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_the_bias_is_the_best_of_all(classes: int) -> None:
    """Also of a class among several, where the pixels that it takes change the F1 of others."""
    scores, chosen = random_scores(classes), [classes - 1]
    tried = [mean_f1(scores, np.eye(classes)[-1] * bias, chosen) for bias in BIASES]
    fitted = fit_biases(scores, chosen)
    assert mean_f1(scores, fitted, chosen) == max(tried) > tried[len(BIASES) // 2] + 0.01
    assert fitted[:-1].tolist() == [0.0] * (classes - 1) and fitted[-1] > 0


def test_several_classes_never_get_worse_together() -> None:
    scores = random_scores(4)
    fitted = fit_biases(scores, [1, 2, 3])
    assert mean_f1(scores, fitted, [1, 2, 3]) > mean_f1(scores, np.zeros(4), [1, 2, 3]) + 0.01


def test_the_temperature_undoes_overconfidence() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20_000, 3))
    target = (logits + random.gumbel(size=logits.shape)).argmax(axis=1).astype(np.uint8)
    assert fit_temperature((3 * logits).astype(np.float32), target) == pytest.approx(3, rel=0.05)
    assert fit_temperature((logits / 2).astype(np.float32), target) == pytest.approx(0.5, rel=0.05)


@pytest.fixture
def samples() -> FakeDataset:
    """Two images of odd sizes with two classes, a corner of them ignored."""
    made = [synthetic_image(70, 90, seed) for seed in (1, 2)]
    targets = [np.where(image[..., 0] > 140, 1, 0).astype(np.uint8) for image in made]
    for target in targets:
        target[:20, :30] = 255
    return make_fake_dataset(2, lambda index: (made[index], targets[index]))


def test_the_pixels_are_scored_as_the_segmenter_labels_them(samples: FakeDataset) -> None:
    torch.manual_seed(0)
    network = build("unet", 2, width=4, blocks=1, strides=[2, 2]).eval()
    for rule in (NATIVE, InputRule(rule="native", divisor=4)):
        scores = calibration.score_pixels(network, rule, samples)
        matrix, _ = evaluate_split(make_torch_segmenter(network, rule), samples, QUIET_CONSOLE)
        pairs = np.bincount(2 * scores.target.astype(int) + scores.logits.argmax(axis=1), minlength=4)
        assert pairs.tolist() == matrix.counts.ravel().tolist()


def test_the_network_with_a_calibration_labels_as_measured(samples: FakeDataset) -> None:
    torch.manual_seed(0)
    network = build("unet", 2, width=4, blocks=1, strides=[2, 2]).eval()
    found = fit_calibration(network, NATIVE, samples, "all", True)
    assert found.f1 and found.ece and found.f1[1] >= found.f1[0] and found.images == 2
    plain = network(torch.from_numpy(samples.rgb(0))[None])[1]
    network.set_calibration(found, samples.classes)
    matrix, _ = evaluate_split(make_torch_segmenter(network, NATIVE), samples, QUIET_CONSOLE)
    assert matrix.summary(samples.classes)["mean_dice"] == pytest.approx(found.f1[1], abs=1e-5)
    logits = network(torch.from_numpy(samples.rgb(0))[None])[1]
    bias = torch.tensor(list(found.bias.values())).view(1, 2, 1, 1)
    torch.testing.assert_close(logits, (plain + bias) / found.temperature)


def test_a_class_that_is_not_there_is_named_with_those_that_are(samples: FakeDataset) -> None:
    network = build("unet", 2, width=4, blocks=1, strides=[2, 2]).eval()
    with pytest.raises(
        ConfigError, match=r"'class 7'.* no such class.*Did you mean class [01]\? The classes are class 0, class 1"
    ):
        fit_calibration(network, NATIVE, samples, "class 1,class 7", False)
    three = replace(samples, classes=[*samples.classes, ClassInfo(name="crack", rgb=(1, 2, 3))])
    with pytest.raises(ConfigError, match="no pixel of it; possible are class 0, class 1"):
        fit_calibration(build("unet", 3, width=4, blocks=1, strides=[2, 2]).eval(), NATIVE, three, "crack", False)
