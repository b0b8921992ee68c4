"""What goes back to the caller: a mask with its headers, or an error as `application/problem+json` (RFC 9457)."""

import http
import logging
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from models.bundle import Bundle
from models.errors import BrokenImage, EmptyImage, ImageTooLarge, NotAnImage, TooLittleMemory
from service.errors import BadRequest, BodyTooLarge, NotReady

logger = logging.getLogger("maskserve")

ERRORS: dict[type[Exception], tuple[int, str]] = {
    BadRequest: (400, "The request is not understood"),
    EmptyImage: (400, "The picture is empty"),
    ClientDisconnect: (400, "The request broke off"),
    BodyTooLarge: (413, "The body is too large"),
    ImageTooLarge: (413, "The picture is too large"),
    TooLittleMemory: (413, "The picture is too large"),
    NotAnImage: (415, "This is no picture"),
    BrokenImage: (422, "The picture is broken"),
    NotReady: (503, "The service is not ready"),
}
UNEXPECTED = (500, "Something went wrong in the service")

PROBLEM_JSON = "application/problem+json"


class Problem(BaseModel):
    """An error, by RFC 9457."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="the kind of error, always the same for a kind")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what came, what was wanted, and what to do")


def mask(body: bytes, media_type: str, bundle: Bundle, milliseconds: dict[str, float]) -> Response:
    """An encoded prediction, with the model that made it and where the time went."""
    timing = ", ".join(f"{stage};dur={duration:.2f}" for stage, duration in milliseconds.items())
    return Response(body, media_type=media_type, headers={"X-Model": model_tag(bundle), "Server-Timing": timing})


def model_tag(bundle: Bundle) -> str:
    """Name and short hash, such as `streets@0123456789ab`, in characters that a header may hold."""
    return f"{quote(bundle.spec.name)}@{bundle.hash[:12]}"


def refusal(error: Exception) -> Response:
    """Any exception as a problem; one that is not in the table is logged, and its text stays in the log."""
    if isinstance(error, HTTPException):
        return problem(error.status_code, http.HTTPStatus(error.status_code).phrase, str(error.detail), error.headers)
    status, title = next((row for kind, row in ERRORS.items() if isinstance(error, kind)), UNEXPECTED)
    if (status, title) == UNEXPECTED:
        logger.error("a request met an unexpected error", exc_info=error)
        return problem(status, title, "The request may be fine: the service's log holds the reason.")
    if isinstance(error, ClientDisconnect):
        return problem(status, title, "The connection was closed before the whole body had come.")
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, NotReady) and error.retry_after else None
    return problem(status, title, str(error), headers)


def problem(status: int, title: str, detail: str, headers: Any = None) -> Response:
    """A problem+json answer."""
    content = Problem(title=title, status=status, detail=detail).model_dump()
    return JSONResponse(content, status, headers, media_type=PROBLEM_JSON)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its OpenAPI page."""
    schema = Problem.model_json_schema()
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        titles = [title for row, title in [*ERRORS.values(), UNEXPECTED] if row == status]
        description = "; ".join(titles) or http.HTTPStatus(status).phrase
        answers[status] = {"description": description, "content": {PROBLEM_JSON: {"schema": schema}}}
    return answers
