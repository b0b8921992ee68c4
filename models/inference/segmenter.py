"""The Segmenter: predicts a label for every pixel, time step or voxel of an image, signal or volume of any size.

Evaluation, export, the service and the command line all call `Segmenter.segment`, so that the reported mIoU is the mIoU
that is served. Sizes are (height, width) in pixels.
"""

import logging
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

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
    quoted,
)
from models.imaging.decode import Labels, read_mask
from models.inference.geometry import (
    SIZE_DIVISOR,
    Image,
    canvas_size,
    network_input_size,
    resize_and_pad,
    resize_image,
    resize_labels,
    round_up,
)
from models.inference.postprocess import Confidence, Scores, label_confidence, scores_to_labels
from models.inference.tiling import (
    MIN_TILE_SIZE,
    LogitsFunction,
    WindowReader,
    predict_sliding_window,
    predict_sliding_window_rows,
)
from models.inference.tta import TTAOptions, wrap_with_tta
from models.inference.windows import (
    MAX_BATCH,
    MAX_WINDOW,
    MIN_LENGTH,
    MIN_WINDOW,
    Lattice,
    batch_confidence,
    extract_window,
    make_lattice,
    padded_lengths,
    predict_windows,
)
from models.readers import read_input
from models.readers.statistics import sample_statistics
from models.sample import Sample, Statistics, Valid
from models.spec import AXES, IGNORE_INDEX, ComponentRule, EventRule, InputRule

logger = logging.getLogger("maskserve")

# Side, in pixels, of the largest window that the network gets; neighbors overlap by a quarter of it.
TILE_SIZE = 1024

# A probe's agreement may be lower than at export by this much, because another CPU rounds differently. A larger
# difference means another network, or a broken engine.
F32_PROBE_TOLERANCE, PROBE_TOLERANCE = 0.002, 0.01  # in f32, and in other precisions


def check_supports_windows(rule: InputRule) -> None:
    """Raises: EngineError for an input rule that resizes whole images."""
    if rule.rule != "native":
        raise EngineError(
            f"The bundle's input rule is {quoted(rule.rule)}, which resizes whole images. A raster is read in windows, which "
            "needs a bundle with the rule 'native': `maskserve export --input native`."
        )


def never_stop() -> bool:
    """The default of `should_stop`."""
    return False


@dataclass(frozen=True)
class Prediction:
    """An image, signal or volume, and its predicted labels."""

    image: Image  # the input, [*axes, C] as the network takes it; of a photograph, RGB uint8 H x W x 3
    labels: Labels  # uint8 [*axes], of exactly the image's size; 255 where data is missing
    confidence: Confidence | None = None  # float32 [*axes]: softmax probability of each label, if requested


class Segmenter:
    """A frozen network for images of any size.

    Resizes and pads the image by the spec's input rule, runs the engine, crops, and resizes the labels to the image's size by
    nearest neighbor. An image that is larger than a tile at the network's scale, or does not fit into memory, is predicted
    in overlapping tiles. Signals and volumes are not resized; long ones are predicted in windows (`windows.py`).
    """

    def __init__(
        self, run: InferenceFunction, rule: InputRule, choice: EngineChoice | None = None, tta: TTAOptions | None = None
    ) -> None:
        """`choice` describes the engine behind `run`.

        Raises: EngineError for TTA scales with the rule `exact`, and for any TTA of signals and volumes.
        """
        self.run = run
        self.rule = rule
        self.choice = choice
        self.tta = tta
        self.event_rules: dict[int, EventRule] = {}  # by label; `segment_signal` applies them
        self.component_rules: dict[int, ComponentRule] = {}  # by label; `segment_volume` applies them
        if tta and rule.axes != "HW":
            raise EngineError(
                f"Test-time augmentation flips and scales images; this network takes {AXES[rule.axes]}. Leave it out."
            )
        self.max_window = MAX_WINDOW.get(rule.axes, 0)  # time steps or voxels
        self.max_batch = MAX_BATCH.get(rule.axes, 0)  # of all windows in one run of the engine
        largest = max(tta.scales) if tta else 1.0  # a tile is enlarged as the image is
        self.tile_size = max(MIN_TILE_SIZE, int(TILE_SIZE / max(1.0, largest)) // SIZE_DIVISOR * SIZE_DIVISOR)
        self.lock = threading.Lock()
        if tta and tta.scales != (1.0,) and rule.rule == "exact":
            raise EngineError(
                f"Test-time augmentation with scales {tta.scales} needs a network of any size; this one takes only "
                f"{rule.size}. Use flips only."
            )

    def release_memory(self) -> None:
        """Give back what the engine keeps between images. Not while `segment` runs, or while its labels are in use."""
        release = getattr(self.run, "release_memory", None)
        if release is not None:
            release()

    @classmethod
    def load(
        cls, bundle: Bundle, engine: str = "auto", precision: str = "auto", device: str = "auto", threads: int = 0,
        tta: TTAOptions | None = None, verify_probes: bool = False, concurrency: int = 1,
    ) -> "Segmenter":  # fmt: skip
        """Load a bundle's network with the first engine choice that works.

        Args:
            bundle: an opened bundle.
            engine, precision, device: names, or `auto` for the best that can be loaded.
            threads: CPU threads of one inference; 0 leaves it to the engine.
            tta: test-time augmentation.
            verify_probes: skip choices whose labels of the bundle's probe images differ from those in the bundle.
            concurrency: number of threads that will call `segment` at the same time.

        Raises: EngineError if no choice works on this machine, BundleError for a graph that does not match the spec,
        ParityError if the probes differ in every choice.
        """
        failed: list[EngineError | ParityError] = []
        for choice in engine_choices(bundle, engine, precision, device):
            try:
                run = ENGINES[choice.engine].load(bundle, choice.device, choice.precision, threads, concurrency)
                check_model_outputs(run, bundle)
                skipped = "".join(f" (skipped: {error})" for error in failed)
                segmenter = cls(run, bundle.spec.input, replace(choice, reason=choice.reason + skipped), tta)
                segmenter.event_rules = bundle.spec.event_rules()
                segmenter.component_rules = bundle.spec.component_rules()
                if verify_probes:
                    segmenter.verify_probes(bundle)
                return segmenter
            except MemoryError as error:
                failed.append(InsufficientMemoryError(f"There is not enough memory for this network ({error})."))
            except (EngineError, ParityError) as error:
                failed.append(error)
            logger.warning("%s on %s in %s: %s", choice.engine, choice.device, choice.precision, failed[-1])
        raise failed[0]

    def segment(
        self, image: Image | Sample, confidence: bool = False, should_stop: Callable[[], bool] = never_stop
    ) -> Prediction:
        """Predict a label for every pixel of an image, H x W x C with H and W >= 1, in the input's channels and dtype.

        The same for a signal, T x C, at the network's rate, and for a volume, D x H x W x C.

        A sample that was read for this input (`models/readers`) also says where data is missing: these pixels are void.
        `should_stop` is called before each run of the engine, that is, before each tile.
        Raises: InsufficientMemoryError if even a small tile does not fit into memory, InferenceCancelledError once
        `should_stop` returns True.
        """
        if self.rule.axes != "HW":
            return self.segment_batch([image], confidence, should_stop)[0]
        image, valid, statistics = self._unpack(image)
        size = (image.shape[0], image.shape[1])
        fitted = network_input_size(size, self.rule)
        while True:
            tile = self.tile_size
            try:
                labels, probabilities = self._predict(image, fitted, tile, confidence, should_stop, statistics)
                break
            except MemoryError as error:
                self._shrink_tiles(tile, fitted, error)
        if probabilities is not None and fitted != size:
            resized = cv2.resize(probabilities, size[::-1], interpolation=cv2.INTER_LINEAR)
            probabilities = np.asarray(resized, np.float32)
        labels = resize_labels(labels, size)
        if valid is not None:
            labels[~valid] = IGNORE_INDEX
        return Prediction(image, labels, probabilities)

    def segment_batch(
        self, samples: Sequence[Image | Sample], confidence: bool = False, should_stop: Callable[[], bool] = never_stop
    ) -> list[Prediction]:
        """As `segment`, for signals or volumes of one size; several short ones, or windows of a long one, in one run of the engine.

        The labels of each are those that it gets alone, but for the engine's rounding.
        """
        unpacked = [self._unpack(sample) for sample in samples]
        while True:
            lattice = make_lattice(unpacked[0][0].shape[:-1], self.rule, self.max_window)
            at_once = self.batch_size(lattice.sides)
            outputs = self._run_windows(unpacked, lattice, at_once, confidence, should_stop)
            try:
                return [
                    self._predict_axes(values, valid, lattice, outputs, confidence) for values, valid, _ in unpacked
                ]
            except MemoryError as error:
                if at_once > 1:
                    with self.lock:
                        self.max_batch = 0
                    logger.warning("out of memory (%s): one window at a time from now on", error)
                else:
                    self._shrink_windows(int(np.prod(lattice.sides)), error)

    def batch_size(self, lengths: tuple[int, ...]) -> int:
        """How many signals or volumes of these lengths, at the network's rate or spacing, run at once."""
        return max(1, self.max_batch // int(np.prod(padded_lengths(lengths, self.rule))))

    def _run_windows(
        self, samples: list[tuple[Image, Valid | None, Statistics | None]], lattice: Lattice, at_once: int, confidence: bool,
        should_stop: Callable[[], bool],
    ) -> Iterator[tuple[Labels, Scores | None]]:  # fmt: skip
        """Run the engine on the windows of all samples. Yields: labels and logits of each, valid until the next is taken.

        Of samples that are one window, it yields confidences in place of logits.
        """
        logits = confidence or lattice.count > 1
        windows = (
            (extract_window(values, corner, lattice.sides), statistics)
            for values, _, statistics in samples
            for corner in lattice.corners()
        )
        while batch := list(islice(windows, at_once)):
            canvases = batch[0][0][None] if len(batch) == 1 else np.stack([canvas for canvas, _ in batch])
            statistics = [each for _, each in batch if each is not None]
            labels, scores = self._run_engine(
                canvases, should_stop, logits, np.stack(statistics) if statistics else None
            )
            if lattice.count == 1 and scores is not None:
                scores = batch_confidence(scores, lattice.sides, labels)
            yield from zip(labels, repeat(None) if scores is None else scores, strict=False)

    def _predict_axes(
        self, values: Image, valid: Valid | None, lattice: Lattice, outputs: Iterator[tuple[Labels, Scores | None]],
        confidence: bool,
    ) -> Prediction:  # fmt: skip
        """The labels of a signal or volume, from the engine's outputs for its windows."""
        lengths = values.shape[:-1]
        if lattice.count == 1:
            whole, inside = next(outputs), tuple(map(slice, lengths))
            labels = whole[0][inside].copy()
            probabilities = None if whole[1] is None else whole[1][inside]
        else:
            window_logits = (scores for _, scores in outputs if scores is not None)  # they were requested
            labels, probabilities = predict_windows(window_logits, lengths, lattice, self.rule.divisor, confidence)
        if valid is not None:
            labels[~valid] = IGNORE_INDEX
        return Prediction(values, labels, probabilities)

    def _unpack(self, image: Image | Sample) -> tuple[Image, Valid | None, Statistics | None]:
        """Values, where they are valid, and the statistics of the whole image if the network needs them."""
        sample = image if isinstance(image, Sample) else Sample(image, self.rule.axes)
        if self.rule.scaling.kind == "zscore" and sample.statistics is None:
            return sample.values, sample.valid, sample_statistics(sample.values, sample.valid)
        return sample.values, sample.valid, sample.statistics

    def segment_rows(
        self,
        window: WindowReader,
        size: tuple[int, int],
        confidence: bool = False,
        statistics: Statistics | None = None,
    ) -> Iterator[tuple[Labels, Confidence | None]]:
        """As `segment`, for an image of (height, width) that is read in windows because it does not fit into memory.

        `statistics` are those of the whole image, for the scaling `zscore`.
        Yields: labels, and confidence if requested, of consecutive rows over the whole width, from the first to the last.
        Raises: EngineError if the input rule resizes whole images, InsufficientMemoryError.
        """
        check_supports_windows(self.rule)
        if round_up(size[0], SIZE_DIVISOR) * round_up(size[1], SIZE_DIVISOR) <= self.tile_size**2:
            whole = self.segment(Sample(window((0, 0), size), statistics=statistics), confidence)
            yield whole.labels, whole.confidence
            return
        begun = False
        while True:
            tile = self.tile_size
            try:
                rows = predict_sliding_window_rows(
                    self._logits_function(never_stop, statistics),
                    window,
                    size,
                    tile,
                    round_up(tile // 4, SIZE_DIVISOR),
                    confidence,
                )
                for part in rows:
                    begun = True
                    yield part
                return
            except MemoryError as error:
                if begun:  # rows that were yielded cannot be changed
                    raise InsufficientMemoryError(
                        f"Memory ran out while this image was segmented ({error}). Free some memory and try again."
                    ) from error
                self._shrink_tiles(tile, size, error)

    def _predict(
        self, image: Image, fitted: tuple[int, int], tile: int, confidence: bool, should_stop: Callable[[], bool],
        statistics: Statistics | None,
    ) -> tuple[Labels, Confidence | None]:  # fmt: skip
        """Labels and confidence at the size `fitted`; the labels may be in the engine's memory."""
        height, width = fitted
        predict_logits = self._logits_function(should_stop, statistics)
        if self.rule.rule != "exact" and round_up(height, SIZE_DIVISOR) * round_up(width, SIZE_DIVISOR) > tile**2:
            overlap = round_up(tile // 4, SIZE_DIVISOR)
            return predict_sliding_window(predict_logits, resize_image(image, fitted), tile, overlap, confidence)
        canvas = resize_and_pad(image, fitted, canvas_size(fitted, self.rule))
        if self.tta is None:
            labels, scores = self._run_engine(canvas[None], should_stop, confidence, _add_axis(statistics))
            labels = labels[0, :height, :width]
            return labels, None if scores is None else label_confidence(scores[0], canvas.shape[:2], labels)
        labels, probabilities = scores_to_labels(predict_logits(canvas), canvas.shape[:2], confidence)
        return labels[:height, :width], None if probabilities is None else probabilities[:height, :width]

    def _logits_function(self, should_stop: Callable[[], bool], statistics: Statistics | None) -> LogitsFunction:
        """A function from a canvas H x W x C to logits float32 classes x h x w at the network's stride."""

        def predict_logits(canvas: Image) -> Scores:
            logits = self._run_engine(canvas[None], should_stop, True, _add_axis(statistics))[1]
            assert logits is not None  # they were requested
            scores: Scores = logits[0]
            return scores

        if self.tta is None:
            return predict_logits
        return wrap_with_tta(predict_logits, self.rule, self.tta.flip, self.tta.scales)

    def _run_engine(
        self, canvases: Image, should_stop: Callable[[], bool], logits: bool, statistics: Statistics | None
    ) -> tuple[Labels, Scores | None]:
        """Run the engine on N canvases, N x axes x C, with their statistics, N x 2 x C. Raises: InferenceCancelledError."""
        if should_stop():
            raise InferenceCancelledError("The inference was cancelled before it was complete.")
        if statistics is None:  # imported networks' functions take no more
            return self.run(canvases, logits=logits)
        return self.run(canvases, logits=logits, statistics=statistics)

    def _shrink_tiles(self, tile: int, fitted: tuple[int, int], error: MemoryError) -> None:
        """Use smaller tiles than this one from now on. Raises: InsufficientMemoryError if it is the smallest."""
        longest = max(round_up(side, SIZE_DIVISOR) for side in fitted)
        if self.rule.rule == "exact" or min(tile, longest) <= MIN_TILE_SIZE:
            raise InsufficientMemoryError(
                f"There is not enough memory for this image, even in small tiles ({error}). Use a smaller image."
            ) from error
        with self.lock:
            if self.tile_size == tile:  # else another thread has made them smaller
                self.tile_size = max(MIN_TILE_SIZE, round_up(min(tile, longest) // 2, SIZE_DIVISOR))
                logger.warning("out of memory (%s): using tiles of %d pixels from now on", error, self.tile_size)

    def _shrink_windows(self, window: int, error: MemoryError) -> None:
        """Use windows of half as many time steps or voxels. Raises: InsufficientMemoryError if they are the smallest."""
        if self.rule.window or window <= MIN_WINDOW[self.rule.axes]:
            raise InsufficientMemoryError(
                f"There is not enough memory for this {AXES[self.rule.axes].removesuffix('s')}, even in small windows "
                f"({error}). Free some memory and try again."
            ) from error
        with self.lock:
            if self.max_window >= window:  # else another thread has made them smaller
                self.max_window = max(MIN_WINDOW[self.rule.axes], window // 2)
                logger.warning("out of memory (%s): using windows of up to %d from now on", error, self.max_window)

    def verify_probes(self, bundle: Bundle) -> float:
        """Segment the bundle's probe images and compare with the labels in the bundle.

        Returns: the lowest fraction of equal pixels of any probe.
        Raises: ParityError if the labels of a probe differ on this machine.
        """
        lowest, required = 1.0, self._min_probe_agreement(bundle)
        for image, mask in bundle.probes():
            sample = read_probe(image, self.rule)
            equal = agreement(self.segment(sample).labels, read_probe_labels(mask))
            if equal < required:
                raise ParityError(
                    f"{image}: on this machine {equal:.2%} of the probe's labels are those in the bundle; expected at "
                    f"least {required:.1%}. Export the bundle again, or use the precision f32."
                )
            lowest = min(lowest, equal)
        return lowest

    def _min_probe_agreement(self, bundle: Bundle) -> float:
        """The required agreement of a probe: as measured at export for this precision, minus a tolerance."""
        precision = self.choice.precision if self.choice else "f32"
        measured = [values[precision] for values in bundle.spec.parity.values() if precision in values]
        return min([*measured, 1.0]) - (F32_PROBE_TOLERANCE if precision == "f32" else PROBE_TOLERANCE)


def _add_axis(statistics: Statistics | None) -> Statistics | None:
    """The statistics of a batch of one, 1 x 2 x C."""
    return None if statistics is None else statistics[None]


def read_probe(file: Path, rule: InputRule) -> Sample:
    """A probe as the network takes it. Raises: ImageError, BundleError."""
    if rule.axes == "HW":
        return read_input(file.read_bytes(), rule)
    # As the export wrote it: a reader would take the array for an image, or resample it.
    return Sample(_load_array(file, "values"), rule.axes, rule.channels, rule.spacing)


def read_probe_labels(file: Path) -> Labels:
    """The labels of a probe, uint8 [*axes]: of an image a PNG, of others an array. Raises: ImageError, BundleError."""
    return read_mask(file) if file.suffix == ".png" else _load_array(file)


def _load_array(file: Path, name: str = "") -> NDArray[Any]:
    try:
        content = np.load(file, allow_pickle=False)
        return np.asarray(content[name] if name else content)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{file} is no array of a probe ({error}). Export the bundle again.") from error


def check_model_outputs(run: InferenceFunction, bundle: Bundle) -> None:
    """Run the network on a blank sample. Raises: BundleError if its outputs do not match the spec."""
    rule = bundle.spec.input
    side = SIZE_DIVISOR if rule.axes == "HW" else max(rule.divisor, MIN_LENGTH)
    size = rule.size or rule.window or (side,) * len(rule.axes)
    lengths = _format_shape(size)
    grid = {"HW": "h x w", "T": "t", "DHW": "d x h x w"}[rule.axes]
    expected = f"labels uint8 1 x {lengths} and logits float32 1 x {len(bundle.spec.classes)} x {grid}"
    try:
        further = {}
        if rule.scaling.kind == "zscore":
            further["statistics"] = np.ones((1, 2, len(rule.channels)), np.float32)
        labels, logits = run(np.zeros((1, *size, len(rule.channels)), rule.dtype), logits=True, **further)
    except RuntimeError as error:
        raise BundleError(f"{bundle.folder}: its network cannot be run: {first_line(error)}") from error
    assert logits is not None  # they were requested
    found = (
        f"labels {labels.dtype} {_format_shape(labels.shape)} and logits {logits.dtype} {_format_shape(logits.shape)}"
    )
    labels_ok = labels.dtype == np.uint8 and labels.shape == (1, *size)
    if (
        not labels_ok
        or logits.ndim != 2 + len(size)
        or logits.dtype != np.float32
        or logits.shape[1] != len(bundle.spec.classes)
    ):
        raise BundleError(
            f"{bundle.folder}: the network does not match spec.json: expected {expected}, got {found}. Export the bundle again."
        )


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def agreement(first: Labels, second: Labels) -> float:
    """The fraction of equal pixels of two label masks, 0..1; 0 if their sizes differ."""
    return float(np.mean(first == second)) if first.shape == second.shape else 0.0
