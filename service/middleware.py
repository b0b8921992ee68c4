"""What stands before the routes, as plain ASGI: checks of the path, the limits on bodies, and the last net for errors."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import responses
from service.access_log import request_id
from service.errors import BodyTimeoutError, BodyTooLargeError, SendTimeoutError, UnknownPathError

logger = logging.getLogger("maskserve")

# How long a refused sender is listened to. Closing at once would reset the connection while it still sends, and many
# clients then report the reset instead of the answer.
LINGER_SECONDS = 2.0
BODY_STATE_KEY = "maskserve.body"  # in a request's scope: whether its body has been read

# A longer body of a refused request is not read to its end for the sake of keeping the connection.
MAX_DRAIN_BYTES = 2**20  # bytes
SEND_CHUNK_BYTES = 2**18  # bytes of an answer that are given to the server at once


class ErrorMiddleware:
    """Answers whatever is raised behind it as a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer in its place."""
        if scope["type"] != "http":  # it also stands around the routes, which BentoML starts and stops
            await self.app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except ClientDisconnect:  # nobody is there; the log has a status of 0
            pass
        except SendTimeoutError as error:  # nobody is there: the server closes what is left unfinished
            logger.warning("request %s: %s", request_id(), error)
        except Exception as error:  # what leaves here would reach the caller as BentoML's own 500
            if started:
                raise
            unread = not scope.get(BODY_STATE_KEY, {}).get("read", False)
            if isinstance(error, BodyTooLargeError | BodyTimeoutError) or (unread and _has_long_body(scope)):
                await _respond_and_drain(error, receive, send)
            else:
                await responses.problem_response(error)(scope, receive, send)


class RequestCheckMiddleware:
    """Refuses requests by method and path alone, before anything that costs more looks at them."""

    def __init__(self, app: ASGIApp, check: Callable[[str, str], None]) -> None:
        """`check` is given them, and raises what is to be answered."""
        self.app = app
        self.check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: what the check raises."""
        self.check(scope["method"], scope["path"])
        await self.app(scope, receive, send)


class BodyLimitMiddleware:
    """Holds bodies to their limits: of bytes, announced or not, and of the time in which they come and are taken."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        """Set the limits.

        Args:
            app: what stands behind.
            limit: the largest body in bytes.
            seconds: in which a request's body must come, from when it is first asked for, and each piece of an answer's
                be taken.
        """
        self.app = app
        self.max_bytes = limit
        self.timeout_seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: BodyTooLarge, SlowBody, Unread; also out of `receive` and `send`, into whatever calls them."""
        announced = content_length(scope)
        if announced > self.max_bytes:
            raise self._body_too_large_error("far too many" if math.isinf(announced) else f"{announced:,}")
        received, deadline, body = 0, 0.0, {"read": False}

        async def counted() -> Message:
            nonlocal received, deadline
            if body["read"]:  # what is waited for now is that the caller goes
                return await receive()
            deadline = deadline or time.monotonic() + self.timeout_seconds
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                body["read"] = True  # and what still comes is for whoever refuses it
                raise BodyTimeoutError(
                    f"The body did not come within {self.timeout_seconds:g} seconds; {received:,} bytes of it did."
                ) from error
            received += len(message.get("body", b""))
            body["read"] = received > self.max_bytes or not message.get("more_body", False)
            if received > self.max_bytes:
                raise self._body_too_large_error(f"more than {self.max_bytes:,}")
            return message

        async def paced(message: Message) -> None:
            """In pieces, so that no more than one lies in the server's buffer where the caller takes none."""
            rest = message.get("body", b"")
            while len(rest) > SEND_CHUNK_BYTES:
                await self._with_timeout(send({**message, "body": rest[:SEND_CHUNK_BYTES], "more_body": True}))
                rest = rest[SEND_CHUNK_BYTES:]
            await self._with_timeout(send({**message, "body": rest} if rest else message))

        await self.app({**scope, BODY_STATE_KEY: body}, counted, paced)

    async def _with_timeout(self, sent: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await sent
        except TimeoutError as error:
            raise SendTimeoutError(f"For {self.timeout_seconds:g} seconds nothing was taken of the answer.") from error

    def _body_too_large_error(self, came: str) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The body has {came} bytes; the limit is {self.max_bytes:,}. "
            "Send a smaller image or let the service be started with a larger MASKSERVE_MAX_BODY_BYTES."
        )


def content_length(scope: Scope) -> float:
    """The size of the body by the request's head: 0 where it says none, infinite for a number of more than 18 digits."""
    digits = Headers(scope=scope).get("content-length", "").lstrip("0")
    if not digits.isdecimal() or not digits.isascii():
        return 0
    return int(digits) if len(digits) <= 18 else math.inf


def _has_long_body(scope: Scope) -> bool:
    """Whether the body is long, or of a length that nobody has said."""
    return content_length(scope) > MAX_DRAIN_BYTES or "transfer-encoding" in Headers(scope=scope)


def unknown_path_error(path: str, known: list[str]) -> UnknownPathError:
    """The error for a path at which nothing is."""
    return UnknownPathError(f"Nothing is at {path[:200]!r}; the routes are {', '.join(known)}.")


async def _respond_and_drain(error: Exception, receive: Receive, send: Send) -> None:
    """Answer in full at once, then drop what still comes for a while, then close."""
    response = responses.problem_response(error)
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except (TimeoutError, BodyTooLargeError, BodyTimeoutError):
        pass
    await send({"type": "http.response.body", "body": b""})
