"""Test-time augmentation: that views are laid on one another exactly, and what is averaged."""

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

scale_factors = st.floats(0.25, 4)
sides = st.integers(1, 5).map(lambda count: count * 64)


def blob_image(height: int, width: int) -> RGB:
    """Soft patches of colour of some sixty pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 60 + 2, width // 60 + 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def ramp_image(height: int, width: int) -> RGB:
    """Red is twice the row, green twice the column."""
    down, right = np.indices((height, width))
    return (np.stack([down, right, down * 0], axis=2) * 2).astype(np.uint8)


def colour_network(stride: int = 8) -> LogitsFunction:
    """Scores are the mean red, green and blue of each block: the same for any position, mirror or scale."""

    def ask(canvas: RGB) -> Scores:
        assert canvas.flags.c_contiguous and canvas.shape[0] % 64 == canvas.shape[1] % 64 == 0
        size = canvas.shape[1] // stride, canvas.shape[0] // stride
        return np.ascontiguousarray(
            cv2.resize(canvas.astype(np.float32), size, interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
        )

    return ask


def softmax(scores: Scores) -> Scores:
    exponents = np.exp(scores - scores.max(axis=0))
    return np.asarray(exponents / exponents.sum(axis=0), dtype=np.float32)


@pytest.mark.parametrize("stride", [1, 8, 32])
def test_nothing_asked_changes_nothing(stride: int) -> None:
    canvas = blob_image(192, 256)
    plain = colour_network(stride)(canvas)
    answer = wrap_with_tta(colour_network(stride), flip=False, scales=(1.0,))(canvas)
    assert (answer.shape, answer.dtype) == (plain.shape, plain.dtype)
    np.testing.assert_allclose(softmax(answer), softmax(plain), atol=1e-4)
    np.testing.assert_allclose(np.exp(answer).sum(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize("size", [(128, 128), (192, 320), (448, 128)])
@pytest.mark.parametrize(
    ("flip", "scales", "least"), [(True, (1.0,), 0.9999), (True, (0.75, 1.0, 1.25), 0.985), (False, (2.0,), 0.985)]
)
def test_an_equivariant_network_says_the_same(
    size: tuple[int, int], flip: bool, scales: tuple[float, ...], least: float
) -> None:
    canvas = blob_image(*size)
    labels, _ = scores_to_labels(colour_network()(canvas), size)
    again, _ = scores_to_labels(wrap_with_tta(colour_network(), flip, scales)(canvas), size)
    assert len(np.unique(labels)) == 3
    assert np.mean(labels == again) >= least


@settings(max_examples=60, deadline=None)
@example(height=64, width=64, scale=0.25, flip=True)
@example(height=64, width=128, scale=4.0, flip=True)
@example(height=128, width=64, scale=0.75, flip=False)
@given(height=st.sampled_from([64, 128]), width=st.sampled_from([64, 128]), scale=scale_factors, flip=st.booleans())
def test_views_of_other_scales_lie_in_their_place(height: int, width: int, scale: float, flip: bool) -> None:
    canvas = ramp_image(height, width)
    answer = wrap_with_tta(colour_network(4), flip, (scale,))(canvas)
    assert answer.shape == (3, height // 4, width // 4)
    # The log of a softmax keeps the scores' differences. The outermost blocks have nothing beyond them to lie between;
    # a scaled side is a whole number of pixels, and its colours are whole numbers.
    rim = int(np.ceil(1 / scale)) + 1
    down, right = np.indices(answer.shape[1:]) * 8 + 3.0
    inside = np.s_[rim:-rim, rim:-rim]
    np.testing.assert_allclose((answer[0] - answer[2])[inside], down[inside], atol=0.8)
    np.testing.assert_allclose((answer[1] - answer[2])[inside], right[inside], atol=0.8)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    grid=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    covered=st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)),
)
def test_sampling_is_exact_on_a_ramp(
    size: tuple[int, int], grid: tuple[int, int], covered: tuple[float, float]
) -> None:
    down, right = ((np.arange(samples) + 0.5) / samples for samples in grid)  # as shares of the padded canvas
    scores = np.stack(np.broadcast_arrays(down[:, None], right)).astype(np.float32)
    sampled = resample_scores(scores, size, covered)
    assert (sampled.shape, sampled.dtype) == ((2, *size), np.float32)
    for axis in (0, 1):
        places = (np.arange(size[axis]) + 0.5) / size[axis] * covered[axis]
        places = places.clip(0.5 / grid[axis], 1 - 0.5 / grid[axis])
        places = places[:, None] if axis == 0 else places
        np.testing.assert_allclose(sampled[axis], np.broadcast_to(places, size), atol=1e-6)


def test_sampling_at_the_same_places_is_no_sampling() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 9, 11)).astype(np.float32)
    np.testing.assert_array_equal(resample_scores(scores, (9, 11)), scores)


def test_probabilities_are_averaged() -> None:
    """A network that is right as long as the image is not mirrored."""
    straight, mirrored = np.float32([2, 0, -1]), np.float32([-4, 3, 0])

    def ask(canvas: RGB) -> Scores:
        scores = straight if canvas[0, 0, 1] < canvas[0, -1, 1] else mirrored
        return np.broadcast_to(scores[:, None, None], (3, canvas.shape[0] // 8, canvas.shape[1] // 8)).copy()

    canvas = ramp_image(64, 128)
    expected = (softmax(straight) + softmax(mirrored)) / 2
    answer = wrap_with_tta(ask, flip=True, scales=(1.0, 2.0))(canvas)
    np.testing.assert_allclose(np.exp(answer), np.broadcast_to(expected[:, None, None], answer.shape), atol=1e-6)
    labels, sure = scores_to_labels(answer, (64, 128), confidence=True)
    assert (labels == expected.argmax()).all()
    np.testing.assert_allclose(sure, expected.max(), atol=1e-6)


def test_scores_far_apart_do_not_underflow() -> None:
    def ask(canvas: RGB) -> Scores:
        shape = canvas.shape[0] // 8, canvas.shape[1] // 8
        return np.stack([np.full(shape, value, np.float32) for value in (900, 0, -900)])

    answer = wrap_with_tta(ask, flip=True, scales=(0.5, 1.0))(blob_image(64, 64))
    np.testing.assert_allclose(answer[:, 3, 3], [0, -900, -1800], rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(height=sides, width=sides, flip=st.booleans(), scales=st.sets(scale_factors, min_size=1, max_size=3))
def test_the_grid_is_that_of_scale_1(height: int, width: int, flip: bool, scales: set[float]) -> None:
    for stride in (8, 32):
        answer = wrap_with_tta(colour_network(stride), flip, tuple(scales))(blob_image(height, width))
        assert answer.shape == (3, height // stride, width // stride)
        assert answer.dtype == np.float32 and np.isfinite(answer).all()


def test_the_grid_is_the_networks_own_where_no_stride_gives_it() -> None:
    def ask(canvas: RGB) -> Scores:  # as without padding: the grid ends before the image does
        return np.zeros((2, canvas.shape[0] // 8 - 1, canvas.shape[1] // 8 - 1), np.float32)

    assert wrap_with_tta(ask, flip=False, scales=(0.5, 1.0, 2.0))(blob_image(128, 192)).shape == (2, 15, 23)


def test_shrinking_skips_no_pixel() -> None:
    lines = np.zeros((128, 128, 3), np.uint8)
    lines[:, ::4, 0] = 200  # one in four: 50 on average
    answer = wrap_with_tta(colour_network(), flip=False, scales=(0.25,))(lines)
    np.testing.assert_allclose((answer[0] - answer[2])[:, 4:-4], 50, atol=1)


def test_a_network_of_one_size_can_flip() -> None:
    met = []

    def ask(canvas: RGB) -> Scores:
        met.append(canvas)
        return canvas.transpose(2, 0, 1)[:, ::8, ::8].astype(np.float32)

    canvas = blob_image(120, 200)
    assert wrap_with_tta(ask, flip=True, scales=(1.0,))(canvas).shape == (3, 15, 25)
    np.testing.assert_array_equal(met, [canvas, canvas[:, ::-1]])


def test_tiles_can_be_augmented() -> None:
    image = blob_image(300, 500)
    labels, sure = predict_sliding_window(
        wrap_with_tta(colour_network(), True, (0.75, 1.0)), image, tile=256, overlap=128, confidence=True
    )
    assert sure is not None and sure.max() <= 1
    assert np.mean(labels == predict_sliding_window(colour_network(), image, tile=256, overlap=128)[0]) >= 0.98


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
def test_what_is_asked_is_read(text: str, flip: bool, scales: tuple[float, ...]) -> None:
    assert TTAOptions.parse(text) == TTAOptions(flip, scales)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not understood: give `flip`, scales or both, as in flip,0.75,1,1.25"),
        ("flip,", "'flip,' is not understood"),
        ("mirror", "'mirror' is not understood"),
        ("flip 1", "'flip 1' is not understood"),
        ("flip,flip", "'flip,flip' flips 2 times: give `flip` once"),
        ("0.2,1", "Scale 0.2 .*: 0.25 to 4 can be asked"),
        ("5", "Scale 5 "),
        ("nan", "Scale nan "),
        ("-1", "Scale -1 "),
        ("1,1.0", r"Scales \(1.0, 1.0\) .*: give one or more, each once"),
    ],
)
def test_what_cannot_be_asked(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TTAOptions.parse(text)


def test_no_scales() -> None:
    with pytest.raises(ConfigError, match="one or more"):
        wrap_with_tta(colour_network(), True, ())
