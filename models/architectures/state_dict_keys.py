"""What a tensor is called: one network's weights go by many names, and here they are brought to the same one.

Each library wraps its networks in its own prefixes: a bundle says `body.encoder.layer1.0.conv1.weight`, a checkpoint of
a run puts `network.` before that, torchvision's FCN says `backbone.` for `encoder.`, DataParallel puts `module.` in
front, timm's feature extractors say `model.stages_0` where its classifiers say `stages.0`.
"""

import re

from torch import Tensor

WRAPPER_PREFIXES = ("network.", "body.", "module.", "model.", "model_ema.")
ENCODER_PREFIXES = ("encoder.", "backbone.")
# torchvision's published DenseNets are older than its names: `denselayer1.norm.1.weight` for `denselayer1.norm1.weight`.
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


def canonical_key(name: str) -> str:
    """A weight's name in its network, without what a library or a script has put around that."""
    while name.startswith(WRAPPER_PREFIXES):
        name = name.partition(".")[2]
    return _OLD_DENSENET_KEY.sub(r"\1\2.", name)


def encoder_key(name: str) -> str:
    """A weight's name in its encoder: `conv1.weight` of `body.encoder.conv1.weight`, or of a classifier's `conv1.weight`."""
    name = canonical_key(name)
    while name.startswith(ENCODER_PREFIXES):
        name = canonical_key(name.partition(".")[2])
    return name


def encoder_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in the encoder: those of a network's encoder alone, or all of a classifier's."""
    inside = {name: value for name, value in state.items() if canonical_key(name).startswith(ENCODER_PREFIXES)}
    return {encoder_key(name): value for name, value in (inside or state).items()}


def timm_key(name: str) -> str:
    """A name that is the same in timm's classifier and in the feature extractor that timm makes of it."""
    return name.replace(".", "_")
