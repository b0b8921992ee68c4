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

from models.engines.base import is_engine_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    # Images uint8 N x H x W x 3 -> labels uint8 N x H x W, logits float32 N x C x h x w, all on one device.
    NetworkFunction = Callable[[Tensor], tuple[Tensor, Tensor]]

EngineOutput = tuple[NDArray[np.uint8], NDArray[np.float32] | None]
Shape = tuple[int, ...]

MAX_GRAPHS = 32  # captured graphs that are kept: images fitted into 480 pixels have some 15 sizes, others dozens
MAX_SEEN_SHAPES = 256  # sizes that are remembered as having come before


class CudaGraphCache:
    """A network on a GPU: a size of batch is answered plainly when it first comes, and captured when it comes again.

    The graphs share one pool of memory, which grows to about the largest of them and not to their sum, though each one
    writes over the others' results: one thread at a time replays, the input lies outside of the pool, and the answer is
    on the host before the next replay.
    """

    # The process has one, not each network: captures must not overlap, and cuDNN's settings are everyone's.
    gpu_lock = threading.Lock()

    def __init__(self, network: "NetworkFunction", tf32: bool, device: str = "cuda") -> None:
        """`tf32`: whether convolutions of float32 may round to 10 bits."""
        self.network, self.tf32, self.device = network, tf32, device
        self.graphs: OrderedDict[Shape, tuple[Any, ...]] = OrderedDict()
        self.seen_shapes: OrderedDict[Shape, bool] = OrderedDict()  # whether a size is captured when it comes next
        self.capturable = True
        self.capture_stream: Any = None
        self.memory_pool: Any = None

    def __call__(self, images: NDArray[np.uint8], logits: bool = False) -> EngineOutput:
        """As `models/engines/base.py` tells, but where the memory ends too: Raises: RuntimeError."""
        with self._exclusive_gpu():
            try:
                return self._run(images, logits)
            except RuntimeError as error:
                if not is_engine_out_of_memory(error):
                    raise
            # Once more without the graphs; not in `except`, where the error holds what was reached before it.
            self._release_memory(images.shape)
            return run_eager(self.network, images, logits, self.device)

    @contextlib.contextmanager
    def _exclusive_gpu(self) -> Iterator[None]:
        import torch

        # Convolutions in float32 are TF32 by default; matrix products are not. No `benchmark`: its search among kernels
        # takes seconds for each new size of image.
        with self.gpu_lock, torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=self.tf32):
            try:
                yield
            finally:
                torch.cuda.synchronize()  # after an error too, so that nothing runs on beside the next call

    def _run(self, images: NDArray[np.uint8], logits: bool) -> EngineOutput:
        shape = images.shape
        if shape not in self.graphs and self._should_capture(shape):
            self._capture(shape)
        if shape not in self.graphs:
            return run_eager(self.network, images, logits, self.device)
        self.graphs.move_to_end(shape)
        graph, entry, answer = self.graphs[shape]
        entry.copy_(_to_tensor(images))
        graph.replay()
        return _to_host(answer, logits)

    def _should_capture(self, shape: Shape) -> bool:
        """Whether this is the time to capture; where that runs out of memory, there is no other."""
        came = self.seen_shapes.pop(shape, None)
        self.seen_shapes[shape] = came is None
        if len(self.seen_shapes) > MAX_SEEN_SHAPES:
            self.seen_shapes.popitem(last=False)
        return bool(came) and self.capturable

    def _capture(self, shape: Shape) -> None:
        """Keep a graph of this shape, if the network can be captured at all; the oldest makes room."""
        import torch

        if len(self.graphs) >= MAX_GRAPHS:
            self.seen_shapes.pop(self.graphs.popitem(last=False)[0], None)
        if not self.graphs:  # torch refuses a pool whose graphs are all gone
            self.memory_pool = torch.cuda.graph_pool_handle()
        try:
            self.graphs[shape] = self._record_graph(shape)
            return
        except RuntimeError as error:  # an operation that waits for the GPU, say; another size would have it too
            if is_engine_out_of_memory(error):
                raise
        self.capturable = False
        # Before 2.14 torch may believe that the capture goes on, and free no memory (pytorch/pytorch#180395).
        with contextlib.suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.memory_pool)

    def _record_graph(self, shape: Shape) -> tuple[Any, ...]:
        """A graph, its input and its two outputs."""
        import torch

        # One stream for all of them: torch shares memory, and keeps workspaces for cuBLAS, by stream.
        self.capture_stream = self.capture_stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        entry = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        graph = torch.cuda.CUDAGraph()
        self.capture_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            self.capture_stream
        ):  # where a capture fails, torch.cuda.graph does not leave its stream
            for _ in range(3):  # cuDNN plans its kernels and cuBLAS allocates, neither of which a capture can hold
                self.network(entry)
            with torch.cuda.graph(
                graph, pool=self.memory_pool, stream=self.capture_stream, capture_error_mode="thread_local"
            ):
                answer = self.network(entry)
        return graph, entry, answer

    def _release_memory(self, shape: Shape) -> None:
        """Give all memory back; all but the shape that asked for too much may be captured anew."""
        import torch

        for other in self.graphs.keys() - {shape}:
            self.seen_shapes.pop(other, None)
        self.graphs.clear()
        torch.cuda.empty_cache()


def run_eager(network: "NetworkFunction", images: NDArray[np.uint8], logits: bool, device: str) -> EngineOutput:
    """What a network on a device says of images on the host, without a graph."""
    return _to_host(network(_to_tensor(images).to(device)), logits)


def _to_tensor(images: NDArray[np.uint8]) -> "Tensor":
    """The same memory as a tensor; a copy of what may not be written to, of which torch would warn."""
    import torch

    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def _to_host(answer: "tuple[Tensor, Tensor]", logits: bool) -> EngineOutput:
    labels, scores = answer
    return labels.cpu().numpy(), scores.contiguous().cpu().numpy() if logits else None
