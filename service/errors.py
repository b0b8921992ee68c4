"""The errors that only a service knows; `service/responses.py` gives each its status.

MaskserveError
├── BadRequest      a request that is not understood
├── NoKey           no key came where one is needed, or one that opens nothing
├── UnknownModel    a model that is not served
├── NotFound        a path at which nothing is
├── SlowBody        a body that did not come in time
├── BodyTooLarge    more bytes than the limit
├── AnswerTooLarge  more bytes than the limit, of a batch's answer
├── Unread          an answer that nobody takes
├── Busy            more requests than can be answered in time
├── TimedOut        an answer that took longer than the limit
├── NotReady        the bundle is not open yet, or could not be opened
└── StartError      the server process did not start, or died
"""

from models.errors import MaskserveError


class MalformedRequestError(MaskserveError):
    """A request that is not understood."""


class UnauthorizedError(MaskserveError):
    """No key came where one is needed, or one that opens nothing."""


class ModelNotServedError(MaskserveError):
    """A model that is not served."""


class UnknownPathError(MaskserveError):
    """A path at which nothing is."""


class BodyTimeoutError(MaskserveError):
    """A body that did not come in time."""


class BodyTooLargeError(MaskserveError):
    """More bytes than the limit."""


class ResponseTooLargeError(MaskserveError):
    """More bytes than the limit, of a batch's answer."""


class SendTimeoutError(MaskserveError):
    """An answer that nobody takes."""


class OverloadedError(MaskserveError):
    """More requests than can be answered in time; `retry_after` seconds may help."""

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class DeadlineExceededError(MaskserveError):
    """An answer that took longer than the limit."""


class NotReadyError(MaskserveError):
    """The bundle is not open yet (`retry_after` seconds may help), or could not be opened (None: they will not)."""

    def __init__(self, reason: str, retry_after: int | None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class ServerStartError(MaskserveError):
    """The server process did not start, or died."""
