"""The protocol of one connection: uvicorn's for HTTP/1.1, with limits on connections and on the time of a request's head.

What is rejected here never becomes a request: it gets `application/problem+json` and a line in the log, like every request.
"""

import asyncio
import http
import os
import socket
import sys
from typing import Any, cast

import h11
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import responses
from service.access_log import current_entry, new_entry, write_access_log
from service.errors import ConnectionLimitError, HeadTimeoutError, StoppingError
from service.forwarding import PEER_KEY
from service.metrics import get_metrics
from service.responses import LINGER_SECONDS
from service.settings import STOP_IDLE_SECONDS, Settings

DEFAULT_MAX_CONNECTIONS = 1000
RESERVED_FILES = 100  # file descriptors that a worker needs beside its connections
# A caller that sends no more may still read (`shutdown(SHUT_WR)`), or have gone: only what is sent to it tells.
PROBE_SECONDS = 1.0
MIN_IDLE_SECONDS = 1.0  # a connection younger than this may have sent a request that is not read yet


class HTTPProtocol(H11Protocol):
    """One connection. `settings` is set once per process, before the first connection."""

    settings: Settings
    _is_stopping = False  # the whole service; set on the class, for connections that are made meanwhile

    _head_timer: asyncio.TimerHandle | None = None
    _last_active = 0.0  # in the event loop's time
    _rejected = False  # the response is sent; what still arrives is dropped
    _has_eof = False  # the caller sends no more
    _probed = False  # something was sent after that

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first head. At the limit of connections, close one that is idle, or this one."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, PEER_KEY: self.client[0] if self.client else ""}
        self._last_active = self.loop.time()
        limit = max_connections(self.settings)
        if len(self.connections) > limit + RESERVED_FILES // 2:  # too many to send each an error
            transport.abort()
        elif len(self.connections) > limit and not self._close_idle_connection():
            self._reject(
                ConnectionLimitError(
                    f"All {limit} connections of this worker are in use (MASKSERVE_MAX_CONNECTIONS).", 1
                )
            )
        else:
            self._start_head_timer()
            if self._is_stopping:
                self.loop.call_later(STOP_IDLE_SECONDS, self._end_idle_connection)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes. Of a head that is not complete after them, the time is limited."""
        self._last_active = self.loop.time()
        if self._rejected:
            return
        super().data_received(data)
        if self._rejected:
            return
        if self._is_stopping:
            self._end_after_response()
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._start_head_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The caller sends no more. Returns: whether the connection stays open, for the response to a complete request."""
        self._has_eof = True
        if self._rejected or self.is_idle() or self.conn.their_state not in (h11.DONE, h11.MUST_CLOSE):
            return False
        self.loop.call_later(PROBE_SECONDS, self._probe)
        return True

    def _probe(self) -> None:
        """Find out whether a caller that sends no more still reads, so that nothing is computed for one that has gone.

        A kernel answers data for a socket that is closed with a reset. The data is an interim response, which every client of
        HTTP/1.1 must be able to skip (RFC 9110, 15.2).
        """
        if self.transport.is_closing() or self.is_idle():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if not self._probed and self.conn.our_state is h11.SEND_RESPONSE and self.conn.their_http_version == b"1.1":
            self._probed = True
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        self.loop.call_later(PROBE_SECONDS, self._probe)

    def on_response_complete(self) -> None:
        """The next head may have begun already."""
        super().on_response_complete()
        if self._has_eof and self.is_idle():  # no other request comes
            self.transport.close()
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and self._head_timer is None:
            self._start_head_timer()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for what is not HTTP, while it handles h11's error, which has the reason."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        reason = str(error or msg).partition(": bytearray(")[0]  # without the bytes that came
        self._reject(HTTPException(status, f"The request is not valid HTTP/1.1: {reason}."))

    def shutdown(self) -> None:
        """uvicorn calls this at a stop. The next response, or the running one, is the last one on this connection, and says so.

        A caller may be sending a request on an idle connection, and would get no response if it were closed at once. So it stays
        open for a while, as with nginx's `keepalive_min_timeout`.
        """
        type(self)._is_stopping = True
        self._end_after_response()
        self.loop.call_later(STOP_IDLE_SECONDS, self._end_idle_connection)

    def _end_after_response(self) -> None:
        """Let the response that is computed, if any, say `Connection: close`, as if its caller had asked for that."""
        if self.is_idle():
            return
        self.cycle.keep_alive = False
        if not self.cycle.response_started:
            # Changed in place: middleware and uvicorn read them when they respond.
            headers: Any = self.cycle.scope["headers"]
            headers[:] = [*(header for header in headers if header[0] != b"connection"), CLOSE_HEADER]

    def _end_idle_connection(self) -> None:
        if self.transport.is_closing() or self._rejected or not self.is_idle():
            return
        if self.conn.trailing_data[0]:  # the beginning of a request
            self._reject(StoppingError("The service is being stopped. Send the request again, on a new connection.", 1))
        else:
            self.transport.close()

    def is_idle(self) -> bool:
        """Whether no request is being processed."""
        return self.cycle is None or self.cycle.response_complete

    def _close_idle_connection(self) -> bool:
        """Close the connection that has been idle for longest. Returns: whether there was one."""
        idle = [other for other in cast(set[HTTPProtocol], self.connections) if other is not self and other.is_idle()]
        oldest = min(idle, key=lambda other: other._last_active, default=None)
        if oldest is None or self.loop.time() - oldest._last_active < MIN_IDLE_SECONDS:
            return False
        self.connections.discard(oldest)  # at once, so that the next new connection closes another one
        oldest.transport.close()
        return True

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.head_seconds, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or not self.is_idle():
            return
        if self.conn.trailing_data[0]:
            self._reject(
                HeadTimeoutError(
                    f"The head of the request did not arrive within {self.settings.head_seconds:g} seconds."
                )
            )
        else:
            self.transport.close()  # nothing was asked

    def _reject(self, error: Exception) -> None:
        """Send the error and end the connection; close it after a while, because a reset may overtake the error."""
        self._rejected = True
        self._unset_keepalive_if_required()
        self._stop_head_timer()
        if self.cycle is not None and not self.cycle.response_complete:  # its body is not valid
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_problem(error)
            self.transport.write_eof()
            self._head_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def _send_problem(self, error: Exception) -> None:
        entry = new_entry("")
        token = current_entry.set(entry)
        try:
            response = responses.problem_response(error)
        finally:
            current_entry.reset(token)
        response.headers["Connection"] = "close"
        response.headers["X-Request-ID"] = entry.request_id
        start = h11.Response(
            status_code=response.status_code,
            reason=http.HTTPStatus(response.status_code).phrase.encode(),
            headers=[*self.server_state.default_headers, *response.raw_headers, *responses.DEFAULT_HEADERS],
        )
        body = bytes(response.body)
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        get_metrics().count_request("other", response.status_code, 0.0)
        if self.settings.access_log:
            scope: dict[str, Any] = {"method": "", "path": "", "client": self.client}
            write_access_log(scope, response.status_code, 0.0, len(body), entry)


def max_connections(settings: Settings) -> int:
    """The limit of one worker: the setting, or what the limit on open files (`ulimit -n`) leaves."""
    return settings.max_connections or min(DEFAULT_MAX_CONNECTIONS, max(16, os.sysconf("SC_OPEN_MAX") - RESERVED_FILES))
