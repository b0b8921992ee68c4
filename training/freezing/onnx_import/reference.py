"""Runs an imported ONNX file as its owner does: with ONNX Runtime, pre- and postprocessing in numpy and torch.

The frozen graph (`training/freezing/onnx_import/rewrite.py`) must agree with it, so the two share no code.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from models.engines.base import InferenceFunction
from models.errors import ConfigError, WeightsError, quoted
from models.inference.geometry import MIN_CANVAS_SIDE, SIZE_DIVISOR, Image
from models.spec import IGNORE_INDEX
from training.data.synthetic import generate_scene
from training.freezing.onnx_import.graph_reader import (
    InputSpec,
    Layout,
    ScoreKind,
    UserHints,
    format_shape,
    shorten_error,
)

# (height, width) of the trial images for a graph that declares any size: multiples of 64.
TRIAL_SIZES = ((64, 64), (256, 384), (320, 192))
DIVISORS = (1, 2, 4, 8, 16, 32)  # of smaller sizes that are tried, in pixels
CLASSES_ADVICE = "The class file needs one line for each class of the network, in its order."
MIN_PROBABILITY = 1e-7  # lower probabilities count as this one, so that the logarithm is finite

Array = NDArray[Any]
Outputs = dict[str, Array]  # a graph's outputs for one image, by name
GraphRunner = Callable[[Image], Outputs]
TrialOutputs = list[tuple[tuple[int, int], Outputs]]  # (height, width) of an image, and the outputs for it


@dataclass(frozen=True)
class OutputSpec:
    """The output that is read, and how to read it."""

    name: str
    kind: ScoreKind | Literal["labels"]
    layout: Layout
    has_batch_axis: bool  # whether there is a batch axis
    channels: int  # the number of classes; 1: score of the second of two classes, or labels
    full_size: bool  # whether it has a value for each pixel of the input


def open_reference(file: Path, input_spec: InputSpec) -> GraphRunner:
    """Open the file with ONNX Runtime; returns a function that runs it on an image. Both raise WeightsError."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    onnxruntime.disable_telemetry_events()  # the Windows build sends some
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise WeightsError(f"{file}: ONNX Runtime cannot load it: {shorten_error(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def run_graph(image: Image) -> Outputs:
        try:
            return dict(zip(names, session.run(names, {input_spec.name: preprocess(image, input_spec)}), strict=True))
        except Exception as error:
            height, width = image.shape[:2]
            raise WeightsError(
                f"{file}: ONNX Runtime cannot run it on an image of {height} x {width} (height x width): {shorten_error(error)}"
            ) from error

    return run_graph


def preprocess(image: Image, input_spec: InputSpec) -> Array:
    """An image, H x W x C, in the graph's input format; repeated if the graph has a fixed batch size."""
    values: Array = image[:, :, ::-1] if input_spec.order == "bgr" else image
    if input_spec.dtype != "uint8":
        values = values.astype(np.float32) / np.float32(255 / input_spec.max_pixel_value)
        values = (values - np.array(input_spec.mean, np.float32)) / np.array(input_spec.std, np.float32)
    if input_spec.layout == "nchw":
        values = values.transpose(2, 0, 1)
    return np.repeat(np.ascontiguousarray(values, dtype=input_spec.dtype)[None], input_spec.batch or 1, axis=0)


def run_trials(run_graph: GraphRunner, input_spec: InputSpec) -> tuple[TrialOutputs, int]:
    """Run the graph on synthetic images. Returns: its outputs, and the divisor of the sizes that it takes, in pixels.

    Many decoders join maps of two strides, which fit only if the sides of the image divide by the larger one. Others give
    scores for each pixel only then. The divisor is 1 for a graph of one size. Raises: WeightsError.
    """
    if input_spec.size:
        return _run_sizes(run_graph, [input_spec.size], input_spec), 1
    try:
        trials = _run_sizes(run_graph, TRIAL_SIZES, input_spec)
    except WeightsError as error:
        raise WeightsError(
            f"{error} It declares that it takes any size; if it takes only one, pass it: --input exact:HEIGHTxWIDTH."
        ) from error
    for divisor in DIVISORS:
        odd_multiple = (divisor * (96 // divisor | 1), divisor * (160 // divisor | 1))
        try:
            found = _run_sizes(run_graph, [odd_multiple, (MIN_CANVAS_SIDE, MIN_CANVAS_SIDE)], input_spec)
        except WeightsError:
            continue
        if _full_size_outputs(found) >= _full_size_outputs(trials):
            return trials + found, divisor
    return trials, SIZE_DIVISOR


def _full_size_outputs(trials: TrialOutputs) -> set[str]:
    """The names of the outputs that have a value for each pixel, in all trials."""
    names = ({name for name, values in outputs.items() if size in pairwise(values.shape)} for size, outputs in trials)
    return set.intersection(*names)


def _run_sizes(run_graph: GraphRunner, sizes: Iterable[tuple[int, int]], input_spec: InputSpec) -> TrialOutputs:
    return [(size, run_graph(synthetic_image(np.random.default_rng(size), size, input_spec))) for size in sizes]


def synthetic_image(random: np.random.Generator, size: tuple[int, int], input_spec: InputSpec) -> Image:
    """A drawn scene of (height, width) as the network takes it; other channels than RGB within two deviations of their mean."""
    scene = generate_scene(random, size)[0]
    if input_spec.is_rgb:
        return scene
    count = len(input_spec.channels)
    unit = np.resize(np.arange(3), count)
    if input_spec.dtype == "uint8" or input_spec.samples == "uint8":
        return scene[:, :, unit].astype(input_spec.samples)
    values = (scene[:, :, unit] / 127.5 - 1) * 2 * np.array(input_spec.std) + np.array(input_spec.mean)
    if input_spec.samples != "float32":
        limits = np.iinfo(input_spec.samples)
        values = np.rint(values).clip(limits.min, limits.max)
    return np.asarray(values.astype(input_spec.samples))


def resolve_output(
    file: Path, input_spec: InputSpec, hints: UserHints, classes: int, producer: Callable[[str], str],
    trials: TrialOutputs,
) -> OutputSpec:  # fmt: skip
    """Choose the output that holds the classes, from the outputs for the trial images.

    `producer(name)` names the operator that computes an output's values.
    Raises: WeightsError with both counts if the graph has another number of classes; ConfigError if a hint is needed.
    """
    first = trials[0][1]
    listed = "; ".join(f"{name} ({values.dtype} {format_shape(values.shape)})" for name, values in first.items())
    if hints.output and hints.output not in first:
        raise ConfigError(f"{file} has no output {quoted(hints.output)}; it has {listed}.")
    names = [hints.output] if hints.output else list(first)
    found = [
        (name, *reading) for name in names if (reading := _interpret_output(name, input_spec, hints, classes, trials))
    ]
    # Scores are preferred to labels, and a score for each class to one for the second of two.
    for channels in (classes, 1, 0):
        chosen = [entry for entry in found if entry[3] == channels]
        if len(chosen) > 1:
            raise ConfigError(f"{file} has several outputs that fit: {listed}. Choose one: --output NAME.")
        if chosen:
            name, layout, has_batch, _ = chosen[0]
            full = all(_spatial_size(given[name], layout, has_batch) == size for size, given in trials)
            kind = _infer_score_kind(name, channels, hints, producer(name), trials)
            return OutputSpec(name, kind, layout, has_batch, channels or 1, full)
    if len(names) == 1:
        values = first[names[0]]
        raise WeightsError(
            f"{file}: the output {quoted(names[0])} is {values.dtype} {format_shape(values.shape)}, "
            f"{_describe_channels(names[0], input_spec, hints, trials)}; --classes names {classes}. {CLASSES_ADVICE}"
        )
    raise WeightsError(f"{file} has no output with scores for the {classes} classes of --classes; it has {listed}.")


def make_reference_run(file: Path, run_graph: GraphRunner, output_spec: OutputSpec, classes: int) -> InferenceFunction:
    """The original graph as an inference function for the Segmenter, one image at a time. Raises, when run: WeightsError."""

    def run(
        images: Array, logits: bool = False, statistics: Array | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        values = torch.from_numpy(np.asarray(run_graph(images[0])[output_spec.name]))
        values = values[:1] if output_spec.has_batch_axis else values[None]
        size = (images.shape[1], images.shape[2])
        return (
            _postprocess_labels(values, output_spec, size, file, classes)
            if output_spec.kind == "labels"
            else _postprocess_scores(values, output_spec, size)
        )

    return run


def _postprocess_scores(
    values: torch.Tensor, output_spec: OutputSpec, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    maps = (values.permute(0, 3, 1, 2) if output_spec.layout == "nhwc" else values).float()
    if output_spec.kind == "probabilities":
        both = torch.cat([1 - maps, maps], dim=1) if output_spec.channels == 1 else maps
        maps = both.clamp(min=MIN_PROBABILITY).log()
    elif output_spec.channels == 1:
        maps = torch.cat([torch.zeros_like(maps), maps], dim=1)
    labels = F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(dim=1)
    return labels.to(torch.uint8).numpy(), maps.numpy()


def _postprocess_labels(
    values: torch.Tensor, output_spec: OutputSpec, size: tuple[int, int], file: Path, classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    if values.ndim == 4:
        values = values[:, 0] if output_spec.layout == "nchw" else values[..., 0]
    given = values[0].numpy()
    highest = int(given[given != IGNORE_INDEX].max(initial=0))  # before the cast, which would turn 256 into 0
    labels = values[0].to(torch.uint8).numpy()
    if highest >= classes:
        raise WeightsError(
            f"{file}: the output {quoted(output_spec.name)} holds the label {highest}, so {highest + 1} classes or more; --classes "
            f"names {classes}. {CLASSES_ADVICE}"
        )
    one_hot = np.stack([labels == label for label in range(classes)]).astype(np.float32)
    resized = F.interpolate(torch.from_numpy(labels)[None, None].float(), size, mode="nearest-exact")[0]
    return resized.to(torch.uint8).numpy(), one_hot[None]


def _interpret_output(
    name: str, input_spec: InputSpec, hints: UserHints, classes: int, trials: TrialOutputs
) -> tuple[Layout, bool, int] | None:
    """How an output can be read: its layout, whether it has a batch axis, its channels (0 for labels); None if it cannot."""
    values = trials[0][1][name]
    scores = np.issubdtype(values.dtype, np.floating)
    if not scores and values.ndim in (2, 3):
        has_batch = values.ndim == 3
        return ("nchw", has_batch, 0) if not has_batch or len(values) == (input_spec.batch or 1) else None
    has_batch = values.ndim == 4
    if values.ndim not in (3, 4):
        return None
    layouts = _rank_layouts(name, has_batch, input_spec, hints, trials)
    for channels in (classes, 1):
        for layout in layouts:
            there = values.shape[-3 if layout == "nchw" else -1] == channels
            if there and (channels == classes or not scores or classes == 2):
                return layout, has_batch, channels if scores or channels == classes else 0
    return None


def _rank_layouts(
    name: str, has_batch: bool, input_spec: InputSpec, hints: UserHints, trials: TrialOutputs
) -> list[Layout]:
    """The possible layouts of an output, the likelier first: that with the images' proportions, then the input's."""
    layouts: list[Layout] = [hints.output_layout] if hints.output_layout else ["nchw", "nhwc"]
    return sorted(
        layouts,
        key=lambda layout: (not _matches_proportions(name, layout, has_batch, trials), layout != input_spec.layout),
    )


def _matches_proportions(name: str, layout: Layout, has_batch: bool, trials: TrialOutputs) -> bool:
    """Whether an output, read in this layout, has each image's proportions."""
    planes = [(size, _spatial_size(given[name], layout, has_batch)) for size, given in trials]
    return all(abs(high / size[0] - wide / size[1]) <= 1 / min(size) for size, (high, wide) in planes)


def _spatial_size(values: Array, layout: Layout, has_batch: bool) -> tuple[int, int]:
    shape = values.shape[1:] if has_batch else values.shape
    if len(shape) == 2:
        return shape[0], shape[1]
    return (shape[1], shape[2]) if layout == "nchw" else (shape[0], shape[1])


def _infer_score_kind(
    name: str, channels: int, hints: UserHints, producer: str, trials: TrialOutputs
) -> ScoreKind | Literal["labels"]:
    """The kind of the values: from the hints, or the operator that computes them, or whether all are between 0 and 1."""
    if not channels:
        return "labels"
    if hints.scores:
        return hints.scores
    values = np.concatenate([given[name].ravel() for _, given in trials])
    if not np.issubdtype(values.dtype, np.floating):  # quantised
        return "logits"
    if producer in ("Softmax", "Sigmoid", "HardSigmoid"):
        return "probabilities"
    return "probabilities" if values.min() >= 0 and values.max() <= 1 and values.any() else "logits"


def _describe_channels(name: str, input_spec: InputSpec, hints: UserHints, trials: TrialOutputs) -> str:
    values = trials[0][1][name]
    if values.ndim not in (3, 4):
        return "not a map of scores"
    layout = _rank_layouts(name, values.ndim == 4, input_spec, hints, trials)[0]
    count = values.shape[-3 if layout == "nchw" else -1]
    return f"{count} {'class' if count == 1 else 'classes'} as {layout}"
