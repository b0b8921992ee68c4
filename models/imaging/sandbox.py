"""Decodes image files in child processes with limits, for files of unknown origin.

Data sets are trusted by default; `maskserve data lint --sandbox` and the setting `sandbox=true` of a training turn this on.
The service and `predict` have a pool of their own.
"""

import os
import threading
from typing import Any

from models.cgroup_limits import usable_cores
from models.imaging.call_decoder import set_runner
from models.imaging.decoder_pool import DecoderPool

_children = 0  # of this process, and of each that is forked from it; 0 decodes here
_pool: DecoderPool | None = None
_lock = threading.Lock()


def enable_sandbox(children: int | None = None) -> None:
    """Decode in child processes from now on, by default up to one per core, also in processes that are forked from this one."""
    global _children
    _children = children or usable_cores()
    set_runner(_run)


def disable_sandbox() -> None:
    """Decode in this process again, and end its children."""
    global _children, _pool
    set_runner(None)
    with _lock:
        _children, pool, _pool = 0, _pool, None
    if pool is not None:
        pool.close()


def open_pool() -> DecoderPool:
    """The pool of this process. Call it while the sandbox is on."""
    global _pool
    with _lock:
        _pool = _pool or DecoderPool(_children, eager=0)
        return _pool


def _run(function: str, data: bytes, arguments: dict[str, Any]) -> Any:
    return open_pool().run(function, data, arguments)


def _forget_pool() -> None:
    """A forked process gets its own pool: two processes would read each other's messages."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)
