"""From a file's sample to the network's input: channels by name, missing pixels marked and filled, statistics."""

from dataclasses import replace

import numpy as np

from models.errors import ChannelsError
from models.readers.names import is_generic
from models.readers.signal import is_lead_of_any_name
from models.readers.statistics import sample_statistics
from models.sample import Sample, Valid, Values
from models.spec import InputRule

KINDS = {"HW": "image", "T": "signal", "DHW": "volume"}  # what a sample of these axes is called
CHECKED_VALUES = 1 << 22  # that are searched for missing ones at a time
MAX_MAGNITUDE = 1e20  # of a measurement: larger floats, such as 1e30 or the most negative one, mark missing data


def prepare_sample(sample: Sample, rule: InputRule) -> Sample:
    """The channels of the rule, in its order; what is missing holds the channel's middle value.

    A pixel is missing where the file or the rule says so, where all channels have the value of nodata, and where any sample is
    NaN, infinite or beyond 1e20. A time step of a signal is missing where all its leads are: a lead that was off for a while
    holds its middle value there. Raises: ChannelsError.
    """
    indices = channel_indices(sample, rule)
    values = sample.values
    if values.dtype != rule.dtype and rule.dtype != "float32":
        raise ChannelsError(
            f"The {KINDS[rule.axes]} has samples of {sample.dtype}; this model takes {rule.describe()}. Send them in the type "
            "and scale of the training images."
        )
    if indices != list(range(values.shape[-1])):
        values = values[..., indices]
    if rule.axes == "T":  # a view of one lead of a long recording is not copied
        return _prepare_signal(sample, values.astype(rule.dtype, copy=False), rule)
    values = np.ascontiguousarray(values, rule.dtype)  # in one step: the values of a volume take hundreds of megabytes
    valid = find_valid(values, sample.valid, {sample.nodata, rule.nodata} - {None})
    statistics = sample_statistics(values, valid) if rule.scaling.kind == "zscore" else None
    if valid is not None:
        fill = fill_values(rule) if statistics is None else statistics[0].astype(values.dtype)
        values = np.where(valid[..., None], values, fill)
    return replace(sample, values=values, channels=rule.channels, valid=valid, statistics=statistics)


def _prepare_signal(sample: Sample, values: Values, rule: InputRule) -> Sample:
    """A sample with its values of the rule's channels: statistics of each over what was measured, its middle value elsewhere."""
    channels = sample.channels if is_each_lead(sample, rule) else rule.channels
    measured = np.ones(values.shape, np.bool_)
    if values.dtype.kind == "f":
        for first in range(0, len(values), CHECKED_VALUES):
            steps = slice(first, first + CHECKED_VALUES)
            np.less(np.abs(values[steps]), MAX_MAGNITUDE, out=measured[steps])
    for number in {sample.nodata, rule.nodata} - {None}:
        measured &= ~_equals(values, float(number or 0.0))
    if sample.valid is not None:
        measured &= sample.valid[:, None]
    is_zscore = rule.scaling.kind == "zscore"
    if measured.all():
        statistics = sample_statistics(values) if is_zscore else None
        return replace(sample, values=values, channels=channels, valid=None, statistics=statistics)
    fill, statistics = np.broadcast_to(fill_values(rule), values.shape[1:]), None
    if is_zscore:
        leads = [
            sample_statistics(values[:, index : index + 1], measured[:, index]) for index in range(values.shape[1])
        ]
        statistics = np.concatenate(leads, axis=1)
        fill = statistics[0].astype(values.dtype)
    valid: Valid = np.asarray(measured.any(axis=1))
    values = np.where(measured, values, fill)
    return replace(
        sample, values=values, channels=channels, valid=None if bool(valid.all()) else valid, statistics=statistics
    )


def is_each_lead(sample: Sample, rule: InputRule) -> bool:
    """Whether the network takes each lead of the sample by itself: it has one channel of no certain name, the sample more."""
    return rule.axes == "T" and len(sample.channels) > 1 and is_lead_of_any_name(rule.channels)


def channel_indices(sample: Sample, rule: InputRule) -> list[int]:
    """The index in the sample of each channel of the rule: by name; by order where names only count. Raises: ChannelsError.

    For a network that takes one lead, whatever its name, all channels of a signal.
    """
    if rule.axes == "T" and is_lead_of_any_name(rule.channels):
        return list(range(len(sample.channels)))
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
        f"The {KINDS[rule.axes]} has {sample.describe()}; this model takes {rule.describe()}. Send the channels of the model, by "
        "these names or as many in this order."
    )


def find_valid(values: Values, marked: Valid | None, nodata: set[float | None]) -> Valid | None:
    """Where H x W x C values are data, bool H x W; None if they are everywhere. `marked`: what the file marks itself."""
    valid = marked
    at_once = max(1, CHECKED_VALUES // max(1, values[:1].size))
    for top in range(0, len(values), at_once):
        rows = slice(top, top + at_once)
        found = _is_data(values[rows], nodata)
        if found is None or bool(found.all()):
            continue
        if valid is None or valid is marked:
            valid = np.ones(values.shape[:-1], np.bool_) if marked is None else marked.copy()
        valid[rows] &= found
    return None if valid is None or bool(valid.all()) else valid


def _is_data(values: Values, nodata: set[float | None]) -> Valid | None:
    """As `find_valid`, of some rows."""
    found = is_measured(values) if values.dtype.kind == "f" else None
    for value in nodata:
        present: Valid = ~np.asarray(_equals(values, float(value or 0.0)).all(axis=-1))
        found = present if found is None else found & present
    return found


def is_measured(values: Values) -> Valid:
    """Where floats H x W x C are numbers of a possible size, not NaN, infinite or a mark such as 1e30; bool H x W."""
    return np.asarray((np.abs(values) < MAX_MAGNITUDE).all(axis=-1))


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
