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

from models.engines.base import Run
from models.errors import ConfigError, WeightsError
from models.imaging.decode import RGB
from models.inference.geometry import resize_labels
from models.spec import VOID
from training.data.synthetic import scene
from training.freezing.onnx_import.graph_reader import Intake, Layout, Scores, Told, one_line, shape_text

# (height, width) of the trial pictures for a graph that says that it takes any: multiples of the Segmenter's bucket, the
# smallest that it sends among them.
TRIALS = ((64, 64), (256, 384), (320, 192))
WANTED = "Wanted is a line for each of the graph's classes, in its order."
SMALLEST = 1e-7  # a probability below counts as this one, so that its logarithm is a number

Values = NDArray[Any]
Answers = dict[str, Values]  # what a graph gives for one picture, by the outputs' names
Ask = Callable[[RGB], Answers]
Trials = list[tuple[tuple[int, int], Answers]]  # (height, width) of a picture, and what the graph gave for it


@dataclass(frozen=True)
class Outlet:
    """The output that is read, and how."""

    name: str
    kind: Scores | Literal["labels"]
    layout: Layout
    batched: bool  # whether the axis of the batch is there
    channels: int  # as many as classes; 1: of the second of two classes; 1 for labels
    full_size: bool  # whether it has a value for each pixel of the input


def open_original(file: Path, intake: Intake) -> Ask:
    """Open the file with onnxruntime. Raises: WeightsError, as does the answer where a picture cannot be run."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an error
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    onnxruntime.disable_telemetry_events()  # Windows' build has some
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no root of their own
        raise WeightsError(f"{file}: onnxruntime cannot load it: {one_line(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def ask(picture: RGB) -> Answers:
        try:
            return dict(zip(names, session.run(names, {intake.name: feed(picture, intake)}), strict=True))
        except Exception as error:
            height, width = picture.shape[:2]
            raise WeightsError(
                f"{file}: onnxruntime cannot run it on a picture of {height} x {width} (height x width): {one_line(error)}"
            ) from error

    return ask


def feed(picture: RGB, intake: Intake) -> Values:
    """A picture, RGB uint8 H x W x 3, as the graph takes it; repeated where it takes only several at a time."""
    values: Values = picture[:, :, ::-1] if intake.order == "bgr" else picture
    if intake.dtype != "uint8":
        values = values.astype(np.float32) / np.float32(255 / intake.scale)
        values = (values - np.array(intake.mean, np.float32)) / np.array(intake.std, np.float32)
    if intake.layout == "nchw":
        values = values.transpose(2, 0, 1)
    return np.repeat(np.ascontiguousarray(values, dtype=intake.dtype)[None], intake.batch or 1, axis=0)


def try_out(ask: Ask, file: Path, intake: Intake) -> Trials:
    """Ask about drawn pictures. Raises: WeightsError."""
    answers = []
    for size in [intake.size] if intake.size else TRIALS:
        picture, _ = scene(np.random.default_rng(size), size)
        try:
            answers.append((size, ask(picture)))
        except WeightsError as error:
            if intake.size:
                raise
            raise WeightsError(
                f"{error} It says that it takes any; if it takes one size in truth, name that: --input exact:HEIGHTxWIDTH."
            ) from error
    return answers


def outlet(
    file: Path, intake: Intake, told: Told, classes: int, ending: Callable[[str], str],
    answers: Trials,
) -> Outlet:  # fmt: skip
    """Choose the output that gives the classes, from what the graph gave for the trial pictures.

    `ending(name)` names the operator that made an output's values.
    Raises: WeightsError naming both counts where the classes are not the graph's; ConfigError for what must be told.
    """
    first = answers[0][1]
    listed = "; ".join(f"{name} ({values.dtype} {shape_text(values.shape)})" for name, values in first.items())
    if told.output and told.output not in first:
        raise ConfigError(f"{file} has no output {told.output!r}; it has {listed}.")
    names = [told.output] if told.output else list(first)
    found = [(name, *reading) for name in names if (reading := _reading(name, intake, told, classes, answers))]
    # Scores tell more than labels, and a score for each class more than one for the second of two.
    for channels in (classes, 1, 0):
        chosen = [entry for entry in found if entry[3] == channels]
        if len(chosen) > 1:
            raise ConfigError(f"{file} has several outputs that could be meant: {listed}. Name one: --output NAME.")
        if chosen:
            name, layout, batched, _ = chosen[0]
            full = all(_plane(given[name], layout, batched) == size for size, given in answers)
            kind = _kind(name, channels, told, ending(name), answers)
            return Outlet(name, kind, layout, batched, channels or 1, full)
    if len(names) == 1:
        values = first[names[0]]
        raise WeightsError(
            f"{file}: the output {names[0]!r} is {values.dtype} {shape_text(values.shape)}, "
            f"{_count(names[0], intake, told, answers)}; --classes names {classes}. {WANTED}"
        )
    raise WeightsError(f"{file} has no output with scores for the {classes} classes of --classes; it has {listed}.")


def live_run(file: Path, ask: Ask, outlet: Outlet, classes: int) -> Run:
    """The original as the Segmenter runs a network: one picture at a time. Raises, when run: WeightsError."""

    def run(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        values = torch.from_numpy(np.asarray(ask(images[0])[outlet.name]))
        values = values[:1] if outlet.batched else values[None]
        size = (images.shape[1], images.shape[2])
        return (
            _labels(values, outlet, size, file, classes) if outlet.kind == "labels" else _scores(values, outlet, size)
        )

    return run


def _scores(
    values: torch.Tensor, outlet: Outlet, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    maps = (values.permute(0, 3, 1, 2) if outlet.layout == "nhwc" else values).float()
    if outlet.kind == "probabilities":
        both = torch.cat([1 - maps, maps], dim=1) if outlet.channels == 1 else maps
        maps = both.clamp(min=SMALLEST).log()
    elif outlet.channels == 1:
        maps = torch.cat([torch.zeros_like(maps), maps], dim=1)
    labels = F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(dim=1)
    return labels.to(torch.uint8).numpy(), maps.numpy()


def _labels(
    values: torch.Tensor, outlet: Outlet, size: tuple[int, int], file: Path, classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    if values.ndim == 4:
        values = values[:, 0] if outlet.layout == "nchw" else values[..., 0]
    given = values[0].numpy()
    highest = int(given[given != VOID].max(initial=0))  # before the cast, under which 256 would be 0
    plane = values[0].to(torch.uint8).numpy()
    if highest >= classes:
        raise WeightsError(
            f"{file}: the output {outlet.name!r} gives the label {highest}, so {highest + 1} classes or more; --classes "
            f"names {classes}. {WANTED}"
        )
    one_hot = np.stack([plane == label for label in range(classes)]).astype(np.float32)
    return resize_labels(plane, size)[None], one_hot[None]


def _reading(name: str, intake: Intake, told: Told, classes: int, answers: Trials) -> tuple[Layout, bool, int] | None:
    """How an output can be read: its layout, whether its batch is there, its channels (0 for labels); None if not."""
    values = answers[0][1][name]
    scores = np.issubdtype(values.dtype, np.floating)
    if not scores and values.ndim in (2, 3):
        batched = values.ndim == 3
        return ("nchw", batched, 0) if not batched or len(values) == (intake.batch or 1) else None
    batched = values.ndim == 4
    if values.ndim not in (3, 4):
        return None
    layouts = _layouts(name, batched, intake, told, answers)
    for channels in (classes, 1):
        for layout in layouts:
            there = values.shape[-3 if layout == "nchw" else -1] == channels
            if there and (channels == classes or not scores or classes == 2):
                return layout, batched, channels if scores or channels == classes else 0
    return None


def _layouts(name: str, batched: bool, intake: Intake, told: Told, answers: Trials) -> list[Layout]:
    """The layouts that an output may have, the likelier first: the proportions of the pictures, then the input's."""
    layouts: list[Layout] = [told.output_layout] if told.output_layout else ["nchw", "nhwc"]
    return sorted(layouts, key=lambda layout: (not _alike(name, layout, batched, answers), layout != intake.layout))


def _alike(name: str, layout: Layout, batched: bool, answers: Trials) -> bool:
    """Whether an output, read in this layout, has the proportions of each picture."""
    planes = [(size, _plane(given[name], layout, batched)) for size, given in answers]
    return all(abs(high / size[0] - wide / size[1]) <= 1 / min(size) for size, (high, wide) in planes)


def _plane(values: Values, layout: Layout, batched: bool) -> tuple[int, int]:
    shape = values.shape[1:] if batched else values.shape
    if len(shape) == 2:
        return shape[0], shape[1]
    return (shape[1], shape[2]) if layout == "nchw" else (shape[0], shape[1])


def _kind(name: str, channels: int, told: Told, ending: str, answers: Trials) -> Scores | Literal["labels"]:
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


def _count(name: str, intake: Intake, told: Told, answers: Trials) -> str:
    values = answers[0][1][name]
    if values.ndim not in (3, 4):
        return "no map of scores"
    layout = _layouts(name, values.ndim == 4, intake, told, answers)[0]
    count = values.shape[-3 if layout == "nchw" else -1]
    return f"{count} {'class' if count == 1 else 'classes'} as {layout}"
