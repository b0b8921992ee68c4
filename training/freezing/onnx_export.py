"""Exports a network to ONNX."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from safetensors.torch import save_file

from models.bundle import MODEL_FILE, WEIGHTS_FILE
from models.errors import BundleError, first_line
from models.spec import AXES
from training.freezing.onnx_import.graph_walk import strip_metadata

if TYPE_CHECKING:  # it imports torchvision and timm, which the import of an ONNX graph does not need
    from models.architectures.base import Network

# Of the example that is traced, by axes. They differ, so that no axis is taken for another.
EXAMPLE_LENGTHS = {"HW": (128, 192), "T": (192,), "DHW": (64, 128, 96)}


def export_network(network: "Network", folder: Path) -> None:
    """Write the network into a bundle's folder: one ONNX file for any N and lengths of the axes, and its weights by name.

    Raises: BundleError for a network that torch's exporter cannot write so.
    """
    export_onnx(network, folder / MODEL_FILE)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS_FILE)


def export_onnx(network: "Network", target: Path) -> None:
    """Write the network as one ONNX file for any N, H, W; for signals any N and T, for volumes any N, D, H, W.

    An example batch of 1 would fix the batch size, and sizes below 16 specialise the upsampling.
    Raises: BundleError for a network that torch's exporter cannot write so.
    """
    any_size = torch.export.Dim.DYNAMIC
    channels, dtype = len(network.input.channels), getattr(torch, network.input.dtype)
    lengths = EXAMPLE_LENGTHS[network.input.axes]
    example: tuple[torch.Tensor, ...] = (torch.zeros(2, *lengths, channels, dtype=dtype),)
    names, dynamic = ["images"], {"images": dict.fromkeys(range(1 + len(lengths)), any_size)}
    if network.input.scaling.kind == "zscore":
        names += ["shift", "scale"]
        example += (torch.zeros(2, channels), torch.ones(2, channels))
        dynamic |= {"shift": {0: any_size}, "scale": {0: any_size}}
    for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes"):  # they print what the error says as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # The exporter warns of its own deprecated calls, and prints whole graphs when it fails.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                example,
                target,
                dynamo=True,
                input_names=names,
                output_names=["labels", "logits"],
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter's own types, and any that the network raises
            reason = first_line(error.__cause__ or error)
            raise BundleError(
                f"{network.architecture.name} cannot be exported for {AXES[network.input.axes]} of any size: "
                f"torch.onnx.export says: {reason} Train another encoder or architecture."
            ) from error
    model = onnx.load(target)
    strip_metadata(model.graph)
    onnx.save(model, target)
    onnx.checker.check_model(target)
