"""Responses: an encoded mask with its headers, or an error as `application/problem+json` (RFC 9457)."""

import datetime
import http
import logging
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from models.bundle import Bundle
from models.errors import (
    ChannelsError,
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
    ConnectionLimitError,
    DeadlineExceededError,
    ForbiddenHostError,
    HeadTimeoutError,
    MalformedRequestError,
    ModelNotServedError,
    NotReadyError,
    OverloadedError,
    ResponseTooLargeError,
    StoppingError,
    UnauthorizedError,
    UnknownJobError,
    UnknownPathError,
)
from service.jobs import Job

logger = logging.getLogger("maskserve")

# Status of each kind of error, its name in the `type` of the problem, and its title. They are always the same for a kind.
ERRORS: dict[type[Exception], tuple[int, str, str]] = {
    MalformedRequestError: (400, "bad-request", "Invalid request"),
    ConfigError: (400, "bad-request", "Invalid request"),
    EmptyImageError: (400, "empty-image", "Empty file"),
    UnauthorizedError: (401, "unauthorized", "API key missing or invalid"),
    ForbiddenHostError: (403, "forbidden-host", "Host not allowed"),
    UnknownPathError: (404, "not-found", "Not found"),
    ModelNotServedError: (404, "unknown-model", "Model not found"),
    UnknownJobError: (404, "unknown-job", "Job not found"),
    HeadTimeoutError: (408, "head-timeout", "Request head timed out"),
    BodyTimeoutError: (408, "body-timeout", "Request body timed out"),
    ResponseTooLargeError: (413, "response-too-large", "Response too large"),
    BodyTooLargeError: (413, "body-too-large", "Request body too large"),
    ImageTooLargeError: (413, "image-too-large", "File too large"),
    InsufficientMemoryError: (413, "image-too-large", "File too large"),
    UnsupportedFormatError: (415, "unsupported-format", "Unsupported file format"),
    CorruptImageError: (422, "corrupt-image", "Corrupt file"),
    MultiFrameImageError: (422, "multi-frame-image", "Several images in one file"),
    ChannelsError: (422, "wrong-channels", "Other channels than the model takes"),
    ConnectionLimitError: (503, "too-many-connections", "Too many connections"),
    StoppingError: (503, "stopping", "The service is being stopped"),
    OverloadedError: (429, "busy", "Too many requests"),
    NotReadyError: (503, "not-ready", "Service not ready"),
    DeadlineExceededError: (504, "timeout", "Request timed out"),
}
INTERNAL_ERROR = (500, "internal-error", "Internal server error")

# Of every response that does not set its own: browsers neither guess its type nor run or frame it.
DEFAULT_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)

# How long the rest of a rejected body is read. If the connection were closed at once, it would be reset while the caller
# still sends, and many clients then report the reset instead of the response.
LINGER_SECONDS = 2.0

JOB_RETRY_SECONDS = 1  # between two requests for the result of a job

PROBLEM_JSON = "application/problem+json"
PROBLEM_TYPE_PREFIX = "urn:problem-type:maskserve:"


class Problem(BaseModel):
    """An error, by RFC 9457."""

    type: str = Field(description="the kind of error, for programs: urn:problem-type:maskserve:KIND")
    title: str = Field(description="the kind of error, for people")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what came, what was expected, and what to do")
    request_id: str = Field(description="as in X-Request-ID and in the log of the service")


def prediction_response(body: bytes, media_type: str, bundle: Bundle, milliseconds: dict[str, float]) -> Response:
    """An encoded mask, with the model that predicted it and the milliseconds of its stages."""
    return Response(
        body, media_type=media_type, headers={"X-Model": model_tag(bundle), **server_timing_header(milliseconds)}
    )


def job_accepted_response(job: Job, prefix: str) -> Response:
    """202 with the address of a job. `prefix`: the path below which the caller sees the service."""
    address = f"{prefix}/v1/jobs/{job.id}"
    headers = {"Location": address, "Preference-Applied": "respond-async", "Retry-After": str(JOB_RETRY_SECONDS)}
    return JSONResponse(_describe_job(job) | {"url": address}, 202, headers)


def job_response(job: Job, result: bytes) -> Response:
    """The state of a job that runs, with 202; the response of its request once it has ended, its error included."""
    if job.state == "running":
        return JSONResponse(_describe_job(job), 202, {"Retry-After": str(JOB_RETRY_SECONDS)})
    if job.state == "failed":
        return JSONResponse(job.problem, job.problem["status"], job.headers, media_type=PROBLEM_JSON)
    return Response(result, media_type=job.media_type, headers=job.headers)


def _describe_job(job: Job) -> dict[str, Any]:
    created = datetime.datetime.fromtimestamp(job.created, datetime.UTC).isoformat(timespec="seconds")
    return {"id": job.id, "state": job.state, "created": created, "request_id": job.request_id}


def server_timing_header(milliseconds: dict[str, float]) -> dict[str, str]:
    """The header Server-Timing (W3C), with the milliseconds of each stage."""
    return {"Server-Timing": ", ".join(f"{stage};dur={spent:.2f}" for stage, spent in milliseconds.items())}


def retry_after_header(seconds: int | None) -> dict[str, str]:
    """The header Retry-After; none if a retry does not help."""
    return {"Retry-After": str(seconds)} if seconds else {}


def model_tag(bundle: Bundle) -> str:
    """Name and short hash, such as `streets@0123456789ab`, in characters that a header may hold."""
    return f"{quote(bundle.spec.name)}@{bundle.hash[:12]}"


def problem_response(error: Exception) -> Response:
    """The response to an exception. An unexpected one is logged, and the response does not contain its text."""
    problem, headers = to_problem(error)
    drop_frames(error)
    return JSONResponse(problem.model_dump(), problem.status, headers, media_type=PROBLEM_JSON)


def to_problem(error: Exception) -> tuple[Problem, dict[str, str]]:
    """The problem that describes an exception, and the headers of its response."""
    if isinstance(error, HTTPException):
        phrase = http.HTTPStatus(error.status_code).phrase
        kind = phrase.lower().replace(" ", "-")
        return _build_problem(error.status_code, kind, phrase, str(error.detail)), dict(error.headers or {})
    row = next((row for kind, row in ERRORS.items() if isinstance(error, kind)), INTERNAL_ERROR)
    if row == INTERNAL_ERROR:
        logger.error("request %s: unexpected error", request_id(), exc_info=error)
        return _build_problem(
            *row, "The service failed; the request may be valid. The log has the reason, under the request id."
        ), {}
    headers = {"WWW-Authenticate": 'Bearer realm="maskserve"'} if isinstance(error, UnauthorizedError) else {}
    if isinstance(error, OverloadedError | NotReadyError):
        headers |= retry_after_header(error.retry_after)
    return _build_problem(*row, str(error)), headers


def drop_frames(error: BaseException | None) -> None:
    """Let go of the frames that a handled exception has passed, and of those of its causes.

    They hold the request's body, and a future of the same frames holds the exception: only the cycle collector would free them,
    which comes after some hundred requests.
    """
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _build_problem(status: int, kind: str, title: str, detail: str) -> Problem:
    return Problem(type=PROBLEM_TYPE_PREFIX + kind, title=title, status=status, detail=detail, request_id=request_id())
