"""From a picture of any size to a label for each of its pixels: the only inference path there is.

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
from models.engines.base import Run
from models.engines.selection import Choice, choices
from models.errors import BundleError, Cancelled, EngineError, ParityError, TooLittleMemory, first_line
from models.imaging.decode import RGB, Labels, read, read_mask
from models.inference.geometry import BUCKET, ceil_to, fitted_size, resize_labels, resize_picture, to_canvas
from models.inference.postprocess import Confidence, Scores, decide
from models.inference.tiling import SMALLEST_TILE, Ask, Window, tiled, tiled_rows
from models.inference.tta import Augmentation, augmented
from models.spec import InputRule

logger = logging.getLogger("maskserve")

# Pixels a side of the largest piece that the network sees at once; neighbours overlap by a quarter of it.
TILE = 1024

# A probe may come out this much worse than the export measured: another CPU is another rounding. More is another
# network, or a broken engine.
EXACT_SLACK, SLACK = 0.002, 0.01  # of f32, and of the other number formats


def check_windows(rule: InputRule) -> None:
    """Raises: EngineError for a rule by which no picture can be read by windows."""
    if rule.rule != "native":
        raise EngineError(
            f"The bundle's input rule is {rule.rule!r}, which brings whole pictures to the size that it was trained "
            "at: windows of a raster need a bundle of the rule 'native' (`maskserve export --input native`)."
        )


def never() -> bool:
    """Whether work whose end nobody can ask for is to stop."""
    return False


@dataclass(frozen=True)
class Prediction:
    """What the network says of a picture."""

    picture: RGB  # the picture that was asked about, H x W x 3
    labels: Labels  # H x W, of exactly the picture's size
    confidence: Confidence | None = None  # H x W: the softmax probability of each label, where it was asked for


class Segmenter:
    """A frozen network that takes pictures of any size.

    It applies the spec's input rule, pads to a size bucket (but for the rule `exact`, which takes one size alone), runs
    the engine, crops back, and returns the labels to the picture's size by nearest neighbour. What is larger than a
    tile at the network's scale, or than the memory holds, goes by overlapping tiles.
    """

    def __init__(
        self, run: Run, rule: InputRule, choice: Choice | None = None, augmentation: Augmentation | None = None
    ) -> None:
        """`choice`: what `run` is, for those who report it. Raises: EngineError for scales that the rule forbids."""
        self.run = run
        self.rule = rule
        self.choice = choice
        self.augmentation = augmentation
        largest = max(augmentation.scales) if augmentation else 1.0  # a tile is enlarged as the picture is
        self.tile = max(SMALLEST_TILE, int(TILE / max(1.0, largest)) // BUCKET * BUCKET)
        self.lock = threading.Lock()
        if augmentation and augmentation.scales != (1.0,) and rule.rule == "exact":
            raise EngineError(
                "The network takes pictures of one size alone: test-time augmentation can flip, not scale."
            )

    @classmethod
    def load(
        cls, bundle: Bundle, engine: str = "auto", precision: str = "auto", device: str = "auto", threads: int = 0,
        augmentation: Augmentation | None = None, probed: bool = False, at_once: int = 1,
    ) -> "Segmenter":  # fmt: skip
        """Open a bundle's network with an engine, for pictures `at_once`, each on so many `threads`; 0: the engine's choice.

        What is left to `auto` is the best that can be opened; with `probed`, the best that answers the bundle's probes
        rightly too.
        Raises: EngineError for what this machine lacks, BundleError for a graph that the spec does not describe,
        ParityError for a probe that is answered wrongly.
        """
        refused: list[EngineError | ParityError] = []
        for choice in choices(bundle, engine, precision, device):
            try:
                run = ENGINES[choice.engine].load(bundle, choice.device, choice.precision, threads, at_once)
                check_graph(run, bundle)
                passed_over = "".join(f" (not {error})" for error in refused)
                segmenter = cls(run, bundle.spec.input, replace(choice, why=choice.why + passed_over), augmentation)
                if probed:
                    segmenter.answer_probes(bundle)
                return segmenter
            except MemoryError as error:
                refused.append(TooLittleMemory(f"The memory is too small for this network ({error})."))
            except (EngineError, ParityError) as error:
                refused.append(error)
            logger.warning("%s on %s in %s: %s", choice.engine, choice.device, choice.precision, refused[-1])
        raise refused[0]

    def segment(self, picture: RGB, confidence: bool = False, stopped: Callable[[], bool] = never) -> Prediction:
        """Label every pixel of an RGB uint8 picture, H x W x 3 with H and W >= 1.

        `stopped` is asked before each run of the engine, of which a tile is one, and may be true from any thread.
        Raises: TooLittleMemory where the memory does not even hold a small tile of it, Cancelled once `stopped`.
        """
        size = (picture.shape[0], picture.shape[1])
        fitted = fitted_size(size, self.rule)
        while True:
            tile = self.tile
            try:
                labels, sure = self._answer(picture, fitted, tile, confidence, stopped)
                break
            except MemoryError as error:
                self._shrink(tile, fitted, error)
        if sure is not None and fitted != size:
            sure = np.asarray(cv2.resize(sure, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        return Prediction(picture, resize_labels(labels, size), sure)

    def segment_rows(
        self, window: Window, size: tuple[int, int], confidence: bool = False
    ) -> Iterator[tuple[Labels, Confidence | None]]:
        """As `segment`, for a picture of (height, width) that is read by windows because it does not fit in memory.

        Yields: labels, and confidence where it was asked for, of some rows from the first to the last, over the whole width.
        Raises: EngineError where the rule brings whole pictures to another size, TooLittleMemory.
        """
        check_windows(self.rule)
        if ceil_to(size[0], BUCKET) * ceil_to(size[1], BUCKET) <= self.tile**2:
            whole = self.segment(window((0, 0), size), confidence)
            yield whole.labels, whole.confidence
            return
        begun = False
        while True:
            tile = self.tile
            try:
                rows = tiled_rows(self._ask(never), window, size, tile, ceil_to(tile // 4, BUCKET), confidence)
                for answer in rows:
                    begun = True
                    yield answer
                return
            except MemoryError as error:
                if begun:  # rows that were given away are not to be had again
                    raise TooLittleMemory(f"The memory became too small for this picture ({error}).") from error
                self._shrink(tile, size, error)

    def _answer(
        self, picture: RGB, fitted: tuple[int, int], tile: int, confidence: bool, stopped: Callable[[], bool]
    ) -> tuple[Labels, Confidence | None]:
        """Labels and confidence of the fitted size; the labels may lie in the engine's memory."""
        height, width = fitted
        bucket = 1 if self.rule.rule == "exact" else BUCKET
        ask = self._ask(stopped)
        if bucket > 1 and ceil_to(height, BUCKET) * ceil_to(width, BUCKET) > tile**2:
            overlap = ceil_to(tile // 4, BUCKET)
            return tiled(ask, resize_picture(picture, fitted), tile, overlap, confidence)
        canvas = to_canvas(picture, fitted, bucket)
        if not confidence and self.augmentation is None:
            labels, sure = self._run(canvas, stopped)[0], None
        else:
            labels, sure = decide(ask(canvas), canvas.shape[:2], confidence)
        return labels[:height, :width], None if sure is None else sure[:height, :width]

    def _ask(self, stopped: Callable[[], bool]) -> Ask:
        """A function from a canvas H x W x 3 to scores float32 C x h x w at the network's stride."""

        def ask(canvas: RGB) -> Scores:
            logits = self._run(canvas, stopped, logits=True)[1]
            assert logits is not None  # they were asked for
            return logits

        if self.augmentation is None:
            return ask
        return augmented(ask, self.augmentation.flip, self.augmentation.scales)

    def _run(self, canvas: RGB, stopped: Callable[[], bool], logits: bool = False) -> tuple[Labels, Scores | None]:
        """What the engine says of one canvas. Raises: Cancelled."""
        if stopped():
            raise Cancelled("The picture was not labelled to its end: it was asked to stop.")
        labels, scores = self.run(canvas[None], logits=logits)
        return labels[0], None if scores is None else scores[0]

    def _shrink(self, tile: int, fitted: tuple[int, int], error: MemoryError) -> None:
        """Take smaller tiles than this one from now on. Raises: TooLittleMemory where it is the smallest."""
        whole = max(ceil_to(side, BUCKET) for side in fitted)
        if self.rule.rule == "exact" or min(tile, whole) <= SMALLEST_TILE:
            raise TooLittleMemory(
                f"The memory is too small for this picture, even by small tiles ({error}); send a smaller one."
            ) from error
        with self.lock:
            if self.tile == tile:  # else another thread has seen to it
                self.tile = max(SMALLEST_TILE, ceil_to(min(tile, whole) // 2, BUCKET))
                logger.warning("memory is short (%s): from now on by tiles of %d pixels", error, self.tile)

    def answer_probes(self, bundle: Bundle) -> float:
        """Label the bundle's probe pictures again and compare with the labels that it carries.

        Returns: the lowest share of equal pixels of any probe.
        Raises: ParityError where a probe comes out differently on this machine.
        """
        lowest, wanted = 1.0, self._probe_agreement(bundle)
        for picture, mask in bundle.probes():
            equal = agreement(self.segment(read(picture)).labels, read_mask(mask))
            if equal < wanted:
                raise ParityError(
                    f"{picture}: on this machine {equal:.2%} of the probe's pixels get the label that the bundle carries; "
                    f"at least {wanted:.1%} must. Export the bundle again or try precision f32."
                )
            lowest = min(lowest, equal)
        return lowest

    def _probe_agreement(self, bundle: Bundle) -> float:
        """The share of equal pixels that a probe must have: what the export measured for this number format, less a slack."""
        precision = self.choice.precision if self.choice else "f32"
        measured = [shares[precision] for shares in bundle.spec.parity.values() if precision in shares]
        return min([*measured, 1.0]) - (EXACT_SLACK if precision == "f32" else SLACK)


def check_graph(run: Run, bundle: Bundle) -> None:
    """Ask the network about a blank picture. Raises: BundleError where it is not the one that the spec describes."""
    size = bundle.spec.input.size or (BUCKET, BUCKET)
    wanted = f"labels uint8 1 x {size[0]} x {size[1]} and logits float32 1 x {len(bundle.spec.classes)} x h x w"
    try:
        labels, logits = run(np.zeros((1, *size, 3), np.uint8), logits=True)
    except RuntimeError as error:
        raise BundleError(f"{bundle.folder}: its network cannot be run: {first_line(error)}") from error
    assert logits is not None  # they were asked for
    found = f"labels {labels.dtype} {_by(labels.shape)} and logits {logits.dtype} {_by(logits.shape)}"
    right = labels.dtype == np.uint8 and labels.shape == (1, *size)
    if not right or logits.ndim != 4 or logits.dtype != np.float32 or logits.shape[1] != len(bundle.spec.classes):
        raise BundleError(f"{bundle.folder}: spec.json and its network disagree: {wanted} are wanted, not {found}.")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def agreement(first: Labels, second: Labels) -> float:
    """The share of equal pixels of two label masks; 0 where their sizes differ."""
    return float(np.mean(first == second)) if first.shape == second.shape else 0.0
