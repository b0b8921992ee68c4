"""Every error that this house raises on purpose. They know no HTTP; `service/responses.py` gives them a status.

    MaskserveError
    ├── ImageError          an image that cannot be read
    │   ├── EmptyImage      no bytes
    │   ├── NotAnImage      bytes in no format that the house reads
    │   ├── BrokenImage     a known format, but truncated or corrupt
    │   ├── SeveralImages an animation, or a document of several pages
    │   └── ImageTooLarge   more pixels than the limit
    ├── DataError           a data set that cannot be trained on
    ├── ConfigError         a setting that is unknown or out of range
    ├── WeightsError        weights that cannot be read, or that belong to another network
    ├── RunError            a run folder that cannot be resumed or exported
    ├── BundleError         a bundle that is missing, altered, or of a later format
    ├── ParityError         the frozen network disagrees with the live one
    ├── Cancelled           work that was stopped because nobody waits for it any more
    └── EngineError         an engine or precision that this machine lacks
        └── TooLittleMemory     even a small tile of the image is more than the memory holds

A message is one sentence or two: what came, what was wanted, what to do.
"""


class MaskserveError(Exception):
    """Root of the tree: catching it catches every error raised on purpose."""


class ImageError(MaskserveError):
    """An image that cannot be read."""


class EmptyImageError(ImageError):
    """No bytes came."""


class UnsupportedFormatError(ImageError):
    """The bytes are in no format that the house reads."""


class CorruptImageError(ImageError):
    """The format is known, but the bytes are truncated or corrupt."""


class MultiFrameImageError(ImageError):
    """The file holds several images, and nothing says which one is meant."""


class ImageTooLargeError(ImageError):
    """More pixels than the limit allows."""


class DataError(MaskserveError):
    """A data set that cannot be trained on."""


class ConfigError(MaskserveError):
    """A setting that is unknown or out of range."""


class WeightsError(MaskserveError):
    """Weights that cannot be read, or that belong to another network."""


class RunError(MaskserveError):
    """A run folder that cannot be resumed or exported."""


class BundleError(MaskserveError):
    """A bundle that is missing, altered, or of a later format."""


class ParityError(MaskserveError):
    """The frozen network disagrees with the live one."""


class InferenceCancelledError(MaskserveError):
    """Work that was stopped because nobody waits for it any more."""


class EngineError(MaskserveError):
    """An engine or precision that this machine lacks."""


class InsufficientMemoryError(EngineError):
    """Even a small tile of the image is more than the memory holds."""


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line; its kind where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def last_line(error: BaseException) -> str:
    """As `first_line`, for libraries that say where before they say what."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
