"""Parses image sizes and pixels from the command line."""

import re

from models.errors import ConfigError, quoted

MAX_SIDE = 16384  # pixels
MAX_LENGTH = 1_000_000  # time steps, voxels of an axis


def parse_size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT, such as `480x360`, into (height, width) in pixels. Raises: ConfigError."""
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if not match or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise ConfigError(
            f"The size is {quoted(text)}; expected WIDTHxHEIGHT in pixels, such as 480x360, up to {MAX_SIDE} a side."
        )
    return int(match[2]), int(match[1])


def parse_lengths(text: str, axes: int) -> tuple[int, ...]:
    """The lengths of a sample, in the order of its axes, from text such as `480x360`, the width first. Raises: ConfigError."""
    if axes == 2:
        return parse_size(text)
    words = text.strip().lower().split("x")
    if len(words) != axes or not all(word.isdecimal() and 1 <= int(word) <= MAX_LENGTH for word in words):
        expected = "time steps, such as 5000" if axes == 1 else "WIDTHxHEIGHTxDEPTH in voxels, such as 96x96x96"
        raise ConfigError(f"The size is {quoted(text)}; expected {expected}.")
    return tuple(int(word) for word in reversed(words))


def parse_point(text: str) -> tuple[int, int]:
    """Parse X,Y, such as `120,80`: the column and the row of a pixel, from 0. Raises: ConfigError."""
    match = re.fullmatch(r"(\d{1,6}),(\d{1,6})", text.strip())
    if not match:
        raise ConfigError(
            f"The pixel is {quoted(text)}; expected X,Y, its column and row from the upper left, such as 120,80."
        )
    return int(match[1]), int(match[2])
