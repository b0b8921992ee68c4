"""What is noted of each request: an id that goes through answer and log, a line of JSON, and its figures."""

import datetime
import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What a caller may choose as an id: it goes into a header and into logs.
_REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

# Asked every few seconds by what watches the service; a line for each, or for each of the page's files, would drown the others.
UNLOGGED_PATHS = ("/livez", "/readyz", "/healthz", "/metrics", "/v1/models")


@dataclass
class LogEntry:
    """What is noted of one request."""

    id: str
    fields: dict[str, Any] = field(default_factory=dict)


_current_entry: ContextVar[LogEntry | None] = ContextVar("maskserve_request", default=None)


def request_id() -> str:
    """The id of the request that is being answered; empty where there is none."""
    entry = _current_entry.get()
    return entry.id if entry else ""


def add_log_fields(**facts: Any) -> None:
    """Add to the line that the request in hand leaves in the log."""
    if entry := _current_entry.get():
        entry.fields.update(facts)


class AccessLogMiddleware:
    """Gives each request its id (the caller's X-Request-ID, if it is a good one), and notes how it ended."""

    def __init__(self, app: ASGIApp, log: bool, count: Callable[[str, int, float], None]) -> None:
        """`log`: whether each request leaves a line; `count` is told each one's path, status and seconds."""
        self.app = app
        self.enabled = log
        self.on_complete = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through."""
        given = Headers(scope=scope).get("x-request-id", "")
        entry = LogEntry(given if _REQUEST_ID_PATTERN.fullmatch(given) else secrets.token_hex(8))
        token = _current_entry.set(entry)
        began, status, sent = time.perf_counter(), 0, 0

        async def noted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", entry.id.encode())]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            self.on_complete(scope["path"], status, seconds)
            if self.enabled and not _is_unlogged(scope["path"], status):
                _write_line(scope, status, seconds, sent, entry)
            _current_entry.reset(token)


def _is_unlogged(path: str, status: int) -> bool:
    return status in (200, 304, 503) and (path in UNLOGGED_PATHS or path == "/" or path.startswith("/static/"))


def _write_line(scope: Scope, status: int, seconds: float, sent: int, entry: LogEntry) -> None:
    """One line of JSON on the standard output; a status of 0 means that the caller went before the answer."""
    line = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "request_id": entry.id,
        "client": (scope.get("client") or ("",))[0],
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "ms": round(seconds * 1e3, 2),
        "bytes": sent,
        **entry.fields,
    }
    with suppress(OSError, ValueError):  # nobody reads it any more: no reason to fail the request
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
