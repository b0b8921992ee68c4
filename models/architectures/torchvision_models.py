"""The segmentation networks of torchvision by their names there: `torchvision/fcn_resnet50`, ...

torchvision's FCN and `fcn.py` are the same network: with `encoder=resnet50 output_stride=8 skips=32s` and the names of
the weights changed by `FCN_KEY_PREFIXES`, `fcn` gives the same logits up to rounding.
"""

from functools import partial
from typing import Any

import torchvision.models as library
from torch import Tensor, nn

from models.architectures import encoders
from models.architectures.weight_files import fetch_weights, read_state_dict, unknown_weights_error
from models.errors import ConfigError

# The backbone of each network, whose ImageNet weights may be used.
MODEL_BACKBONES = {
    "fcn_resnet50": "resnet50",
    "fcn_resnet101": "resnet101",
    "deeplabv3_resnet50": "resnet50",
    "deeplabv3_resnet101": "resnet101",
    "deeplabv3_mobilenet_v3_large": "mobilenet_v3_large",
    "lraspp_mobilenet_v3_large": "mobilenet_v3_large",
}

PRETRAINED_NAMES = ["imagenet"]  # of every backbone

# Prefix of a key in torchvision's FCN -> prefix in `fcn.FCN`.
FCN_KEY_PREFIXES = {
    "backbone.": "encoder.",
    "classifier.0.": "head.0.",
    "classifier.1.": "head.1.",
    "classifier.4.": "score.",
    "aux_classifier.0.": "aux_head.0.",
    "aux_classifier.1.": "aux_head.1.",
    "aux_classifier.4.": "aux_score.",
}


class TorchvisionNet(nn.Module):
    """Normalised images float N x 3 x H x W -> logits N x C x H/8 x W/8 (DeepLabV3-MobileNetV3: 16).

    These are torchvision's logits before it upsamples them to the size of the image.
    """

    backbone: Any
    classifier: Any

    def __init__(self, network: Any) -> None:
        """`network` is torchvision's. Its parts keep their names, so that its weights can be loaded unchanged."""
        super().__init__()
        self.backbone = network.backbone
        self.classifier = network.classifier
        self.aux_classifier = getattr(network, "aux_classifier", None)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self._classify(self.backbone(images))

    def training_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits, followed by those of the auxiliary head if there is one."""
        maps = self.backbone(images)
        return (self._classify(maps), *([self.aux_classifier(maps["aux"])] if self.aux_classifier else []))

    def _classify(self, maps: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.classifier(maps.get("out", maps))  # LR-ASPP reads two maps, the others one
        return logits


def build(name: str, classes: int, weights: str | None = None, aux: bool = False) -> nn.Module:
    """Build a segmentation network of torchvision. Raises: ConfigError, WeightsError.

    weights: none to start from scratch, or imagenet for the backbone
    aux: train a second head on the map of stride 16 as well (not lraspp)
    """
    if aux and name.startswith("lraspp"):
        raise ConfigError(f"torchvision/{name} has no auxiliary head; set aux=false.")
    options = {} if name.startswith("lraspp") else {"aux_loss": aux}
    network = library.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **options)
    if weights:
        if weights not in PRETRAINED_NAMES:
            raise unknown_weights_error(weights, name, PRETRAINED_NAMES)
        backbone = MODEL_BACKBONES[name]
        file = fetch_weights(
            library.get_model_weights(backbone)["IMAGENET1K_V1"].url, f"imagenet weights of {backbone}"
        )
        encoders.load_weights(network.backbone, backbone, read_state_dict(file), file)
    return TorchvisionNet(network)


BUILDERS = {f"torchvision/{name}": partial(build, name) for name in MODEL_BACKBONES}
