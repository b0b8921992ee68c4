"""Calls a function that decodes a file: in this process, or where `sandbox.py` says."""

from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

# Calls one of `decoder_messages.FUNCTIONS`, by name, with the bytes of a file and its other arguments; None calls it here.
_run: Callable[[str, bytes, dict[str, Any]], Any] | None = None


def call_decoder(function: Callable[..., Result], data: bytes, **arguments: Any) -> Result:
    """`function(data, **arguments)`, in a child process if the sandbox is on; it is one of `decoder_messages.FUNCTIONS`.

    Raises: as the function; CorruptImageError if it takes too long or crashes, InsufficientMemoryError.
    """
    if _run is None:
        return function(data, **arguments)
    result: Result = _run(function.__name__, data, arguments)
    return result


def is_sandboxed() -> bool:
    """Whether files are decoded in child processes."""
    return _run is not None


def set_runner(run: Callable[[str, bytes, dict[str, Any]], Any] | None) -> None:
    """Let `run` call decoders from now on; None calls them in this process."""
    global _run
    _run = run
