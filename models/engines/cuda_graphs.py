"""CUDA graphs: a captured run costs one launch in place of some hundred.

These are most of the time of a small network at batch 1.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.engines.base import ran_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    # Images uint8 N x H x W x 3 -> labels uint8 N x H x W, logits float32 N x C x h x w, all on one device.
    Network = Callable[[Tensor], tuple[Tensor, Tensor]]

Answer = tuple[NDArray[np.uint8], NDArray[np.float32] | None]
Shape = tuple[int, ...]

GRAPHS = 32  # captured graphs that are kept: pictures fitted into 480 pixels have some 15 sizes, others dozens
MET = 256  # sizes that are remembered as having come before


class Graphs:
    """A network on a GPU: a size of batch is answered plainly when it first comes, and captured when it comes again.

    The graphs share one pool of memory, which grows to about the largest of them and not to their sum, though each one
    writes over the others' results: one thread at a time replays, the input lies outside of the pool, and the answer is
    on the host before the next replay.
    """

    # The process has one, not each network: captures must not overlap, and cuDNN's settings are everyone's.
    alone = threading.Lock()

    def __init__(self, network: "Network", tf32: bool, device: str = "cuda") -> None:
        """`tf32`: whether convolutions of float32 may round to 10 bits."""
        self.network, self.tf32, self.device = network, tf32, device
        self.captured: OrderedDict[Shape, tuple[Any, ...]] = OrderedDict()
        self.met: OrderedDict[Shape, bool] = OrderedDict()  # whether a size is captured when it comes next
        self.capturable = True
        self.side: Any = None
        self.pool: Any = None

    def __call__(self, images: NDArray[np.uint8], logits: bool = False) -> Answer:
        """As `models/engines/base.py` tells, but where the memory ends too: Raises: RuntimeError."""
        with self._alone_on_the_gpu():
            try:
                return self._respond(images, logits)
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
            # Once more without the graphs; not in `except`, where the error holds what was reached before it.
            self._drop_all(images.shape)
            return plainly(self.network, images, logits, self.device)

    @contextlib.contextmanager
    def _alone_on_the_gpu(self) -> Iterator[None]:
        import torch

        # Convolutions in float32 are TF32 by default; matrix products are not. No `benchmark`: its search among kernels
        # takes seconds for each new size of picture.
        with self.alone, torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=self.tf32):
            try:
                yield
            finally:
                torch.cuda.synchronize()  # after an error too, so that nothing runs on beside the next call

    def _respond(self, images: NDArray[np.uint8], logits: bool) -> Answer:
        shape = images.shape
        if shape not in self.captured and self._comes_again(shape):
            self._capture(shape)
        if shape not in self.captured:
            return plainly(self.network, images, logits, self.device)
        self.captured.move_to_end(shape)
        graph, entry, answer = self.captured[shape]
        entry.copy_(_tensor(images))
        graph.replay()
        return _to_host(answer, logits)

    def _comes_again(self, shape: Shape) -> bool:
        """Whether this is the time to capture; where that runs out of memory, there is no other."""
        came = self.met.pop(shape, None)
        self.met[shape] = came is None
        if len(self.met) > MET:
            self.met.popitem(last=False)
        return bool(came) and self.capturable

    def _capture(self, shape: Shape) -> None:
        """Keep a graph of this shape, if the network can be captured at all; the oldest makes room."""
        import torch

        if len(self.captured) >= GRAPHS:
            self.met.pop(self.captured.popitem(last=False)[0], None)
        if not self.captured:  # torch refuses a pool whose graphs are all gone
            self.pool = torch.cuda.graph_pool_handle()
        try:
            self.captured[shape] = self._record(shape)
            return
        except RuntimeError as error:  # an operation that waits for the GPU, say; another size would have it too
            if ran_out_of_memory(error):
                raise
        self.capturable = False
        # Before 2.14 torch may believe that the capture goes on, and free no memory (pytorch/pytorch#180395).
        with contextlib.suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)

    def _record(self, shape: Shape) -> tuple[Any, ...]:
        """A graph, its input and its two outputs."""
        import torch

        # One stream for all of them: torch shares memory, and keeps workspaces for cuBLAS, by stream.
        self.side = self.side or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        entry = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        graph = torch.cuda.CUDAGraph()
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):  # where a capture fails, torch.cuda.graph does not leave its stream
            for _ in range(3):  # cuDNN plans its kernels and cuBLAS allocates, neither of which a capture can hold
                self.network(entry)
            with torch.cuda.graph(graph, pool=self.pool, stream=self.side, capture_error_mode="thread_local"):
                answer = self.network(entry)
        return graph, entry, answer

    def _drop_all(self, shape: Shape) -> None:
        """Give all memory back; all but the shape that asked for too much may be captured anew."""
        import torch

        for other in self.captured.keys() - {shape}:
            self.met.pop(other, None)
        self.captured.clear()
        torch.cuda.empty_cache()


def plainly(network: "Network", images: NDArray[np.uint8], logits: bool, device: str) -> Answer:
    """What a network on a device says of images on the host, without a graph."""
    return _to_host(network(_tensor(images).to(device)), logits)


def _tensor(images: NDArray[np.uint8]) -> "Tensor":
    """The same memory as a tensor; a copy of what may not be written to, of which torch would warn."""
    import torch

    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def _to_host(answer: "tuple[Tensor, Tensor]", logits: bool) -> Answer:
    labels, scores = answer
    return labels.cpu().numpy(), scores.contiguous().cpu().numpy() if logits else None
