"""Recognizes errors that mean out of memory."""

import torch

from models.engines.base import is_engine_out_of_memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: by its class, or by its text, which each library words differently."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or is_engine_out_of_memory(error)
