"""The Segmenter: sizes, geometry, tiles, memory errors, and the probes of a bundle."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.bundle import CHECKSUM_FILE, Bundle, bundle_writer, open_bundle
from models.errors import BundleError, EngineError, InferenceCancelledError, InsufficientMemoryError, ParityError
from models.inference.geometry import (
    MIN_CANVAS_SIDE,
    canvas_size,
    network_input_size,
    resize_and_pad,
    resize_image,
    resize_labels,
)
from models.inference.segmenter import Segmenter, agreement, check_model_outputs
from models.inference.tta import TTAOptions
from models.spec import InputRule
from tests.fixtures_bundles import synthetic_image

NATIVE = InputRule(rule="native")
FIT = InputRule(rule="fit", side=192)
EXACT = InputRule(rule="exact", size=(120, 200))  # not multiples of 64
sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))


def color_engine(
    images: NDArray[np.uint8], logits: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """An engine without weights: bright red adds 1 to the label, bright green 2; its logits have stride 1."""
    labels = (images[..., 0] > 127) + np.uint8(2) * (images[..., 1] > 127)
    scores = 9 * np.eye(4, dtype=np.float32)[labels].transpose(0, 3, 1, 2) if logits else None
    return labels.astype(np.uint8), scores


class RecordingEngine:
    """`color_engine` that records its calls, and raises MemoryError for batches of more than `max_side` pixels a side."""

    def __init__(self, max_side: int | None = None) -> None:
        self.max_side = max_side
        self.calls: list[tuple[tuple[int, int], bool]] = []  # (height, width) and whether logits were requested

    def __call__(
        self, images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        self.calls.append(((images.shape[1], images.shape[2]), logits))
        if self.max_side is not None and max(images.shape[1:3]) > self.max_side:
            raise MemoryError("std::bad_alloc")
        return color_engine(images, logits)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [size for size, _ in self.calls]


def quadrant_labels(height: int, width: int) -> NDArray[np.uint8]:
    """The labels 0, 1 above 2, 3, divided in the middle."""
    rows, columns = np.indices((height, width))
    return ((columns >= width // 2) + 2 * (rows >= height // 2)).astype(np.uint8)


def image_for_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image for which `color_engine` predicts these labels."""
    return np.stack([(labels & 1) * 255, (labels >> 1) * 255, labels * 0], axis=2).astype(np.uint8)


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
@settings(max_examples=25, deadline=None)
@example(size=(1, 1))
@example(size=(1, 700))
@example(size=(700, 1))
@given(size=sizes)
def test_labels_have_the_size_of_the_image(rule: InputRule, size: tuple[int, int]) -> None:
    image = synthetic_image(*size)
    prediction = Segmenter(color_engine, rule).segment(image)
    assert prediction.labels.shape == size
    assert prediction.labels.dtype == np.uint8
    assert prediction.labels.flags.c_contiguous
    assert prediction.image is image


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
def test_any_memory_layout(rule: InputRule) -> None:
    segmenter = Segmenter(color_engine, rule)
    image = synthetic_image(101, 67)
    image.flags.writeable = False
    for view in (image, image[::-1], image[:, ::-1], image.swapaxes(0, 1), image[::2, 1::3]):
        labels = segmenter.segment(view).labels
        np.testing.assert_array_equal(labels, segmenter.segment(view.copy()).labels)
        assert labels.flags.owndata or labels.base.flags.owndata
        labels[:] = 0  # the caller may modify them


@settings(max_examples=25, deadline=None)
@given(size=sizes)
def test_native_predicts_every_pixel(size: tuple[int, int]) -> None:
    expected = quadrant_labels(*size)
    np.testing.assert_array_equal(Segmenter(color_engine, NATIVE).segment(image_for_labels(expected)).labels, expected)


@settings(max_examples=40, deadline=None)
@given(size=sizes, side=st.integers(16, 400))
def test_boundaries_move_less_than_a_pixel_of_the_coarser_grid(size: tuple[int, int], side: int) -> None:
    rule = InputRule(rule="fit", side=side)
    expected = quadrant_labels(*size)
    labels = Segmenter(color_engine, rule).segment(image_for_labels(expected)).labels
    far = np.ones(size, bool)
    for axis, (full, fitted) in enumerate(zip(size, network_input_size(size, rule), strict=True)):
        distance = np.abs(np.arange(full) + 0.5 - full // 2)
        clear = distance > max(1.0, full / fitted)  # one pixel of the coarser grid
        far &= clear[:, None] if axis == 0 else clear[None, :]
    np.testing.assert_array_equal(labels[far], expected[far])


@pytest.mark.parametrize("size", [(384, 384), (288, 768), (1536, 960), (96, 96), (48, 96), (64, 64), (2, 4)])
def test_boundaries_are_exact_if_sizes_divide(size: tuple[int, int]) -> None:
    expected = quadrant_labels(*size)
    np.testing.assert_array_equal(Segmenter(color_engine, FIT).segment(image_for_labels(expected)).labels, expected)


@pytest.mark.parametrize("size", [(384, 384), (192, 576), (768, 512), (64, 64), (64, 48), (192, 160)])
def test_a_flipped_image_has_flipped_labels(size: tuple[int, int]) -> None:
    segmenter = Segmenter(color_engine, FIT)
    image = synthetic_image(*size)
    labels = segmenter.segment(image).labels
    assert len(np.unique(labels)) == 4
    for mirror in (np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]):
        np.testing.assert_array_equal(segmenter.segment(image[mirror]).labels, labels[mirror])


@settings(max_examples=40, deadline=None)
@given(size=sizes, to=sizes)
def test_resized_labels_contain_no_new_values(size: tuple[int, int], to: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 3, 200, 255], np.uint8), size)
    resized = resize_labels(labels, to)
    assert (resized.shape, resized.dtype) == (to, np.uint8)
    assert set(np.unique(resized)) <= set(np.unique(labels))


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), factor=st.integers(1, 9))
def test_labels_enlarged_by_a_whole_factor_are_repeated(size: tuple[int, int], factor: int) -> None:
    labels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    enlarged = resize_labels(labels, (size[0] * factor, size[1] * factor))
    np.testing.assert_array_equal(enlarged, labels.repeat(factor, 0).repeat(factor, 1))
    assert not np.shares_memory(enlarged, labels)
    if factor % 2:  # the center of an odd block is a pixel
        np.testing.assert_array_equal(resize_labels(enlarged, size), labels)


@pytest.mark.parametrize("ratio", [(1, 2), (1, 3), (1, 4), (2, 3), (3, 4), (4, 5), (3, 2), (2, 1), (97, 120)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_resized_masks_do_not_shift_against_their_images(ratio: tuple[int, int], axis: int) -> None:
    length, step = 240, np.arange(240) < np.arange(1, 240)[:, None]  # an edge at each position
    size = (length * ratio[0] // ratio[1], 4)
    shifts = []
    for inside in step:
        mask = np.repeat(inside.astype(np.uint8)[:, None], 4, axis=1)
        image = np.repeat(255 * mask[:, :, None], 3, axis=2)
        if axis:
            labels, resized = resize_labels(mask.T, size[::-1]).T, resize_image(image.swapaxes(0, 1), size[::-1])[0]
        else:
            labels, resized = resize_labels(mask, size), resize_image(image, size)[:, 0]
        shifts.append(labels[:, 0].sum() - resized[:, 0].sum() / 255)  # in pixels
    assert abs(np.mean(shifts)) <= 0.05
    assert np.abs(shifts).max() <= max(0.5, ratio[0] / ratio[1] / 2) + 0.02


@pytest.mark.parametrize("size", [(1, 500_000), (500_000, 1), (3, 60_000)])
def test_very_long_images(size: tuple[int, int]) -> None:
    expected = quadrant_labels(*size)
    labels = Segmenter(color_engine, FIT).segment(image_for_labels(expected)).labels
    assert labels.shape == size
    assert agreement(labels[size[0] // 2 :], expected[size[0] // 2 :]) > 0.99


@settings(max_examples=40, deadline=None)
@given(size=sizes, side=st.integers(16, 400))
def test_fit_keeps_the_aspect_ratio(size: tuple[int, int], side: int) -> None:
    fitted = network_input_size(size, InputRule(rule="fit", side=side))
    assert max(fitted) == side
    for length, full in zip(fitted, size, strict=True):
        assert length >= 1
        assert abs(length - full * side / max(size)) <= 0.5 or length == 1
    assert network_input_size(size, NATIVE) == size


def test_shrinking_averages_pixels() -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)).astype(np.uint8)
    shrunk = resize_image(np.repeat(checkers[:, :, None], 3, axis=2), (16, 16))
    assert (np.abs(shrunk.astype(int) - 128) <= 1).all()
    assert resize_image(shrunk, (16, 16)) is shrunk


@settings(max_examples=25, deadline=None)
@given(size=sizes)
def test_padding_repeats_the_edge(size: tuple[int, int]) -> None:
    image = synthetic_image(*size)
    height, width = canvas_size(size, NATIVE)
    padded = resize_and_pad(image, size, (height, width))
    np.testing.assert_array_equal(padded, np.pad(image, ((0, height - size[0]), (0, width - size[1]), (0, 0)), "edge"))


@settings(max_examples=25, deadline=None)
@given(size=sizes, divisor=st.sampled_from([1, 2, 8, 32, 64]))
def test_a_canvas_is_the_smallest_multiple_of_the_divisor(size: tuple[int, int], divisor: int) -> None:
    engine = RecordingEngine()
    Segmenter(engine, InputRule(rule="native", divisor=divisor)).segment(np.zeros((*size, 3), np.uint8))
    for side, canvas in zip(size, engine.sizes[0], strict=True):
        assert canvas % divisor == 0 and canvas >= MIN_CANVAS_SIDE
        assert side <= canvas < max(side + divisor, MIN_CANVAS_SIDE + 1)


def test_few_sizes_reach_the_engine() -> None:
    engine = RecordingEngine()
    segmenter = Segmenter(engine, FIT)
    for height, width in np.random.default_rng(0).integers(1, 700, (150, 2)):
        segmenter.segment(np.zeros((height, width, 3), np.uint8))
    short = range(32, 193, 32)
    assert set(engine.sizes) == {(192, side) for side in short} | {(side, 192) for side in short}


def test_exact_uses_one_size() -> None:
    engine = RecordingEngine()
    segmenter = Segmenter(engine, EXACT)
    for size in ((1, 1), (120, 200), (64, 64), (601, 37), (37, 601), (1200, 2000)):
        assert network_input_size(size, EXACT) == (120, 200)
        assert segmenter.segment(np.zeros((*size, 3), np.uint8)).labels.shape == size
    assert set(engine.sizes) == {(120, 200)}


@pytest.mark.parametrize("size", [(120, 200), (240, 200), (60, 400), (360, 1000), (40, 20)])
def test_boundaries_are_exact_if_an_image_is_resized_by_whole_factors(size: tuple[int, int]) -> None:
    expected = quadrant_labels(*size)
    np.testing.assert_array_equal(Segmenter(color_engine, EXACT).segment(image_for_labels(expected)).labels, expected)


def test_a_canvas_is_the_image_itself_if_there_is_nothing_to_do() -> None:
    image = synthetic_image(128, 192)
    assert resize_and_pad(image, (128, 192), (128, 192)) is image
    assert not np.shares_memory(resize_and_pad(image[::-1], (128, 192), (128, 192)), image)
    assert not np.shares_memory(resize_and_pad(image, (128, 192), (256, 256)), image)


@settings(max_examples=20, deadline=None)
@given(size=sizes, to=sizes)
def test_a_canvas_contains_the_resized_image(size: tuple[int, int], to: tuple[int, int]) -> None:
    image = synthetic_image(*size)
    padded = canvas_size(to, NATIVE)
    canvas = resize_and_pad(image, to, padded)
    assert canvas.flags.c_contiguous
    np.testing.assert_array_equal(canvas[: to[0], : to[1]], resize_image(image, to))
    np.testing.assert_array_equal(canvas, resize_and_pad(resize_image(image, to), to, padded))


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (97, 301), (1100, 1300)])
def test_confidence_has_the_size_of_the_image(rule: InputRule, size: tuple[int, int]) -> None:
    prediction = Segmenter(color_engine, rule).segment(image_for_labels(quadrant_labels(*size)), confidence=True)
    assert prediction.confidence is not None
    assert (prediction.confidence.shape, prediction.confidence.dtype) == (size, np.float32)
    assert prediction.confidence.min() >= 0.25 and prediction.confidence.max() <= 1.0
    if rule.rule == "native":
        np.testing.assert_array_equal(prediction.labels, quadrant_labels(*size))
        np.testing.assert_allclose(prediction.confidence, np.exp(9) / (np.exp(9) + 3), rtol=1e-5)
    assert Segmenter(color_engine, rule).segment(image_for_labels(quadrant_labels(*size))).confidence is None


def test_images_larger_than_a_tile_are_tiled() -> None:
    engine = RecordingEngine()
    for size in ((1500, 1100), (1, 40_000), (1025, 1025)):
        expected = quadrant_labels(*size)
        np.testing.assert_array_equal(Segmenter(engine, NATIVE).segment(image_for_labels(expected)).labels, expected)
    assert set(engine.calls) == {
        ((896, 704), True),
        ((704, 704), True),
        ((64, 1024), True),
    }  # no larger than the overlap needs
    engine.calls.clear()
    Segmenter(engine, NATIVE).segment(synthetic_image(300, 3000))  # as many pixels as a tile has, or fewer
    assert set(engine.calls) == {((320, 3008), False)}


@pytest.mark.parametrize("limit", [300, 600, 1100])
def test_tiles_shrink_if_memory_runs_out(limit: int) -> None:
    engine = RecordingEngine(max_side=limit)
    segmenter = Segmenter(engine, NATIVE)
    for size in ((900, 1000), (1400, 1300)):
        expected = quadrant_labels(*size)
        np.testing.assert_array_equal(segmenter.segment(image_for_labels(expected)).labels, expected)
    failed = [size for size in engine.sizes if max(size) > limit]
    assert len(failed) <= 2  # not again for every image


def test_concurrent_memory_errors_shrink_the_tile_once() -> None:
    together = threading.Barrier(4, timeout=30)

    def small(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        if max(images.shape[1:3]) > 600:
            together.wait()
            raise MemoryError("out of memory")
        return color_engine(images, logits)

    segmenter, expected = Segmenter(small, NATIVE), quadrant_labels(1000, 1000)
    with ThreadPoolExecutor(4) as pool:
        for prediction in pool.map(segmenter.segment, [image_for_labels(expected)] * 4):
            np.testing.assert_array_equal(prediction.labels, expected)
    assert segmenter.tile_size == 512


def test_tta_scales_above_1_make_tiles_smaller() -> None:
    engine = RecordingEngine()
    Segmenter(engine, NATIVE, tta=TTAOptions.parse("1,2.5")).segment(synthetic_image(500, 500))
    assert max(max(size) for size in engine.sizes) <= 1024


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
def test_memory_for_the_smallest_tile_is_missing(rule: InputRule) -> None:
    with pytest.raises(InsufficientMemoryError, match=r"not enough memory .*bad_alloc"):
        Segmenter(RecordingEngine(max_side=0), rule).segment(synthetic_image(900, 900))


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
def test_tta_runs_every_view_and_keeps_clear_labels(rule: InputRule) -> None:
    engine = RecordingEngine()
    expected = quadrant_labels(120, 200)
    scales = "flip" if rule is EXACT else "flip,0.5,1,2"
    labels = Segmenter(engine, rule, tta=TTAOptions.parse(scales)).segment(image_for_labels(expected)).labels
    assert len(engine.calls) == (2 if rule is EXACT else 6)
    assert agreement(labels, expected) > 0.98


@pytest.mark.parametrize(
    ("rule", "size", "tta", "confidence", "runs"),
    [
        (FIT, (120, 200), None, False, 1),
        (EXACT, (120, 200), None, True, 1),
        (NATIVE, (1100, 1000), None, False, 2),
        (NATIVE, (1100, 1000), None, True, 2),
        (NATIVE, (200, 300), "flip,0.5,1,2", True, 6),
        (NATIVE, (1100, 1000), "flip", False, 4),
    ],
)
def test_should_stop_ends_the_inference_before_the_next_run(
    rule: InputRule, size: tuple[int, int], tta: str | None, confidence: bool, runs: int
) -> None:
    engine = RecordingEngine()
    segmenter = Segmenter(engine, rule, tta=TTAOptions.parse(tta) if tta else None)
    image = image_for_labels(quadrant_labels(*size))
    expected = segmenter.segment(image, confidence).labels
    assert len(engine.calls) == runs
    for allowed in sorted({0, 1, runs - 1, runs}):
        engine.calls.clear()

        def should_stop(allowed: int = allowed) -> bool:
            return len(engine.calls) == allowed

        if allowed < runs:
            with pytest.raises(InferenceCancelledError, match="was cancelled"):
                segmenter.segment(image, confidence, should_stop=should_stop)
        else:  # all runs were complete before the stop
            labels = segmenter.segment(image, confidence, should_stop=should_stop).labels
            np.testing.assert_array_equal(labels, expected)
        assert len(engine.calls) == allowed
    np.testing.assert_array_equal(segmenter.segment(image, confidence).labels, expected)


def test_should_stop_is_checked_after_a_memory_error() -> None:
    engine = RecordingEngine(max_side=0)
    with pytest.raises(InferenceCancelledError):
        Segmenter(engine, NATIVE).segment(synthetic_image(900, 1000), should_stop=lambda: len(engine.calls) == 1)
    assert [max(size) for size in engine.sizes] == [1024]


def test_exact_cannot_be_scaled_by_tta() -> None:
    with pytest.raises(EngineError, match=r"takes only \(120, 200\)\. Use flips only"):
        Segmenter(color_engine, EXACT, tta=TTAOptions.parse("1,2"))


@pytest.mark.parametrize(
    ("labels", "logits", "message"),
    [
        (np.zeros((1, 64, 64), np.int64), np.zeros((1, 6, 8, 8), np.float32), "labels int64 1 x 64 x 64"),
        (np.zeros((1, 8, 8), np.uint8), np.zeros((1, 6, 8, 8), np.float32), "labels uint8 1 x 8 x 8"),
        (np.zeros((1, 64, 64), np.uint8), np.zeros((1, 21, 8, 8), np.float32), "logits float32 1 x 21 x 8 x 8"),
        (np.zeros((1, 64, 64), np.uint8), np.zeros((1, 6), np.float32), "logits float32 1 x 6"),
    ],
)
def test_a_graph_that_does_not_match_the_spec(labels: Any, logits: Any, message: str, tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=rf"does not match spec\.json: expected .* 1 x 6 x h x w, got .*{message}"):
        check_model_outputs(lambda images, **options: (labels, logits), open_bundle(tiny_bundle))


def test_agreement() -> None:
    first = np.array([[0, 1], [2, 255]], np.uint8)
    assert agreement(first, first) == 1.0
    assert agreement(first, first.T) == 0.5
    assert agreement(first, first[:1]) == 0.0


def test_probes_are_verified(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert Segmenter.load(bundle).verify_probes(bundle) >= 0.99


def test_altered_probes_are_detected(tiny_bundle: Path, tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "altered") as new:
        shutil.copytree(tiny_bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE))
        mask = new / "probes" / "0.labels.png"
        labels = np.array(Image.open(mask))
        labels[: len(labels) // 50 + 1] ^= 1  # slightly more than the tolerance of 1%
        Image.fromarray(labels).save(mask)
    bundle = open_bundle(tmp_path / "altered")
    with pytest.raises(ParityError, match=r"0\.png: on this machine 9\d\.\d\d% .* expected at least 99\.8%"):
        Segmenter.load(bundle, precision="f32").verify_probes(bundle)


def test_a_bundle_without_probes(tiny_bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert Segmenter(color_engine, FIT).verify_probes(Bundle(tmp_path, opened.spec, "")) == 1.0


def test_an_unknown_engine(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="The engine 'tensorrt' is not known; choose auto, openvino"):
        Segmenter.load(open_bundle(tiny_bundle), engine="tensorrt")


def test_an_exported_network_with_the_rule_fit(tiny_bundle: Path) -> None:
    segmenter = Segmenter.load(open_bundle(tiny_bundle), precision="f32")
    image = synthetic_image(192, 160)
    labels = segmenter.segment(image).labels
    assert len(np.unique(labels)) > 1
    twice = segmenter.segment(cv2.resize(image, (320, 384), interpolation=cv2.INTER_NEAREST)).labels
    assert agreement(twice, resize_labels(labels, (384, 320))) > 0.99
