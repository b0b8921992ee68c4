"""ASGI middleware before the routes: access log, errors, checks of a request's head, limits on bodies.

`service/app.py` puts them in order. All expect HTTP requests only.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import quoted
from service import responses
from service.access_log import current_entry, new_entry, request_id, write_access_log
from service.auth import check_api_key
from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    MalformedRequestError,
    SendTimeoutError,
    UnknownPathError,
)
from service.forwarding import check_host
from service.jobs import JOB_KEY
from service.segmentation import SegmentationService

logger = logging.getLogger("maskserve")

MAX_DRAIN_BYTES = 2**20  # longer bodies of rejected requests are not read to their end; their connection is closed
SEND_CHUNK_BYTES = 2**18  # bytes of a response that are given to the server at once
BODY_STATE_KEY = "maskserve.body"  # in a request's scope: whether its body has been read

PROBE_PATHS = ("/livez", "/readyz", "/healthz")
API_PREFIX = "/v1"
MODELS_PREFIX = f"{API_PREFIX}/models/"
EXAMPLES_PREFIX = f"{API_PREFIX}/examples/"
JOBS_PREFIX = f"{API_PREFIX}/jobs/"
SEGMENT_PATH = f"{API_PREFIX}/segment"
DOCUMENTED_ROUTES = (
    "/metrics",
    "/v1/docs",
    "/v1/models",
    "/v1/models/NAME",
    "/v1/segment",
    "/v1/segment/batch",
    "/v1/jobs/ID",
)


@dataclass(frozen=True)
class RouteTable:
    """The paths of the service, except those of single models."""

    methods: Mapping[str, str]  # the allowed method of each path; admission control checks requests with POST
    public_paths: frozenset[str]  # paths that need no API key

    def label(self, path: str) -> str:
        """The path as a label of metrics: one of a limited number."""
        for prefix in (MODELS_PREFIX, EXAMPLES_PREFIX):
            if path.startswith(prefix):
                return f"{prefix}NAME"
        if path.startswith(JOBS_PREFIX):
            return f"{JOBS_PREFIX}ID"
        return path if path in self.methods else "other"


class AccessLogMiddleware:
    """Assigns the request id (the caller's X-Request-ID if it is valid), logs and counts the request, adds headers."""

    def __init__(self, app: ASGIApp, log: bool, count: Callable[[str, int, float], None]) -> None:
        """`log`: whether to write a line per request. `count`: called with path, status and seconds of each request."""
        self.app = app
        self.log = log
        self.count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process the request."""
        entry = new_entry(Headers(scope=scope).get("x-request-id", ""))
        token = current_entry.set(entry)
        start, status, sent = time.perf_counter(), 0, 0

        async def send_recorded(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", entry.request_id.encode())]
                names = {name.lower() for name, _ in headers}
                headers += [pair for pair in responses.DEFAULT_HEADERS if pair[0] not in names]
                message = {**message, "headers": headers}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_recorded)
        except Exception as error:  # after the response has begun; the server closes the connection
            logger.error("request %s: unexpected error during the response", entry.request_id, exc_info=error)
            raise
        finally:
            seconds = time.perf_counter() - start
            self.count(scope["path"], status, seconds)
            if self.log:
                write_access_log(scope, status, seconds, sent, entry)
            current_entry.reset(token)


class ErrorMiddleware:
    """Turns every exception into a response of `application/problem+json`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process the request, or respond with the error."""
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except ClientDisconnect:  # nobody receives a response; the log has status 0
            pass
        except SendTimeoutError as error:  # nobody receives the rest; the server closes an unfinished response
            logger.warning("request %s: %s", request_id(), error)
        except Exception as error:  # without this, the caller would get BentoML's own 500
            if started:
                raise
            unread = not scope.get(BODY_STATE_KEY, {}).get("read", False)
            if isinstance(error, BodyTooLargeError | BodyTimeoutError) or (unread and _must_drain(scope)):
                await _respond_and_drain(error, receive, send)
            else:
                await responses.problem_response(error)(scope, receive, send)


class RequestCheckMiddleware:
    """Rejects requests by their head: 400, 401, 403, 404, 405 and, before the body is read, 429.

    Unknown paths must not get past it, because BentoML makes each path a label of its metrics. And at twenty times the load
    that can be served, rejections must be cheap.
    """

    def __init__(self, app: ASGIApp, segmentation: SegmentationService, routes: RouteTable) -> None:
        """`segmentation`: knows the API keys, the models and the load."""
        self.app = app
        self.segmentation = segmentation
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process the request.

        Raises: MalformedRequestError, ForbiddenHostError, UnauthorizedError, UnknownPathError, HTTPException (405),
            ModelNotServedError, NotReadyError, OverloadedError.
        """
        method, path, settings = scope["method"], scope["path"], self.segmentation.settings
        check_framing(scope)
        if settings.allowed_hosts and path not in PROBE_PATHS:  # probes ask by address, and learn nothing
            check_host(Headers(scope=scope), settings.allowed_hosts)
        hashes = settings.api_keys
        if hashes and method != "OPTIONS" and path not in self.routes.public_paths:
            check_api_key(Headers(scope=scope), hashes)
        is_model = path.startswith((MODELS_PREFIX, EXAMPLES_PREFIX))
        allowed = "GET" if is_model else self.routes.methods.get(path)
        if path.startswith(JOBS_PREFIX) and self.segmentation.jobs is not None:
            allowed = method if method in ("GET", "DELETE") else "GET, DELETE"
            # BentoML makes each path a label of its metrics, and the ids of jobs are without number.
            scope = {**scope, "path": f"{JOBS_PREFIX}ID", JOB_KEY: path.removeprefix(JOBS_PREFIX)}
        if allowed is None:
            raise UnknownPathError(
                f"There is no route {quoted(path[:200])}. The routes are {', '.join(DOCUMENTED_ROUTES)}."
            )
        if method != allowed:
            raise HTTPException(405, f"{method[:20]} is not allowed here. Use {allowed}.", {"Allow": allowed})
        if path.startswith(MODELS_PREFIX):
            self.segmentation.registry.get(path.removeprefix(MODELS_PREFIX))
        elif is_model:
            self.segmentation.registry.get(path.removeprefix(EXAMPLES_PREFIX).rpartition("/")[0])
        if allowed == "POST":
            is_job = path == SEGMENT_PATH and self.segmentation.is_job(Headers(scope=scope))
            self.segmentation.admission.check_capacity(is_job)
        await self.app(scope, receive, send)


class BodyLimitMiddleware:
    """Limits the bytes of a request's body, announced or not, and the time in which it arrives and the response is received."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_seconds: float) -> None:
        """Set the limits.

        Args:
            app: the next app.
            max_bytes: the largest body.
            timeout_seconds: in which a body must arrive, counted from when it is first read, and the caller must receive each
                chunk of a response.
        """
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: BodyTooLargeError, BodyTimeoutError, SendTimeoutError; also from `receive` and `send`."""
        announced = content_length(scope)
        if announced > self.max_bytes:
            raise self._body_too_large_error("far too many" if math.isinf(announced) else f"{announced:,}")
        received, deadline, body = 0, 0.0, {"read": False}

        async def receive_limited() -> Message:
            nonlocal received, deadline
            if body["read"]:  # the only message to come is that the caller has disconnected
                return await receive()
            deadline = deadline or time.monotonic() + self.timeout_seconds
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                body["read"] = True  # ErrorMiddleware reads what still arrives
                raise BodyTimeoutError(
                    f"The request body did not arrive within {self.timeout_seconds:g} seconds; {received:,} bytes of it "
                    "did. Send a smaller image, or use a faster connection."
                ) from error
            received += len(message.get("body", b""))
            body["read"] = received > self.max_bytes or not message.get("more_body", False)
            if received > self.max_bytes:
                raise self._body_too_large_error(f"more than {self.max_bytes:,}")
            return message

        async def send_in_chunks(message: Message) -> None:
            """Give the server no more than a chunk at a time: it buffers what the caller does not receive."""
            content, sent = message.get("body", b""), 0
            # By position: to cut off what is sent would copy the rest for each chunk.
            while len(content) - sent > SEND_CHUNK_BYTES:
                chunk = content[sent : sent + SEND_CHUNK_BYTES]
                await self._with_timeout(send({**message, "body": chunk, "more_body": True}))
                sent += SEND_CHUNK_BYTES
            await self._with_timeout(send({**message, "body": content[sent:]} if sent else message))

        await self.app({**scope, BODY_STATE_KEY: body}, receive_limited, send_in_chunks)

    async def _with_timeout(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await sending
        except TimeoutError as error:
            raise SendTimeoutError(
                f"The caller received nothing of the response for {self.timeout_seconds:g} seconds."
            ) from error

    def _body_too_large_error(self, size: str) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The request body has {size} bytes; the limit is {self.max_bytes:,}. "
            "Send a smaller image, or start the service with a larger MASKSERVE_MAX_BODY_BYTES."
        )


def content_length(scope: Scope) -> float:
    """The size of the body from the request's head: 0 if it is not there, infinite for a number of more than 18 digits."""
    digits = Headers(scope=scope).get("content-length", "").lstrip("0")
    if not digits.isdecimal() or not digits.isascii():
        return 0
    return int(digits) if len(digits) <= 18 else math.inf


def check_framing(scope: Scope) -> None:
    """Check that the end of the body is certain. Raises: MalformedRequestError.

    Servers that disagree about it can be made to take the rest of a body for a request (RFC 9112, 6.1).
    """
    headers = Headers(scope=scope)
    if "transfer-encoding" not in headers:
        return
    if "content-length" in headers or scope.get("http_version") == "1.0":
        raise MalformedRequestError(
            "The request has Transfer-Encoding together with Content-Length or HTTP/1.0, so that the end of its body is not "
            "certain. Send one of the two headers, with HTTP/1.1."
        )


def _must_drain(scope: Scope) -> bool:
    """Whether the server would close the connection before the rest of the body has arrived.

    It reads the body of a rejected request to its end, unless that is long or the caller wants the connection closed.
    """
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers or content_length(scope) > MAX_DRAIN_BYTES:
        return True
    closes = scope.get("http_version") == "1.0" or "close" in headers.get("connection", "").lower()
    return closes and content_length(scope) > 0


async def _respond_and_drain(error: Exception, receive: Receive, send: Send) -> None:
    """Send the whole response at once, then read and drop what still arrives for a while, then close the connection."""
    response = responses.problem_response(error)
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    try:
        async with asyncio.timeout(responses.LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except (TimeoutError, BodyTooLargeError, BodyTimeoutError):
        pass
    await send({"type": "http.response.body", "body": b""})
