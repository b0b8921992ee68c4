"""Every error that maskserve raises on purpose. They know no HTTP; `service/responses.py` maps them to a status.

    MaskserveError
    ├── ImageError                      an image that cannot be read
    │   ├── EmptyImageError             no bytes
    │   ├── UnsupportedFormatError      bytes in no known image format
    │   ├── CorruptImageError           a known format, but truncated or corrupt
    │   ├── MultiFrameImageError        an animation, or a document of several pages
    │   ├── ImageTooLargeError          more pixels than the limit
    │   └── ChannelsError               other channels or samples than the network takes
    ├── DataError                       a data set that cannot be trained on
    ├── ConfigError                     a setting that is unknown or out of range
    ├── WeightsError                    weights that cannot be read, or that belong to another network
    ├── RunError                        a run folder that cannot be resumed or exported
    ├── BundleError                     a bundle that is missing, altered, or of another version
    ├── ParityError                     the frozen network disagrees with the live one
    ├── InferenceCancelledError         inference that was stopped because its caller has gone
    └── EngineError                     an engine or precision that this machine lacks
        └── InsufficientMemoryError     even a small tile of the image does not fit into memory

A message is one or two sentences: what came, what was expected, what to do.
"""

import difflib
import re
from collections.abc import Iterable


class MaskserveError(Exception):
    """Base class: catching it catches every error that maskserve raises on purpose."""


class ImageError(MaskserveError):
    """An image that cannot be read."""


class EmptyImageError(ImageError):
    """The file or body has no bytes."""


class UnsupportedFormatError(ImageError):
    """The bytes are in no known image format."""


class CorruptImageError(ImageError):
    """The format is known, but the bytes are truncated or corrupt."""


class MultiFrameImageError(ImageError):
    """The file holds several images, and nothing says which one is meant."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than the limit."""


class ChannelsError(ImageError):
    """The image has other channels, or another type of samples, than the network takes."""


class DataError(MaskserveError):
    """A data set that cannot be trained on."""


class ConfigError(MaskserveError):
    """A setting that is unknown or out of range."""


class WeightsError(MaskserveError):
    """Weights that cannot be read, or that belong to another network."""


class RunError(MaskserveError):
    """A run folder that cannot be resumed or exported."""


class BundleError(MaskserveError):
    """A bundle that is missing, altered, or of another version."""


class ParityError(MaskserveError):
    """The frozen network disagrees with the live one."""


class InferenceCancelledError(MaskserveError):
    """Inference that was stopped because its caller has gone."""


class EngineError(MaskserveError):
    """An engine or precision that this machine lacks."""


class InsufficientMemoryError(EngineError):
    """Even a small tile of the image does not fit into memory."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error; the name of its class if it has no text."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def last_line(error: BaseException) -> str:
    """The last line of a library's error, for libraries that print the location first."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def closest_names(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """Up to `count` of the `known` names that resemble `name`, joined by commas, for "did you mean ...?"; "" for none."""
    return ", ".join(difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff))


# Text that others chose (names of files and classes, settings, messages of libraries) is written by one of four functions.
# They escape alike and never double a backslash:
#   printable                   what JSON and HTML cannot hold: bytes of a file name that are not UTF-8
#   escape_control_characters   also control and invisible characters, which a terminal may take for commands
#   escape_line                 also tabs and line breaks
#   quoted                      as escape_line, between quotes, for a message
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_CONTROL_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(name: str) -> str:
    """A file name as text that JSON and HTML can hold: bytes that are not UTF-8 become `\\xNN`."""
    return _SURROGATES.sub(_escape, name)


def escape_control_characters(text: str) -> str:
    """Write control characters, but tabs and line breaks, as in Python source: ESC is \\x1b. See `printable` for bytes."""
    return _CONTROL_CHARACTERS.sub(_escape, text)


def escape_line(text: str) -> str:
    r"""As `escape_control_characters`, on one line: tabs and line breaks become `\t` and `\n`."""
    return escape_control_characters(text).replace("\t", r"\t").replace("\n", r"\n")


def quoted(value: object) -> str:
    """A value in a message, as the user typed it: `repr` would double its backslashes. Control characters are escaped."""
    return f"'{escape_line(value)}'" if isinstance(value, str) else escape_line(str(value))


def _escape(match: re.Match[str]) -> str:
    """Python holds a byte of a file name that is not UTF-8 as U+DC80 to U+DCFF (PEP 383)."""
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else match[0].encode("unicode_escape").decode()
