"""What the client raises on purpose.

ClientError             itself where the client was closed
├── Unreachable         no answer came: nothing is there, the connection was lost, or the time was up
├── BadAnswer           something answered that is no maskserve
└── ServiceError        the service, or a proxy before it, answered with an error
    ├── BadRequest      400        a parameter or a form that is not understood
    ├── NoKey           401, 403   a key is needed, or this one does not open
    ├── NotFound        404        nothing is at this path
    │   └── UnknownModel           no model of that name is served
    ├── BadImage      413, 415, 422, and 400 for an empty one: too large, none, broken, or several
    ├── Busy            429        too many requests at once
    ├── NotReady        503        no bundle is open, or a proxy has no service behind it
    └── TimedOut        408, 504   the body, or the answer, took too long

Beside these: OSError for a path that cannot be read, ValueError and TypeError for what is no image to begin with.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

PROBLEM_TYPE_PREFIX = "urn:problem-type:maskserve:"
MAX_DETAIL_CHARS = 200  # characters of an answer that is none of ours


class ClientError(Exception):
    """Root of what this client raises on purpose."""


class UnreachableError(ClientError):
    """No answer came."""


class InvalidResponseError(ClientError):
    """Something answered that is no maskserve."""


class ServiceError(ClientError):
    """The service, or a proxy before it, answered with an error.

    Attributes:
        status: of HTTP.
        kind: the last word of the problem's type, such as `broken-image`; empty where the answer is a proxy's.
        title: what kind of error it is, for people.
        detail: what came, what was wanted, and what to do.
        request_id: by which the service's log has it.
        retry_after: seconds after which to ask again; None where the answer says none.
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
    """A parameter or a form that is not understood."""


class AuthenticationError(ServiceError):
    """A key is needed, or this one does not open."""


class NotFoundError(ServiceError):
    """Nothing is at this path."""


class UnknownModelError(NotFoundError):
    """No model of that name is served."""


class InvalidImageError(ServiceError):
    """The image is empty, too large, none, broken, or several."""


class TooManyRequestsError(ServiceError):
    """Too many requests at once."""


class ServiceUnavailableError(ServiceError):
    """No bundle is open, or a proxy has no service behind it."""


class RequestTimeoutError(ServiceError):
    """The body, or the answer, took too long."""


# The kind decides, and where the answer is a proxy's, the status.
ERRORS_BY_KIND: dict[str, type[ServiceError]] = {"empty-image": InvalidImageError, "unknown-model": UnknownModelError}
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


def error_from_response(answer: httpx.Response) -> ServiceError:
    """The error that an answer is; of a proxy's, the beginning of what it says is the detail."""
    asked = answer.request.headers.get("X-Request-ID", "")
    try:
        return error_from_problem(answer.json(), parse_retry_after(answer))
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or another service's
        kind, title = ERRORS_BY_STATUS.get(answer.status_code, ServiceError), answer.reason_phrase or "An error"
        return kind(answer.status_code, "", title, _response_excerpt(answer), asked, parse_retry_after(answer))


def error_from_problem(problem: dict[str, Any], after: float | None = None) -> ServiceError:
    """The error that a problem of the service (RFC 9457) is. Raises: KeyError and the like where it is none."""
    status, kind = int(problem["status"]), str(problem["type"]).removeprefix(PROBLEM_TYPE_PREFIX)
    error = ERRORS_BY_KIND.get(kind) or ERRORS_BY_STATUS.get(status, ServiceError)
    return error(status, kind, problem["title"], problem["detail"], problem["request_id"], after)


def parse_retry_after(answer: httpx.Response) -> float | None:
    """Seconds of the header Retry-After (RFC 9110, 10.2.3), which may be a number or a date; None where there is none."""
    said = answer.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdecimal():
        return float(said)
    try:
        date = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _response_excerpt(answer: httpx.Response) -> str:
    if answer.has_redirect_location:
        return (
            f"{answer.request.url.host} sends callers on to {answer.headers['Location']}; give the client that address."
        )
    words = " ".join(re.sub(r"<[^>]*>", " ", answer.text).split())
    return words[:MAX_DETAIL_CHARS] or "no detail came."
