"""Test-time augmentation: alignment of the views, and their average."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.errors import ConfigError
from models.imaging.decode import RGB
from models.inference.postprocess import Scores, scores_to_labels
from models.inference.tiling import LogitsFunction, predict_sliding_window
from models.inference.tta import TTAOptions, resample_scores, wrap_with_tta
from models.spec import InputRule

NATIVE = InputRule(rule="native", divisor=64)
scale_factors = st.floats(0.25, 4)
sides = st.integers(1, 5).map(lambda count: count * 64)


def blob_image(height: int, width: int) -> RGB:
    """Soft patches of color of about sixty pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 60 + 2, width // 60 + 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def ramp_image(height: int, width: int) -> RGB:
    """Red is twice the row, green twice the column."""
    rows, columns = np.indices((height, width))
    return (np.stack([rows, columns, rows * 0], axis=2) * 2).astype(np.uint8)


def color_network(stride: int = 8) -> LogitsFunction:
    """Scores are the mean red, green and blue of each block: equivariant to shifts, flips and scales."""

    def predict(canvas: RGB) -> Scores:
        assert canvas.flags.c_contiguous and canvas.shape[0] % 64 == canvas.shape[1] % 64 == 0
        size = canvas.shape[1] // stride, canvas.shape[0] // stride
        return np.ascontiguousarray(
            cv2.resize(canvas.astype(np.float32), size, interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
        )

    return predict


def softmax(scores: Scores) -> Scores:
    exponents = np.exp(scores - scores.max(axis=0))
    return np.asarray(exponents / exponents.sum(axis=0), dtype=np.float32)


@pytest.mark.parametrize("stride", [1, 8, 32])
def test_scale_1_without_flip_changes_nothing(stride: int) -> None:
    canvas = blob_image(192, 256)
    plain = color_network(stride)(canvas)
    logits = wrap_with_tta(color_network(stride), NATIVE, flip=False, scales=(1.0,))(canvas)
    assert (logits.shape, logits.dtype) == (plain.shape, plain.dtype)
    np.testing.assert_allclose(softmax(logits), softmax(plain), atol=1e-4)
    np.testing.assert_allclose(np.exp(logits).sum(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize("size", [(128, 128), (192, 320), (448, 128)])
@pytest.mark.parametrize(
    ("flip", "scales", "minimum"), [(True, (1.0,), 0.9999), (True, (0.75, 1.0, 1.25), 0.985), (False, (2.0,), 0.985)]
)
def test_labels_of_an_equivariant_network_do_not_change(
    size: tuple[int, int], flip: bool, scales: tuple[float, ...], minimum: float
) -> None:
    canvas = blob_image(*size)
    labels, _ = scores_to_labels(color_network()(canvas), size)
    again, _ = scores_to_labels(wrap_with_tta(color_network(), NATIVE, flip, scales)(canvas), size)
    assert len(np.unique(labels)) == 3
    assert np.mean(labels == again) >= minimum


@settings(max_examples=25, deadline=None)
@example(height=64, width=64, scale=0.25, flip=True)
@example(height=64, width=128, scale=4.0, flip=True)
@example(height=128, width=64, scale=0.75, flip=False)
@given(height=st.sampled_from([64, 128]), width=st.sampled_from([64, 128]), scale=scale_factors, flip=st.booleans())
def test_views_of_other_scales_are_aligned(height: int, width: int, scale: float, flip: bool) -> None:
    canvas = ramp_image(height, width)
    logits = wrap_with_tta(color_network(4), NATIVE, flip, (scale,))(canvas)
    assert logits.shape == (3, height // 4, width // 4)
    # A log softmax keeps the differences of scores. The outermost blocks are not compared, because they have no neighbor to
    # interpolate with; the tolerance is for scaled sides and colors, which are rounded to integers.
    rim = int(np.ceil(1 / scale)) + 1
    rows, columns = np.indices(logits.shape[1:]) * 8 + 3.0
    inside = np.s_[rim:-rim, rim:-rim]
    np.testing.assert_allclose((logits[0] - logits[2])[inside], rows[inside], atol=0.8)
    np.testing.assert_allclose((logits[1] - logits[2])[inside], columns[inside], atol=0.8)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    grid=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    valid_ratio=st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)),
)
def test_resampling_is_exact_on_a_ramp(
    size: tuple[int, int], grid: tuple[int, int], valid_ratio: tuple[float, float]
) -> None:
    rows, columns = ((np.arange(samples) + 0.5) / samples for samples in grid)  # as fractions of the padded canvas
    scores = np.stack(np.broadcast_arrays(rows[:, None], columns)).astype(np.float32)
    sampled = resample_scores(scores, size, valid_ratio)
    assert (sampled.shape, sampled.dtype) == ((2, *size), np.float32)
    for axis in (0, 1):
        positions = (np.arange(size[axis]) + 0.5) / size[axis] * valid_ratio[axis]
        positions = positions.clip(0.5 / grid[axis], 1 - 0.5 / grid[axis])
        positions = positions[:, None] if axis == 0 else positions
        np.testing.assert_allclose(sampled[axis], np.broadcast_to(positions, size), atol=1e-6)


def test_resampling_at_the_same_size_changes_nothing() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 9, 11)).astype(np.float32)
    np.testing.assert_array_equal(resample_scores(scores, (9, 11)), scores)


def test_probabilities_are_averaged() -> None:
    """With a network that predicts other scores for flipped images."""
    normal, flipped = np.float32([2, 0, -1]), np.float32([-4, 3, 0])

    def predict(canvas: RGB) -> Scores:
        scores = normal if canvas[0, 0, 1] < canvas[0, -1, 1] else flipped
        return np.broadcast_to(scores[:, None, None], (3, canvas.shape[0] // 8, canvas.shape[1] // 8)).copy()

    canvas = ramp_image(64, 128)
    expected = (softmax(normal) + softmax(flipped)) / 2
    logits = wrap_with_tta(predict, NATIVE, flip=True, scales=(1.0, 2.0))(canvas)
    np.testing.assert_allclose(np.exp(logits), np.broadcast_to(expected[:, None, None], logits.shape), atol=1e-6)
    labels, probabilities = scores_to_labels(logits, (64, 128), confidence=True)
    assert (labels == expected.argmax()).all()
    np.testing.assert_allclose(probabilities, expected.max(), atol=1e-6)


def test_scores_far_apart_do_not_underflow() -> None:
    def predict(canvas: RGB) -> Scores:
        shape = canvas.shape[0] // 8, canvas.shape[1] // 8
        return np.stack([np.full(shape, value, np.float32) for value in (900, 0, -900)])

    logits = wrap_with_tta(predict, NATIVE, flip=True, scales=(0.5, 1.0))(blob_image(64, 64))
    np.testing.assert_allclose(logits[:, 3, 3], [0, -900, -1800], rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(height=sides, width=sides, flip=st.booleans(), scales=st.sets(scale_factors, min_size=1, max_size=3))
def test_the_grid_is_that_of_scale_1(height: int, width: int, flip: bool, scales: set[float]) -> None:
    for stride in (8, 32):
        logits = wrap_with_tta(color_network(stride), NATIVE, flip, tuple(scales))(blob_image(height, width))
        assert logits.shape == (3, height // stride, width // stride)
        assert logits.dtype == np.float32 and np.isfinite(logits).all()


def test_the_grid_of_a_network_without_padding() -> None:
    def predict(canvas: RGB) -> Scores:  # without padding, the grid ends before the image
        return np.zeros((2, canvas.shape[0] // 8 - 1, canvas.shape[1] // 8 - 1), np.float32)

    assert wrap_with_tta(predict, NATIVE, flip=False, scales=(0.5, 1.0, 2.0))(blob_image(128, 192)).shape == (2, 15, 23)


def test_shrinking_averages_all_pixels() -> None:
    lines = np.zeros((128, 128, 3), np.uint8)
    lines[:, ::4, 0] = 200  # one in four: 50 on average
    logits = wrap_with_tta(color_network(), NATIVE, flip=False, scales=(0.25,))(lines)
    np.testing.assert_allclose((logits[0] - logits[2])[:, 4:-4], 50, atol=1)


def test_a_network_of_one_size_can_flip() -> None:
    seen = []

    def predict(canvas: RGB) -> Scores:
        seen.append(canvas)
        return canvas.transpose(2, 0, 1)[:, ::8, ::8].astype(np.float32)

    canvas = blob_image(120, 200)
    assert wrap_with_tta(predict, NATIVE, flip=True, scales=(1.0,))(canvas).shape == (3, 15, 25)
    np.testing.assert_array_equal(seen, [canvas, canvas[:, ::-1]])


def test_tiles_can_be_augmented() -> None:
    image = blob_image(300, 500)
    labels, probabilities = predict_sliding_window(
        wrap_with_tta(color_network(), NATIVE, True, (0.75, 1.0)), image, tile=256, overlap=128, confidence=True
    )
    assert probabilities is not None and probabilities.max() <= 1
    assert np.mean(labels == predict_sliding_window(color_network(), image, tile=256, overlap=128)[0]) >= 0.98


@pytest.mark.parametrize(
    ("text", "flip", "scales"),
    [
        ("flip,0.75,1,1.25", True, (0.75, 1.0, 1.25)),
        (" 1.25 , flip ", True, (1.25,)),
        ("flip", True, (1.0,)),
        ("1", False, (1.0,)),
        ("0.25,4", False, (0.25, 4.0)),
    ],
)
def test_parse(text: str, flip: bool, scales: tuple[float, ...]) -> None:
    assert TTAOptions.parse(text) == TTAOptions(flip, scales)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not valid; give `flip`, scales or both, as in flip,0.75,1,1.25"),
        ("flip,", "'flip,' is not valid"),
        ("mirror", "'mirror' is not valid"),
        ("flip 1", "'flip 1' is not valid"),
        ("flip,flip", "'flip,flip' has `flip` 2 times; give it once"),
        ("0.2,1", "the scale 0.2; expected 0.25 to 4"),
        ("5", "the scale 5;"),
        ("nan", "the scale nan;"),
        ("-1", "the scale -1;"),
        ("1,1.0", r"the scales \(1.0, 1.0\); give one or more, each once"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TTAOptions.parse(text)


def test_no_scales() -> None:
    with pytest.raises(ConfigError, match="one or more"):
        wrap_with_tta(color_network(), NATIVE, True, ())
