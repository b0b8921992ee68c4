"""Recognises errors that mean out of memory."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory; each library words it differently."""
    phrases = ("out of memory", "allocate memory", "not enough memory", "insufficient memory", "alloc_failed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        phrase in str(error).lower() for phrase in phrases
    )
