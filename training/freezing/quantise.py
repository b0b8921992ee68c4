"""Post-training int8 quantisation of the frozen graph, written as OpenVINO IR.

NNCF runs training images through the float graph, records the range of each activation, and inserts quantisers with
those ranges. It works on the OpenVINO model: OpenVINO refuses to compile what NNCF makes of the ONNX graph.
"""

import contextlib
import functools
import importlib
import itertools
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import openvino

from models.engines.base import graph_inputs
from models.engines.openvino_engine import get_core
from models.errors import BundleError, DataError, EngineError, MaskserveError, first_line
from models.inference.geometry import Image
from models.sample import Statistics
from models.spec import ClassInfo
from training.metrics.confusion import ConfusionMatrix

# Images. On CamVid (FCN-8s, ResNet-18, mIoU 61.47) 10, 30, 100 and 300 of them gave 61.38, 61.37, 61.34 and 61.37;
# each costs a float inference.
NUM_CALIBRATION_IMAGES = 64
MAX_MIOU_DROP = 0.5  # points of mIoU on the validation split; if int8 loses more, it is left out
NUM_WORST_CLASSES = 3  # classes that `miou_drop_message` names
WEIGHTED_LAYERS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})


Canvas = Image | tuple[Image, Statistics | None]  # H x W x C, and the statistics of the whole image for `zscore`


def quantise(model: Path, canvases: Iterable[Canvas], target: Path) -> None:
    """Write the int8 form of `model` (ONNX) as `target` (.xml) and a .bin beside it.

    `canvases`: inputs as the network gets them in the service: training images after the Segmenter's resizing and padding,
    spread over the data set. They are taken one at a time, once, and no more than NUM_CALIBRATION_IMAGES. The IR keeps the
    graph's inputs, outputs and dynamic sizes. The same images give the same bytes on the same machine.
    Raises: EngineError without NNCF, DataError without a canvas, BundleError for a graph that cannot be quantised.
    """
    chosen = itertools.islice(iter(canvases), NUM_CALIBRATION_IMAGES)
    first = next(chosen, None)
    if first is None:
        raise DataError("int8 needs images to calibrate on, and there are none; add images to the training split.")
    with _suppress_warnings():
        nncf = _import_nncf()
        try:
            graph = _quantise_graph(nncf, model, itertools.chain([first], chosen))
        except (MemoryError, MaskserveError):  # of the images
            raise
        except Exception as error:  # NNCF and OpenVINO raise many types
            raise BundleError(f"{model} cannot be quantised to int8: NNCF says: {first_line(error)}") from error
    if not any(node.get_type_name() == "FakeQuantize" for node in graph.get_ops()):
        raise BundleError(f"{model} cannot be quantised to int8: it has no convolution and no matrix product.")
    _rename_nodes_by_index(graph)
    openvino.save_model(graph, target, compress_to_fp16=False)  # otherwise scales and biases are rounded to 11 bits


def miou_drop_message(
    before: ConfusionMatrix, after: ConfusionMatrix, classes: list[ClassInfo], limit: float = MAX_MIOU_DROP
) -> str | None:
    """Says by how much int8 lowers the mIoU and which classes lose most; None if it loses at most `limit` points.

    `before`, `after`: of float and of int8 on the same images.
    """
    drop = 100 * (before.miou() - after.miou())
    if not drop > limit:
        return None
    # A class that occurs only in int8's mistakes lowers the mean by its distance from the mean.
    losses = [
        (((before.miou() if was != was else was) - now), entry.name, was, now)
        for entry, was, now in zip(classes, before.iou().tolist(), after.iou().tolist(), strict=True)
        if now == now
    ]
    worst = [loss for loss in sorted(losses, key=lambda loss: -loss[0]) if loss[0] > 0][:NUM_WORST_CLASSES]
    listed = ", ".join(f"{name} {_format_iou(was)} -> {_format_iou(now)}" for _, name, was, now in worst)
    return (
        f"int8 is left out: it loses {drop:.2f} points of mIoU ({100 * before.miou():.2f} -> {100 * after.miou():.2f}), "
        f"and at most {limit:g} are allowed. Largest losses of IoU: {listed}."
    )


def _format_iou(iou: float) -> str:
    return "absent" if iou != iou else f"{iou:.3f}"


def _import_nncf() -> Any:
    """Import NNCF late: it takes five seconds and is only in the extra [train]. Raises: EngineError."""
    try:
        nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise EngineError(
            f"int8 needs NNCF, which cannot be imported ({first_line(error)}); install maskserve's extra [train]."
        ) from error
    nncf.set_log_level(logging.CRITICAL)  # its errors are raised as well
    return nncf


def _to_graph_inputs(canvas: Canvas) -> dict[str, Any]:
    image, statistics = canvas if isinstance(canvas, tuple) else (canvas, None)
    return graph_inputs(image[None], None if statistics is None else statistics[None])


def _quantise_graph(nncf: Any, model: Path, canvases: Iterator[Canvas]) -> openvino.Model:
    """The graph with quantisers. NNCF iterates over the images once, so they may come from a generator."""
    track: Any = importlib.import_module("nncf.common.logging.track_progress").track
    get_core()  # the process's only Core, before its class is replaced
    # Not `read_model`: this one folds constants, so that NNCF sees weights and biases where they are computed.
    graph = openvino.convert_model(model)
    with (
        _replaced(track, "__init__", functools.partialmethod(track.__init__, disable=True)),  # NNCF's progress bar
        # NNCF opens a Core for each model that it runs; two at once can end the process, see `get_core`.
        _replaced(openvino, "Core", get_core),
    ):
        return nncf.quantize(
            graph,
            nncf.Dataset(canvases, _to_graph_inputs),
            # Symmetric: loses nothing after a ReLU. Asymmetric activations gave the same mIoU and speed.
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=NUM_CALIBRATION_IMAGES,
            ignored_scope=nncf.IgnoredScope(names=_scaling_nodes(graph)),
            # On CamVid it did harm: a loss of 0.1 points of mIoU without, 0.2 with the slow one, 0.5 with the fast one.
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )


def _scaling_nodes(graph: openvino.Model) -> list[str]:
    """The names of the nodes that bring samples to the network's scale, which stay in float: those before the first weights.

    256 levels over all samples leave one or two of them for a volume whose values are a hundred times smaller than another's. A
    sample of 8 bits has no more, so the graphs of photographs are quantised from their input on.
    """
    if graph.input("images").get_element_type() == openvino.Type.u8:
        return []
    scaling, behind = list[str](), set[str]()
    for node in graph.get_ordered_ops():
        name, inputs = node.get_friendly_name(), {port.get_node().get_friendly_name() for port in node.input_values()}
        if node.get_type_name() in WEIGHTED_LAYERS or inputs & behind:
            behind.add(name)
        elif node.get_type_name() == "Parameter" or inputs & set(scaling):
            scaling.append(name)
    return scaling


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a library for the duration of a block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _rename_nodes_by_index(graph: openvino.Model) -> None:
    """Replace the process-wide counter in the names of nodes (`TopK_104316`) by their index in the graph."""
    for index, node in enumerate(graph.get_ordered_ops()):
        if re.match(r"[A-Z][A-Za-z]*_\d+(/|$)", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{index}")


@contextlib.contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Hide the warnings of NNCF's imports, and torch's that it found a CUDA folder but no GPU."""
    torch_log = logging.getLogger("torch.utils.cpp_extension")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch_log.setLevel(level)
