"""PyTorch: the engine for a GPU, built again from the spec and `weights.safetensors`; no compiler at run time.

On a GPU it replays CUDA graphs: a captured run costs one launch in place of some hundred, which is most of the time of
a small network at batch 1.
"""

import importlib.util
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import WEIGHTS, Bundle
from models.engines.contract import Run, ran_out_of_memory
from models.errors import BundleError, ConfigError, EngineError, first_line

if TYPE_CHECKING:  # the service goes without torch; it is opened where this engine is asked for
    import torch

    from models.architectures.network import Network

# Captured graphs that are kept, each with the memory of one size of batch.
GRAPHS = 8


def precisions(bundle: Bundle, device: str) -> tuple[str, ...]:
    """f32; bf16 where the device computes in it; fp16 on a GPU."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("models.architectures") is None:
        raise EngineError("The engine torch is not installed here: it needs the [train] extra of maskserve.")
    if not bundle.has(WEIGHTS):
        raise EngineError(
            f"{bundle.folder} has no engine torch: it came from an ONNX graph and holds no {WEIGHTS}; take openvino or "
            "onnxruntime."
        )
    import torch

    if device == "cpu":
        return ("f32", "bf16") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("f32",)
    if device != "cuda":
        raise EngineError(f"The engine torch runs on cpu or cuda, not on {device!r}.")
    if not torch.cuda.is_available():
        raise EngineError("PyTorch sees no GPU here (device cuda); take the device cpu.")
    return ("f32", "bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("f32", "fp16")


def load(bundle: Bundle, device: str, precision: str, threads: int) -> Run:
    """Build the network and fill in its weights; `models/engines/contract.py` tells the rest. Raises: BundleError.

    `threads` is one number for the whole process: torch has no other.
    """
    import torch

    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if threads and device == "cpu":
        torch.set_num_threads(threads)
    network = build(bundle)
    network.to(device).to(memory_format=torch.channels_last)
    network.body.to(kind)  # the normalisation before it stays in float32
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # kernels are tried once a size, before it is captured

    def answer(images: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        from models.architectures.network import upsample

        maps = network.normalised(images.permute(0, 3, 1, 2)).to(kind)  # N x H x W x 3 is channels_last already
        logits = network.body(maps).float()
        return upsample(logits, images.shape[1:3]).argmax(dim=1).to(torch.uint8), logits

    compute = _Graphs(answer) if device == "cuda" else lambda images: answer(torch.from_numpy(images))

    def run(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        try:
            with torch.inference_mode():
                labels, scores = compute(images)
                return labels.cpu().numpy(), scores.contiguous().cpu().numpy() if logits else None
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise MemoryError(f"PyTorch: {first_line(error)}") from error
            raise

    return run


def build(bundle: Bundle) -> "Network":
    """The network of a bundle in float32, for inference. Raises: BundleError where spec and weights do not agree."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from models import architectures

    made = bundle.spec.architecture
    weights = bundle.verified(WEIGHTS)
    try:
        network = architectures.build(made.name, len(bundle.spec.classes), **made.options)
        network.load_state_dict(load_file(weights))
    except (ConfigError, TypeError) as error:
        raise BundleError(f"{bundle.folder}: its spec.json describes no network of this maskserve: {error}") from error
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(f"{weights} does not hold the network that spec.json describes. Export it again.") from error
    return network.eval()


class _Graphs:
    """A CUDA graph for each size of batch, captured when that size first comes; the oldest makes room.

    A graph reads and writes the same memory at each replay, so one thread replays at a time, and what it answers is
    copied out before the next.
    """

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.captured: OrderedDict[tuple[int, ...], tuple[Any, ...]] = OrderedDict()
        self.lock = threading.Lock()

    def __call__(self, images: NDArray[np.uint8]) -> tuple["torch.Tensor", "torch.Tensor"]:
        import torch

        with self.lock:
            try:
                if images.shape not in self.captured:
                    while len(self.captured) >= GRAPHS:
                        self.captured.popitem(last=False)
                    self.captured[images.shape] = self._capture(images.shape)
            except torch.OutOfMemoryError:
                self.captured.clear()
                torch.cuda.empty_cache()
                raise
            self.captured.move_to_end(images.shape)
            graph, staging, entry, labels, logits = self.captured[images.shape]
            staging.copy_(torch.from_numpy(images))
            entry.copy_(staging, non_blocking=True)
            graph.replay()
            answer = labels.clone(), logits.clone()
            torch.cuda.current_stream().synchronize()  # before another thread writes into the staging memory
            return answer

    def _capture(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """The graph of a shape, its pinned and its device input, and its two outputs."""
        import torch

        staging = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        entry = torch.zeros(shape, dtype=torch.uint8, device="cuda")
        # cuDNN chooses its kernels and allocates their workspace on the first calls, which a capture cannot hold.
        # https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks for a side stream.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.answer(entry)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            labels, logits = self.answer(entry)
        return graph, staging, entry, labels, logits
