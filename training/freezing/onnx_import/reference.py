"""A foreign ONNX file as its owner runs it: by onnxruntime, with the steps around it in numpy and torch.

It is what the frozen graph (`training/freezing/onnx_import/rewrite.py`) must agree with, so nothing here is shared with that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from models.engines.base import InferenceFunction
from models.errors import ConfigError, WeightsError
from models.imaging.decode import RGB
from models.inference.geometry import resize_labels
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

# (height, width) of the trial images for a graph that says that it takes any: multiples of the Segmenter's bucket, the
# smallest that it sends among them.
TRIAL_SIZES = ((64, 64), (256, 384), (320, 192))
CLASSES_ADVICE = "Wanted is a line for each of the graph's classes, in its order."
MIN_PROBABILITY = 1e-7  # a probability below counts as this one, so that its logarithm is a number

Array = NDArray[Any]
Outputs = dict[str, Array]  # what a graph gives for one image, by the outputs' names
GraphRunner = Callable[[RGB], Outputs]
TrialOutputs = list[tuple[tuple[int, int], Outputs]]  # (height, width) of an image, and what the graph gave for it


@dataclass(frozen=True)
class OutputSpec:
    """The output that is read, and how."""

    name: str
    kind: ScoreKind | Literal["labels"]
    layout: Layout
    has_batch_axis: bool  # whether the axis of the batch is there
    channels: int  # as many as classes; 1: of the second of two classes; 1 for labels
    full_size: bool  # whether it has a value for each pixel of the input


def open_reference(file: Path, intake: InputSpec) -> GraphRunner:
    """Open the file with onnxruntime. Raises: WeightsError, as does the answer where an image cannot be run."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an error
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    onnxruntime.disable_telemetry_events()  # Windows' build has some
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no root of their own
        raise WeightsError(f"{file}: onnxruntime cannot load it: {shorten_error(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def ask(image: RGB) -> Outputs:
        try:
            return dict(zip(names, session.run(names, {intake.name: preprocess(image, intake)}), strict=True))
        except Exception as error:
            height, width = image.shape[:2]
            raise WeightsError(
                f"{file}: onnxruntime cannot run it on an image of {height} x {width} (height x width): {shorten_error(error)}"
            ) from error

    return ask


def preprocess(image: RGB, intake: InputSpec) -> Array:
    """An image, RGB uint8 H x W x 3, as the graph takes it; repeated where it takes only several at a time."""
    values: Array = image[:, :, ::-1] if intake.order == "bgr" else image
    if intake.dtype != "uint8":
        values = values.astype(np.float32) / np.float32(255 / intake.max_pixel_value)
        values = (values - np.array(intake.mean, np.float32)) / np.array(intake.std, np.float32)
    if intake.layout == "nchw":
        values = values.transpose(2, 0, 1)
    return np.repeat(np.ascontiguousarray(values, dtype=intake.dtype)[None], intake.batch or 1, axis=0)


def run_trials(ask: GraphRunner, file: Path, intake: InputSpec) -> TrialOutputs:
    """Ask about drawn images. Raises: WeightsError."""
    answers = []
    for size in [intake.size] if intake.size else TRIAL_SIZES:
        image, _ = generate_scene(np.random.default_rng(size), size)
        try:
            answers.append((size, ask(image)))
        except WeightsError as error:
            if intake.size:
                raise
            raise WeightsError(
                f"{error} It says that it takes any; if it takes one size in truth, name that: --input exact:HEIGHTxWIDTH."
            ) from error
    return answers


def resolve_output(
    file: Path, intake: InputSpec, told: UserHints, classes: int, ending: Callable[[str], str],
    answers: TrialOutputs,
) -> OutputSpec:  # fmt: skip
    """Choose the output that gives the classes, from what the graph gave for the trial images.

    `ending(name)` names the operator that made an output's values.
    Raises: WeightsError naming both counts where the classes are not the graph's; ConfigError for what must be told.
    """
    first = answers[0][1]
    listed = "; ".join(f"{name} ({values.dtype} {format_shape(values.shape)})" for name, values in first.items())
    if told.output and told.output not in first:
        raise ConfigError(f"{file} has no output {told.output!r}; it has {listed}.")
    names = [told.output] if told.output else list(first)
    found = [(name, *reading) for name in names if (reading := _interpret_output(name, intake, told, classes, answers))]
    # Scores tell more than labels, and a score for each class more than one for the second of two.
    for channels in (classes, 1, 0):
        chosen = [entry for entry in found if entry[3] == channels]
        if len(chosen) > 1:
            raise ConfigError(f"{file} has several outputs that could be meant: {listed}. Name one: --output NAME.")
        if chosen:
            name, layout, batched, _ = chosen[0]
            full = all(_spatial_size(given[name], layout, batched) == size for size, given in answers)
            kind = _infer_score_kind(name, channels, told, ending(name), answers)
            return OutputSpec(name, kind, layout, batched, channels or 1, full)
    if len(names) == 1:
        values = first[names[0]]
        raise WeightsError(
            f"{file}: the output {names[0]!r} is {values.dtype} {format_shape(values.shape)}, "
            f"{_describe_channels(names[0], intake, told, answers)}; --classes names {classes}. {CLASSES_ADVICE}"
        )
    raise WeightsError(f"{file} has no output with scores for the {classes} classes of --classes; it has {listed}.")


def make_reference_run(file: Path, ask: GraphRunner, outlet: OutputSpec, classes: int) -> InferenceFunction:
    """The original as the Segmenter runs a network: one image at a time. Raises, when run: WeightsError."""

    def run(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        values = torch.from_numpy(np.asarray(ask(images[0])[outlet.name]))
        values = values[:1] if outlet.has_batch_axis else values[None]
        size = (images.shape[1], images.shape[2])
        return (
            _postprocess_labels(values, outlet, size, file, classes)
            if outlet.kind == "labels"
            else _postprocess_scores(values, outlet, size)
        )

    return run


def _postprocess_scores(
    values: torch.Tensor, outlet: OutputSpec, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    maps = (values.permute(0, 3, 1, 2) if outlet.layout == "nhwc" else values).float()
    if outlet.kind == "probabilities":
        both = torch.cat([1 - maps, maps], dim=1) if outlet.channels == 1 else maps
        maps = both.clamp(min=MIN_PROBABILITY).log()
    elif outlet.channels == 1:
        maps = torch.cat([torch.zeros_like(maps), maps], dim=1)
    labels = F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(dim=1)
    return labels.to(torch.uint8).numpy(), maps.numpy()


def _postprocess_labels(
    values: torch.Tensor, outlet: OutputSpec, size: tuple[int, int], file: Path, classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    if values.ndim == 4:
        values = values[:, 0] if outlet.layout == "nchw" else values[..., 0]
    given = values[0].numpy()
    highest = int(given[given != IGNORE_INDEX].max(initial=0))  # before the cast, under which 256 would be 0
    plane = values[0].to(torch.uint8).numpy()
    if highest >= classes:
        raise WeightsError(
            f"{file}: the output {outlet.name!r} gives the label {highest}, so {highest + 1} classes or more; --classes "
            f"names {classes}. {CLASSES_ADVICE}"
        )
    one_hot = np.stack([plane == label for label in range(classes)]).astype(np.float32)
    return resize_labels(plane, size)[None], one_hot[None]


def _interpret_output(
    name: str, intake: InputSpec, told: UserHints, classes: int, answers: TrialOutputs
) -> tuple[Layout, bool, int] | None:
    """How an output can be read: its layout, whether its batch is there, its channels (0 for labels); None if not."""
    values = answers[0][1][name]
    scores = np.issubdtype(values.dtype, np.floating)
    if not scores and values.ndim in (2, 3):
        batched = values.ndim == 3
        return ("nchw", batched, 0) if not batched or len(values) == (intake.batch or 1) else None
    batched = values.ndim == 4
    if values.ndim not in (3, 4):
        return None
    layouts = _rank_layouts(name, batched, intake, told, answers)
    for channels in (classes, 1):
        for layout in layouts:
            there = values.shape[-3 if layout == "nchw" else -1] == channels
            if there and (channels == classes or not scores or classes == 2):
                return layout, batched, channels if scores or channels == classes else 0
    return None


def _rank_layouts(name: str, batched: bool, intake: InputSpec, told: UserHints, answers: TrialOutputs) -> list[Layout]:
    """The layouts that an output may have, the likelier first: the proportions of the images, then the input's."""
    layouts: list[Layout] = [told.output_layout] if told.output_layout else ["nchw", "nhwc"]
    return sorted(
        layouts, key=lambda layout: (not _matches_proportions(name, layout, batched, answers), layout != intake.layout)
    )


def _matches_proportions(name: str, layout: Layout, batched: bool, answers: TrialOutputs) -> bool:
    """Whether an output, read in this layout, has the proportions of each image."""
    planes = [(size, _spatial_size(given[name], layout, batched)) for size, given in answers]
    return all(abs(high / size[0] - wide / size[1]) <= 1 / min(size) for size, (high, wide) in planes)


def _spatial_size(values: Array, layout: Layout, batched: bool) -> tuple[int, int]:
    shape = values.shape[1:] if batched else values.shape
    if len(shape) == 2:
        return shape[0], shape[1]
    return (shape[1], shape[2]) if layout == "nchw" else (shape[0], shape[1])


def _infer_score_kind(
    name: str, channels: int, told: UserHints, ending: str, answers: TrialOutputs
) -> ScoreKind | Literal["labels"]:
    """What the values are: told, or by the operator that made them, or all between 0 and 1."""
    if not channels:
        return "labels"
    if told.scores:
        return told.scores
    values = np.concatenate([given[name].ravel() for _, given in answers])
    if not np.issubdtype(values.dtype, np.floating):  # quantised
        return "logits"
    if ending in ("Softmax", "Sigmoid", "HardSigmoid"):
        return "probabilities"
    return "probabilities" if values.min() >= 0 and values.max() <= 1 and values.any() else "logits"


def _describe_channels(name: str, intake: InputSpec, told: UserHints, answers: TrialOutputs) -> str:
    values = answers[0][1][name]
    if values.ndim not in (3, 4):
        return "no map of scores"
    layout = _rank_layouts(name, values.ndim == 4, intake, told, answers)[0]
    count = values.shape[-3 if layout == "nchw" else -1]
    return f"{count} {'class' if count == 1 else 'classes'} as {layout}"
