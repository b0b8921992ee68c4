"""The interface of an engine, which every engine module in this folder implements.

An engine is a module with two functions:

- `precisions(bundle, device)` returns the precisions that this machine supports for a bundle, the most exact first.
  Raises EngineError, with the reason, if there are none.
- `load(bundle, device, precision, threads, concurrency)` opens the bundle in one of these precisions, verifies the files
  that it reads, and returns an `InferenceFunction`.

Devices are `cpu` and `cuda`. `threads` is the number of CPU threads per inference; 0 leaves it to the engine.
`concurrency` (default 1) is the number of threads that will call the function at the same time; further threads may call
it, and wait. A function that keeps memory between calls may have a method `release_memory()`, which the service calls when it
is idle, and after which the results of earlier calls are not valid.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Images = NDArray[Any]  # N x H x W x C, contiguous; signals N x T x C, volumes N x D x H x W x C


class InferenceFunction(Protocol):
    """Runs the network. May be called from several threads at once.

    Raises: MemoryError if there is not enough memory for the images (smaller ones may still succeed), RuntimeError for
    images of a size that the network does not accept.
    """

    def __call__(
        self, images: Images, logits: bool = False, statistics: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Images N x H x W x C -> labels uint8 N x H x W and, if requested, logits float32 N x classes x h x w.

        For signals the axes are T instead of H x W, for volumes D x H x W.
        Channels and dtype are those of the spec's `input`; of a photograph, uint8 RGB. `statistics`, float32 N x 2 x C, are shift
        and scale of each whole sample, for the scaling `zscore` only.
        Both may be in the engine's own memory, and are valid until the same thread calls again. In bf16, the graph also
        upsamples in bf16: one label in some hundred to some thousand, where two classes score almost equally, is not the
        argmax of the upsampled logits. The labels are the same whether or not logits are requested.
        """
        ...


def graph_inputs(images: Images, statistics: NDArray[np.float32] | None) -> dict[str, NDArray[Any]]:
    """The inputs of a bundle's graph by name."""
    if statistics is None:
        return {"images": images}
    return {"images": images, "shift": statistics[:, 0].copy(), "scale": statistics[:, 1].copy()}


OUT_OF_MEMORY_PHRASES = (
    "bad_alloc", "out of memory", "allocate memory", "failed to allocate", "alloc_failed", "not enough memory",
    "insufficient memory",
)  # fmt: skip


def is_engine_out_of_memory(error: BaseException) -> bool:
    """Whether an engine's RuntimeError means out of memory; no engine has an exception class for it."""
    text = str(error).lower()
    return any(phrase in text for phrase in OUT_OF_MEMORY_PHRASES)
