"""What stands before the routes, as plain ASGI: the limit on bodies, the last net for errors, and the known paths."""

from collections.abc import Callable, Collection

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import answers
from service.errors import BodyTooLarge

# How long a refused sender is listened to. Closing at once would reset the connection while it still sends, and many
# clients then report the reset instead of the answer.
LINGER_SECONDS = 2.0


class Gate:
    """Refuses bodies over the limit, and answers whatever the routes raise as a problem."""

    def __init__(self, app: ASGIApp, limit: Callable[[], int]) -> None:
        """`limit` gives the largest body in bytes; it is asked at each request, for settings come after the import."""
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer in its place."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, received, started = self.limit(), 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(f"more than {limit:,}", limit)
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            announced = Headers(scope=scope).get("content-length", "")
            if announced.isdecimal() and int(announced) > limit:
                raise _too_large(f"{int(announced):,}", limit)
            await self.app(scope, counted, noted)
        except BodyTooLarge as error:
            await _refuse_sender(error, scope, receive, send)
        except Exception as error:  # what leaves here would reach the caller as BentoML's own 500
            if started:
                raise
            await answers.refusal(error)(scope, receive, send)


class KnownPaths:
    """Answers 404 to paths that no route has, before BentoML makes each of them a label of its metrics."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self.app = app
        self.paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let known paths through."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http" and scope["path"] not in self.paths:
            detail = f"Nothing is at {scope['path'][:200]!r}; the routes are {', '.join(sorted(self.paths))}."
            await answers.problem(404, "Not Found", detail)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _too_large(came: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body has {came} bytes; the limit is {limit:,}. "
        "Send a smaller picture or let the service be started with a larger MASKSERVE_MAX_BODY_BYTES."
    )


async def _refuse_sender(error: BodyTooLarge, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in full at once, then drop what still comes for a while, then close."""
    response = answers.refusal(error)
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    with anyio.move_on_after(LINGER_SECONDS):
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass
    await send({"type": "http.response.body", "body": b""})
