"""What stands before the routes, as plain ASGI: checks of the path, the limits on bodies, and the last net for errors."""

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import answers
from service.errors import BodyTooLarge, NotFound, SlowBody

# How long a refused sender is listened to. Closing at once would reset the connection while it still sends, and many
# clients then report the reset instead of the answer.
LINGER_SECONDS = 2.0


class Net:
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
        except (BodyTooLarge, SlowBody) as error:
            await _refuse_sender(error, receive, send)
        except Exception as error:  # what leaves here would reach the caller as BentoML's own 500
            if started:
                raise
            await answers.refusal(error)(scope, receive, send)


class Checked:
    """Refuses requests by their path alone, before anything that costs more looks at them."""

    def __init__(self, app: ASGIApp, check: Callable[[str], None]) -> None:
        """`check` is given the path, and raises what is to be answered."""
        self.app = app
        self.check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: what the check raises."""
        self.check(scope["path"])
        await self.app(scope, receive, send)


class Bodies:
    """Holds bodies to their limits: of bytes, announced or not, and of the time in which they come."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        """`limit`: the largest body in bytes; `seconds`: in which it must come, from when it is first asked for."""
        self.app = app
        self.limit = limit
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: BodyTooLarge, SlowBody; also out of `receive`, into whatever reads the body."""
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limit:
            raise self._too_large(f"{int(announced):,}")
        received, complete, deadline = 0, False, 0.0

        async def counted() -> Message:
            nonlocal received, complete, deadline
            if complete:  # what is waited for now is that the caller goes
                return await receive()
            deadline = deadline or time.monotonic() + self.seconds
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                complete = True  # and what still comes is for whoever refuses it
                raise SlowBody(
                    f"The body did not come within {self.seconds:g} seconds; {received:,} bytes of it did."
                ) from error
            received += len(message.get("body", b""))
            complete = received > self.limit or not message.get("more_body", False)
            if received > self.limit:
                raise self._too_large(f"more than {self.limit:,}")
            return message

        await self.app(scope, counted, send)

    def _too_large(self, came: str) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body has {came} bytes; the limit is {self.limit:,}. "
            "Send a smaller picture or let the service be started with a larger MASKSERVE_MAX_BODY_BYTES."
        )


def not_found(path: str, known: list[str]) -> NotFound:
    """The error for a path at which nothing is."""
    return NotFound(f"Nothing is at {path[:200]!r}; the routes are {', '.join(known)}.")


async def _refuse_sender(error: Exception, receive: Receive, send: Send) -> None:
    """Answer in full at once, then drop what still comes for a while, then close."""
    response = answers.refusal(error)
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except (TimeoutError, BodyTooLarge, SlowBody):
        pass
    await send({"type": "http.response.body", "body": b""})
