"""PyTorch: the engine for GPUs. Builds the network from the spec and `weights.safetensors`; no compiler at run time.

On a GPU it replays CUDA graphs (`models/engines/cuda_graphs.py`).
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.bundle import WEIGHTS_FILE, Bundle
from models.engines.base import Images, InferenceFunction, is_engine_out_of_memory
from models.engines.cuda_graphs import CudaGraphCache, EngineOutput, run_eager
from models.errors import BundleError, ConfigError, EngineError, first_line, quoted
from models.thread_count import ThreadCount

if TYPE_CHECKING:  # the service imports no torch unless it uses this engine
    from torch import Tensor

    from models.architectures.base import Network

NOT_INSTALLED = "The engine torch is not installed. Install maskserve with the extra [train]."


def precisions(bundle: Bundle, device: str) -> tuple[str, ...]:
    """f32; bf16 if the device supports it; fp16 on a GPU."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("models.architectures") is None:
        raise EngineError(NOT_INSTALLED)
    if not bundle.has_file(WEIGHTS_FILE):
        raise EngineError(
            f"The engine torch cannot run {bundle.folder}: it was made from an ONNX graph and has no {WEIGHTS_FILE}. Choose "
            "openvino or onnxruntime."
        )
    import torch

    if device == "cpu":
        return ("f32", "bf16") if _cpu_supports_bf16() else ("f32",)
    if device != "cuda":
        raise EngineError(f"The engine torch runs on cpu or cuda, not on {quoted(device)}.")
    if not torch.cuda.is_available():
        raise EngineError("PyTorch finds no GPU here (device cuda). Choose the device cpu.")
    return ("f32", "bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("f32", "fp16")


def _cpu_supports_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX. oneDNN also accepts plain AVX512, where it emulates bf16 slowly."""
    import torch

    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(check is not None and check() for check in checks) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load(
    bundle: Bundle, device: str, precision: str, threads: int, concurrency: int = 1, cuda_graphs: bool = True
) -> InferenceFunction:
    """Build the network and load its weights. See `models/engines/base.py`.

    `threads` is set for the whole process: torch has one number, and uses so many threads for each caller. `cuda_graphs` is off
    only to measure what they save.
    Raises: BundleError, EngineError, MemoryError.
    """
    import torch

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    # First: it reads torch's own number of threads.
    thread_count = ThreadCount(enabled=device == "cpu" and not threads and concurrency == 1)
    if threads and device == "cpu":
        torch.set_num_threads(threads)
    network = build_network(bundle)
    from models.architectures.base import channels_first, upsample, use_channels_last

    with _translate_memory_errors():
        use_channels_last(network.to(device), bundle.spec.input.axes)
        network.body.to(dtype)  # the normalization before it stays in float32

    def predict(images: "Tensor", statistics: "Tensor | None" = None) -> "tuple[Tensor, Tensor]":
        # N x H x W x C is channels_last already.
        maps = network.normalise(channels_first(images), statistics).to(dtype)
        logits = network.calibrate(network.body(maps).float())
        return upsample(logits, images.shape[1:-1]).argmax(dim=1).to(torch.uint8), logits

    rule = bundle.spec.input
    has_statistics = rule.scaling.kind == "zscore"  # they change with each sample, so that nothing is captured
    is_captured = cuda_graphs and device == "cuda" and not has_statistics
    graphs = CudaGraphCache(predict, precision != "f32", dtype=rule.dtype) if is_captured else None

    def run(images: Images, logits: bool = False, statistics: NDArray[np.float32] | None = None) -> EngineOutput:
        thread_count.update()
        with _translate_memory_errors(), torch.inference_mode():
            return graphs(images, logits) if graphs else run_eager(predict, images, logits, device, statistics)

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
    """Build the network of a bundle in float32, for inference.

    Raises: BundleError if the spec and the weights do not match, EngineError if torch is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from models import architectures
    except ModuleNotFoundError as error:
        raise EngineError(f"{NOT_INSTALLED} ({error})") from error

    architecture = bundle.spec.architecture
    weights = bundle.verify_file(WEIGHTS_FILE)
    try:
        axes = bundle.spec.input.axes
        network = architectures.build(architecture.name, len(bundle.spec.classes), axes, **architecture.options)
        network.set_input(bundle.spec.input)
        network.set_calibration(bundle.spec.calibration, bundle.spec.classes)
        network.load_state_dict(load_file(weights))
    except (ConfigError, TypeError) as error:
        raise BundleError(
            f"{bundle.folder}: this maskserve has no network as described in spec.json ({error}). Export the bundle again."
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(
            f"{weights} does not match the network described in spec.json. Export the bundle again."
        ) from error
    return network.eval()
