"""A server that sends a list of prepared responses, byte for byte."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread

DROPPED = b""  # closes the connection without a response


def http_response(status: int, body: bytes = b"", missing: int = 0, **headers: str) -> bytes:
    """The bytes of a response. `_` in a header's name becomes `-`; `missing` bytes of the body are not sent."""
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body) + missing}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class ReceivedRequest:
    """A request that arrived."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeServer:
    """Sends the responses in order, and the last one again and again; a number is a delay in seconds."""

    responses: list[bytes | float]
    port: int = 0
    requests: list[ReceivedRequest] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):  # when the test ends
            while True:
                connection = listener.accept()[0]
                with connection, suppress(ConnectionError):
                    self._handle_connection(connection)

    def _handle_connection(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection.makefile("rb") as lines:
            if not (line := lines.readline()):
                return
            pairs = iter(lambda: lines.readline().decode().rstrip("\r\n"), "")
            headers = {name.lower(): value for name, _, value in (pair.partition(": ") for pair in pairs)}
            body = lines.read(int(headers.get("content-length", 0)))
        self.requests.append(ReceivedRequest(line.decode().strip(), headers, body))
        response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        if isinstance(response, float):
            time.sleep(response)
        else:
            connection.sendall(response)


@contextmanager
def run_fake_server(*responses: bytes | float, port: int = 0) -> Iterator[FakeServer]:
    """Serve the responses on the loopback address while the block runs."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = FakeServer(list(responses), listener.getsockname()[1])
        thread = Thread(target=server.serve, args=(listener,))
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # accept() does not notice that the socket is closed
            thread.join()
