"""A server that answers by a script: what a client of it meets is on the wire, byte for byte."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread

DROPPED = b""  # the connection ends without an answer


def http_response(status: int, body: bytes = b"", missing: int = 0, **headers: str) -> bytes:
    """An answer as it stands on the wire; `_` of a header's name is `-`, and `missing` bytes of the body never come."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body) + missing}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class ReceivedRequest:
    """What came."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeServer:
    """The answers still to give, the last one again and again; a number is the seconds until the next one."""

    responses: list[bytes | float]
    port: int = 0
    requests: list[ReceivedRequest] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, listening: socket.socket) -> None:
        with suppress(OSError):  # of the end of the test
            while True:
                connection = listening.accept()[0]
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
        told = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        if isinstance(told, float):
            time.sleep(told)
        else:
            connection.sendall(told)


@contextmanager
def run_fake_server(*script: bytes | float, port: int = 0) -> Iterator[FakeServer]:
    """Answer on the loopback address while the block runs."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        server = FakeServer(list(script), listening.getsockname()[1])
        thread = Thread(target=server.serve, args=(listening,))
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown(socket.SHUT_RDWR)  # accept() would not notice that the socket is closed
            thread.join()
