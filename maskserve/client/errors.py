"""Every error that the client raises on purpose.

ClientError                        base class; raised itself by a closed client
├── UnreachableError               no response: nothing listens there, the connection was lost, or a timeout
├── InvalidResponseError           the response is not from maskserve
└── ServiceError                   the service, or a proxy before it, returned an error
    ├── BadRequestError            400: an invalid parameter or form
    ├── AuthenticationError        401, 403: the key is missing or wrong
    ├── NotFoundError              404: no such path
    │   └── UnknownModelError      no model of that name
    ├── InvalidImageError          413, 415, 422, and 400 for an empty image: too large, unsupported, corrupt, multi-frame
    ├── TooManyRequestsError       429
    ├── ServiceUnavailableError    503: no bundle is loaded, or a proxy has no service behind it
    └── RequestTimeoutError        408, 504: the upload or the response took too long

Besides: OSError for a path that cannot be read; ValueError and TypeError for an argument that is not an image.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

PROBLEM_TYPE_PREFIX = "urn:problem-type:maskserve:"
MAX_RETRY_AFTER = 1e9  # seconds: a number that is too long for a float would be infinite
NO_SUCH_PATH_STATUSES = (404, 405, 501)  # of servers that do not know the path, or no POST
MAX_PAGE_BYTES = 1 << 16  # of a response that is not from maskserve, from which the excerpt is taken
MAX_DETAIL_CHARS = 200  # characters of a response that is not from maskserve, in the error message


class ClientError(Exception):
    """Base class of the errors that this client raises on purpose."""


class UnreachableError(ClientError):
    """No response arrived."""


class InvalidResponseError(ClientError):
    """The response is not from maskserve."""


class ServiceError(ClientError):
    """The service, or a proxy before it, returned an error.

    Attributes:
        status: the HTTP status.
        kind: the last part of the problem's type, such as `corrupt-image`; empty for a proxy's error.
        title: the kind of error, for people.
        detail: what came, what was expected, and what to do.
        request_id: the request's id in the service's log.
        retry_after: seconds to wait before a retry; None if the response has no Retry-After.
    """

    def __init__(
        self, status: int, kind: str, title: str, detail: str, request_id: str, retry_after: float | None = None
    ) -> None:
        super().__init__(status, kind, title, detail, request_id, retry_after)  # all of them, so that it can be pickled
        self.status = status
        self.kind = kind
        self.title = title
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.title} ({self.status}): {self.detail} (request {self.request_id})"


class BadRequestError(ServiceError):
    """A parameter or a form is invalid."""


class AuthenticationError(ServiceError):
    """The key is missing or wrong."""


class NotFoundError(ServiceError):
    """The service has no such path, or does not answer to the host name of the URL."""


class UnknownModelError(NotFoundError):
    """The service has no model of that name."""


class InvalidImageError(ServiceError):
    """The image is empty, too large, unsupported, corrupt or multi-frame."""


class TooManyRequestsError(ServiceError):
    """The service received too many requests at once."""


class ServiceUnavailableError(ServiceError):
    """No bundle is loaded, or a proxy has no service behind it."""


class RequestTimeoutError(ServiceError):
    """The upload or the response took too long."""


# The kind decides; for a proxy's response, which has none, the status.
ERRORS_BY_KIND: dict[str, type[ServiceError]] = {
    "empty-image": InvalidImageError,
    "forbidden-host": NotFoundError,  # its status, 403, is that of a key elsewhere
    "unknown-model": UnknownModelError,
}
ERRORS_BY_STATUS: dict[int, type[ServiceError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    408: RequestTimeoutError,
    413: InvalidImageError,
    415: InvalidImageError,
    422: InvalidImageError,
    429: TooManyRequestsError,
    503: ServiceUnavailableError,
    504: RequestTimeoutError,
}


def error_from_response(response: httpx.Response) -> ServiceError:
    """The error of a response; for a proxy's or another server's, the detail has the beginning of its text."""
    request_id = response.request.headers.get("X-Request-ID", "")
    try:
        return error_from_problem(response.json(), parse_retry_after(response))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):  # not from maskserve
        kind = ERRORS_BY_STATUS.get(response.status_code, ServiceError)
        title = response.reason_phrase or "HTTP error"
        detail, retry_after = _foreign_detail(response), parse_retry_after(response)
        return kind(response.status_code, "", title, detail, request_id, retry_after)


def error_from_problem(problem: dict[str, Any], retry_after: float | None = None) -> ServiceError:
    """The error of a problem (RFC 9457) that the service returned. Raises: KeyError, ValueError, TypeError for other JSON."""
    status, kind = int(problem["status"]), str(problem["type"]).removeprefix(PROBLEM_TYPE_PREFIX)
    error = ERRORS_BY_KIND.get(kind) or ERRORS_BY_STATUS.get(status, ServiceError)
    title, detail, request_id = (str(problem[name]) for name in ("title", "detail", "request_id"))
    return error(status, kind, title, detail, request_id, retry_after)


def parse_retry_after(response: httpx.Response) -> float | None:
    """Seconds of the header Retry-After (RFC 9110, 10.2.3), a number or a date; None if it is missing or invalid."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _foreign_detail(response: httpx.Response) -> str:
    """What an error that is not maskserve's says, and who probably sent it."""
    url = response.request.url.copy_with(query=None)
    if response.has_redirect_location:
        return f"{url.host} redirects to {response.headers['Location']}; use that address in the client."
    page = response.content[:MAX_PAGE_BYTES].decode("utf-8", "replace")
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())[:MAX_DETAIL_CHARS] or "no detail was given."
    if response.status_code in NO_SUCH_PATH_STATUSES:
        return f"{url} is not a path of maskserve; is another server running at this address? It says: {text}"
    return f"{url} was answered by a proxy or another server, not by maskserve: {text}"
