"""The id of the current request, and its line in the access log."""

import datetime
import json
import logging
import re
import secrets
import sys
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from models.errors import escape_control_characters

# Ids that a caller may choose: an id is written into a header and into logs.
_REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

# Paths that probes and pages request every few seconds: their lines would hide the others. So would those of the page's files.
UNLOGGED_PATHS = ("/livez", "/readyz", "/healthz", "/metrics", "/v1/models", "/")


class EscapingFormatter(logging.Formatter):
    """Lines that are safe to show in a terminal: names of bundles, files and hosts come from outside."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback if there is one."""
        return escape_control_characters(super().format(record))


@dataclass
class LogEntry:
    """What is logged of one request."""

    request_id: str
    fields: dict[str, Any] = field(default_factory=dict)


current_entry: ContextVar[LogEntry | None] = ContextVar("maskserve_request", default=None)


def new_entry(caller_id: str) -> LogEntry:
    """An entry with the caller's X-Request-ID if that is valid, otherwise with a random id."""
    return LogEntry(caller_id if _REQUEST_ID_PATTERN.fullmatch(caller_id) else secrets.token_hex(8))


def request_id() -> str:
    """The id of the current request; empty outside of requests."""
    entry = current_entry.get()
    return entry.request_id if entry else ""


def add_log_fields(**fields: Any) -> None:
    """Add fields to the log line of the current request."""
    if entry := current_entry.get():
        entry.fields.update(fields)


def write_access_log(scope: Scope, status: int, seconds: float, sent: int, entry: LogEntry) -> None:
    """Write a line of JSON to the standard output, except for probes and files of the page that succeed.

    `status`: 0 if the caller disconnected before the response. `sent`: bytes of the response's body.
    """
    path = scope["path"]
    if status in (200, 304, 503) and (path in UNLOGGED_PATHS or path.startswith(("/static/", "/v1/examples/"))):
        return
    if status == 202 and scope["method"] == "GET":  # a job that is not done: its caller asks every few seconds
        return
    line = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "request_id": entry.request_id,
        "client": (scope.get("client") or ("",))[0],
        "method": scope["method"],
        "path": path[:200],
        "status": status,
        "ms": round(seconds * 1e3, 2),
        "bytes": sent,
        **entry.fields,
    }
    _write_line(line)


def write_job_log(job: str, status: int, seconds: float, **fields: Any) -> None:
    """Write a line of JSON about a job that has ended: `status` is that of the response that its result gets."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    _write_line(
        {
            "time": time,
            "request_id": request_id(),
            "job": job,
            "status": status,
            "ms": round(seconds * 1e3, 2),
            **fields,
        }
    )


def _write_line(line: dict[str, Any]) -> None:
    with suppress(OSError, ValueError):  # a closed log is no reason to fail the request
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
