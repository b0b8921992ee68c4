"""Encoders: image classification networks without their classifier, used for their intermediate feature maps.

They come from segmentation-models-pytorch under their names there, from timm as `tu-<name>`, and `alexnet.py` adds
`alexnet`, the encoder of FCN-AlexNet.
"""

import warnings
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
from torch import Tensor, nn

from models.architectures.alexnet import AlexNetEncoder, convert_classifier_weights
from models.architectures.base import IMAGENET_MEAN, IMAGENET_STD
from models.architectures.dilation import replace_strides_with_dilation
from models.architectures.state_dict_keys import encoder_key, encoder_state_dict, timm_key
from models.architectures.weight_files import fetch_from_hub, fetch_weights, read_state_dict, unknown_weights_error
from models.errors import ConfigError, WeightsError, closest_names, first_line, quoted

# Feature map i of an encoder has stride 2**i, from the image itself (1) to 32.
DEPTH = 5
# Mean and deviation (in units of 0..1) that smp's pretrained weights of these families expect instead of ImageNet's. smp
# itself downloads them from the hub.
NORMALISATIONS = {
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "xception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
}
TIMM_PREFIX = "tu-"  # marks timm's encoders in segmentation-models-pytorch


def encoder_names() -> list[str]:
    """The names of all encoders. Some of timm's cannot be built here: they lack maps at strides 2, 4, ..., 32."""
    # smp has deprecated its `timm-` names in favor of `tu-`.
    own = [name for name in smp.encoders.encoders if not name.startswith("timm-")]
    return ["alexnet", *own, *(TIMM_PREFIX + name for name in timm.list_models())]


def _check_name(name: str) -> None:
    """Raises: ConfigError with the closest names for an unknown encoder."""
    # A name of timm may include its weights: tu-resnet18.a1_in1k
    plain = name.partition(".")[0] if name.startswith(TIMM_PREFIX) else name
    if plain not in encoder_names():
        closest = closest_names(name, encoder_names(), count=3) or "resnet18, resnet50"
        raise ConfigError(
            f"The encoder {quoted(name)} is not known to segmentation-models-pytorch or timm; did you mean {closest}? "
            "`maskserve models --encoders` lists them."
        )


def build(
    name: str,
    output_stride: int = 32,
    weights: str | None = None,
    depth: int = DEPTH,
    dilated_as_in_smp: bool = False,
) -> nn.Module:
    """Build an encoder: images float N x 3 x H x W -> `depth` + 1 feature maps float N x C_i x H/2^i x W/2^i.

    Its `out_channels` lists C_i. With `output_stride` 16 or 8 the last one or two stages are dilated instead of strided:
    by `dilation.py`, or with `dilated_as_in_smp` by segmentation-models-pytorch and timm themselves, for weights that were
    trained there. `weights` names pretrained weights, such as imagenet; None gives random ones.
    Raises: ConfigError for an unknown name or impossible stride, WeightsError for unavailable weights.
    """
    _check_name(name)
    dilated = output_stride < 2**depth
    try:
        encoder = _create_encoder(name, depth, output_stride if dilated and dilated_as_in_smp else 32)
    except Exception as error:  # smp and timm raise exceptions of many types
        raise ConfigError(f"The encoder {name} cannot be built: {first_line(error)}") from error
    try:
        if dilated and not dilated_as_in_smp:
            replace_strides_with_dilation(encoder, output_stride)
    except Exception as error:  # a network of other layers than convolutions and pools raises anything
        raise ConfigError(
            f"The encoder {name} cannot be dilated to output stride {output_stride} ({first_line(error)}); "
            f"set output_stride={2**depth} or choose another encoder."
        ) from error
    if weights:
        file = fetch_pretrained(name, weights)
        load_weights(encoder, name, read_state_dict(file), file)
    return encoder


def normalisation(name: str, weights: str | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel (RGB, in units of 0..255) that the pretrained weights expect."""
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
    """The names of an encoder's pretrained weights."""
    if name == "alexnet" or name.startswith(TIMM_PREFIX):
        return ["imagenet"]
    return list(smp.encoders.encoders[name]["pretrained_settings"])


def fetch_pretrained(name: str, weights: str) -> Path:
    """The file of an encoder's pretrained weights, downloaded if it is not cached. Raises: WeightsError."""
    if weights not in pretrained_names(name):
        raise unknown_weights_error(weights, name, pretrained_names(name))
    description = f"{weights} weights of {name}"
    if name == "alexnet":
        from torchvision.models import AlexNet_Weights

        return fetch_weights(AlexNet_Weights.IMAGENET1K_V1.url, description)
    if name.startswith(TIMM_PREFIX):
        config = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
        if config is None or not config.hf_hub_id:
            raise WeightsError(f"timm has no pretrained weights for {name}; set weights=none or weights=FILE.")
        return fetch_from_hub(config.hf_hub_id, config.hf_hub_filename or "model.safetensors", "main", description)
    entry = smp.encoders.encoders[name]["pretrained_settings"][weights]
    return fetch_from_hub(entry["repo_id"], "model.safetensors", entry["revision"], description)


def load_weights(encoder: nn.Module, name: str, content: dict[str, Tensor], file: Path) -> None:
    """Load the tensors `content` of `file` into an encoder in place; other tensors in it are ignored.

    The file may hold a classifier, or a segmentation network with this encoder.
    Raises: WeightsError if tensors are missing or have another shape.
    """
    state = match_keys(encoder, content)
    expected = {key: value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(state))
    if missing:
        raise WeightsError(
            f"{file} holds no weights of {name}: {len(missing)} of {len(expected)} tensors are missing, such as {missing[0]}."
        )
    for key, value in state.items():
        if key in expected and value.shape != expected[key].shape:
            raise WeightsError(
                f"{file} holds weights of another network than {name}: its {key} has shape {tuple(value.shape)}, "
                f"expected {tuple(expected[key].shape)}."
            )
    # Not the encoder's own method: smp's overrides delete a classifier's keys, which are absent here.
    nn.Module.load_state_dict(encoder, state, strict=False)


def match_keys(encoder: nn.Module, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a file's tensors to the encoder's names; drop those that the encoder does not have."""
    state = encoder_state_dict(content)
    if isinstance(encoder, AlexNetEncoder) and "classifier.1.weight" in state:
        return convert_classifier_weights(state)
    known = {timm_key(key): value for key, value in state.items()}
    matched = {}
    for key in encoder.state_dict():
        inner = timm_key(encoder_key(key))
        for name in (inner, f"features_{inner}"):  # torchvision's backbone is the `features` of its MobileNetV3
            if name in known:
                matched[key] = known[name]
                break
    return matched


def _create_encoder(name: str, depth: int, output_stride: int) -> nn.Module:
    if name == "alexnet":
        return AlexNetEncoder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Swin's windows fit images of any size, but by default timm accepts only 224 x 224.
        options = {"strict_img_size": False} if "swin" in name else {}
        encoder: nn.Module = smp.encoders.get_encoder(
            name, depth=depth, weights=None, output_stride=output_stride, **options
        )
    for layer in encoder.modules():
        # smp dilates 1x1 kernels too, which changes nothing, but the engines run them on a slower path.
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            layer.dilation = (1, 1)
    return encoder


def _scale_to_255(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(255 * value for value in values)
