"""The networks: one file an architecture, one line here. This folder needs torch; nothing in `service/` opens it.

An architecture is a function `build(classes, **options) -> nn.Module` from float images N x 3 x H x W (normalised,
H and W divisible by 32) to logits N x C x h x w at its own stride. `build` below wraps it into the house's contract.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from models.architectures import encoders, fcn, smp_models, torchvision_models
from models.architectures.base import Network
from models.errors import ConfigError
from models.spec import Architecture

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "fcn": fcn.build,
    **smp_models.BUILDERS,
    **torchvision_models.BUILDERS,
}


def build(name: str, classes: int, **options: Any) -> Network:
    """Build an architecture by name. Raises: ConfigError for a name or option that is not there, WeightsError."""
    _check_options(name, options)
    made = ARCHITECTURES[name](classes, **options)
    # The defaults stand in the spec too, so that a bundle outlives a change of them; its weights come with it.
    return Network(
        made, Architecture(name=name, options={**default_options(name), **options, "weights": None}), classes
    )


def default_options(name: str) -> dict[str, Any]:
    """The options of an architecture with their defaults. Raises: ConfigError for a name that is not there."""
    return {option: parameter.default for option, parameter in _option_parameters(name).items()}


def pretrained_names(name: str, encoder: str) -> list[str]:
    """The names of the pretrained weights of an architecture, with `encoder` where it has one to choose.

    Raises: ConfigError for an architecture that is not there.
    """
    return (
        encoders.pretrained_names(encoder)
        if "encoder" in default_options(name)
        else torchvision_models.PRETRAINED_NAMES
    )


def _option_parameters(name: str) -> dict[str, inspect.Parameter]:
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"The architecture {name!r} is not known; {_suggest_names(name)} `maskserve models` lists them."
        )
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    return {option: parameter for option, parameter in parameters.items() if option != "classes"}


def _suggest_names(name: str) -> str:
    if name in encoders.encoder_names():
        return f"it is an encoder: architecture=fcn encoder={name}."
    plain = {known.rpartition("/")[2].lower(): known for known in reversed(ARCHITECTURES)}
    close = difflib.get_close_matches(name, ARCHITECTURES, n=3)
    close += [plain[word] for word in difflib.get_close_matches(name.rpartition("/")[2].lower(), plain, n=3)]
    return f"did you mean {', '.join(list(dict.fromkeys(close))[:3] or ['fcn'])}?"


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Raises: ConfigError for an option that is not there, or a value of another type."""
    parameters = _option_parameters(name)
    for option, value in options.items():
        if option not in parameters:
            close = difflib.get_close_matches(option, parameters, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(parameters)}."
            raise ConfigError(f"{name} has no option {option!r}; {hint}")
        try:
            TypeAdapter(parameters[option].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"The option {option}={value!r} is not possible: {error.errors()[0]['msg']}.") from error
