"""Limits on the floating-point chains (`mpet`) of an ICC profile, checked before lcms reads the profile.

lcms computes such a chain for each of the 36,000 points (CMYK: 280,000) of the table that it builds from it, and searches
the segments of a curve one by one: 32,000 segments in a profile of 3 KB, compressed, took 10 s.
References: ICC.1:2010, 10.14 (chain), 10.14.2 (curve set), 10.14.3 (matrix), 10.14.4 (CLUT).
"""

import math
import struct
from collections.abc import Iterator

# The ICC's own examples have 3 to 5 elements, and curves of up to 5 segments.
MAX_ELEMENTS = 32
MAX_OPERATIONS = 500  # per point, over all elements of a chain; 3 ns each
MAX_SAMPLES = (
    4_000_000  # of curves and tables: elements may share their bytes, and each gets a copy of 4 bytes a sample
)
MAX_TAGS = 100  # lcms reads no more


def has_costly_chain(profile: bytes) -> bool:
    """Whether a floating-point chain of a profile takes more time or memory than any profile in use.

    Raises: struct.error for a truncated chain.
    """
    (tags,) = struct.unpack_from(">I", profile, 128)
    table = profile[132 : 132 + 12 * min(tags, MAX_TAGS)]
    starts = {start for _, start, _ in struct.iter_unpack(">4sII", table[: len(table) // 12 * 12])}
    return any(_is_costly(profile, start) for start in starts if profile[start : start + 4] == b"mpet")


def _is_costly(profile: bytes, start: int) -> bool:
    (elements,) = struct.unpack_from(">I", profile, start + 12)
    if elements > MAX_ELEMENTS:
        return True
    operations = samples = 0
    for offset, _ in struct.iter_unpack(">II", profile[start + 16 : start + 16 + 8 * elements]):
        for more_operations, more_samples in _element_costs(profile, start + offset):
            operations += more_operations
            samples += more_samples
            if operations > MAX_OPERATIONS or samples > MAX_SAMPLES:
                return True
    return False


def _element_costs(profile: bytes, element: int) -> Iterator[tuple[int, int]]:
    """The costs of an element, part by part: operations per point, and stored samples."""
    kind, inputs, outputs = struct.unpack_from(">4s4xHH", profile, element)
    if kind == b"matf":
        yield inputs * outputs, inputs * outputs
    elif kind == b"clut":
        if inputs > 16:  # the limit of the format, which stores 16 sizes
            yield MAX_OPERATIONS + 1, 0
        grid = profile[element + 12 : element + 12 + inputs]
        yield outputs << min(inputs, 16), math.prod(grid) * outputs
    elif kind == b"cvst":
        for index in range(inputs):
            (curve,) = struct.unpack_from(">I", profile, element + 12 + 8 * index)
            yield from _curve_costs(profile, element + curve)


def _curve_costs(profile: bytes, curve: int) -> Iterator[tuple[int, int]]:
    (segments,) = struct.unpack_from(">H", profile, curve + 8)
    yield segments, 0
    offset = curve + 12 + 4 * (segments - 1)  # after the breakpoints
    for _ in range(segments):
        kind, function, count = struct.unpack_from(">4s4xHxx", profile, offset) + struct.unpack_from(
            ">I", profile, offset + 8
        )
        if kind == b"samf":
            yield 0, count
            offset += 12 + 4 * count
        else:
            offset += 12 + 4 * (4 if function == 0 else 5)
