"""The errors that only a service knows; `service/answers.py` gives each its status.

MaskserveError
├── BadRequest      a request that is not understood
├── BodyTooLarge    more bytes than the limit
├── NotReady        the bundle is not open yet, or could not be opened
└── StartError      the server process did not start, or died
"""

from models.errors import MaskserveError


class BadRequest(MaskserveError):
    """A request that is not understood."""


class BodyTooLarge(MaskserveError):
    """More bytes than the limit."""


class NotReady(MaskserveError):
    """The bundle is not open yet (`retry_after` seconds may help), or could not be opened (None: they will not)."""

    def __init__(self, reason: str, retry_after: int | None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class StartError(MaskserveError):
    """The server process did not start, or died."""
