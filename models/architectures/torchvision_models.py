"""The segmentation networks of torchvision by their names there: `torchvision/fcn_resnet50`, ... And a proof.

torchvision's FCN is the house's: `fcn` with `encoder=resnet50 output_stride=8 skips=32s` and `KEYS` for the names of its
weights gives the same logits, to rounding.
"""

from functools import partial
from typing import Any

import torchvision.models as library
from torch import Tensor, nn

from models.architectures import encoders
from models.architectures.weight_files import fetch_weights, read_state_dict, unknown_weights_error
from models.errors import ConfigError

# The backbone of each, from which ImageNet weights may come.
MODEL_BACKBONES = {
    "fcn_resnet50": "resnet50",
    "fcn_resnet101": "resnet101",
    "deeplabv3_resnet50": "resnet50",
    "deeplabv3_resnet101": "resnet101",
    "deeplabv3_mobilenet_v3_large": "mobilenet_v3_large",
    "lraspp_mobilenet_v3_large": "mobilenet_v3_large",
}

PRETRAINED_NAMES = ["imagenet"]  # the weights that there are of each, by name

# The beginning of a name in torchvision's FCN -> in ours.
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

    They are what torchvision has before it enlarges them to the image's size.
    """

    backbone: Any
    classifier: Any

    def __init__(self, network: Any) -> None:
        """`network`: torchvision's; its parts are held by their names there, so its weights fit as they are."""
        super().__init__()
        self.backbone = network.backbone
        self.classifier = network.classifier
        self.aux_classifier = getattr(network, "aux_classifier", None)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self._logits(self.backbone(images))

    def training_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits, and with an auxiliary head its own."""
        maps = self.backbone(images)
        return (self._logits(maps), *([self.aux_classifier(maps["aux"])] if self.aux_classifier else []))

    def _logits(self, maps: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self.classifier(maps.get("out", maps))  # LR-ASPP reads two maps, the others one
        return scores


def build(name: str, classes: int, weights: str | None = None, aux: bool = False) -> nn.Module:
    """A segmentation network of torchvision. Raises: ConfigError, WeightsError.

    weights: none to start from scratch, or imagenet for the backbone
    aux: train a second head on the map of stride 16 as well (not lraspp)
    """
    if aux and name.startswith("lraspp"):
        raise ConfigError(f"torchvision/{name} has no auxiliary head; leave aux at false.")
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
