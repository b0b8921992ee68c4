"""Test-time augmentation: averages the predictions for an image at several scales, optionally flipped.

The average is over probabilities, where an uncertain scale has little influence; with logits, the scale with the largest
range would dominate. The result is the logarithm of the mean, which is a logit: softmax(log p) = p for any p that sums to
1, so that labels and confidence are computed as without augmentation, and the confidence is the mean probability.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from models.errors import ConfigError, quoted
from models.inference.geometry import Image, canvas_size, resize_and_pad, resize_image
from models.inference.postprocess import Scores, interpolate_rows, interpolation_taps, pixel_centers
from models.inference.tiling import LogitsFunction
from models.spec import InputRule

MIN_SCALE, MAX_SCALE = 0.25, 4.0


@dataclass(frozen=True)
class TTAOptions:
    """The variants of the image that are predicted. Raises: ConfigError for invalid scales."""

    flip: bool  # whether each scale is also predicted flipped left to right
    scales: tuple[float, ...]  # factors on height and width, each once; 1 may be missing

    def __post_init__(self) -> None:
        invalid = [scale for scale in self.scales if not MIN_SCALE <= scale <= MAX_SCALE]  # also NaN
        if invalid:
            raise ConfigError(
                f"Test-time augmentation has the scale {invalid[0]:g}; expected {MIN_SCALE:g} to {MAX_SCALE:g}."
            )
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise ConfigError(f"Test-time augmentation has the scales {self.scales}; give one or more, each once.")

    @classmethod
    def parse(cls, text: str) -> "TTAOptions":
        """Parse `flip` and scales, separated by commas: `flip,0.75,1,1.25`. Without scales, the scale is 1.

        Raises: ConfigError.
        """
        words = [word.strip() for word in text.split(",")]
        flips = words.count("flip")
        try:
            scales = tuple(float(word) for word in words if word != "flip")
        except ValueError as error:
            raise ConfigError(
                f"Test-time augmentation {quoted(text)} is not valid; give `flip`, scales or both, as in flip,0.75,1,1.25."
            ) from error
        if flips > 1:
            raise ConfigError(f"Test-time augmentation {quoted(text)} has `flip` {flips} times; give it once.")
        return cls(flips == 1, scales or (1.0,))


def wrap_with_tta(
    predict_logits: LogitsFunction, rule: InputRule, flip: bool, scales: tuple[float, ...]
) -> LogitsFunction:
    """A function that averages the network's predictions for a canvas at these scales, and flipped if `flip`.

    It returns log probabilities, float32 C x h x w, on the network's grid at scale 1. At scale 1 the canvas is used as
    it is; at other scales it is padded by the input rule, so that networks of one fixed size cannot scale.
    Raises: ConfigError for scales that `TTAOptions` does not allow.
    """
    TTAOptions(flip, scales)

    def predict_mean(canvas: Image) -> Scores:
        grid: tuple[int, int] | None = None
        total: Scores | None = None
        for view in _augmented_views(predict_logits, rule, canvas, flip, scales):
            grid = grid or _base_scale_grid(view, canvas)
            log_probabilities = _log_softmax(resample_scores(view.logits, grid, view.valid_ratio))
            total = log_probabilities if total is None else np.logaddexp(total, log_probabilities)
        assert total is not None  # TTAOptions requires a scale
        return total - np.float32(np.log(len(scales) * (1 + flip)))

    return predict_mean


def resample_scores(scores: Scores, size: tuple[int, int], valid_ratio: tuple[float, float] = (1.0, 1.0)) -> Scores:
    """Sample scores C x h x w at the centers of a grid of `size` (height, width): bilinear, edges repeated.

    `valid_ratio`: the fractions of the scores' height and width, from the upper left, that the grid covers; not
    necessarily whole rows.
    """
    rows, columns = (
        interpolation_taps(pixel_centers(length, grid * ratio), grid)
        for length, grid, ratio in zip(size, scores.shape[1:], valid_ratio, strict=True)
    )
    return interpolate_rows(interpolate_rows(scores, rows).swapaxes(1, 2), columns).swapaxes(1, 2)


class _AugmentedView(NamedTuple):
    logits: Scores  # C x h x w, not flipped
    padded_size: tuple[int, int]  # (height, width) of the network's input
    valid_ratio: tuple[float, float]  # fractions of its height and width that are not padding


def _augmented_views(
    predict_logits: LogitsFunction, rule: InputRule, canvas: Image, flip: bool, scales: tuple[float, ...]
) -> Iterator[_AugmentedView]:
    for scale in sorted(scales, key=lambda scale: scale != 1):  # scale 1 first, because it defines the grid
        height, width = (max(1, round(length * scale)) for length in canvas.shape[:2])
        scaled = resize_image(canvas, (height, width))
        padded = scaled if scale == 1 else resize_and_pad(scaled, (height, width), canvas_size((height, width), rule))
        size = padded.shape[0], padded.shape[1]
        valid_ratio = scaled.shape[0] / size[0], scaled.shape[1] / size[1]
        yield _AugmentedView(predict_logits(padded), size, valid_ratio)
        if flip:  # with the padding, so that the logits flipped back match those of the image that is not flipped
            flipped = np.ascontiguousarray(padded[:, ::-1])
            yield _AugmentedView(predict_logits(flipped)[:, :, ::-1], size, valid_ratio)


def _base_scale_grid(view: _AugmentedView, canvas: Image) -> tuple[int, int]:
    """The network's grid at scale 1, from its stride, which is the same at all scales."""
    axes = zip(canvas.shape[:2], view.logits.shape[1:], view.padded_size, strict=True)
    height, width = (max(1, round(length * samples / padded)) for length, samples, padded in axes)
    return height, width


def _log_softmax(scores: Scores) -> Scores:
    shifted: Scores = scores - scores.max(axis=0)
    shifted -= np.log(np.exp(shifted).sum(axis=0))
    return shifted
