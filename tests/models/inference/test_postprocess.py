"""Upsampling by strips: equal to upsampling the whole, and to torch."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import models.inference.postprocess
from models.inference.postprocess import (
    Scores,
    interpolation_taps,
    label_confidence,
    pixel_centers,
    resize_scores,
    scores_to_labels,
    write_label_rows,
)

Make = Callable[[int, tuple[int, int]], Scores]
grids = st.tuples(st.integers(1, 24), st.integers(1, 24))
sizes = st.tuples(st.integers(1, 150), st.integers(1, 150))


def random_scores(classes: int, grid: tuple[int, int], seed: int = 0) -> Scores:
    return np.random.default_rng(seed).normal(size=(classes, *grid)).astype(np.float32)


def piecewise_scores(classes: int, grid: tuple[int, int]) -> Scores:
    """Scores as of a real image: few classes per region, far above the others."""
    scores = random_scores(classes, grid)
    rows, columns = np.indices(grid)
    scores[(rows // 9 * 3 + columns // 7) % classes, rows, columns] += 12
    return scores


def torch_upsample(scores: Scores, size: tuple[int, int]) -> NDArray[np.float32]:
    volume = torch.from_numpy(scores)[None]
    return np.asarray(torch.nn.functional.interpolate(volume, size, mode="bilinear", align_corners=False)[0])


def assert_argmax(labels: NDArray[np.uint8], volume: NDArray[np.float32], slack: float = 1e-4) -> None:
    """Assert that the labels' scores are the highest, up to rounding."""
    assert (np.take_along_axis(volume, labels[None].astype(int), axis=0)[0] >= volume.max(axis=0) - slack).all()
    assert np.mean(labels == volume.argmax(axis=0)) > 0.99 or labels.size < 1000


@settings(max_examples=50, deadline=None)
@example(grid=(1, 1), size=(1, 1))
@example(grid=(1, 24), size=(150, 1))
@example(grid=(24, 24), size=(12, 12))
@given(grid=grids, size=sizes)
def test_upsampling_equals_torch_at_any_ratio(grid: tuple[int, int], size: tuple[int, int]) -> None:
    scores = random_scores(3, grid)
    np.testing.assert_allclose(resize_scores(scores, size), torch_upsample(scores, size), atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_upsampling_by_a_stride_equals_torch_to_the_last_digits(stride: int) -> None:
    scores = random_scores(5, (15, 20))
    size = (15 * stride, 20 * stride)
    np.testing.assert_allclose(resize_scores(scores, size), torch_upsample(scores, size), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(grid=grids, size=sizes, classes=st.integers(2, 9))
def test_labels_are_the_argmax_of_torchs_upsampling(grid: tuple[int, int], size: tuple[int, int], classes: int) -> None:
    scores = random_scores(classes, grid)
    labels, probabilities = scores_to_labels(scores, size)
    assert (labels.shape, labels.dtype, probabilities) == (size, np.uint8, None)
    assert_argmax(labels, torch_upsample(scores, size))


@pytest.mark.parametrize(
    ("classes", "size"),
    [(2, (30, 40)), (2, (240, 320)), (3, (229, 333)), (21, (30, 40)), (21, (60, 80)), (21, (240, 320)), (21, (20, 31)),
     (255, (60, 80)), (255, (130, 170))],
)  # fmt: skip
@pytest.mark.parametrize("make", [random_scores, piecewise_scores])
def test_confidence_is_the_softmax_of_the_upsampled_scores(classes: int, make: Make, size: tuple[int, int]) -> None:
    scores = make(classes, (30, 40))
    labels, probabilities = scores_to_labels(scores, size, confidence=True)
    volume = torch_upsample(scores, size)
    assert probabilities is not None and (probabilities.shape, probabilities.dtype) == (size, np.float32)
    np.testing.assert_allclose(probabilities, np.asarray(torch.softmax(torch.from_numpy(volume), 0).amax(0)), atol=1e-4)
    np.testing.assert_array_equal(labels, scores_to_labels(scores, size)[0])
    assert_argmax(labels, volume)


@pytest.mark.parametrize(("classes", "size"), [(2, (96, 128)), (6, (701, 903)), (21, (360, 480))])
def test_confidence_of_given_labels(classes: int, size: tuple[int, int]) -> None:
    scores = piecewise_scores(classes, (45, 60))
    labels = np.random.default_rng(1).integers(0, classes, (size[0] - 5, size[1] - 7), dtype=np.uint8)
    softmax = torch.softmax(torch.from_numpy(torch_upsample(scores, size)), 0).numpy()[:, :-5, :-7]
    confidence = label_confidence(scores, size, labels)
    assert (confidence.shape, confidence.dtype) == (labels.shape, np.float32)
    np.testing.assert_allclose(confidence, np.take_along_axis(softmax, labels[None].astype(int), 0)[0], atol=1e-4)


def test_confidence_of_a_label_far_below_the_others_is_zero() -> None:
    scores = np.stack([np.full((4, 4), value, np.float32) for value in (0, 300, 299)])
    for label in (0, 255):  # 255: unlabeled, in a graph that outputs labels
        assert not label_confidence(scores, (32, 32), np.full((32, 32), label, np.uint8)).any()


@pytest.mark.parametrize("make", [random_scores, piecewise_scores])
@pytest.mark.parametrize("size", [(96, 128), (768, 1024), (701, 903)])
def test_strips_do_not_change_the_result(make: Make, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    scores = make(6, (96, 128))
    monkeypatch.setattr(models.inference.postprocess, "STRIP_BYTES", 2**30)
    labels, probabilities = scores_to_labels(scores, size, confidence=True)
    for strip in (1, 2**16, 2**20 + 12_345):
        monkeypatch.setattr(models.inference.postprocess, "STRIP_BYTES", strip)
        again, expected_confidence = scores_to_labels(scores, size, confidence=True)
        np.testing.assert_array_equal(again, labels)
        np.testing.assert_allclose(expected_confidence, probabilities, atol=1e-6)


@pytest.mark.parametrize("make", [random_scores, piecewise_scores])
def test_skipping_classes_does_not_change_the_result(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = make(21, (45, 60))
    labels, probabilities = scores_to_labels(scores, (360, 480), confidence=True)
    monkeypatch.setattr(models.inference.postprocess, "_candidate_classes", lambda *_: None)
    every, expected_confidence = scores_to_labels(scores, (360, 480), confidence=True)
    np.testing.assert_array_equal(labels, every)
    np.testing.assert_array_equal(labels, resize_scores(scores, (360, 480)).argmax(axis=0))
    np.testing.assert_allclose(probabilities, expected_confidence, atol=1e-6)


def test_classes_that_cannot_win_are_skipped() -> None:
    scores = np.stack([np.full((9, 9), value, np.float32) for value in (0, 3, -40, 1)])
    scores[3, 4, 4] = 5
    candidates = models.inference.postprocess._candidate_classes(scores, 72, softmax=False)
    assert candidates is not None and candidates.tolist() == [1, 3]
    candidates = models.inference.postprocess._candidate_classes(scores, 72, softmax=True)
    assert candidates is not None and candidates.tolist() == [0, 1, 3]


@pytest.mark.parametrize("size", [(12, 16), (24, 32), (96, 128), (50, 50)])
def test_the_lowest_of_equal_classes_wins(size: tuple[int, int]) -> None:
    plane = random_scores(1, (12, 16))
    assert not scores_to_labels(np.repeat(plane, 7, axis=0), size)[0].any()
    later = np.concatenate([plane - 1, plane, plane - 2, plane])
    labels, probabilities = scores_to_labels(later, size, confidence=True)
    assert (labels == 1).all()
    np.testing.assert_allclose(probabilities, 1 / (2 + np.exp(-1) + np.exp(-2)), atol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    scores = random_scores(4, (8, 8)) * np.float32(1e30)
    labels, probabilities = scores_to_labels(scores, (64, 64), confidence=True)
    assert probabilities is not None and probabilities.min() > 0 and probabilities.max() == 1
    assert_argmax(labels, torch_upsample(scores, (64, 64)), slack=1e25)


@pytest.mark.parametrize("size", [(30, 40), (240, 320), (30, 320)])
def test_scores_are_not_modified(size: tuple[int, int]) -> None:
    scores = random_scores(5, (30, 40))
    scores.flags.writeable = False
    before = scores_to_labels(scores, size, confidence=True)
    turned = scores_to_labels(np.asfortranarray(scores), size, confidence=True)
    np.testing.assert_array_equal(before[0], turned[0])
    np.testing.assert_array_equal(scores, random_scores(5, (30, 40)))


def test_a_very_long_image() -> None:
    labels, _ = scores_to_labels(random_scores(3, (1, 62_500)), (8, 500_000))
    assert labels.shape == (8, 500_000)
    np.testing.assert_array_equal(labels, np.broadcast_to(labels[:1], labels.shape))
    assert_argmax(labels[:1], torch_upsample(random_scores(3, (1, 62_500)), (1, 500_000)))


@settings(max_examples=25, deadline=None)
@given(grid=st.integers(2, 40), stride=st.sampled_from([1, 2, 3, 8, 32]), rows=st.integers(1, 40))
def test_ready_rows_need_no_further_rows(grid: int, stride: int, rows: int) -> None:
    taps = interpolation_taps(pixel_centers(grid * stride, grid), grid)
    known = taps.count_ready(rows)
    assert known == grid * stride if rows >= grid else known <= rows * stride
    assert known >= (min(rows, grid) - 1) * stride
    scores = random_scores(2, (grid, 5))
    labels = np.empty((known, 20), np.uint8)
    write_label_rows(scores[:, :rows], taps.section(0, known), 20, labels, None)
    np.testing.assert_array_equal(labels, scores_to_labels(scores, (grid * stride, 20))[0][:known])


def test_rows_from_the_middle_of_a_grid() -> None:
    scores = random_scores(6, (40, 30))
    whole, _ = scores_to_labels(scores, (320, 240))
    taps = interpolation_taps(pixel_centers(320, 40), 40)
    labels = np.empty((100, 231), np.uint8)  # narrower: without padding
    write_label_rows(scores[:, 12:27], taps.section(105, 205, first=12), 240, labels, None)
    np.testing.assert_array_equal(labels, whole[105:205, :231])


def test_memory_is_bounded_by_a_strip() -> None:
    scores = piecewise_scores(21, (250, 375))
    tracemalloc.start()
    labels, probabilities = scores_to_labels(scores, (2000, 3000), confidence=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert probabilities is not None
    assert peak - labels.nbytes - probabilities.nbytes < 16e6  # the whole volume would take 504 MB
