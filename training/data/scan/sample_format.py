"""What an image file holds beside 8 bits of gray or RGB: channels, type, range, nodata, position.

The scaling of the network's input is planned from it (`training/plan/input_channels.py`).
"""

from dataclasses import dataclass

import numpy as np

from models.readers.prepare import find_valid, is_measured
from models.sample import Sample

QUANTILES = (0.005, 0.995)  # of the valid pixels: what is brighter or darker may be a reflection or a dead pixel
MAX_SAMPLED = 200_000  # pixels whose quantiles are computed

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class SampleFormat:
    """The samples of one image file. A photograph (`EIGHT_BITS`) has no channels here."""

    dtype: str = "uint8"
    channels: tuple[str, ...] = ()
    low: Numbers = ()  # by channel, the 0.5% quantile of the valid pixels
    high: Numbers = ()  # the 99.5% quantile
    smallest: Numbers = ()  # the extremes of the pixels that are numbers, nodata included
    largest: Numbers = ()
    valid: float = 1.0  # fraction of the pixels that are not missing
    finite: float = 1.0  # fraction of the pixels without NaN, infinite samples, and marks such as 1e30
    nodata: float | None = None  # the value that the file names
    affine: Numbers = ()  # from pixels to the CRS; empty without
    spacing: Numbers = ()  # height and width of a pixel; empty without
    unit: str = ""  # of the spacing
    crs: str = ""  # such as EPSG:32633; empty if unknown


EIGHT_BITS = SampleFormat()


def describe_sample(sample: Sample, nodata: float | None = None) -> SampleFormat:
    """The format of a sample; `nodata`: a value of missing samples beside the file's own."""
    values = sample.values
    flat = values.reshape(-1, values.shape[2])
    finite = is_measured(values).ravel() if values.dtype.kind == "f" else None
    valid = find_valid(values, sample.valid, {sample.nodata, nodata} - {None})
    chosen = flat if valid is None else flat[valid.ravel()]
    chosen = chosen[:: max(1, len(chosen) // MAX_SAMPLED)]
    known = flat if finite is None else flat[finite]
    if not len(chosen):
        low = high = np.zeros(values.shape[2])
    else:
        low, high = np.quantile(chosen, QUANTILES, axis=0)
    empty = np.zeros(values.shape[2])
    return SampleFormat(
        sample.dtype,
        sample.channels,
        tuple(low.tolist()),
        tuple(high.tolist()),
        tuple((known.min(axis=0) if len(known) else empty).astype(float).tolist()),
        tuple((known.max(axis=0) if len(known) else empty).astype(float).tolist()),
        1.0 if valid is None else float(valid.mean()),
        1.0 if finite is None else float(finite.mean()),
        sample.nodata,
        sample.frame.affine or () if sample.frame else (),
        sample.spacing.values if sample.spacing else (),
        sample.spacing.unit if sample.spacing else "",
        sample.frame.crs if sample.frame else "",
    )
