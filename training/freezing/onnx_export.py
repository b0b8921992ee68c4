"""From a live network to the files of a bundle: what `training/export.py` and `training/import_model.py` stand on."""

import contextlib
import datetime
import io
import logging
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from safetensors.torch import save_file

from models.bundle import MODEL_FILE, WEIGHTS_FILE, open_bundle
from models.errors import BundleError, ConfigError, first_line
from models.spec import InputRule
from training.freezing.onnx_import.graph_reader import strip_metadata

if TYPE_CHECKING:  # it brings torchvision and timm, which an ONNX graph's way into a bundle does without
    from models.architectures.base import Network


def export_network(network: "Network", folder: Path) -> None:
    """Write the network into a bundle's folder: as one ONNX file with any N, H, W, and its weights by name.

    Raises: BundleError for a network that torch's exporter cannot write so.
    """
    export_onnx(network, folder / MODEL_FILE)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS_FILE)


def export_onnx(network: "Network", target: Path) -> None:
    """Write the network as one ONNX file with any N, H, W.

    An example batch of 1 would pin the batch, and sizes below 16 specialise the upsampling.
    Raises: BundleError for a network that torch's exporter cannot write so.
    """
    any_size = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 128, 192, 3, dtype=torch.uint8)
    for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes"):  # they print what the error says already
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # The exporter warns of its own deprecated calls, and prints whole graphs where it fails.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (example,),
                target,
                dynamo=True,
                input_names=["images"],
                output_names=["labels", "logits"],
                dynamic_shapes={"images": {0: any_size, 1: any_size, 2: any_size}},
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter's own kinds, and whatever it met in the network
            reason = first_line(error.__cause__ or error)
            raise BundleError(
                f"{network.architecture.name} cannot be frozen at any size of image: torch.onnx.export says: {reason} "
                "Train another encoder or architecture."
            ) from error
    model = onnx.load(target)
    strip_metadata(model.graph)
    onnx.save(model, target)
    onnx.checker.check_model(target)


def parse_input_rule(wish: str | None, usual: InputRule) -> InputRule:
    """The input rule that was asked for, or else the usual one of this network. Raises: ConfigError."""
    if wish is None:
        return usual
    if wish == "native":
        return InputRule(rule="native")
    name, _, side = wish.partition(":")
    if name != "fit" or (side and not (side.isdigit() and int(side) >= 16)) or not (side or usual.side):
        trained = ", fit (trained so)" if usual.side else ""
        raise ConfigError(
            f"The input rule {wish!r} is not possible; choose native{trained}, or fit:SIDE with 16 pixels or more."
        )
    return InputRule(rule="fit", side=int(side) if side else usual.side)


def creation_info(*packages: str) -> dict[str, Any]:
    """When a bundle was made, and by which versions: the beginning of its provenance."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def describe_bundle(target: Path) -> str:
    """A written bundle in some words: where it is, its size, its hash."""
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return f"{target}: {size / 1e6:.1f} MB, {open_bundle(target).hash[:12]}"
