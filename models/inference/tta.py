"""Test-time augmentation: a network asked about an image mirrored and at other scales, its answers averaged.

Averaged are probabilities, where a scale that is sure of nothing has little to say; logits it could outshout by their
range alone. Returned is the logarithm of the mean, because that is a logit: softmax(log p) = p for any p that sums to 1,
so that whatever decides scores decides these, and their confidence is the mean probability itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from models.errors import ConfigError
from models.imaging.decode import RGB
from models.inference.geometry import resize_and_pad, resize_image
from models.inference.postprocess import Scores, interpolate_rows, interpolation_taps, pixel_centres
from models.inference.tiling import LogitsFunction

MIN_SCALE, MAX_SCALE = 0.25, 4.0


@dataclass(frozen=True)
class TTAOptions:
    """What is asked besides, or in place of, the image as it is. Raises: ConfigError."""

    flip: bool  # whether each scale is asked about mirrored left to right as well
    scales: tuple[float, ...]  # factors on height and width, each once; 1 need not be among them

    def __post_init__(self) -> None:
        wrong = [scale for scale in self.scales if not MIN_SCALE <= scale <= MAX_SCALE]  # NaN is in no range
        if wrong:
            raise ConfigError(
                f"Scale {wrong[0]:g} of the test-time augmentation: {MIN_SCALE:g} to {MAX_SCALE:g} can be asked."
            )
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise ConfigError(f"Scales {self.scales} of the test-time augmentation: give one or more, each once.")

    @classmethod
    def parse(cls, text: str) -> "TTAOptions":
        """Read `flip` and scales, parted by commas: `flip,0.75,1,1.25`. Without scales it is scale 1 alone.

        Raises: ConfigError.
        """
        words = [word.strip() for word in text.split(",")]
        flips = words.count("flip")
        try:
            scales = tuple(float(word) for word in words if word != "flip")
        except ValueError as error:
            raise ConfigError(
                f"Test-time augmentation {text!r} is not understood: give `flip`, scales or both, as in flip,0.75,1,1.25."
            ) from error
        if flips > 1:
            raise ConfigError(f"Test-time augmentation {text!r} flips {flips} times: give `flip` once.")
        return cls(flips == 1, scales or (1.0,))


def wrap_with_tta(ask: LogitsFunction, flip: bool, scales: tuple[float, ...]) -> LogitsFunction:
    """The network that answers with the mean of what `ask` says of a canvas at these scales, and mirrored where `flip`.

    Its answer is log probabilities, float32 C x h x w, on the grid that the network itself has at scale 1. At scale 1
    the canvas is asked as it came; at others it is padded to multiples of 64, so that networks of one size cannot scale.
    Raises: ConfigError for scales that `Augmentation` does not take.
    """
    TTAOptions(flip, scales)

    def mean(canvas: RGB) -> Scores:
        grid: tuple[int, int] | None = None
        total: Scores | None = None
        for view in _augmented_views(ask, canvas, flip, scales):
            grid = grid or _base_scale_grid(view, canvas)
            logs = _log_softmax(resample_scores(view.logits, grid, view.valid_ratio))
            total = logs if total is None else np.logaddexp(total, logs)
        assert total is not None  # there is a scale, or `Augmentation` would have refused
        return total - np.float32(np.log(len(scales) * (1 + flip)))

    return mean


def resample_scores(scores: Scores, size: tuple[int, int], valid_ratio: tuple[float, float] = (1.0, 1.0)) -> Scores:
    """Read scores C x h x w at the centres of a grid of `size` (height, width): bilinear, edges repeated.

    `covered` is the share of the scores' height and width, from the upper left, over which that grid lies: a whole
    number of rows it need not be.
    """
    down, across = (
        interpolation_taps(pixel_centres(length, grid * share), grid)
        for length, grid, share in zip(size, scores.shape[1:], valid_ratio, strict=True)
    )
    return interpolate_rows(interpolate_rows(scores, down).swapaxes(1, 2), across).swapaxes(1, 2)


class _AugmentedView(NamedTuple):
    logits: Scores  # C x h x w, upright
    padded_size: tuple[int, int]  # (height, width) of the canvas that was asked about
    valid_ratio: tuple[float, float]  # the share of it that is no padding


def _augmented_views(
    ask: LogitsFunction, canvas: RGB, flip: bool, scales: tuple[float, ...]
) -> Iterator[_AugmentedView]:
    for scale in sorted(scales, key=lambda scale: scale != 1):  # from an answer at scale 1 the grid is read off
        height, width = (max(1, round(length * scale)) for length in canvas.shape[:2])
        scaled = resize_image(canvas, (height, width))
        padded = scaled if scale == 1 else resize_and_pad(scaled, (scaled.shape[0], scaled.shape[1]))
        size = padded.shape[0], padded.shape[1]
        covered = scaled.shape[0] / size[0], scaled.shape[1] / size[1]
        yield _AugmentedView(ask(padded), size, covered)
        if flip:  # the padding too, so that the answer turned back lies where the upright one does
            yield _AugmentedView(ask(np.ascontiguousarray(padded[:, ::-1]))[:, :, ::-1], size, covered)


def _base_scale_grid(view: _AugmentedView, canvas: RGB) -> tuple[int, int]:
    """The grid that the network would answer on at scale 1: its stride is the same at all scales."""
    grid = zip(canvas.shape[:2], view.logits.shape[1:], view.padded_size, strict=True)
    height, width = (max(1, round(length * samples / asked)) for length, samples, asked in grid)
    return height, width


def _log_softmax(scores: Scores) -> Scores:
    below: Scores = scores - scores.max(axis=0)
    below -= np.log(np.exp(below).sum(axis=0))
    return below
