"""The networks of segmentation-models-pytorch by their names there: `smp/Unet`, `smp/DeepLabV3Plus`, `smp/Segformer`, ...

With the same weights, their logits are those of smp's own networks before the last layer, which upsamples. There smp aligns
the corners of the maps, and `Network`, as everywhere here, their edges. Where the decoder's stride is above 1 (FPN, PSPNet,
DeepLabV3, DeepLabV3Plus, UPerNet, Segformer), a few labels next to boundaries thus differ from smp's. A network that was
trained in smp keeps all of its labels if it is exported to ONNX there and imported (`maskserve import onnx`).

Layers that cannot be exported are replaced by equal ones that can be (`onnx_compat.py`); encoder names and pretrained
weights work as in the other architectures.

Two architectures are missing: DPT, whose vision transformers accept one image size only, and PAN, which pools the map
of stride 16 three more times, so that nothing is left of a side below 128 pixels.
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import segmentation_models_pytorch as smp
from torch import nn

from models.architectures import encoders
from models.architectures.onnx_compat import make_exportable
from models.architectures.prune import prune_unused_layers
from models.errors import ConfigError, first_line


@dataclass(frozen=True)
class SmpArchitecture:
    """An architecture of smp and the strides that its encoder may have."""

    model_class: Callable[..., Any]
    output_strides: tuple[int, ...] = (32,)  # of the encoder; the first is smp's default


SMP_MODELS = {
    "Unet": SmpArchitecture(smp.Unet),
    "UnetPlusPlus": SmpArchitecture(smp.UnetPlusPlus),
    "MAnet": SmpArchitecture(smp.MAnet),
    "Linknet": SmpArchitecture(smp.Linknet),
    "FPN": SmpArchitecture(smp.FPN),
    "PSPNet": SmpArchitecture(smp.PSPNet, (8,)),
    "DeepLabV3": SmpArchitecture(smp.DeepLabV3, (8, 16)),
    "DeepLabV3Plus": SmpArchitecture(smp.DeepLabV3Plus, (16, 8)),
    "UPerNet": SmpArchitecture(smp.UPerNet),
    "Segformer": SmpArchitecture(smp.Segformer),
}


def build(
    name: str, classes: int, encoder: str = "resnet18", weights: str | None = None, output_stride: int | None = None
) -> nn.Module:
    """Build a network of segmentation-models-pytorch. Raises: ConfigError, WeightsError.

    encoder: of segmentation-models-pytorch or timm (`tu-NAME`)
    weights: none to start from scratch, or the encoder's pretrained ones by name, such as imagenet
    output_stride: of the encoder's deepest map, by dilation (DeepLabV3, DeepLabV3Plus); default: as in smp
    """
    architecture = SMP_MODELS[name]
    if encoder == "alexnet":
        raise ConfigError(f"The encoder alexnet works with architecture=fcn only; choose another one for smp/{name}.")
    stride = output_stride or architecture.output_strides[0]
    if stride not in architecture.output_strides:
        allowed = " or ".join(map(str, sorted(architecture.output_strides)))
        raise ConfigError(f"The output stride {stride} is not possible for smp/{name}; choose {allowed}.")
    parameters = inspect.signature(architecture.model_class.__init__).parameters
    depth = parameters["encoder_depth"].default
    deepest = min(stride, 2**depth)  # the stride of the encoder's last map
    backbone = encoders.build(encoder, deepest, weights, depth, dilated_as_in_smp=True)
    prune_unused_layers(backbone, encoder, deepest)
    options = {"encoder_output_stride": stride} if "encoder_output_stride" in parameters else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = architecture.model_class(encoder_name=encoder, encoder_weights=None, classes=classes, **options)
    except Exception as error:  # smp raises exceptions of many types
        raise ConfigError(f"smp/{name} on {encoder} cannot be built: {first_line(error)}") from error
    network.encoder = backbone
    make_exportable(network)
    network.segmentation_head[1] = nn.Identity()  # smp's upsampling to the size of the image
    network.normalisation = encoders.normalisation(encoder, weights)
    return cast(nn.Module, network)


BUILDERS = {f"smp/{name}": partial(build, name) for name in SMP_MODELS}
