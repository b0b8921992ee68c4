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
    """Build an architecture by name. Raises ConfigError for a name or option that is not there."""
    if name not in ARCHITECTURES:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=3) or ["fcn"]
        raise ConfigError(
            f"The architecture {name!r} is not known; did you mean {', '.join(close)}? `maskserve models` lists them."
        )
    make = ARCHITECTURES[name]
    try:
        inspect.signature(make).bind(classes, **options)
    except TypeError as error:
        known = ", ".join(list(inspect.signature(make).parameters)[1:])
        raise ConfigError(f"The architecture {name!r} cannot be built: {error}; its options are {known}.") from error
    return Network(make(classes, **options), Architecture(name=name, options=options), classes)
