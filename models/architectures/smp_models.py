"""The networks of segmentation-models-pytorch by their names there: `smp/Unet`, `smp/DeepLabV3Plus`, `smp/Segformer`, ...

They are taken as they are but for four things. Their logits are left at the decoder's own stride, for the house
upsamples with `align_corners=False` where smp does with True. Encoders are ours (`encoders.py`), so that dilation
keeps pretrained features. Pyramids of pooled cells (PSPNet, UPerNet) take a form that can be exported. And an encoder
is named, or its weights fetched, as for every other network here.
Two are left out: DPT, whose vision transformers take images of one size alone, and PAN, which pools the map of
stride 16 three times more and so leaves nothing of a side below 128 pixels.
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
    """What an architecture of smp allows."""

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
    """A network of segmentation-models-pytorch. Raises: ConfigError, WeightsError.

    encoder: of segmentation-models-pytorch or timm (`tu-NAME`)
    weights: none to start from scratch, or the encoder's pretrained ones by name, such as imagenet
    output_stride: of the encoder's deepest map, by dilation (DeepLabV3, DeepLabV3Plus); default: as in smp
    """
    kind = SMP_MODELS[name]
    if encoder == "alexnet":
        raise ConfigError(f"The encoder alexnet is for the architecture fcn alone; choose another one for smp/{name}.")
    stride = output_stride or kind.output_strides[0]
    if stride not in kind.output_strides:
        allowed = " or ".join(map(str, sorted(kind.output_strides)))
        raise ConfigError(f"smp/{name} cannot have the output stride {stride}; it has {allowed}.")
    known = inspect.signature(kind.model_class.__init__).parameters
    depth = known["encoder_depth"].default
    deepest = min(stride, 2**depth)  # the stride of the encoder's last map
    body = encoders.build(encoder, deepest, weights, depth)
    prune_unused_layers(body, encoder, deepest)
    options = {"encoder_output_stride": stride} if "encoder_output_stride" in known else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = kind.model_class(encoder_name=encoder, encoder_weights=None, classes=classes, **options)
    except Exception as error:  # smp raises what it meets
        raise ConfigError(f"smp/{name} on {encoder} cannot be built: {first_line(error)}") from error
    network.encoder = body
    make_exportable(network)
    network.segmentation_head[1] = nn.Identity()
    network.normalisation = encoders.normalisation(encoder, weights)
    return cast(nn.Module, network)


BUILDERS = {f"smp/{name}": partial(build, name) for name in SMP_MODELS}
