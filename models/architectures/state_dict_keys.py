"""State-dict keys of several libraries, reduced to one name per tensor.

Every library adds its own prefixes to the same tensor. `conv1.weight` of an encoder is `body.encoder.conv1.weight` in a
bundle, has `network.` in front of that in a checkpoint of a run, `backbone.` in torchvision's FCN, and `module.` after
DataParallel. timm's feature extractors say `model.stages_0` where its classifiers say `stages.0`.
"""

import re

from torch import Tensor

WRAPPER_PREFIXES = ("network.", "body.", "module.", "model.", "model_ema.")
ENCODER_PREFIXES = ("encoder.", "backbone.")
# torchvision's published DenseNets have older names than its code: `denselayer1.norm.1.weight` for
# `denselayer1.norm1.weight`.
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


def canonical_key(name: str) -> str:
    """A tensor's name in its network, without the prefixes of libraries and training scripts."""
    while name.startswith(WRAPPER_PREFIXES):
        name = name.partition(".")[2]
    return _OLD_DENSENET_KEY.sub(r"\1\2.", name)


def encoder_key(name: str) -> str:
    """A tensor's name in its encoder: `conv1.weight` for `body.encoder.conv1.weight` and for a classifier's `conv1.weight`."""
    name = canonical_key(name)
    while name.startswith(ENCODER_PREFIXES):
        name = canonical_key(name.partition(".")[2])
    return name


def encoder_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in the encoder: of a segmentation network its encoder's, of a classifier all."""
    inside = {name: value for name, value in state.items() if canonical_key(name).startswith(ENCODER_PREFIXES)}
    return {encoder_key(name): value for name, value in (inside or state).items()}


def timm_key(name: str) -> str:
    """A key that is the same in timm's classifiers and in the feature extractors that timm makes of them."""
    return name.replace(".", "_")
