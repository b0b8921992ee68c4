"""Windows over signals and volumes: the labels of one pass, in bounded memory, whatever the length."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.errors import EngineError, InferenceCancelledError, InsufficientMemoryError
from models.inference.segmenter import Segmenter, agreement
from models.inference.tta import TTAOptions
from models.inference.windows import make_lattice, pad_values
from models.sample import Sample
from models.spec import IGNORE_INDEX, InputRule, Scaling

CLASSES = 3


def rule(axes: str, divisor: int = 8) -> InputRule:
    scaling = Scaling(kind="fixed", low=(0.0,), high=(1.0,))
    return InputRule.model_validate(
        {"rule": "native", "axes": axes, "channels": ("a",), "dtype": "float32", "scaling": scaling, "divisor": divisor}
    )


def made_engine(stride: int, sizes: list[tuple[int, ...]], runs: list[int] | None = None) -> Callable[..., Any]:
    """A network as an engine runs it: block means at `stride`, smoothed over three blocks along each axis.

    It notes the lengths of each canvas in `sizes`, and in `runs` how many came at once.
    """

    def predict(canvas: np.ndarray) -> np.ndarray:
        maps = canvas
        for axis, length in enumerate(canvas.shape):
            cells = -(-length // stride)
            padded = np.pad(
                maps, [(0, cells * stride - length) if each == axis else (0, 0) for each in range(maps.ndim)], "edge"
            )
            shape = [*padded.shape[:axis], cells, stride, *padded.shape[axis + 1 :]]
            maps = padded.reshape(shape).mean(axis=axis + 1)
            around = np.pad(maps, [(1, 1) if each == axis else (0, 0) for each in range(maps.ndim)], "edge")
            maps = sum(np.take(around, np.arange(cells) + shift, axis) for shift in range(3)) / 3  # type: ignore[assignment]
        return np.stack([-((maps - center) ** 2) * 100 for center in (0.45, 0.5, 0.55)]).astype(np.float32)

    def run(images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        if runs is not None:
            runs.append(len(images))
        canvases = images[..., 0].astype(np.float32)
        sizes.extend(canvas.shape for canvas in canvases)
        scores = np.stack([predict(canvas) for canvas in canvases])
        labels = np.stack([upsampled(each, canvases.shape[1:]).argmax(axis=0) for each in scores])
        return labels.astype(np.uint8), scores if logits else None

    return run


def upsampled(scores: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Linear interpolation along each axis, in float64."""
    for axis, length in enumerate(lengths, start=1):
        grid = scores.shape[axis]
        at = ((np.arange(length) + 0.5) * grid / length - 0.5).clip(0, grid - 1)
        low = np.floor(at).astype(int)
        weight = (at - low).reshape([-1 if each == axis else 1 for each in range(scores.ndim)])
        scores = scores.take(low, axis) * (1 - weight) + scores.take(np.minimum(low + 1, grid - 1), axis) * weight
    return scores


def smooth(lengths: tuple[int, ...]) -> np.ndarray:
    """Values 0..1 that change over some 16 steps along each axis, float32 [*lengths, 1]."""
    coarse = np.random.default_rng(0).random([-(-length // 16) + 1 for length in lengths])
    return upsampled(coarse[None], lengths)[0, ..., None].astype(np.float32)


@pytest.mark.parametrize(
    ("axes", "lengths", "window", "stride"),
    [
        ("T", (1,), 64, 4),
        ("T", (4099,), 256, 1),
        ("T", (4099,), 1000, 4),  # windows that are no power of two
        ("T", (4099,), 1000, 6),  # a stride that does not divide the windows: the grid is that of the graph's output
        ("DHW", (37, 70, 59), 32**3, 1),
        ("DHW", (3, 90, 85), 8000, 2),  # a flat volume is taken whole in its depth
    ],
)
def test_windows_give_the_labels_of_one_pass(axes: str, lengths: tuple[int, ...], window: int, stride: int) -> None:
    values = smooth(lengths)
    seen: list[tuple[int, ...]] = []
    segmenter = Segmenter(made_engine(stride, seen), rule(axes))
    whole = segmenter.segment(values, confidence=True)
    assert len(seen) == 1
    segmenter.max_window = window
    parts = segmenter.segment(values, confidence=True)
    assert len(set(seen[1:])) == 1
    assert np.prod(seen[1]) <= window and (len(seen) > 3 or lengths == (1,))
    assert parts.labels.shape == lengths
    # A grid that does not lie on that of the whole is resampled.
    assert agreement(whole.labels, parts.labels) >= (0.999 if stride != 6 else 0.85)
    assert len(np.unique(whole.labels)) == (1 if lengths == (1,) else CLASSES)
    assert whole.confidence is not None and parts.confidence is not None
    assert np.abs(parts.confidence - whole.confidence).mean() < (1e-3 if stride != 6 else 0.1)


@pytest.mark.parametrize("length", [1, 999, 5003])  # a step, a window, several
def test_a_batch_gives_each_signal_the_labels_that_it_gets_alone(length: int) -> None:
    signals = [smooth((length + shift,))[shift:] for shift in range(7)]
    runs: list[int] = []
    segmenter = Segmenter(made_engine(4, [], runs), rule("T"))
    segmenter.max_window, segmenter.max_batch = 1000, 3000
    together = segmenter.segment_batch(signals, confidence=True)
    assert max(runs) == {1: 7, 999: 3, 5003: 3}[length] and sum(runs) == 7 * (1 if length < 1000 else 6)
    for values, found in zip(signals, together, strict=True):
        alone = segmenter.segment(values, confidence=True)
        np.testing.assert_array_equal(found.labels, alone.labels)
        np.testing.assert_array_equal(found.confidence, alone.confidence)
        assert found.image is values


@pytest.mark.parametrize("lengths", [(208, 40, 44), (10, 400, 90)])  # of the second one, all slices lie in one window
def test_logits_of_a_volume_are_held_slab_by_slab(lengths: tuple[int, ...]) -> None:
    values = smooth(lengths)
    segmenter = Segmenter(made_engine(1, [(0,)]), rule("DHW"))
    segmenter.max_window = 10 * 32**2
    segmenter.segment(values)  # what is imported, and computed once
    tracemalloc.start()
    segmenter.segment(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * CLASSES * values.nbytes


def test_statistics_and_missing_steps_are_those_of_the_whole_recording() -> None:
    found: list[np.ndarray] = []

    def run(images: np.ndarray, logits: bool, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found.extend(statistics)
        scores = np.repeat(images[:, :, 0][:, None], 2, axis=1).astype(np.float32)
        return np.zeros(images.shape[:2], np.uint8), scores

    zscore = rule("T").model_copy(update={"scaling": Scaling(kind="zscore", low=(), high=())})
    values = np.arange(5000, dtype=np.float32)[:, None]
    segmenter = Segmenter(run, zscore)
    segmenter.max_window = 1024
    valid = np.arange(5000) < 4000
    labels = segmenter.segment(Sample(values, "T", ("a",), valid=valid)).labels
    assert len(found) > 4
    np.testing.assert_allclose(found[0], [[1999.5], [values[:4000].std()]], rtol=1e-5)
    assert all(np.array_equal(each, found[0]) for each in found)
    assert (labels[4000:] == IGNORE_INDEX).all() and (labels[:4000] < 2).all()


def test_windows_shrink_when_memory_runs_out() -> None:
    longest = []

    def run(images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        longest.append(images.shape[1])
        if images.shape[1] > 2048:
            raise MemoryError("no memory")
        return np.zeros(images.shape[:2], np.uint8), np.zeros((len(images), 2, images.shape[1]), np.float32)

    segmenter = Segmenter(run, rule("T"))
    assert segmenter.segment(np.zeros((40_000, 1), np.float32)).labels.shape == (40_000,)
    assert segmenter.max_batch == 0 and segmenter.max_window <= 2304  # and stays
    with pytest.raises(InsufficientMemoryError, match="small windows"):
        Segmenter(lambda *_, **__: (_ for _ in ()).throw(MemoryError("none")), rule("T")).segment(np.zeros((9000, 1)))


def test_cancelling_stops_between_windows() -> None:
    seen: list[tuple[int, ...]] = []
    segmenter = Segmenter(made_engine(1, seen), rule("T"))
    segmenter.max_window, segmenter.max_batch = 256, 0
    with pytest.raises(InferenceCancelledError):
        segmenter.segment(np.zeros((5000, 1), np.float32), should_stop=lambda: len(seen) >= 3)
    assert len(seen) == 3


def test_one_slice_reaches_the_engine_as_two() -> None:
    sizes: list[tuple[int, ...]] = []
    labels = Segmenter(made_engine(1, sizes), rule("DHW", divisor=1)).segment(smooth((1, 5, 6))).labels
    assert labels.shape == (1, 5, 6) and sizes == [(2, 5, 6)]


def test_tta_of_signals_is_refused() -> None:
    with pytest.raises(EngineError, match="takes signals"):
        Segmenter(made_engine(1, []), rule("T"), tta=TTAOptions(True, (1.0,)))


def test_lattice_of_long_and_flat_volumes() -> None:
    sides = make_lattice((40, 512, 512), rule("DHW"), 96**3).sides
    assert sides[0] == 40 and min(sides) >= 40 and 0.5 * 96**3 < np.prod(sides) <= 96**3
    assert make_lattice((3,), rule("T", divisor=1), 100).sides == (3,)
    assert make_lattice((1, 5, 5), rule("DHW", divisor=1), 100).sides == (2, 5, 5)  # never one slice
    for divisor in (8, 32):
        whole = make_lattice((200, 200, 200), rule("DHW", divisor), 96**3).axes[0]
        assert whole.starts[1] < whole.side  # windows overlap
    assert pad_values(np.ones((1, 3, 2)), (2, 4)).shape == (2, 4, 2)
