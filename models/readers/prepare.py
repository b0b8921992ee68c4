"""From a file's sample to the network's input: channels by name, missing pixels marked and filled, statistics."""

from dataclasses import replace

import numpy as np

from models.errors import ChannelsError
from models.readers.names import is_generic
from models.readers.statistics import sample_statistics
from models.sample import Sample, Valid, Values
from models.spec import InputRule

MAX_MAGNITUDE = 1e20  # of a measurement: larger floats, such as 1e30 or the most negative one, mark missing data


def prepare_sample(sample: Sample, rule: InputRule) -> Sample:
    """The channels of the rule, in its order, values contiguous; what is missing holds the channel's middle value.

    A pixel is missing where the file or the rule says so, where all channels have the value of nodata, and where any sample is
    NaN, infinite or beyond 1e20. Raises: ChannelsError.
    """
    indices = channel_indices(sample, rule)
    values = sample.values
    if values.dtype != rule.dtype and rule.dtype == "float32":
        values = values.astype(np.float32)
    if values.dtype != rule.dtype:
        raise ChannelsError(
            f"The image has samples of {sample.dtype}; this model takes {rule.describe()}. Send the samples in the type and "
            "scale of the training images."
        )
    if indices != list(range(values.shape[2])):
        values = values[:, :, indices]
    values = np.ascontiguousarray(values)
    valid = find_valid(values, sample.valid, {sample.nodata, rule.nodata} - {None})
    statistics = sample_statistics(values, valid) if rule.scaling.kind == "zscore" else None
    if valid is not None:
        fill = fill_values(rule) if statistics is None else statistics[0].astype(values.dtype)
        values = np.where(valid[:, :, None], values, fill)
    return replace(sample, values=values, channels=rule.channels, valid=valid, statistics=statistics)


def channel_indices(sample: Sample, rule: InputRule) -> list[int]:
    """The index in the sample of each channel of the rule: by name; by order where names only count. Raises: ChannelsError."""
    names = [name.lower() for name in sample.channels]
    wanted = [name.lower() for name in rule.channels]
    if all(name in names for name in wanted):
        return [names.index(name) for name in wanted]
    pairs = zip(sample.channels, rule.channels, strict=False)
    in_order = len(names) == len(wanted) and all(
        found.lower() == name.lower() or is_generic(found) or is_generic(name) for found, name in pairs
    )
    if in_order:
        return list(range(len(names)))
    raise ChannelsError(
        f"The image has {sample.describe()}; this model takes {rule.describe()}. Send the channels of the model, by these "
        "names or as many in this order."
    )


def find_valid(values: Values, marked: Valid | None, nodata: set[float | None]) -> Valid | None:
    """Where H x W x C values are data, bool H x W; None if they are everywhere. `marked`: what the file marks itself."""
    valid = marked
    for value in nodata:
        missing: Valid = np.asarray(_equals(values, float(value or 0.0)).all(axis=2))
        valid = ~missing if valid is None else valid & ~missing
    if values.dtype.kind == "f":
        finite = is_measured(values)
        valid = finite if valid is None else valid & finite
    return None if valid is None or bool(valid.all()) else valid


def is_measured(values: Values) -> Valid:
    """Where floats H x W x C are numbers of a possible size, not NaN, infinite or a mark such as 1e30; bool H x W."""
    return np.asarray((np.abs(values) < MAX_MAGNITUDE).all(axis=2))


def _equals(values: Values, number: float) -> Valid:
    """Whether each sample is the number, which may lie outside of the range of their type."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(values == values.dtype.type(number))
    limits = np.iinfo(values.dtype)
    if not limits.min <= number <= limits.max or number != int(number):
        return np.zeros(values.shape, np.bool_)
    return np.asarray(values == values.dtype.type(int(number)))


def fill_values(rule: InputRule) -> Values:
    """By channel, in the type of the samples: the middle of the range of `fixed` and `window`; 0 for `zscore`."""
    low, high = np.array(rule.scaling.low), np.array(rule.scaling.high)
    middle = (low + high) / 2 if low.size else np.zeros(len(rule.channels))
    return middle.astype(rule.dtype)
