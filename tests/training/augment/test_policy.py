"""What is drawn: within the config's limits, each thing independently of the others, and rare classes where asked for."""

import numpy as np
import pytest

from models.errors import ConfigError
from models.imaging.decode import Labels
from models.spec import VOID
from training.augment import Draw, Policy, cpu
from training.augment.policy import rare_pixel
from training.config import TrainConfig
from training.config_io import load_config

EVERYTHING = TrainConfig(rotate=30, vflip=0.5, elastic=0.08, colour=0.4, hue=0.2, blur=3, noise=30, scale=(0.5, 2))
SIZE, CROP = (150, 200), (96, 128)


def draws(config: TrainConfig, count: int, labels: Labels | None = None, crop: tuple[int, int] = CROP) -> list[Draw]:
    policy = Policy(config, crop)
    size = SIZE if labels is None else labels.shape
    return [policy.draw(size, labels, np.random.default_rng(seed)) for seed in range(count)]


def scale_of(draw: Draw) -> float:
    return float(abs(np.linalg.det(draw.matrix[:, :2])) ** -0.5)


def centre_of(draw: Draw, crop: tuple[int, int] = CROP) -> np.ndarray:
    """(x, y) in pixels from the picture's edge."""
    return draw.matrix @ np.array([(crop[1] - 1) / 2, (crop[0] - 1) / 2, 1]) + 0.5


def sparse() -> Labels:
    """A picture of one class but for a patch of 100 pixels, with void beside."""
    labels = np.zeros((300, 400), np.uint8)
    labels[:40] = VOID
    labels[250:260, 370:380] = 9
    return labels


def test_draws_are_independent() -> None:
    rows = []
    for draw in draws(EVERYTHING.model_copy(update={"scale": (1.0, 1.2)}), 2000):
        linear = draw.matrix[:, :2]
        spread = 0.0 if draw.elastic is None else float(draw.elastic.std())
        angle = float(np.abs(np.arctan2(linear[0, 1], abs(linear[0, 0]))))
        handed = float(np.linalg.det(linear) > 0)
        place = centre_of(draw) * scale_of(draw) / np.array(SIZE[::-1]) / scale_of(draw)
        rows.append([scale_of(draw), angle, linear[0, 0] > 0, handed, *place, *draw.colour, draw.hue])
        rows[-1] += [spread, draw.blur, draw.noise, draw.seed]
    correlations = np.corrcoef(np.array(rows, float).T)
    # The factors of a picture whose colours stay are all 1, which ties their spread and not their values.
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.1


def test_draws_stay_within_the_limits() -> None:
    drawn = draws(EVERYTHING, 500)
    scales = [scale_of(draw) for draw in drawn]
    assert 0.5 <= min(scales) < 0.55 and 1.9 < max(scales) <= 2
    assert 2.8 < max(draw.blur for draw in drawn) <= 3
    assert 28 < max(draw.noise for draw in drawn) <= 30
    assert 0.19 < max(abs(draw.hue) for draw in drawn) <= 0.2
    factors = np.array([draw.colour for draw in drawn])
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    assert 7 < max(np.abs(draw.elastic).max() for draw in drawn if draw.elastic is not None) <= 0.08 * 96
    assert 0.4 < np.mean([draw.elastic is None for draw in drawn]) < 0.6


def test_equal_generators_draw_equally_and_others_otherwise() -> None:
    one, again = (Policy(EVERYTHING, CROP).draw(SIZE, None, np.random.default_rng(4)) for _ in range(2))
    assert (one.matrix == again.matrix).all() and one[4:] == again[4:]
    assert len({draw.seed for draw in draws(EVERYTHING, 100)}) == 100


def test_a_larger_picture_fills_the_crop_and_a_smaller_one_lies_within() -> None:
    labels = np.zeros((100, 200), np.uint8)
    picture = np.zeros((100, 200, 3), np.uint8)
    crop = (130, 150)
    tops = set()
    for draw in draws(TrainConfig(scale=(1, 1)), 60, labels, crop):
        mask = cpu.apply(picture, labels, draw, crop)[1]
        assert (mask == 0).sum() == 100 * 150
        tops.add(int(np.argmax(mask[:, 0] == 0)))
    assert min(tops) <= 2 and max(tops) >= 28


def test_balance_shows_rare_classes() -> None:
    labels = sparse()
    picture = np.zeros((*labels.shape, 3), np.uint8)

    def share(balance: float) -> float:
        config = TrainConfig(scale=(0.8, 1.5), rotate=20, balance=balance)
        masks = [cpu.apply(picture, labels, draw, CROP)[1] for draw in draws(config, 150, labels)]
        return float(np.mean([(mask == 9).any() for mask in masks]))

    assert share(0) < 0.2
    assert share(1) > 0.5


def test_balance_lays_the_pixel_anywhere_in_the_crop() -> None:
    labels = np.zeros((300, 400), np.uint8)
    labels[150, 200] = 1
    spots = []
    for draw in draws(TrainConfig(scale=(1, 1), balance=1), 600, labels):
        x, y = np.linalg.solve(draw.matrix[:, :2], np.array([200, 150]) - draw.matrix[:, 2])
        if 0 <= x < CROP[1] and 0 <= y < CROP[0]:
            spots.append((x / CROP[1], y / CROP[0]))
    assert len(spots) > 250
    assert np.abs(np.mean(spots, axis=0) - 0.5).max() < 0.06
    assert np.abs(np.std(spots, axis=0) - 12**-0.5).max() < 0.05


@pytest.mark.parametrize("scale", [(1, 1), (0.3, 3)])
def test_balance_brings_no_more_in_from_outside(scale: tuple[float, float]) -> None:
    """The crop lies where it might have lain without."""
    labels = sparse()
    height, width = labels.shape
    for draw in draws(TrainConfig(scale=scale, rotate=45, balance=1), 300, labels):
        spare = np.array([width, height]) * scale_of(draw) - CROP[::-1]
        offset = centre_of(draw) * scale_of(draw) - np.array(CROP[::-1]) / 2
        assert (offset >= np.minimum(0, spare) - 1e-6).all()
        assert (offset <= np.maximum(0, spare) + 1e-6).all()


def test_a_picture_of_void_has_no_rare_pixel() -> None:
    labels = np.full((20, 20), VOID, np.uint8)
    assert rare_pixel(labels, np.random.default_rng(0)) is None
    assert draws(TrainConfig(balance=1), 1, labels)[0].size == (20, 20)


def test_rare_pixels_are_drawn_by_class() -> None:
    labels, random = sparse(), np.random.default_rng(0)
    found = [rare_pixel(labels, random) for _ in range(300)]
    classes = [labels[int(each[1]), int(each[0])] for each in found if each is not None]
    assert 0.4 < np.mean(np.array(classes) == 9) < 0.6
    assert VOID not in classes


@pytest.mark.parametrize(
    "word", ["hue=0.6", "hue=-0.1", "vflip=2", "elastic=0.2", "blur=-1", "noise=101", "balance=1.5", "augment=tpu"]
)
def test_settings_out_of_range_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=word.split("=")[0]):
        load_config(None, [word])
