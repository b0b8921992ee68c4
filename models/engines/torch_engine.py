"""PyTorch: the engine for a GPU, built again from the spec and `weights.safetensors`; no compiler at run time.

On a GPU it replays CUDA graphs, which `models/engines/cuda_graphs.py` keeps.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.bundle import WEIGHTS_FILE, Bundle
from models.engines.base import InferenceFunction, is_engine_out_of_memory
from models.engines.cuda_graphs import CudaGraphCache, EngineOutput, run_eager
from models.errors import BundleError, ConfigError, EngineError, first_line

if TYPE_CHECKING:  # the service goes without torch; it is opened where this engine is asked for
    from torch import Tensor

    from models.architectures.base import Network

NOT_INSTALLED = "The engine torch is not installed here: it needs the [train] extra of maskserve."


def precisions(bundle: Bundle, device: str) -> tuple[str, ...]:
    """f32; bf16 where the device computes in it; fp16 on a GPU."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("models.architectures") is None:
        raise EngineError(NOT_INSTALLED)
    if not bundle.has_file(WEIGHTS_FILE):
        raise EngineError(
            f"{bundle.folder} has no engine torch: it came from an ONNX graph and holds no {WEIGHTS_FILE}; take openvino or "
            "onnxruntime."
        )
    import torch

    if device == "cpu":
        return ("f32", "bf16") if _cpu_supports_bf16() else ("f32",)
    if device != "cuda":
        raise EngineError(f"The engine torch runs on cpu or cuda, not on {device!r}.")
    if not torch.cuda.is_available():
        raise EngineError("PyTorch sees no GPU here (device cuda); take the device cpu.")
    return ("f32", "bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("f32", "fp16")


def _cpu_supports_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX; oneDNN calls plain AVX512 enough, where it emulates bf16 slowly."""
    import torch

    signs = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(sign is not None and sign() for sign in signs) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load(bundle: Bundle, device: str, precision: str, threads: int, concurrency: int = 1) -> InferenceFunction:
    """Build the network and fill in its weights; `models/engines/base.py` tells the rest.

    `threads` is one number for the whole process: torch has no other, and gives so many to each that calls.
    Raises: BundleError, EngineError, MemoryError.
    """
    import torch

    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if threads and device == "cpu":
        torch.set_num_threads(threads)
    network = build_network(bundle)
    with _translate_memory_errors():
        network.to(device).to(memory_format=torch.channels_last)
        network.body.to(kind)  # the normalisation before it stays in float32

    def answer(images: "Tensor") -> "tuple[Tensor, Tensor]":
        from models.architectures.base import upsample

        maps = network.normalise(images.permute(0, 3, 1, 2)).to(kind)  # N x H x W x 3 is channels_last already
        logits = network.body(maps).float()
        return upsample(logits, images.shape[1:3]).argmax(dim=1).to(torch.uint8), logits

    graphs = CudaGraphCache(answer, precision != "f32") if device == "cuda" else None

    def run(images: NDArray[np.uint8], logits: bool = False) -> EngineOutput:
        with _translate_memory_errors(), torch.inference_mode():
            return graphs(images, logits) if graphs else run_eager(answer, images, logits, device)

    return run


@contextlib.contextmanager
def _translate_memory_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_engine_out_of_memory(error):
            raise MemoryError(f"PyTorch: {first_line(error)}") from error
        raise


def build_network(bundle: Bundle) -> "Network":
    """The network of a bundle in float32, for inference.

    Raises: BundleError where spec and weights do not agree, EngineError where what builds it is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from models import architectures
    except ModuleNotFoundError as error:
        raise EngineError(f"{NOT_INSTALLED} ({error})") from error

    made = bundle.spec.architecture
    weights = bundle.verify_file(WEIGHTS_FILE)
    try:
        network = architectures.build(made.name, len(bundle.spec.classes), **made.options)
        network.load_state_dict(load_file(weights))
    except (ConfigError, TypeError) as error:
        raise BundleError(f"{bundle.folder}: its spec.json describes no network of this maskserve: {error}") from error
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(f"{weights} does not hold the network that spec.json describes. Export it again.") from error
    return network.eval()
