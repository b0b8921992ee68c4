"""The views that need only a Segmenter, on scores that are known by construction."""

from typing import Any

import numpy as np
import pytest

from models.explain import BLACK_BOX_VIEWS, Subject, certainty, occlusion, shifts
from models.explain.colors import heat_colors, signed_colors
from models.explain.subject import fit_image
from models.inference.segmenter import Segmenter
from models.spec import ClassInfo, InputRule, Scaling
from tests.fixtures_bundles import synthetic_image

RGB_RULE = InputRule(rule="native", divisor=1)
CLASSES = [ClassInfo(name=name, rgb=(9, 9, 9)) for name in ("dark", "middle", "bright")]


def subject_of(
    scores: Any, image: Any = None, point: tuple[int, int] = (20, 10), rule: InputRule = RGB_RULE, **options: Any
) -> Subject:
    """A subject whose network computes `scores(canvas float64 H x W x C) -> K x h x w`."""

    def run(images: Any, logits: bool = False) -> Any:
        result = np.asarray(scores(images[0].astype(np.float64)), np.float32)
        return result.argmax(axis=0).astype(np.uint8)[None], result[None]

    segmenter = Segmenter(run, rule)
    image = synthetic_image(40, 56) if image is None else image
    return Subject("image", image, segmenter, CLASSES, point, **options)


def by_brightness(canvas: Any) -> Any:
    """Scores of each pixel alone."""
    value = canvas.mean(axis=2) / 32
    return np.stack([4 - value, np.full_like(value, 1.0), value - 4])


@pytest.mark.parametrize("view", BLACK_BOX_VIEWS)
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_every_view_for_any_number_of_channels(view: str, channels: int) -> None:
    image = np.repeat(synthetic_image(64, 80)[..., :1], channels, axis=2)
    names = tuple("abcdefg"[:channels])
    rule = InputRule(
        rule="native", divisor=1, channels=names, scaling=Scaling(low=(0,) * channels, high=(255,) * channels)
    )
    facts = BLACK_BOX_VIEWS[view].compute(subject_of(by_brightness, image, rule=rule))
    assert facts.numbers.get("reversed_channels_gain") is None  # only of RGB
    assert facts.numbers and all(image.shape == (64, 80, 3) for image in facts.images.values())


def test_certainty_of_known_probabilities() -> None:
    probabilities = np.array([[0.7, 1 / 3], [0.2, 1 / 3], [0.1, 1 / 3]], np.float32)[:, None]
    maps = certainty.certainty_maps(probabilities)
    np.testing.assert_allclose(maps["confidence"], [[0.7, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(maps["margin"], [[0.5, 0]], atol=1e-6)
    np.testing.assert_allclose(maps["entropy"], [[0.729847, 1]], atol=1e-5)
    spread, changed = certainty.tta_spread(probabilities, [probabilities, probabilities])
    assert not spread.any() and not changed.any()
    spread, changed = certainty.tta_spread(probabilities, [probabilities[::-1]])
    assert changed[0, 0] and spread[0, 0] == pytest.approx(0.3)


def test_a_flip_is_flipped_back() -> None:
    variants = certainty.augmented_probabilities(subject_of(by_brightness))
    np.testing.assert_allclose(variants[0], subject_of(by_brightness).probabilities, atol=1e-6)


def test_swapped_channels_are_a_finding() -> None:
    red = np.zeros((40, 56, 3), np.uint8)
    red[..., 0] = 200
    sure_of_blue = lambda canvas: np.stack([canvas[..., 2] / 32, canvas[..., 1], canvas[..., 1]])  # noqa: E731
    numbers = [certainty.compute(subject_of(sure_of_blue, image)).numbers for image in (red, red[..., ::-1].copy())]
    assert "channel order" in {finding.kind for finding in certainty.findings(numbers[:1])}
    assert "channel order" not in {finding.kind for finding in certainty.findings(numbers[1:])}


def test_circular_convolution_at_stride_1_is_equivariant_to_the_bit() -> None:
    def circular(canvas: Any) -> Any:
        gray = canvas.mean(axis=2).round()
        near = sum(np.roll(gray, move, axis=(0, 1)) for move in ((0, 1), (1, 0), (0, -1), (-1, 0)))  # integer weights
        return np.stack([4 * gray - near, near - 3 * gray, near - 4 * gray])

    subject = subject_of(circular)
    for pixels in (1, 3, 17):
        same, compared = shifts.shifted_agreement(subject, pixels, wrap=True)
        assert same.all() and compared.all()


def test_a_stride_breaks_equivariance() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 224, 3), dtype=np.uint8)
    subject = subject_of(lambda canvas: by_brightness(canvas[::8, ::8]), noise, stride=8)
    numbers = shifts.compute(subject).numbers
    by_pixels = {row["pixels"]: row["agreement"] for row in numbers["shifts"]}
    assert by_pixels[8] > 0.95 > by_pixels[3], by_pixels  # it repeats itself after a stride, but for the border
    assert [finding.kind for finding in shifts.findings([numbers])] == ["unstable labels"]


def test_occlusion_shows_what_a_pixel_depends_on() -> None:
    def left_neighbor(canvas: Any) -> Any:
        return by_brightness(np.roll(canvas, 5, axis=1))  # a pixel's score is that of the pixel 5 columns before it

    image = np.full((40, 56, 3), 60, np.uint8)
    image[:, 10:20] = 250
    values = occlusion.occlusion_map(subject_of(left_neighbor, image, point=(20, 10)), 2, side=5)
    assert values[10, 15] > 0.5  # the square around column 15
    assert np.abs(values[10, 20:]).max() < 0.02 and abs(float(values[30, 15])) < 0.02


def test_colors_and_fit() -> None:
    ramp = heat_colors(np.array([[0.0, 1.0]]))
    assert ramp[0, 0].tolist() == [68, 1, 84] and ramp[0, 1].tolist() == [253, 231, 37]
    signs = signed_colors(np.array([[-1.0, 0.0, 1.0]]))
    assert signs[0, 0, 2] > signs[0, 0, 0] and signs[0, 2, 0] > signs[0, 2, 2] and signs[0, 1].min() == 247
    segmenter = Segmenter(lambda images, logits=False: None, InputRule(rule="native"))  # type: ignore[arg-type, return-value]
    image, point, corner = fit_image(np.zeros((1500, 2000, 3), np.uint8), segmenter, (1990, 10))
    assert image.shape == (1024, 1024, 3) and point == (1014, 10) and corner == (976, 0)
