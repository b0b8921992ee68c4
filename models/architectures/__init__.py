"""The networks: one file an architecture, one line here. This folder needs torch; nothing in `service/` opens it.

An architecture is a function `build(classes, **options) -> nn.Module` from float images N x 3 x H x W (normalised,
H and W divisible by 32) to logits N x C x h x w at its own stride. `build` below wraps it into the house's contract.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from models.architectures import fcn, smp, torchvision
from models.architectures.network import Network
from models.errors import ConfigError
from models.spec import Architecture

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "fcn": fcn.build,
    **smp.ENTRIES,
    **torchvision.ENTRIES,
}


def build(name: str, classes: int, **options: Any) -> Network:
    """Build an architecture by name. Raises: ConfigError for a name or option that is not there, WeightsError."""
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"{name} has no option {option}; it has {', '.join(known)}.")
    made = ARCHITECTURES[name](classes, **options)
    # The defaults stand in the spec too, so that a bundle outlives a change of them; its weights come with it.
    return Network(made, Architecture(name=name, options={**known, **options, "weights": None}), classes)


def options_of(name: str) -> dict[str, Any]:
    """The options of an architecture with their defaults. Raises: ConfigError for a name that is not there."""
    if name not in ARCHITECTURES:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=3) or ["fcn"]
        raise ConfigError(
            f"The architecture {name!r} is not known; did you mean {', '.join(close)}? `maskserve models` lists them."
        )
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    return {option: parameter.default for option, parameter in parameters.items() if option != "classes"}
