"""Decodes images in a process of its own, which `decoder_pool.py` starts, and kills if an image takes too long.

    python -m models.imaging.decoder_process PARENT SOCKET BUFFER MAX_ADDRESS_BYTES

It imports what decoding needs: Pillow and NumPy, no engine. Requests and responses are JSON messages on a socket. The file's
bytes come, and the pixels go, in a memory file (`memfd_create`), which no file system limits: /dev/shm has 64 MB in a container.
"""

import ctypes
import json
import math
import os
import resource
import signal
import socket
import sys
import warnings
from contextlib import suppress
from typing import Any

import numpy as np

from models.imaging.cpu_budget import end_budget, start_budget

MAX_MESSAGE_BYTES = 1 << 16
MAX_ERROR_CHARS = 4000
LARGE_BYTES = 4 << 20  # of a file or of pixels, after which memory is given back
MAX_OPEN_FILES = 32  # it needs about ten
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Memory that libraries reserve without using it: stacks and malloc arenas of the threads that decode an AVIF.
RESERVED_BYTES = 512 << 20


def send_message(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send a message."""
    connection.send(json.dumps(message).encode())


def receive_message(connection: socket.socket) -> dict[str, Any]:
    """Receive a message. Raises: EOFError when the other side has gone, ValueError for what is not a message."""
    data = connection.recv(MAX_MESSAGE_BYTES)
    if not data:
        raise EOFError("the other process has closed the connection")
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message


def write_buffer(buffer: int, content: bytes | memoryview, start: int = 0) -> None:
    """Write to a memory file, from the byte `start`. Raises: OSError if memory is short."""
    rest, offset = memoryview(content).cast("B"), 0
    while offset < len(rest):
        offset += os.pwrite(buffer, rest[offset:], start + offset)


def read_buffer(buffer: int, content: bytearray | memoryview, start: int = 0) -> None:
    """Fill `content` from the byte `start` of a memory file. Raises: EOFError if the file is shorter."""
    rest, offset = memoryview(content).cast("B"), 0
    while offset < len(rest):
        count = os.preadv(buffer, [rest[offset:]], start + offset)
        if not count:
            raise EOFError("the buffer is too short")
        offset += count


def limit_process(parent: int, address_bytes: int) -> None:
    """Limit memory and files, and end with the parent: also when it is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        sys.exit(0)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limit = mapped + RESERVED_BYTES + address_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def decode_in_buffer(buffer: int, length: int, max_pixels: int, rule: dict[str, Any] | None) -> dict[str, Any]:
    """Replace an image file of `length` bytes in a memory file by its pixels.

    `rule`: the network's input, as JSON; None for RGB uint8. With a rule the response also has the dtype, whether pixels are
    missing (`valid`, uint8 H x W, then follows the values), and the statistics for the scaling `zscore`.
    Returns: the response, which has the size.
    """
    data = bytearray(length)
    read_buffer(buffer, data)
    if rule is None:
        from models.imaging.decode import decode_image

        pixels = decode_image(bytes(data), max_pixels)
        write_buffer(buffer, np.ascontiguousarray(pixels).data)
        return {"size": pixels.shape[:2]}
    from models.readers import read_input
    from models.spec import InputRule

    sample = read_input(bytes(data), InputRule.model_validate(rule), max_pixels)
    values = np.ascontiguousarray(sample.values)
    write_buffer(buffer, values.view(np.uint8).data)
    if sample.valid is not None:
        write_buffer(buffer, np.ascontiguousarray(sample.valid).view(np.uint8).data, values.nbytes)
    return {
        "size": sample.size,
        "bytes": values.nbytes,
        "has_missing": sample.valid is not None,
        "statistics": None if sample.statistics is None else sample.statistics.tolist(),
    }


def main(parent: int, connection: socket.socket, buffer: int, address_bytes: int) -> None:
    """Decode one image after the other, until the parent closes the connection."""
    warnings.simplefilter("ignore")
    from PIL import AvifImagePlugin

    import models.imaging.decode  # noqa: F401  # before the limits: it opens libraries
    from models.errors import InsufficientMemoryError, MaskserveError

    AvifImagePlugin.DEFAULT_MAX_THREADS = min(4, len(os.sched_getaffinity(0)))  # each reserves address space
    libc = ctypes.CDLL(None)
    limit_process(parent, address_bytes)
    with suppress(
        EOFError, ConnectionError
    ):  # the parent has closed the connection: it ends, or needs this process no more
        send_message(connection, {"ready": True})
        while True:
            request = receive_message(connection)
            start_budget(request["bytes"], "rule" not in request)
            try:
                response = decode_in_buffer(buffer, request["bytes"], request["max_pixels"], request.get("rule"))
            except MaskserveError as error:
                response = {"error": type(error).__name__, "message": str(error)[:MAX_ERROR_CHARS]}
            except (MemoryError, OSError):
                message = "There is not enough free memory to decode the image. Use a smaller one, or try again later."
                response = {"error": InsufficientMemoryError.__name__, "message": message}
            end_budget()
            send_message(connection, response)
            # Pillow copies pixels in small pieces, which fragment the heap.
            pixel_bytes = response.get("bytes") or 3 * math.prod(response.get("size", ()))
            if max(request["bytes"], pixel_bytes) > LARGE_BYTES:
                libc.malloc_trim(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4]))
