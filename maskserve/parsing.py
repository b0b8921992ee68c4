"""Sizes of images as people type them."""

import re

from models.errors import ConfigError

MAX_SIDE = 16384  # pixels of a side of the image that is asked about


def parse_size(text: str) -> tuple[int, int]:
    """`480x360`, width first as cameras have it -> (height, width) in pixels. Raises: ConfigError."""
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if not match or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise ConfigError(
            f"{text!r} is no size; write WIDTHxHEIGHT in pixels, such as 480x360, up to {MAX_SIDE} a side."
        )
    return int(match[2]), int(match[1])
