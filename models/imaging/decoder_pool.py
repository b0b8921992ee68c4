"""Decodes untrusted images in child processes, so that work which takes too long can be stopped.

Nothing can stop a thread inside a C library. Limits by format (`*_limits.py`) refuse the files that are known to take long;
this pool bounds those that are not: at the deadline the child is killed and replaced. A file that crashes its decoder ends the
child only, and one that uses too much memory meets the child's own limit.
"""

import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import models.errors as errors
from models.errors import CorruptImageError, EmptyImageError, InsufficientMemoryError, MaskserveError
from models.imaging.decode import MAX_PIXELS
from models.imaging.decoder_messages import pack_arguments, read_result, receive_message, send_message, write_buffer
from models.malloc import MALLOC_SETTINGS
from models.readers import is_photograph
from models.readers.limits import MAX_VOXELS
from models.sample import Sample
from models.spec import InputRule

ROOT = Path(__file__).resolve().parents[2]
IS_SUPPORTED = hasattr(os, "memfd_create")  # on Linux
START_SECONDS = 60.0  # for a child on a busy machine; it takes 0.3 s on an idle one
START_ATTEMPTS = 3
TICK_SECONDS = 0.05  # between two looks at whether the caller has gone
DEFAULT_TIMEOUT_SECONDS = 60.0
GRACE_SECONDS = 1.0  # in which an image is still decoded when its caller has gone: a new child costs 0.3 s

# Address space of a child: measured peaks are 22 bytes a pixel (benchmarks/results/hostile.json), beside the file and its copies.
# A volume of 64-bit floats takes about as many a voxel.
BYTES_PER_PIXEL, BASE_BYTES = 26, 256 << 20

MIN_RESULT_BYTES = 64 << 20  # a result may have as many bytes as the address space of its child, and these at least
KEPT_BUFFER_BYTES = 8 << 20  # of a child's buffer; the rest is freed after each image

# OpenBLAS reserves memory for each thread, and none is used.
CHILD_ENVIRONMENT = {**MALLOC_SETTINGS, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}


class DecoderPool:
    """Up to `size` child processes that decode images. Methods may be called from any thread."""

    def __init__(self, size: int, max_pixels: int = MAX_PIXELS, eager: int = 1, max_voxels: int = MAX_VOXELS) -> None:
        """Start `eager` children in the background; the others start when they are needed.

        `max_pixels`, `max_voxels`: the largest limits that `decode` and `read_volume` are called with; the memory that a child
        may take for an image or a volume follows from them.
        """
        self._max_pixels = max_pixels
        self._max_voxels = max_voxels
        self._idle: list[_Child] = []
        self._free = threading.Semaphore(size)
        self._lock = threading.Lock()
        self._closed = False
        # The kernel sends a child its death signal when the thread that started it ends: this one lives as long as the pool.
        # Children inherit its signal mask: a signal for the whole process group stops no image; the parent decides.
        self._starter = ThreadPoolExecutor(
            1,
            "decoder-start",
            signal.pthread_sigmask,
            (signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}),
        )
        for _ in range(min(eager, size)):
            self._starter.submit(self._start_idle)

    def decode(
        self,
        data: bytes,
        max_pixels: int | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        is_cancelled: Callable[[], bool] = lambda: False,
        rule: InputRule | None = None,
    ) -> Sample:
        """As `read_input` of an image; without `rule`, a photograph. After `timeout_seconds`, the child that decodes it is killed.

        `is_cancelled` is called while the image is decoded; once it returns True, the child has a second left.
        Raises: as `decode_image`; CorruptImageError for an image that takes too long, or crashes the decoder.
        """
        if not data:
            raise EmptyImageError("The image is empty (0 bytes). Send the bytes of an image file.")
        max_pixels = max_pixels or self._max_pixels
        function, arguments = "decode_image", dict[str, Any](max_pixels=max_pixels)
        if rule is not None and not is_photograph(data, rule):
            function, arguments["rule"] = "read_input", rule

        def check(result: Any) -> None:
            values = result.values if isinstance(result, Sample) else result
            channels, dtype = (3, "uint8") if rule is None or rule.is_photograph else (len(rule.channels), rule.dtype)
            height, width, found = values.shape
            if height * width > max_pixels or found != channels or values.dtype != dtype:
                raise ValueError(f"{values.dtype} {values.shape}")

        result = self.run(function, data, arguments, timeout_seconds, is_cancelled, check)
        return result if isinstance(result, Sample) else Sample(result)

    def read_signal(
        self,
        data: bytes,
        rate: float | None = None,
        max_pixels: int | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Sample:
        """As `read_sample` with the axes T: all leads of a recording. The rest is as in `decode`."""
        if not data:
            raise EmptyImageError("The recording is empty (0 bytes). Send the bytes of its file.")
        most = max_pixels or self._max_pixels

        def check(result: Any) -> None:
            if not isinstance(result, Sample) or result.axes != "T" or result.values.size > most:
                raise ValueError("not a signal")

        arguments = {"max_pixels": most, "axes": "T", "rate": rate}
        sample: Sample = self.run("read_sample", data, arguments, timeout_seconds, is_cancelled, check)
        return sample

    def read_volume(
        self,
        data: bytes,
        rule: InputRule,
        max_voxels: int | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Sample:
        """As `read_input` of a volume. The rest is as in `decode`."""
        if not data:
            raise EmptyImageError("The volume is empty (0 bytes). Send the bytes of its file.")
        most = max_voxels or self._max_voxels

        def check(result: Any) -> None:
            if not isinstance(result, Sample) or result.axes != "DHW" or math.prod(result.size) > most:
                raise ValueError("not a volume")
            if len(result.channels) != len(rule.channels) or result.dtype != rule.dtype:
                raise ValueError(f"{result.dtype} {result.values.shape}")

        arguments = {"rule": rule, "max_pixels": self._max_pixels, "max_voxels": most}
        sample: Sample = self.run("read_input", data, arguments, timeout_seconds, is_cancelled, check, most)
        return sample

    def run(
        self,
        function: str,
        data: bytes,
        arguments: dict[str, Any],
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        is_cancelled: Callable[[], bool] = lambda: False,
        check: Callable[[Any], None] = lambda result: None,
        max_samples: int | None = None,
    ) -> Any:
        """The result of `function(data, **arguments)`, one of `decoder_messages.FUNCTIONS`, in a child. As `decode`.

        `max_samples`: pixels or voxels for which it may take memory; by default the pool's `max_pixels`. `check` raises an error
        for a result that cannot be, which a child that was taken over has sent: it is killed.
        """
        deadline = time.monotonic() + timeout_seconds
        if not self._free.acquire(timeout=max(0.0, timeout_seconds)):
            raise CorruptImageError("Other images took too long to decode. Try again.")
        try:
            child = self._take()
            try:
                memory = _address_bytes(max_samples or self._max_pixels)
                result = child.run(function, data, arguments, deadline, is_cancelled, check, memory)
            except _ChildLostError as error:
                child.kill()
                self._replace()
                raise CorruptImageError(error.reason) from None
            except BaseException as error:
                if not isinstance(error, MaskserveError):
                    child.kill()  # its next message would be this image's
                    raise
                self._put(child)
                raise
            self._put(child)
            return result
        finally:
            self._free.release()

    def close(self) -> None:
        """End all children."""
        with self._lock:
            self._closed = True
            children, self._idle = self._idle, []
        for child in children:
            child.kill()
        self._starter.shutdown(cancel_futures=True)
        with self._lock:
            children, self._idle = self._idle, []
        for child in children:
            child.kill()

    def _take(self) -> "_Child":
        """An idle child that lives and is ready, or a new one. Raises: InsufficientMemoryError if none can be started."""
        failures, reason = 0, "it ends at its start"
        while failures < START_ATTEMPTS:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            try:
                if child is None:
                    failures += 1
                    child = self._starter.submit(self._take_or_start).result()
            except OSError as error:  # no memory, or too many processes or files
                reason = error.strerror or str(error)
                continue
            if child.is_ready():
                return child
            child.kill()  # it was killed while it was idle, or while it started: the image is not to blame
        raise InsufficientMemoryError(f"No decoder process can be started ({reason}). Try again later.")

    def _take_or_start(self) -> "_Child":
        with self._lock:  # one that was being started meanwhile
            child = self._idle.pop() if self._idle else None
        return child or _Child(self._address_bytes)

    def _put(self, child: "_Child") -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        child.kill()

    def _replace(self) -> None:
        """Start a child for the next image, in the background."""
        with self._lock:
            if self._closed:
                return
        self._starter.submit(self._start_idle)

    def _start_idle(self) -> None:
        self._put(_Child(self._address_bytes))

    @property
    def _address_bytes(self) -> int:
        return _address_bytes(max(self._max_pixels, self._max_voxels))


def _address_bytes(samples: int) -> int:
    """The address space of a child that decodes so many pixels or voxels."""
    return BASE_BYTES + BYTES_PER_PIXEL * samples


class _ChildLostError(Exception):
    """A child that has ended, or must be killed, and why, as the message to the image's sender."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Child:
    """One process, which decodes one image at a time."""

    def __init__(self, address_bytes: int) -> None:
        """Start the process. Raises: OSError."""
        self.buffer = os.memfd_create("image", os.MFD_CLOEXEC)
        self.connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "models.imaging.decoder_process"]
        environment = {**os.environ, **CHILD_ENVIRONMENT}
        environment.pop(
            "PYTHONSAFEPATH", None
        )  # our packages are found because Python puts the working directory first
        try:
            self.process = subprocess.Popen(
                [*command, str(os.getpid()), str(other.fileno()), str(self.buffer), str(address_bytes)],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno(), self.buffer],
            )  # fmt: skip
        except OSError:
            self.connection.close()
            os.close(self.buffer)
            raise
        finally:
            other.close()
        self._ready = False

    def is_ready(self) -> bool:
        """Wait until the process has started. Returns: False if it has ended."""
        if self.process.poll() is None and not self._ready:
            with suppress(OSError, EOFError, ValueError, _ChildLostError):
                self._receive(time.monotonic() + START_SECONDS, lambda: False)
                self._ready = True
        return self._ready and self.process.poll() is None

    def run(
        self,
        function: str,
        data: bytes,
        arguments: dict[str, Any],
        deadline: float,
        is_cancelled: Callable[[], bool],
        check: Callable[[Any], None],
        address_bytes: int,
    ) -> Any:
        """Raises: MaskserveError, as the function; _ChildLostError, after which the child must be killed."""
        try:
            write_buffer(self.buffer, data)
            request = {
                "function": function,
                "bytes": len(data),
                "arguments": pack_arguments(arguments),
                "address_bytes": address_bytes,
            }
            send_message(self.connection, request)
            response = self._receive(deadline, is_cancelled)
            if "error" in response:
                raise getattr(errors, response["error"])(response["message"])
            result = read_result(self.buffer, response, max(address_bytes, MIN_RESULT_BYTES))
            check(result)
            return result
        except (OSError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
            self.process.kill()
            if self.process.wait() == -signal.SIGPROF:
                reason = "The file takes too long to decode for its size"
            else:
                reason = "The file crashed its decoder, so it is corrupt, or memory is short"
            raise _ChildLostError(f"{reason}. Save it again, an image as PNG or JPEG.") from error
        finally:
            if os.fstat(self.buffer).st_size > KEPT_BUFFER_BYTES:
                os.ftruncate(self.buffer, KEPT_BUFFER_BYTES)

    def kill(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        os.close(self.buffer)

    def _receive(self, deadline: float, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        poll, cancelled = select.poll(), False
        poll.register(self.connection, select.POLLIN)
        while not poll.poll(max(0.0, min(TICK_SECONDS, deadline - time.monotonic())) * 1e3):
            if not cancelled and is_cancelled():
                cancelled, deadline = True, min(deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() >= deadline:
                raise _ChildLostError(
                    "The file took too long to decode. Save it again, an image as PNG or JPEG, or use a smaller one."
                )
        return receive_message(self.connection)
