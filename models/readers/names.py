"""Names of channels that a file does not name, and the types of samples that networks take."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import SAMPLE_DTYPES

GENERIC_NAME = re.compile(r"(band|channel|b)?[ _-]?\d+|gray", re.IGNORECASE)  # they say nothing but the order


def channel_names(found: list[str], count: int) -> tuple[str, ...]:
    """One name for each channel: those that were found, cleaned and unique; `gray` or `band1`, `band2` ... for others."""
    names: list[str] = []
    for index in range(count):
        name = re.sub(r"[\s,=]+", "_", found[index].strip())[:64] if index < len(found) else ""
        if not name.isprintable() or not name or name.lower() in (other.lower() for other in names):
            name = "gray" if count == 1 else f"band{index + 1}"
        names.append(name)
    return tuple(names)


def is_generic(name: str) -> bool:
    """Whether a name only counts, such as `band3`."""
    return bool(GENERIC_NAME.fullmatch(name))


def to_sample_dtype(values: NDArray[Any]) -> NDArray[Any]:
    """Samples in one of SAMPLE_DTYPES, in the machine's byte order: int8 as int16, bool as uint8, all others as float32."""
    kind = values.dtype.newbyteorder("=")
    if kind.name in SAMPLE_DTYPES:
        return values if values.dtype.isnative else values.astype(kind)
    return values.astype({"int8": np.int16, "bool": np.uint8}.get(kind.name, np.float32))
