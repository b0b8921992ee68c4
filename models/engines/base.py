"""What an engine is: the contract that every file of this folder keeps.

An engine is a module with two functions. `precisions(bundle, device)` says which number formats this machine offers for
a bundle, the most exact first, and raises EngineError, with the reason, where it has none. `load(bundle, device,
precision, threads, at_once)` opens the bundle with one of these and returns a `Run`; the bundle's files are verified as
they are opened. Devices are `cpu` and `cuda`. `threads` are those of one answer, `threads=0` leaves their number to the
engine; `at_once` (1) is from how many threads it will be called at the same time: more may call, and wait.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class InferenceFunction(Protocol):
    """The network: callable from several threads at once.

    Raises: MemoryError where the images are more than the memory holds, and smaller ones may then succeed; RuntimeError
    for images that the network does not take.
    """

    def __call__(
        self, images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Images uint8 N x H x W x 3 RGB -> labels uint8 N x H x W and, if asked for, logits float32 N x C x h x w.

        Both may lie in the engine's own memory: they hold until the same thread calls again. In bf16 a graph also
        upsamples in it, and one label in some hundred to some thousand, where two classes are as good as equal, is not
        the argmax of the upsampled logits.
        """
        ...


def is_engine_out_of_memory(error: Exception) -> bool:
    """Whether an engine's RuntimeError says that memory was too small; none of them has a kind of its own for it."""
    text = str(error).lower()
    return any(
        sign in text for sign in ("bad_alloc", "out of memory", "allocate memory", "failed to allocate", "alloc_failed")
    )
