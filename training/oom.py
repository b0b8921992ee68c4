"""Recognises errors that mean out of memory."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so, each library in its own words."""
    words = ("out of memory", "allocate memory", "not enough memory", "insufficient memory", "alloc_failed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)
