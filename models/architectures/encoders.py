"""Encoders: image classification networks, used for the feature maps that they make on the way.

Those of segmentation-models-pytorch by their names there, timm's as `tu-<name>`, and FCN-AlexNet's as `alexnet`.
"""

import difflib
import warnings
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
from torch import Tensor, nn

from models.architectures.alexnet import AlexNetEncoder, convert_classifier_weights
from models.architectures.base import IMAGENET_MEAN, IMAGENET_STD
from models.architectures.dilation import replace_strides_with_dilation
from models.architectures.state_dict_keys import encoder_key, encoder_state_dict, timm_key
from models.architectures.weight_files import fetch_from_hub, fetch_weights, read_state_dict, unknown_weights_error
from models.errors import ConfigError, WeightsError, first_line

# Index i of an encoder's list of feature maps has stride 2**i: the image itself, then 2, 4, 8, 16, 32.
DEPTH = 5
# Where smp's pretrained weights expect other than ImageNet's mean and deviation (0..1); smp itself asks the hub for it.
NORMALISATIONS = {
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "xception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
}
TIMM_PREFIX = "tu-"  # how segmentation-models-pytorch marks timm's


def encoder_names() -> list[str]:
    """Every encoder's name; not each of timm's has maps at the strides that a segmentation network needs."""
    # smp's own `timm-` names are deprecated there, in favour of `tu-`.
    own = [name for name in smp.encoders.encoders if not name.startswith("timm-")]
    return ["alexnet", *own, *(TIMM_PREFIX + name for name in timm.list_models())]


def _check_name(name: str) -> None:
    """Raises: ConfigError with the nearest names, where there is no such encoder."""
    # timm's may name their weights too: tu-resnet18.a1_in1k
    plain = name.partition(".")[0] if name.startswith(TIMM_PREFIX) else name
    if plain not in encoder_names():
        close = difflib.get_close_matches(name, encoder_names(), n=3) or ["resnet18", "resnet50"]
        raise ConfigError(
            f"The encoder {name!r} is not known to segmentation-models-pytorch or timm; did you mean {', '.join(close)}? "
            "`maskserve models --encoders` lists them."
        )


def build(name: str, output_stride: int = 32, weights: str | None = None, depth: int = DEPTH) -> nn.Module:
    """An encoder whose call returns `depth` + 1 feature maps N x C_i x H/2^i x W/2^i, with C in `out_channels`.

    `output_stride` 16 or 8 keeps the last stage or two from shrinking further (`dilation.py`). `weights` names
    pretrained ones, such as imagenet; None starts from scratch.
    Raises: ConfigError for a name or stride that is not to be had, WeightsError for weights.
    """
    _check_name(name)
    try:
        encoder = _create_encoder(name, depth)
    except Exception as error:  # smp and timm each raise their own kinds
        raise ConfigError(f"The encoder {name} cannot be built: {first_line(error)}") from error
    try:
        if output_stride < 2**depth:
            replace_strides_with_dilation(encoder, output_stride)
    except Exception as error:  # whatever a network raises that is no stack of convolutions and pools
        raise ConfigError(
            f"The encoder {name} cannot be dilated to output stride {output_stride} ({first_line(error)}); "
            f"set output_stride={2**depth} or another encoder."
        ) from error
    if weights:
        file = fetch_pretrained(name, weights)
        load_weights(encoder, name, read_state_dict(file), file)
    return encoder


def normalisation(name: str, weights: str | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel (red, green, blue, in units of 0..255) that pretrained weights expect."""
    if weights == "advprop":  # adversarially trained EfficientNets (arXiv 1911.09665)
        return _scale_to_255((0.5, 0.5, 0.5)), _scale_to_255((0.5, 0.5, 0.5))
    if name.startswith(TIMM_PREFIX):
        config = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
        return (_scale_to_255(config.mean), _scale_to_255(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
    for family, (mean, std) in NORMALISATIONS.items():
        if name.startswith(family):
            return _scale_to_255(mean), _scale_to_255(std)
    return IMAGENET_MEAN, IMAGENET_STD


def pretrained_names(name: str) -> list[str]:
    """The pretrained weights that there are of an encoder."""
    return ["imagenet"] if name == "alexnet" or name.startswith(TIMM_PREFIX) else list(_pretrained_settings(name))


def fetch_pretrained(name: str, weights: str) -> Path:
    """The file of an encoder's pretrained weights, fetched where it is not here yet. Raises: WeightsError."""
    if weights not in pretrained_names(name):
        raise unknown_weights_error(weights, name, pretrained_names(name))
    what = f"{weights} weights of {name}"
    if name == "alexnet":
        from torchvision.models import AlexNet_Weights

        return fetch_weights(AlexNet_Weights.IMAGENET1K_V1.url, what)
    if name.startswith(TIMM_PREFIX):
        config = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
        if config is None or not config.hf_hub_id:
            raise WeightsError(f"timm has no pretrained weights of {name}; start with weights=none or weights=FILE.")
        return fetch_from_hub(config.hf_hub_id, config.hf_hub_filename or "model.safetensors", "main", what)
    entry = _pretrained_settings(name)[weights]
    return fetch_from_hub(entry["repo_id"], "model.safetensors", entry["revision"], what)


def load_weights(encoder: nn.Module, name: str, content: dict[str, Tensor], file: Path) -> None:
    """Load weights, the `content` of `file`, into an encoder in place; what is no part of it is left out.

    The file may hold a classifier or a network with such an encoder.
    Raises: WeightsError where it holds another one.
    """
    state = match_keys(encoder, content)
    wanted = {key: value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise WeightsError(
            f"{file} holds no weights of {name}: {len(missing)} of its {len(wanted)} tensors are missing, such as {missing[0]}."
        )
    for key, value in state.items():
        if key in wanted and value.shape != wanted[key].shape:
            raise WeightsError(
                f"{file} holds weights of another network than {name}: its {key} is {tuple(value.shape)}, "
                f"wanted is {tuple(wanted[key].shape)}."
            )
    nn.Module.load_state_dict(encoder, state, strict=False)  # smp's own takes away keys that it expects to be there


def match_keys(encoder: nn.Module, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors by the encoder's names for them, without those that it has no place for."""
    state = encoder_state_dict(content)
    if isinstance(encoder, AlexNetEncoder) and "classifier.1.weight" in state:
        return convert_classifier_weights(state)
    known = {timm_key(key): value for key, value in state.items()}
    found = {}
    for key in encoder.state_dict():
        inner = timm_key(encoder_key(key))
        for name in (inner, f"features_{inner}"):  # torchvision cuts a MobileNetV3's `features` out of it
            if name in known:
                found[key] = known[name]
                break
    return found


def _create_encoder(name: str, depth: int) -> nn.Module:
    if name == "alexnet":
        return AlexNetEncoder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Swin's windows fit any image; its default is one of 224 x 224 alone.
        options = {"strict_img_size": False} if "swin" in name else {}
        encoder: nn.Module = smp.encoders.get_encoder(name, depth=depth, weights=None, **options)
    return encoder


def _pretrained_settings(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = smp.encoders.encoders[name]["pretrained_settings"]
    return settings


def _scale_to_255(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(255 * value for value in values)
