"""Decodes images in a process of its own, which `decoder_pool.py` starts, and kills if an image takes too long.

    python -m models.imaging.decoder_process PARENT SOCKET BUFFER MAX_ADDRESS_BYTES

It imports what decoding needs: Pillow and NumPy, no engine. The file's bytes come, and the pixels go, in a memory file
(`memfd_create`), which no file system limits: /dev/shm has 64 MB in a container.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import warnings
from contextlib import suppress
from typing import Any

from models.imaging.cpu_budget import end_budget, start_budget
from models.malloc import trim_heap

MAX_ERROR_CHARS = 4000
LARGE_BYTES = 4 << 20  # of a file or of pixels, after which memory is given back
MAX_OPEN_FILES = 32  # it needs about ten
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Memory that libraries reserve without using it: stacks and malloc arenas of the threads that decode an AVIF.
RESERVED_BYTES = 512 << 20


def limit_process(parent: int, address_bytes: int) -> int:
    """Limit memory and files, and end with the parent: also when it is killed. Returns: the memory beside `address_bytes`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        sys.exit(0)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    base = mapped + RESERVED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (base + address_bytes, base + address_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return base


def main(parent: int, connection: socket.socket, buffer: int, address_bytes: int) -> None:
    """Decode one image after the other, until the parent closes the connection."""
    warnings.simplefilter("ignore")
    from PIL import AvifImagePlugin

    import models.imaging.decode  # noqa: F401  # before the limits: it opens libraries
    from models.imaging import decoder_messages as messages

    AvifImagePlugin.DEFAULT_MAX_THREADS = min(4, len(os.sched_getaffinity(0)))  # each reserves address space
    base = limit_process(parent, address_bytes)
    with suppress(
        EOFError, ConnectionError
    ):  # the parent has closed the connection: it ends, or needs this process no more
        messages.send_message(connection, {"ready": True})
        while True:
            request = messages.receive_message(connection)
            start_budget(request["bytes"])
            allowed = base + min(address_bytes, request["address_bytes"])  # an image may not take what a volume may
            resource.setrlimit(resource.RLIMIT_AS, (allowed, base + address_bytes))
            response = respond(request, buffer)
            end_budget()
            messages.send_message(connection, response)
            # Pillow copies pixels in small pieces, which fragment the heap.
            if max(request["bytes"], response.get("bytes", 0)) > LARGE_BYTES:
                trim_heap()


def respond(request: dict[str, Any], buffer: int) -> dict[str, Any]:
    """Replace the file in the buffer by the pixels of a function's result. Returns: the response, of the result or an error."""
    from models.errors import InsufficientMemoryError, MaskserveError
    from models.imaging import decoder_messages as messages

    try:
        data = bytearray(request["bytes"])
        messages.read_buffer(buffer, data)
        function, arguments = messages.find_function(request["function"]), request["arguments"]
        return messages.write_result(buffer, function(bytes(data), **messages.unpack_arguments(arguments)))
    except MaskserveError as error:
        return {"error": type(error).__name__, "message": str(error)[:MAX_ERROR_CHARS]}
    except (MemoryError, OSError):
        message = "There is not enough free memory to decode the image. Use a smaller one, or try again later."
        return {"error": InsufficientMemoryError.__name__, "message": message}


if __name__ == "__main__":
    main(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4]))
