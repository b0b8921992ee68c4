"""int8: the frozen graph again, with 8-bit weights and activations, as OpenVINO IR.

NNCF runs training images through the float graph, notes the range of each activation, and puts quantisers of those
ranges into the graph. It is done on the OpenVINO model: NNCF's int8 for the ONNX graph is one that OpenVINO refuses to
compile.
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
from unittest import mock

import openvino

from models.engines.openvino_engine import get_core
from models.errors import BundleError, DataError, EngineError, MaskserveError, first_line
from models.imaging.decode import RGB
from models.spec import ClassInfo
from training.metrics.confusion import ConfusionMatrix

# Images. On CamVid (FCN-8s, ResNet-18, mIoU 61.47) 10, 30, 100 and 300 of them gave 61.38, 61.37, 61.34 and 61.37;
# each costs a float inference.
NUM_CALIBRATION_IMAGES = 64
MAX_MIOU_DROP = 0.5  # points of mIoU that int8 may lose on the validation split before it is left out
NUM_WORST_CLASSES = 3  # classes that `paid` names


def quantise(model: Path, canvases: Iterable[RGB], target: Path) -> None:
    """Write the int8 form of `model` (ONNX) as `target` (.xml) and a .bin beside it.

    `canvases`: what the network sees in service, RGB uint8 H x W x 3, H and W multiples of 64: training images through
    the Segmenter's geometry. They are drawn one at a time, once, and no more than `CALIBRATION` of them; spread them
    over the data set. The IR keeps the graph's inputs, outputs and dynamic sizes. The same images give the same bytes
    on the same machine.
    Raises: EngineError without NNCF, DataError without a canvas, BundleError for a graph that cannot be quantised.
    """
    drawn = itertools.islice(iter(canvases), NUM_CALIBRATION_IMAGES)
    first = next(drawn, None)
    if first is None:
        raise DataError("int8 needs images to calibrate on, and none came; give some of the training split.")
    with _suppress_warnings():
        nncf = _import_nncf()
        try:
            graph = _quantise_graph(nncf, model, itertools.chain([first], drawn))
        except (MemoryError, MaskserveError):  # of the images
            raise
        except Exception as error:  # NNCF's own kinds, OpenVINO's, and whatever they meet in the graph
            raise BundleError(f"{model} cannot be quantised to int8: NNCF says: {first_line(error)}") from error
    if not any(node.get_type_name() == "FakeQuantize" for node in graph.get_ops()):
        raise BundleError(f"{model} cannot be quantised to int8: it holds no convolution and no matrix product.")
    _rename_nodes_by_index(graph)
    openvino.save_model(graph, target, compress_to_fp16=False)  # else scales and biases would be rounded to 11 bits


def miou_drop_message(
    before: ConfusionMatrix, after: ConfusionMatrix, classes: list[ClassInfo], limit: float = MAX_MIOU_DROP
) -> str | None:
    """What an export says where int8 loses more than `limit` points of mIoU: by how much, and which classes paid.

    `before`, `after`: of float and of int8 on the same images. None where the limit is kept.
    """
    lost = 100 * (before.miou() - after.miou())
    if not lost > limit:
        return None
    # A class that only int8's mistakes bring into the mean has paid the mean.
    losses = [
        (((before.miou() if was != was else was) - now), entry.name, was, now)
        for entry, was, now in zip(classes, before.iou().tolist(), after.iou().tolist(), strict=True)
        if now == now
    ]
    worst = [entry for entry in sorted(losses, key=lambda entry: -entry[0]) if entry[0] > 0][:NUM_WORST_CLASSES]
    told = ", ".join(f"{name} {_format_iou(was)} -> {_format_iou(now)}" for _, name, was, now in worst)
    return (
        f"int8 loses {lost:.2f} points of mIoU ({100 * before.miou():.2f} -> {100 * after.miou():.2f}); {limit:g} are allowed, "
        f"so it is left out. IoU of the classes that paid most: {told}."
    )


def _format_iou(iou: float) -> str:
    return "absent" if iou != iou else f"{iou:.3f}"


def _import_nncf() -> Any:
    """NNCF, imported late: it takes five seconds and is in the extra [train] alone. Raises: EngineError."""
    try:
        nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise EngineError(
            f"int8 needs NNCF, which cannot be imported ({first_line(error)}); install maskserve's extra [train]."
        ) from error
    nncf.set_log_level(logging.CRITICAL)  # its errors are raised as well
    return nncf


def _quantise_graph(nncf: Any, model: Path, canvases: Iterator[RGB]) -> openvino.Model:
    """The graph with quantisers. NNCF goes through the images once, so they may come from a generator."""
    track: Any = importlib.import_module("nncf.common.logging.track_progress").track
    no_bar = mock.patch.object(track, "__init__", functools.partialmethod(track.__init__, disable=True))
    # NNCF opens a Core for each model that it runs; two at once can end the process, see `core`.
    one_core = mock.patch.object(openvino, "Core", mock.Mock(return_value=get_core()))
    with no_bar, one_core:
        return nncf.quantize(
            # Not `read_model`: this one folds constants, so that NNCF sees weights and biases where they are computed.
            openvino.convert_model(model),
            nncf.Dataset(canvases, lambda canvas: {"images": canvas[None]}),
            # Symmetric: nothing is lost by it after a ReLU. Asymmetric activations gave the same mIoU and speed.
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=NUM_CALIBRATION_IMAGES,
            # On CamVid it did harm: a loss of 0.1 points of mIoU without, 0.2 with the slow one, 0.5 with the fast one.
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )


def _rename_nodes_by_index(graph: openvino.Model) -> None:
    """Give nodes with a number of the process's counter in their name (`TopK_104316`) their place in the graph instead."""
    for place, node in enumerate(graph.get_ordered_ops()):
        if re.match(r"[A-Z][A-Za-z]*_\d+(/|$)", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{place}")


@contextlib.contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Without the warnings of NNCF's own imports, and torch's word that it found a CUDA folder and no GPU."""
    torch_log = logging.getLogger("torch.utils.cpp_extension")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch_log.setLevel(level)
