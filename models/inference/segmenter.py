"""From an image of any size to a label for each of its pixels: the only inference path there is.

Evaluation, export, the service and the command line all come through `Segmenter.segment`, so the mIoU that is
reported is the mIoU that is served. Sizes are (height, width) in pixels.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from models.bundle import Bundle
from models.engines import ENGINES
from models.engines.base import InferenceFunction
from models.engines.selection import EngineChoice, engine_choices
from models.errors import (
    BundleError,
    EngineError,
    InferenceCancelledError,
    InsufficientMemoryError,
    ParityError,
    first_line,
)
from models.imaging.decode import RGB, Labels, read_image, read_mask
from models.inference.geometry import (
    SIZE_DIVISOR,
    network_input_size,
    resize_and_pad,
    resize_image,
    resize_labels,
    round_up,
)
from models.inference.postprocess import Confidence, Scores, scores_to_labels
from models.inference.tiling import (
    MIN_TILE_SIZE,
    LogitsFunction,
    WindowReader,
    predict_sliding_window,
    predict_sliding_window_rows,
)
from models.inference.tta import TTAOptions, wrap_with_tta
from models.spec import InputRule

logger = logging.getLogger("maskserve")

# Pixels a side of the largest piece that the network sees at once; neighbours overlap by a quarter of it.
TILE_SIZE = 1024

# A probe may come out this much worse than the export measured: another CPU is another rounding. More is another
# network, or a broken engine.
F32_PROBE_TOLERANCE, PROBE_TOLERANCE = 0.002, 0.01  # of f32, and of the other number formats


def check_supports_windows(rule: InputRule) -> None:
    """Raises: EngineError for a rule by which no image can be read by windows."""
    if rule.rule != "native":
        raise EngineError(
            f"The bundle's input rule is {rule.rule!r}, which brings whole images to the size that it was trained "
            "at: windows of a raster need a bundle of the rule 'native' (`maskserve export --input native`)."
        )


def never_stop() -> bool:
    """Whether work whose end nobody can ask for is to stop."""
    return False


@dataclass(frozen=True)
class Prediction:
    """What the network says of an image."""

    image: RGB  # the image that was asked about, H x W x 3
    labels: Labels  # H x W, of exactly the image's size
    confidence: Confidence | None = None  # H x W: the softmax probability of each label, where it was asked for


class Segmenter:
    """A frozen network that takes images of any size.

    It applies the spec's input rule, pads to a size bucket (but for the rule `exact`, which takes one size alone), runs
    the engine, crops back, and returns the labels to the image's size by nearest neighbour. What is larger than a
    tile at the network's scale, or than the memory holds, goes by overlapping tiles.
    """

    def __init__(
        self, run: InferenceFunction, rule: InputRule, choice: EngineChoice | None = None, tta: TTAOptions | None = None
    ) -> None:
        """`choice`: what `run` is, for those who report it. Raises: EngineError for scales that the rule forbids."""
        self.run = run
        self.rule = rule
        self.choice = choice
        self.tta = tta
        largest = max(tta.scales) if tta else 1.0  # a tile is enlarged as the image is
        self.tile_size = max(MIN_TILE_SIZE, int(TILE_SIZE / max(1.0, largest)) // SIZE_DIVISOR * SIZE_DIVISOR)
        self.lock = threading.Lock()
        if tta and tta.scales != (1.0,) and rule.rule == "exact":
            raise EngineError("The network takes images of one size alone: test-time augmentation can flip, not scale.")

    @classmethod
    def load(
        cls, bundle: Bundle, engine: str = "auto", precision: str = "auto", device: str = "auto", threads: int = 0,
        tta: TTAOptions | None = None, verify_probes: bool = False, concurrency: int = 1,
    ) -> "Segmenter":  # fmt: skip
        """Open a bundle's network with an engine, for images `at_once`, each on so many `threads`; 0: the engine's choice.

        What is left to `auto` is the best that can be opened; with `probed`, the best that answers the bundle's probes
        rightly too.
        Raises: EngineError for what this machine lacks, BundleError for a graph that the spec does not describe,
        ParityError for a probe that is answered wrongly.
        """
        refused: list[EngineError | ParityError] = []
        for choice in engine_choices(bundle, engine, precision, device):
            try:
                run = ENGINES[choice.engine].load(bundle, choice.device, choice.precision, threads, concurrency)
                check_model_outputs(run, bundle)
                passed_over = "".join(f" (not {error})" for error in refused)
                segmenter = cls(run, bundle.spec.input, replace(choice, reason=choice.reason + passed_over), tta)
                if verify_probes:
                    segmenter.verify_probes(bundle)
                return segmenter
            except MemoryError as error:
                refused.append(InsufficientMemoryError(f"The memory is too small for this network ({error})."))
            except (EngineError, ParityError) as error:
                refused.append(error)
            logger.warning("%s on %s in %s: %s", choice.engine, choice.device, choice.precision, refused[-1])
        raise refused[0]

    def segment(self, image: RGB, confidence: bool = False, should_stop: Callable[[], bool] = never_stop) -> Prediction:
        """Label every pixel of an RGB uint8 image, H x W x 3 with H and W >= 1.

        `stopped` is asked before each run of the engine, of which a tile is one, and may be true from any thread.
        Raises: TooLittleMemory where the memory does not even hold a small tile of it, Cancelled once `stopped`.
        """
        size = (image.shape[0], image.shape[1])
        fitted = network_input_size(size, self.rule)
        while True:
            tile = self.tile_size
            try:
                labels, sure = self._predict(image, fitted, tile, confidence, should_stop)
                break
            except MemoryError as error:
                self._shrink_tiles(tile, fitted, error)
        if sure is not None and fitted != size:
            sure = np.asarray(cv2.resize(sure, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        return Prediction(image, resize_labels(labels, size), sure)

    def segment_rows(
        self, window: WindowReader, size: tuple[int, int], confidence: bool = False
    ) -> Iterator[tuple[Labels, Confidence | None]]:
        """As `segment`, for an image of (height, width) that is read by windows because it does not fit in memory.

        Yields: labels, and confidence where it was asked for, of some rows from the first to the last, over the whole width.
        Raises: EngineError where the rule brings whole images to another size, TooLittleMemory.
        """
        check_supports_windows(self.rule)
        if round_up(size[0], SIZE_DIVISOR) * round_up(size[1], SIZE_DIVISOR) <= self.tile_size**2:
            whole = self.segment(window((0, 0), size), confidence)
            yield whole.labels, whole.confidence
            return
        begun = False
        while True:
            tile = self.tile_size
            try:
                rows = predict_sliding_window_rows(
                    self._logits_function(never_stop), window, size, tile, round_up(tile // 4, SIZE_DIVISOR), confidence
                )
                for answer in rows:
                    begun = True
                    yield answer
                return
            except MemoryError as error:
                if begun:  # rows that were given away are not to be had again
                    raise InsufficientMemoryError(f"The memory became too small for this image ({error}).") from error
                self._shrink_tiles(tile, size, error)

    def _predict(
        self, image: RGB, fitted: tuple[int, int], tile: int, confidence: bool, stopped: Callable[[], bool]
    ) -> tuple[Labels, Confidence | None]:
        """Labels and confidence of the fitted size; the labels may lie in the engine's memory."""
        height, width = fitted
        bucket = 1 if self.rule.rule == "exact" else SIZE_DIVISOR
        ask = self._logits_function(stopped)
        if bucket > 1 and round_up(height, SIZE_DIVISOR) * round_up(width, SIZE_DIVISOR) > tile**2:
            overlap = round_up(tile // 4, SIZE_DIVISOR)
            return predict_sliding_window(ask, resize_image(image, fitted), tile, overlap, confidence)
        canvas = resize_and_pad(image, fitted, bucket)
        if not confidence and self.tta is None:
            labels, sure = self._run_engine(canvas, stopped)[0], None
        else:
            labels, sure = scores_to_labels(ask(canvas), canvas.shape[:2], confidence)
        return labels[:height, :width], None if sure is None else sure[:height, :width]

    def _logits_function(self, stopped: Callable[[], bool]) -> LogitsFunction:
        """A function from a canvas H x W x 3 to scores float32 C x h x w at the network's stride."""

        def ask(canvas: RGB) -> Scores:
            logits = self._run_engine(canvas, stopped, logits=True)[1]
            assert logits is not None  # they were asked for
            return logits

        if self.tta is None:
            return ask
        return wrap_with_tta(ask, self.tta.flip, self.tta.scales)

    def _run_engine(
        self, canvas: RGB, stopped: Callable[[], bool], logits: bool = False
    ) -> tuple[Labels, Scores | None]:
        """What the engine says of one canvas. Raises: Cancelled."""
        if stopped():
            raise InferenceCancelledError("The image was not labelled to its end: it was asked to stop.")
        labels, scores = self.run(canvas[None], logits=logits)
        return labels[0], None if scores is None else scores[0]

    def _shrink_tiles(self, tile: int, fitted: tuple[int, int], error: MemoryError) -> None:
        """Take smaller tiles than this one from now on. Raises: TooLittleMemory where it is the smallest."""
        whole = max(round_up(side, SIZE_DIVISOR) for side in fitted)
        if self.rule.rule == "exact" or min(tile, whole) <= MIN_TILE_SIZE:
            raise InsufficientMemoryError(
                f"The memory is too small for this image, even by small tiles ({error}); send a smaller one."
            ) from error
        with self.lock:
            if self.tile_size == tile:  # else another thread has seen to it
                self.tile_size = max(MIN_TILE_SIZE, round_up(min(tile, whole) // 2, SIZE_DIVISOR))
                logger.warning("memory is short (%s): from now on by tiles of %d pixels", error, self.tile_size)

    def verify_probes(self, bundle: Bundle) -> float:
        """Label the bundle's probe images again and compare with the labels that it carries.

        Returns: the lowest share of equal pixels of any probe.
        Raises: ParityError where a probe comes out differently on this machine.
        """
        lowest, wanted = 1.0, self._min_probe_agreement(bundle)
        for image, mask in bundle.probes():
            equal = agreement(self.segment(read_image(image)).labels, read_mask(mask))
            if equal < wanted:
                raise ParityError(
                    f"{image}: on this machine {equal:.2%} of the probe's pixels get the label that the bundle carries; "
                    f"at least {wanted:.1%} must. Export the bundle again or try precision f32."
                )
            lowest = min(lowest, equal)
        return lowest

    def _min_probe_agreement(self, bundle: Bundle) -> float:
        """The share of equal pixels that a probe must have: what the export measured for this number format, less a slack."""
        precision = self.choice.precision if self.choice else "f32"
        measured = [shares[precision] for shares in bundle.spec.parity.values() if precision in shares]
        return min([*measured, 1.0]) - (F32_PROBE_TOLERANCE if precision == "f32" else PROBE_TOLERANCE)


def check_model_outputs(run: InferenceFunction, bundle: Bundle) -> None:
    """Ask the network about a blank image. Raises: BundleError where it is not the one that the spec describes."""
    size = bundle.spec.input.size or (SIZE_DIVISOR, SIZE_DIVISOR)
    wanted = f"labels uint8 1 x {size[0]} x {size[1]} and logits float32 1 x {len(bundle.spec.classes)} x h x w"
    try:
        labels, logits = run(np.zeros((1, *size, 3), np.uint8), logits=True)
    except RuntimeError as error:
        raise BundleError(f"{bundle.folder}: its network cannot be run: {first_line(error)}") from error
    assert logits is not None  # they were asked for
    found = (
        f"labels {labels.dtype} {_format_shape(labels.shape)} and logits {logits.dtype} {_format_shape(logits.shape)}"
    )
    right = labels.dtype == np.uint8 and labels.shape == (1, *size)
    if not right or logits.ndim != 4 or logits.dtype != np.float32 or logits.shape[1] != len(bundle.spec.classes):
        raise BundleError(f"{bundle.folder}: spec.json and its network disagree: {wanted} are wanted, not {found}.")


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def agreement(first: Labels, second: Labels) -> float:
    """The share of equal pixels of two label masks; 0 where their sizes differ."""
    return float(np.mean(first == second)) if first.shape == second.shape else 0.0
