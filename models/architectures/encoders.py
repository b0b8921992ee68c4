"""Encoders: image classification networks, used for the feature maps that they make on the way.

They come from segmentation-models-pytorch (which brings timm's too, under `tu-<name>`).
"""

import difflib

import segmentation_models_pytorch as smp
from torch import nn

from models.errors import ConfigError

# Index i of an encoder's list of feature maps has stride 2**i: the image itself, then 2, 4, 8, 16, 32.
DEPTH = 5


def build(name: str, weights: str | None, output_stride: int) -> nn.Module:
    """An encoder whose call returns six feature maps N x C_i x H/2^i x W/2^i, with C in `out_channels`.

    `output_stride` 16 or 8 keeps the last stage or two from shrinking further: their convolutions are dilated
    instead, so that each output still sees as wide a field (Yu and Koltun 2016, arXiv 1511.07122).
    Raises: ConfigError for a name, stride or weights that are not to be had.
    """
    if name not in smp.encoders.encoders and not name.startswith("tu-"):
        close = difflib.get_close_matches(name, smp.encoders.encoders) or ["resnet18", "resnet50"]
        raise ConfigError(
            f"The encoder {name!r} is not known to segmentation-models-pytorch; did you mean {', '.join(close)}?"
        )
    try:
        encoder: nn.Module = smp.encoders.get_encoder(
            name, in_channels=3, depth=DEPTH, weights=weights, output_stride=output_stride
        )
    except Exception as error:  # smp, timm and the hub each raise their own kinds
        wish = f"{name} at output stride {output_stride}" + (f" with {weights} weights" if weights else "")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = " Weights are fetched from the Hugging Face hub; without a network take weights=none." if weights else ""
        raise ConfigError(f"The encoder {wish} cannot be built: {reason}{hint}") from error
    return encoder
