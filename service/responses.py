"""What goes back to the caller: a mask with its headers, or an error as `application/problem+json` (RFC 9457)."""

import http
import logging
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from models.bundle import Bundle
from models.errors import (
    ConfigError,
    CorruptImageError,
    EmptyImageError,
    ImageTooLargeError,
    InsufficientMemoryError,
    MultiFrameImageError,
    UnsupportedFormatError,
)
from service.access_log import request_id
from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    DeadlineExceededError,
    MalformedRequestError,
    ModelNotServedError,
    NotReadyError,
    OverloadedError,
    ResponseTooLargeError,
    UnauthorizedError,
    UnknownPathError,
)

logger = logging.getLogger("maskserve")

# Each kind of error: its status, its name in the problem's `type`, and its title, which never vary for a kind.
ERRORS: dict[type[Exception], tuple[int, str, str]] = {
    MalformedRequestError: (400, "bad-request", "The request is not understood"),
    ConfigError: (400, "bad-request", "The request is not understood"),
    EmptyImageError: (400, "empty-image", "The image is empty"),
    UnauthorizedError: (401, "unauthorized", "A key is needed"),
    UnknownPathError: (404, "not-found", "Nothing is here"),
    ModelNotServedError: (404, "unknown-model", "No such model is served"),
    BodyTimeoutError: (408, "body-timeout", "The body came too slowly"),
    ResponseTooLargeError: (413, "response-too-large", "The answer is too large"),
    BodyTooLargeError: (413, "body-too-large", "The body is too large"),
    ImageTooLargeError: (413, "image-too-large", "The image is too large"),
    InsufficientMemoryError: (413, "image-too-large", "The image is too large"),
    UnsupportedFormatError: (415, "unsupported-format", "This is no image"),
    CorruptImageError: (422, "corrupt-image", "The image is broken"),
    MultiFrameImageError: (422, "multi-frame-image", "These are several images"),
    OverloadedError: (429, "busy", "Too many requests at once"),
    NotReadyError: (503, "not-ready", "The service is not ready"),
    DeadlineExceededError: (504, "timeout", "The answer took too long"),
}
INTERNAL_ERROR = (500, "internal-error", "Something went wrong in the service")

PROBLEM_JSON = "application/problem+json"
PROBLEM_TYPE_PREFIX = "urn:problem-type:maskserve:"


class Problem(BaseModel):
    """An error, by RFC 9457."""

    type: str = Field(description="the kind of error, for programs: urn:problem-type:maskserve:KIND")
    title: str = Field(description="the kind of error, for people; always the same for a kind")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what came, what was wanted, and what to do")
    request_id: str = Field(description="as in X-Request-ID and in the service's log")


def prediction_response(body: bytes, media_type: str, bundle: Bundle, milliseconds: dict[str, float]) -> Response:
    """An encoded prediction, with the model that made it and where the time went."""
    return Response(
        body, media_type=media_type, headers={"X-Model": model_tag(bundle), **server_timing_header(milliseconds)}
    )


def server_timing_header(milliseconds: dict[str, float]) -> dict[str, str]:
    """The header Server-Timing (W3C): milliseconds by stage."""
    return {"Server-Timing": ", ".join(f"{stage};dur={spent:.2f}" for stage, spent in milliseconds.items())}


def model_tag(bundle: Bundle) -> str:
    """Name and short hash, such as `streets@0123456789ab`, in characters that a header may hold."""
    return f"{quote(bundle.spec.name)}@{bundle.hash[:12]}"


def problem_response(error: Exception) -> Response:
    """Any exception as a problem; one that is not in the table is logged, and its text stays in the log."""
    problem, headers = to_problem(error)
    return JSONResponse(problem.model_dump(), problem.status, headers, media_type=PROBLEM_JSON)


def to_problem(error: Exception) -> tuple[Problem, dict[str, str]]:
    """The problem that an exception is, and the headers that go with it."""
    if isinstance(error, HTTPException):
        phrase = http.HTTPStatus(error.status_code).phrase
        kind = phrase.lower().replace(" ", "-")
        return _build_problem(error.status_code, kind, phrase, str(error.detail)), dict(error.headers or {})
    row = next((row for kind, row in ERRORS.items() if isinstance(error, kind)), INTERNAL_ERROR)
    if row == INTERNAL_ERROR:
        logger.error("request %s met an unexpected error", request_id(), exc_info=error)
        return _build_problem(*row, "The request may be fine: the service's log holds the reason."), {}
    headers = {"WWW-Authenticate": 'Bearer realm="maskserve"'} if isinstance(error, UnauthorizedError) else {}
    if isinstance(error, OverloadedError | NotReadyError) and error.retry_after:
        headers["Retry-After"] = str(error.retry_after)
    return _build_problem(*row, str(error)), headers


def _build_problem(status: int, kind: str, title: str, detail: str) -> Problem:
    return Problem(type=PROBLEM_TYPE_PREFIX + kind, title=title, status=status, detail=detail, request_id=request_id())


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its OpenAPI page."""
    schema = {"$ref": "#/components/schemas/Problem"}
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        titles = dict.fromkeys(title for row, _, title in [*ERRORS.values(), INTERNAL_ERROR] if row == status)
        answers[status] = {
            "description": "; ".join(titles) or http.HTTPStatus(status).phrase,
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        if status in (429, 503):
            answers[status]["headers"] = {
                "Retry-After": {"description": "seconds after which to ask again", "schema": {"type": "integer"}}
            }
    return answers
