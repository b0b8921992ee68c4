"""The segmentation networks: one file per architecture, one line per architecture here.

An architecture is a function `build(classes, **options) -> nn.Module`. The module maps normalised images
float N x 3 x H x W (H and W divisible by 32) to logits float N x C x h x w at its own stride. `build` below wraps it
into a `Network` (`base.py`). For signals (T) and volumes (D, H, W) it lifts the finished network (`lift.py`), unless the
function takes `dims`, the number of axes, as that of `unet` does. This package needs torch; `service` does not import it.
"""

import inspect
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from models.architectures import encoders, fcn, smp_models, torchvision_models, unet
from models.architectures.base import Axes, Network
from models.architectures.ensemble import ENSEMBLE, combine
from models.architectures.layers import replace_strided_pointwise
from models.architectures.lift import lift
from models.errors import ConfigError, closest_names, quoted
from models.setting_errors import plain_reason
from models.spec import Architecture

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "fcn": fcn.build,
    "unet": unet.build,
    **smp_models.BUILDERS,
    **torchvision_models.BUILDERS,
}


def build(name: str, classes: int, axes: Axes = "HW", **options: Any) -> Network:
    """Build an architecture by name, for samples of these axes.

    Pretrained weights of images are carried over to signals and volumes.
    Raises: ConfigError for an unknown name or option, an invalid value, or an architecture that is only for images; WeightsError
    for unavailable weights.
    """
    if name == ENSEMBLE:
        members = (Architecture.model_validate(member) for member in options["members"])
        return combine([build(member.name, classes, axes, **member.options) for member in members])
    defaults = default_options(name)
    _check_options(name, options)
    if "dims" in inspect.signature(ARCHITECTURES[name]).parameters:
        body = ARCHITECTURES[name](classes, dims=len(axes), **options)
    else:
        body = ARCHITECTURES[name](classes, **options)
        body = body if axes == "HW" else lift(body, len(axes))
    replace_strided_pointwise(body)
    # The spec also records the defaults, so that a bundle can be rebuilt after they change. It records no weights: a
    # bundle brings its own.
    return Network(body, Architecture(name=name, options={**defaults, **options, "weights": None}), classes, axes)


def default_options(name: str) -> dict[str, Any]:
    """The options of an architecture and their defaults. Raises: ConfigError for an unknown name."""
    return {option: parameter.default for option, parameter in _option_parameters(name).items()}


def pretrained_names(name: str, encoder: str) -> list[str]:
    """The names of the pretrained weights of an architecture; `encoder` counts only where it is an option.

    Raises: ConfigError for an unknown architecture.
    """
    if "encoder" in default_options(name):
        return encoders.pretrained_names(encoder)
    return torchvision_models.PRETRAINED_NAMES if name in torchvision_models.BUILDERS else []


def _option_parameters(name: str) -> dict[str, inspect.Parameter]:
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"The architecture {quoted(name)} is not known; {_suggest_names(name)} `maskserve models` lists them."
        )
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    return {option: parameter for option, parameter in parameters.items() if option not in ("classes", "dims")}


def _suggest_names(name: str) -> str:
    if name in encoders.encoder_names():
        return f"it is an encoder: architecture=fcn encoder={name}."
    if closest := closest_names(name, ARCHITECTURES, count=3):
        return f"did you mean {closest}?"
    # Without library and case: "fpn" means smp/FPN. Of equal names the first one wins.
    short_names = {known.rpartition("/")[2].lower(): known for known in reversed(ARCHITECTURES)}
    closest = closest_names(name.rpartition("/")[2].lower(), short_names, count=3) or "fcn"
    return f"did you mean {', '.join(short_names[short] for short in closest.split(', '))}?"


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Raises: ConfigError for an option that the architecture does not have, or a value of another type."""
    parameters = _option_parameters(name)
    for option, value in options.items():
        if option not in parameters:
            closest = closest_names(option, parameters)
            hint = f"did you mean {closest}?" if closest else f"its options are {', '.join(parameters)}."
            raise ConfigError(f"{name} has no option {quoted(option)}; {hint}")
        try:
            TypeAdapter(parameters[option].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"The option {option}={value} is invalid: {plain_reason(error.errors()[0])}.") from error
