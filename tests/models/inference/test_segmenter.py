"""The only inference path there is: sizes, geometry, and the probes that a bundle carries."""

import shutil
import subprocess
import sys
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
from models.inference.geometry import SIZE_DIVISOR, network_input_size, resize_and_pad, resize_image, resize_labels
from models.inference.segmenter import Segmenter, agreement, check_model_outputs
from models.inference.tta import TTAOptions
from models.spec import InputRule
from tests.fixtures_bundles import synthetic_image

ROOT = Path(__file__).parents[3]
NATIVE = InputRule(rule="native")
FIT = InputRule(rule="fit", side=192)
EXACT = InputRule(rule="exact", size=(120, 200))  # neither divides by the bucket
sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))


def colour_engine(
    images: NDArray[np.uint8], logits: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """An engine that needs no weights: bright red counts 1, bright green counts 2; its logits are of stride 1."""
    labels = (images[..., 0] > 127) + np.uint8(2) * (images[..., 1] > 127)
    scores = 9 * np.eye(4, dtype=np.float32)[labels].transpose(0, 3, 1, 2) if logits else None
    return labels.astype(np.uint8), scores


def quadrant_labels(height: int, width: int) -> NDArray[np.uint8]:
    """The labels 0, 1 over 2, 3, parted in the middle."""
    down, right = np.indices((height, width))
    return ((right >= width // 2) + 2 * (down >= height // 2)).astype(np.uint8)


def image_for_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image that `by_colour` labels so."""
    return np.stack([(labels & 1) * 255, (labels >> 1) * 255, labels * 0], axis=2).astype(np.uint8)


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
@settings(max_examples=60, deadline=None)
@example(size=(1, 1))
@example(size=(1, 700))
@example(size=(700, 1))
@given(size=sizes)
def test_labels_have_the_size_of_the_image(rule: InputRule, size: tuple[int, int]) -> None:
    image = synthetic_image(*size)
    prediction = Segmenter(colour_engine, rule).segment(image)
    assert prediction.labels.shape == size
    assert prediction.labels.dtype == np.uint8
    assert prediction.labels.flags.c_contiguous
    assert prediction.image is image


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
def test_any_memory_layout(rule: InputRule) -> None:
    segmenter = Segmenter(colour_engine, rule)
    image = synthetic_image(101, 67)
    image.flags.writeable = False
    for view in (image, image[::-1], image[:, ::-1], image.swapaxes(0, 1), image[::2, 1::3]):
        labels = segmenter.segment(view).labels
        np.testing.assert_array_equal(labels, segmenter.segment(view.copy()).labels)
        assert labels.flags.owndata or labels.base.flags.owndata
        labels[:] = 0  # the caller's own


@settings(max_examples=60, deadline=None)
@given(size=sizes)
def test_native_images_keep_their_pixels(size: tuple[int, int]) -> None:
    truth = quadrant_labels(*size)
    np.testing.assert_array_equal(Segmenter(colour_engine, NATIVE).segment(image_for_labels(truth)).labels, truth)


@settings(max_examples=100, deadline=None)
@given(size=sizes, side=st.integers(16, 400))
def test_boundaries_return_to_their_place(size: tuple[int, int], side: int) -> None:
    rule = InputRule(rule="fit", side=side)
    truth = quadrant_labels(*size)
    labels = Segmenter(colour_engine, rule).segment(image_for_labels(truth)).labels
    far = np.ones(size, bool)
    for axis, (full, fitted) in enumerate(zip(size, network_input_size(size, rule), strict=True)):
        distance = np.abs(np.arange(full) + 0.5 - full // 2)
        clear = distance > max(1.0, full / fitted)  # one pixel of the coarser grid
        far &= clear[:, None] if axis == 0 else clear[None, :]
    np.testing.assert_array_equal(labels[far], truth[far])


@pytest.mark.parametrize("size", [(384, 384), (288, 768), (1536, 960), (96, 96), (48, 96), (64, 64), (2, 4)])
def test_boundaries_are_exact_where_sizes_divide(size: tuple[int, int]) -> None:
    truth = quadrant_labels(*size)
    np.testing.assert_array_equal(Segmenter(colour_engine, FIT).segment(image_for_labels(truth)).labels, truth)


@pytest.mark.parametrize("size", [(384, 384), (192, 576), (768, 512), (64, 64), (64, 48), (192, 160)])
def test_a_mirrored_image_has_mirrored_labels(size: tuple[int, int]) -> None:
    segmenter = Segmenter(colour_engine, FIT)
    image = synthetic_image(*size)
    labels = segmenter.segment(image).labels
    assert len(np.unique(labels)) == 4
    for mirror in (np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]):
        np.testing.assert_array_equal(segmenter.segment(image[mirror]).labels, labels[mirror])


@settings(max_examples=100, deadline=None)
@given(size=sizes, to=sizes)
def test_resized_labels_invent_nothing(size: tuple[int, int], to: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 3, 200, 255], np.uint8), size)
    resized = resize_labels(labels, to)
    assert (resized.shape, resized.dtype) == (to, np.uint8)
    assert set(np.unique(resized)) <= set(np.unique(labels))


@settings(max_examples=40, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), factor=st.integers(1, 9))
def test_labels_enlarged_by_a_whole_factor_repeat(size: tuple[int, int], factor: int) -> None:
    labels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    enlarged = resize_labels(labels, (size[0] * factor, size[1] * factor))
    np.testing.assert_array_equal(enlarged, labels.repeat(factor, 0).repeat(factor, 1))
    assert not np.shares_memory(enlarged, labels)
    if factor % 2:  # the centre of an odd block is a pixel
        np.testing.assert_array_equal(resize_labels(enlarged, size), labels)


@pytest.mark.parametrize("size", [(1, 500_000), (500_000, 1), (3, 60_000)])
def test_very_long_images(size: tuple[int, int]) -> None:
    truth = quadrant_labels(*size)
    labels = Segmenter(colour_engine, FIT).segment(image_for_labels(truth)).labels
    assert labels.shape == size
    assert agreement(labels[size[0] // 2 :], truth[size[0] // 2 :]) > 0.99


@settings(max_examples=100, deadline=None)
@given(size=sizes, side=st.integers(16, 400))
def test_fitted_sizes_keep_the_aspect(size: tuple[int, int], side: int) -> None:
    fitted = network_input_size(size, InputRule(rule="fit", side=side))
    assert max(fitted) == side
    for length, full in zip(fitted, size, strict=True):
        assert length >= 1
        assert abs(length - full * side / max(size)) <= 0.5 or length == 1
    assert network_input_size(size, NATIVE) == size


def test_shrinking_averages() -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)).astype(np.uint8)
    shrunk = resize_image(np.repeat(checkers[:, :, None], 3, axis=2), (16, 16))
    assert (np.abs(shrunk.astype(int) - 128) <= 1).all()
    assert resize_image(shrunk, (16, 16)) is shrunk


@settings(max_examples=60, deadline=None)
@given(size=sizes)
def test_padding_repeats_the_edge_up_to_the_bucket(size: tuple[int, int]) -> None:
    image = synthetic_image(*size)
    padded = resize_and_pad(image, size)
    height, width = padded.shape[:2]
    assert SIZE_DIVISOR == 64
    assert (height % 64, width % 64) == (0, 0)
    assert 0 <= height - size[0] < 64 and 0 <= width - size[1] < 64
    np.testing.assert_array_equal(padded, np.pad(image, ((0, height - size[0]), (0, width - size[1]), (0, 0)), "edge"))


def test_few_sizes_reach_the_engine() -> None:
    met = set()

    def watched(
        images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        met.add(images.shape)
        return colour_engine(images, logits)

    segmenter = Segmenter(watched, FIT)
    for height, width in np.random.default_rng(0).integers(1, 700, (300, 2)):
        segmenter.segment(np.zeros((height, width, 3), np.uint8))
    assert met == {(1, 192, 64, 3), (1, 192, 128, 3), (1, 192, 192, 3), (1, 128, 192, 3), (1, 64, 192, 3)}


def test_one_size_reaches_a_network_that_takes_no_other() -> None:
    met = set()

    def watched(
        images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        met.add(images.shape)
        return colour_engine(images, logits)

    segmenter = Segmenter(watched, EXACT)
    for size in ((1, 1), (120, 200), (64, 64), (601, 37), (37, 601), (1200, 2000)):
        assert network_input_size(size, EXACT) == (120, 200)
        assert segmenter.segment(np.zeros((*size, 3), np.uint8)).labels.shape == size
    assert met == {(1, 120, 200, 3)}


@pytest.mark.parametrize("size", [(120, 200), (240, 200), (60, 400), (360, 1000), (40, 20)])
def test_boundaries_are_exact_where_an_image_is_stretched_by_whole_factors(size: tuple[int, int]) -> None:
    truth = quadrant_labels(*size)
    np.testing.assert_array_equal(Segmenter(colour_engine, EXACT).segment(image_for_labels(truth)).labels, truth)


def test_a_canvas_is_the_image_itself_where_nothing_is_to_be_done() -> None:
    image = synthetic_image(128, 192)
    assert resize_and_pad(image, (128, 192)) is image
    assert not np.shares_memory(resize_and_pad(image[::-1], (128, 192)), image)
    assert not np.shares_memory(resize_and_pad(image, (128, 192), 256), image)


@settings(max_examples=40, deadline=None)
@given(size=sizes, to=sizes)
def test_a_canvas_holds_the_resized_image(size: tuple[int, int], to: tuple[int, int]) -> None:
    image = synthetic_image(*size)
    canvas = resize_and_pad(image, to)
    assert canvas.flags.c_contiguous
    np.testing.assert_array_equal(canvas[: to[0], : to[1]], resize_image(image, to))
    np.testing.assert_array_equal(canvas, resize_and_pad(resize_image(image, to), to))


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (97, 301), (1100, 1300)])
def test_confidence_has_the_size_of_the_image(rule: InputRule, size: tuple[int, int]) -> None:
    prediction = Segmenter(colour_engine, rule).segment(image_for_labels(quadrant_labels(*size)), confidence=True)
    assert prediction.confidence is not None
    assert (prediction.confidence.shape, prediction.confidence.dtype) == (size, np.float32)
    assert prediction.confidence.min() >= 0.25 and prediction.confidence.max() <= 1.0
    if rule.rule == "native":
        np.testing.assert_array_equal(prediction.labels, quadrant_labels(*size))
        np.testing.assert_allclose(prediction.confidence, np.exp(9) / (np.exp(9) + 3), rtol=1e-5)
    assert Segmenter(colour_engine, rule).segment(image_for_labels(quadrant_labels(*size))).confidence is None


def test_what_is_larger_than_a_tile_goes_by_tiles() -> None:
    met = set()

    def watched(
        images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        met.add((images.shape[1:3], logits))
        return colour_engine(images, logits)

    for size in ((1500, 1100), (1, 40_000), (1025, 1025)):
        truth = quadrant_labels(*size)
        np.testing.assert_array_equal(Segmenter(watched, NATIVE).segment(image_for_labels(truth)).labels, truth)
    assert met == {((896, 704), True), ((704, 704), True), ((64, 1024), True)}  # no larger than the overlap needs
    met.clear()
    Segmenter(watched, NATIVE).segment(synthetic_image(300, 3000))  # as many pixels as a tile has, or fewer
    assert met == {((320, 3008), False)}


@pytest.mark.parametrize("limit", [300, 600, 1100])
def test_memory_that_is_too_small_leads_to_smaller_tiles(limit: int) -> None:
    met = []

    def small(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        met.append(images.shape[1:3])
        if max(images.shape[1:3]) > limit:
            raise MemoryError("no more than that")
        return colour_engine(images, logits)

    segmenter = Segmenter(small, NATIVE)
    for size in ((900, 1000), (1400, 1300)):
        truth = quadrant_labels(*size)
        np.testing.assert_array_equal(segmenter.segment(image_for_labels(truth)).labels, truth)
    failed = [size for size in met if max(size) > limit]
    assert len(failed) <= 2  # and not at every image again


def test_threads_that_lack_memory_at_once_take_the_same_smaller_tile() -> None:
    together = threading.Barrier(4, timeout=30)

    def small(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        if max(images.shape[1:3]) > 600:
            together.wait()
            raise MemoryError("no more than that")
        return colour_engine(images, logits)

    segmenter, truth = Segmenter(small, NATIVE), quadrant_labels(1000, 1000)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(segmenter.segment, [image_for_labels(truth)] * 4):
            np.testing.assert_array_equal(answer.labels, truth)
    assert segmenter.tile_size == 512


def test_scales_above_1_make_tiles_smaller() -> None:
    met = set()

    def watched(
        images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        met.add(images.shape[1:3])
        return colour_engine(images, logits)

    Segmenter(watched, NATIVE, tta=TTAOptions.parse("1,2.5")).segment(synthetic_image(1000, 1000))
    assert max(max(size) for size in met) <= 1024


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
def test_memory_that_is_too_small_for_anything(rule: InputRule) -> None:
    def none(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        raise MemoryError("std::bad_alloc")

    with pytest.raises(InsufficientMemoryError, match=r"memory is too small .*bad_alloc"):
        Segmenter(none, rule).segment(synthetic_image(900, 900))


@pytest.mark.parametrize("rule", [NATIVE, FIT, EXACT], ids=["native", "fit", "exact"])
def test_augmentation_asks_more_and_keeps_what_is_sure(rule: InputRule) -> None:
    asked = []

    def watched(
        images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        asked.append(images.shape)
        return colour_engine(images, logits)

    truth = quadrant_labels(120, 200)
    scales = "flip" if rule is EXACT else "flip,0.5,1,2"
    labels = Segmenter(watched, rule, tta=TTAOptions.parse(scales)).segment(image_for_labels(truth)).labels
    assert len(asked) == (2 if rule is EXACT else 6)
    assert agreement(labels, truth) > 0.98


@pytest.mark.parametrize(
    ("rule", "size", "asked", "confidence", "runs"),
    [
        (FIT, (120, 200), None, False, 1),
        (EXACT, (120, 200), None, True, 1),
        (NATIVE, (1500, 1100), None, False, 4),
        (NATIVE, (1500, 1100), None, True, 4),
        (NATIVE, (200, 300), "flip,0.5,1,2", True, 6),
        (NATIVE, (1500, 1100), "flip", False, 8),
    ],
)
def test_work_ends_before_the_next_run_of_the_engine(
    rule: InputRule, size: tuple[int, int], asked: str | None, confidence: bool, runs: int
) -> None:
    done, most = 0, runs

    def counted(
        images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        nonlocal done
        done += 1
        return colour_engine(images, logits)

    def enough() -> bool:
        return done == most

    segmenter = Segmenter(counted, rule, tta=TTAOptions.parse(asked) if asked else None)
    image = image_for_labels(quadrant_labels(*size))
    whole = segmenter.segment(image, confidence)
    assert done == runs
    for most in range(runs + 1):
        done = 0
        if most < runs:
            with pytest.raises(InferenceCancelledError, match="asked to stop"):
                segmenter.segment(image, confidence, should_stop=enough)
        else:  # what has been answered is given
            again = segmenter.segment(image, confidence, should_stop=enough)
            np.testing.assert_array_equal(again.labels, whole.labels)
        assert done == most
    np.testing.assert_array_equal(segmenter.segment(image, confidence).labels, whole.labels)


def test_memory_that_is_short_does_not_forget_the_stop() -> None:
    sides: list[int] = []

    def small(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        sides.append(max(images.shape[1:3]))
        raise MemoryError("no more than that")

    with pytest.raises(InferenceCancelledError):
        Segmenter(small, NATIVE).segment(synthetic_image(900, 1000), should_stop=lambda: len(sides) == 1)
    assert sides == [1024]


def test_one_size_cannot_be_scaled() -> None:
    with pytest.raises(EngineError, match=r"one size alone.*flip, not scale"):
        Segmenter(colour_engine, EXACT, tta=TTAOptions.parse("1,2"))


@pytest.mark.parametrize(
    ("labels", "logits", "said"),
    [
        (np.zeros((1, 64, 64), np.int64), np.zeros((1, 6, 8, 8), np.float32), "labels int64 1 x 64 x 64"),
        (np.zeros((1, 8, 8), np.uint8), np.zeros((1, 6, 8, 8), np.float32), "labels uint8 1 x 8 x 8"),
        (np.zeros((1, 64, 64), np.uint8), np.zeros((1, 21, 8, 8), np.float32), "logits float32 1 x 21 x 8 x 8"),
        (np.zeros((1, 64, 64), np.uint8), np.zeros((1, 6), np.float32), "logits float32 1 x 6"),
    ],
)
def test_a_graph_that_the_spec_does_not_describe(labels: Any, logits: Any, said: str, tiny_bundle: Path) -> None:
    with pytest.raises(
        BundleError, match=rf"spec\.json and its network disagree: .* 1 x 6 x h x w are wanted, not .*{said}"
    ):
        check_model_outputs(lambda images, **wish: (labels, logits), open_bundle(tiny_bundle))


def test_agreement() -> None:
    first = np.array([[0, 1], [2, 255]], np.uint8)
    assert agreement(first, first) == 1.0
    assert agreement(first, first.T) == 0.5
    assert agreement(first, first[:1]) == 0.0


def test_probes_are_answered(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert Segmenter.load(bundle).verify_probes(bundle) >= 0.99


def test_altered_probes_are_found(tiny_bundle: Path, tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "altered") as new:
        shutil.copytree(tiny_bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE))
        mask = new / "probes" / "0.labels.png"
        labels = np.array(Image.open(mask))
        labels[: len(labels) // 50 + 1] ^= 1  # a little more than the 1% that is forgiven
        Image.fromarray(labels).save(mask)
    bundle = open_bundle(tmp_path / "altered")
    with pytest.raises(ParityError, match=r"0\.png: on this machine 9\d\.\d\d% .* at least 99\.8%"):
        Segmenter.load(bundle, precision="f32").verify_probes(bundle)


def test_a_bundle_without_probes(tiny_bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert Segmenter(colour_engine, FIT).verify_probes(Bundle(tmp_path, opened.spec, "")) == 1.0


def test_an_unknown_engine(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="The engine 'tensorrt' is not known; choose auto, openvino"):
        Segmenter.load(open_bundle(tiny_bundle), engine="tensorrt")


def test_the_real_network_fits_and_returns(tiny_bundle: Path) -> None:
    segmenter = Segmenter.load(open_bundle(tiny_bundle), precision="f32")
    image = synthetic_image(192, 160)
    labels = segmenter.segment(image).labels
    assert len(np.unique(labels)) > 1
    twice = segmenter.segment(cv2.resize(image, (320, 384), interpolation=cv2.INTER_NEAREST)).labels
    assert agreement(twice, resize_labels(labels, (384, 320))) > 0.99


def test_serving_needs_no_torch() -> None:
    code = "import sys, models.inference.segmenter, models.outputs, models.bundle; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
