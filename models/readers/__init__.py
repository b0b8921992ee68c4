"""Readers: from the bytes of a file to a `Sample`. Lint, training, evaluation, service and predict all read through them.

A reader is a module with two functions:

    sniff(data) -> bool                 whether it reads files that begin like these bytes
    decode(data, limits) -> Sample      reads the file; raises ImageError and InsufficientMemoryError, nothing else

and one line in `READERS`; the first that accepts the bytes reads them. Photographs never come here: for a network that takes
them (`InputRule.is_photograph`) `models/imaging/decode.py` is called as it is.
"""

from pathlib import Path
from types import ModuleType

from models.imaging.decode import MAX_PIXELS, decode_file, decode_image
from models.readers import image, npy, tiff
from models.readers.limits import ReadLimits
from models.readers.prepare import prepare_sample
from models.sample import Sample
from models.spec import InputRule

READERS: dict[str, ModuleType] = {"npy": npy, "tiff": tiff, "image": image}
SAMPLE_SUFFIXES = frozenset({".npy", ".npz"})  # of files that are read beside images (`IMAGE_SUFFIXES`)


def read_sample(data: bytes, max_pixels: int = MAX_PIXELS) -> Sample:
    """Read a file as it is: all its channels, in their own type. Raises: ImageError, InsufficientMemoryError."""
    limits = ReadLimits(max_pixels)
    reader = next(
        (reader for reader in READERS.values() if reader.sniff(data)), image
    )  # which says what other bytes are
    sample: Sample = reader.decode(data, limits)
    return sample


def read_input(data: bytes, rule: InputRule, max_pixels: int = MAX_PIXELS) -> Sample:
    """Read a file as the network takes it: its channels by name, in order, with missing pixels marked and filled.

    Raises: ImageError, InsufficientMemoryError; ChannelsError if the file has other channels or another type of samples.
    """
    if is_photograph(data, rule):
        return Sample(decode_image(data, max_pixels))
    return prepare_sample(read_sample(data, max_pixels), rule)


def is_photograph(data: bytes, rule: InputRule) -> bool:
    """Whether `decode_image` reads the file for the network: it takes photographs, and this is no array."""
    return rule.is_photograph and not npy.sniff(data)


def read_input_file(path: Path, rule: InputRule) -> Sample:
    """As `read_input`, in the sandbox if that is on, with the path at the start of every error message. Raises: also DataError."""
    return decode_file(path, read_input, rule=rule)
