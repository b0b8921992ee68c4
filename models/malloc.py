"""How glibc's malloc gives memory back to the system: settings of processes that are started here, and on request.

Blocks of more than 4 MiB are given back when they are freed. With 128 KiB, each small image would get its pages anew, which takes
longer than to decode it; without a setting, glibc raises the threshold to the largest block that was freed.
"""

import ctypes
import os

MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}


def trim_heap() -> None:
    """Give the free pages of the heap back to the system, with glibc; elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
