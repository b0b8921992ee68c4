"""CUDA graphs: a captured run takes one launch instead of some hundred.

The launches are most of the time of a small network at batch 1.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.engines.base import Images, is_engine_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    # Images N x H x W x C, and statistics float32 N x 2 x C if the network needs them -> labels uint8 N x H x W, logits float32
    # N x classes x h x w, all on one device.
    NetworkFunction = Callable[..., tuple[Tensor, Tensor]]

EngineOutput = tuple[NDArray[np.uint8], NDArray[np.float32] | None]
Shape = tuple[int, ...]

MAX_GRAPHS = 32  # in the cache: images resized to fit 480 pixels have some 15 sizes, others dozens
MAX_SEEN_SHAPES = 256  # shapes that are remembered


class CudaGraphCache:
    """A network on a GPU. A batch shape runs eagerly the first time, and is captured the second time.

    The graphs share one memory pool, which grows to about the size of the largest graph instead of their sum, but each
    graph overwrites the results of the others: only one thread at a time replays, the input is outside the pool, and the
    result is copied to the host before the next replay.
    """

    # One lock per process, not per network: captures must not overlap, and cuDNN's settings are global.
    gpu_lock = threading.Lock()

    def __init__(self, network: "NetworkFunction", tf32: bool, device: str = "cuda", dtype: str = "uint8") -> None:
        """`tf32`: whether convolutions of float32 may round to 10 bits; `dtype`: of the images."""
        self.network, self.tf32, self.device, self.dtype = network, tf32, device, dtype
        self.graphs: OrderedDict[Shape, tuple[Any, ...]] = OrderedDict()
        self.seen_shapes: OrderedDict[Shape, bool] = OrderedDict()  # shape -> whether its next batch is captured
        self.capturable = True
        self.capture_stream: Any = None
        self.memory_pool: Any = None

    def __call__(self, images: Images, logits: bool = False) -> EngineOutput:
        """As `InferenceFunction`, but raises RuntimeError also if memory runs out."""
        with self._exclusive_gpu():
            try:
                return self._run(images, logits)
            except RuntimeError as error:
                if not is_engine_out_of_memory(error):
                    raise
            # Retry without the graphs. Not in `except`, where the traceback keeps tensors alive.
            self._release_memory(images.shape)
            return run_eager(self.network, images, logits, self.device)

    @contextlib.contextmanager
    def _exclusive_gpu(self) -> Iterator[None]:
        import torch

        # float32 convolutions use TF32 by default; matrix products do not. No `benchmark`: its search for kernels takes
        # seconds for each new image size.
        with self.gpu_lock, torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=self.tf32):
            try:
                yield
            finally:
                torch.cuda.synchronize()  # also after an error, so that nothing runs during the next call

    def _run(self, images: Images, logits: bool) -> EngineOutput:
        shape = images.shape
        if shape not in self.graphs and self._should_capture(shape):
            self._capture(shape)
        if shape not in self.graphs:
            return run_eager(self.network, images, logits, self.device)
        self.graphs.move_to_end(shape)
        graph, input_tensor, outputs = self.graphs[shape]
        input_tensor.copy_(_to_tensor(images))
        graph.replay()
        return _to_host(outputs, logits)

    def _should_capture(self, shape: Shape) -> bool:
        """Whether to capture now: on a shape's second batch. A capture that runs out of memory is not tried again."""
        capture_next = self.seen_shapes.pop(shape, None)
        self.seen_shapes[shape] = capture_next is None
        if len(self.seen_shapes) > MAX_SEEN_SHAPES:
            self.seen_shapes.popitem(last=False)
        return bool(capture_next) and self.capturable

    def _capture(self, shape: Shape) -> None:
        """Add a graph of this shape, if the network can be captured; drops the least recently used one if full."""
        import torch

        if len(self.graphs) >= MAX_GRAPHS:
            self.seen_shapes.pop(self.graphs.popitem(last=False)[0], None)
        if not self.graphs:  # torch refuses a pool whose graphs were all deleted
            self.memory_pool = torch.cuda.graph_pool_handle()
        try:
            self.graphs[shape] = self._record_graph(shape)
            return
        except RuntimeError as error:  # for example an operation that synchronizes, which other shapes have too
            if is_engine_out_of_memory(error):
                raise
        self.capturable = False
        # Before 2.14 torch may treat the capture as still running, and free no memory (pytorch/pytorch#180395).
        with contextlib.suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.memory_pool)

    def _record_graph(self, shape: Shape) -> tuple[Any, ...]:
        """A graph, its input and its two outputs."""
        import torch

        # One stream for all graphs: torch shares memory, and keeps cuBLAS workspaces, by stream.
        self.capture_stream = self.capture_stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        input_tensor = torch.zeros(shape, dtype=getattr(torch, self.dtype), device=self.device)
        graph = torch.cuda.CUDAGraph()
        self.capture_stream.wait_stream(torch.cuda.current_stream())
        # If a capture fails, torch.cuda.graph does not leave its stream; this context does.
        with torch.cuda.stream(self.capture_stream):
            for _ in range(3):  # cuDNN chooses its kernels and cuBLAS allocates, which must not happen in a capture
                self.network(input_tensor)
            with torch.cuda.graph(
                graph, pool=self.memory_pool, stream=self.capture_stream, capture_error_mode="thread_local"
            ):
                outputs = self.network(input_tensor)
        return graph, input_tensor, outputs

    def _release_memory(self, shape: Shape) -> None:
        """Free all graphs; every shape but this one, which needed too much memory, may be captured again."""
        import torch

        for other in self.graphs.keys() - {shape}:
            self.seen_shapes.pop(other, None)
        self.graphs.clear()
        torch.cuda.empty_cache()


def run_eager(
    network: "NetworkFunction", images: Images, logits: bool, device: str, statistics: NDArray[np.float32] | None = None
) -> EngineOutput:
    """Run a network on a device without a graph; images and results are on the host."""
    further = [] if statistics is None else [_to_tensor(statistics).to(device)]
    return _to_host(network(_to_tensor(images).to(device), *further), logits)


def _to_tensor(images: Images) -> "Tensor":
    """A tensor that shares the array's memory; a copy if the array is read-only, because torch would warn."""
    import torch

    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def _to_host(outputs: "tuple[Tensor, Tensor]", logits: bool) -> EngineOutput:
    labels, scores = outputs
    return labels.cpu().numpy(), scores.contiguous().cpu().numpy() if logits else None
