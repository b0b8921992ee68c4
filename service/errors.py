"""Errors that only the service raises; `service/responses.py` maps each to an HTTP status.

MaskserveError
├── MalformedRequestError     400   a request that cannot be parsed
├── UnauthorizedError         401   no API key, or an invalid one
├── UnknownPathError          404   a path that does not exist
├── ModelNotServedError       404   a model that is not served
├── UnknownJobError           404   a job that does not exist, or is of another key
├── ForbiddenHostError        403   a Host header that is not one of the service's names
├── HeadTimeoutError          408   a request head that did not arrive in time
├── BodyTimeoutError          408   a request body that did not arrive in time
├── BodyTooLargeError         413   a request body with more bytes than the limit
├── ResponseTooLargeError     413   a batch response with more bytes than the limit
├── OverloadedError           429   more requests than can be processed in time
├── ConnectionLimitError      503   more connections than the limit
├── StoppingError             503   a request that had not arrived when the service stopped
├── NotReadyError             503   no bundle is loaded yet, or none can be loaded
├── DeadlineExceededError     504   processing that took longer than the limit
├── SendTimeoutError          -     a caller that does not receive its response
└── ServerStartError          -     the server process did not start, or died
"""

from models.errors import MaskserveError


class MalformedRequestError(MaskserveError):
    """A request that cannot be parsed."""


class UnauthorizedError(MaskserveError):
    """No API key, or an invalid one."""


class UnknownPathError(MaskserveError):
    """A path that does not exist."""


class ModelNotServedError(MaskserveError):
    """A model that is not served."""


class UnknownJobError(MaskserveError):
    """A job that does not exist, or is of another key."""


class ForbiddenHostError(MaskserveError):
    """A Host header that is not one of the service's names."""


class HeadTimeoutError(MaskserveError):
    """A request head that did not arrive in time."""


class BodyTimeoutError(MaskserveError):
    """A request body that did not arrive in time."""


class BodyTooLargeError(MaskserveError):
    """A request body with more bytes than the limit."""


class ResponseTooLargeError(MaskserveError):
    """A batch response with more bytes than the limit."""


class SendTimeoutError(MaskserveError):
    """A caller that does not receive its response."""


class OverloadedError(MaskserveError):
    """More requests than can be processed in time. Retry after `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class ConnectionLimitError(OverloadedError):
    """More connections than the limit. Retry after `retry_after` seconds."""


class StoppingError(OverloadedError):
    """A request that had not arrived when the service stopped. Retry after `retry_after` seconds."""


class DeadlineExceededError(MaskserveError):
    """Processing that took longer than the limit."""


class NotReadyError(MaskserveError):
    """No bundle is loaded yet (retry after `retry_after` seconds), or none can be loaded (None: a retry does not help)."""

    def __init__(self, reason: str, retry_after: int | None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class ServerStartError(MaskserveError):
    """The server process did not start, or died."""
