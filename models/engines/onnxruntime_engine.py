"""ONNX Runtime: the portable engine; on a GPU where its CUDA provider is installed."""

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import MODEL_FILE, Bundle
from models.cgroup_limits import quota_limited_cores
from models.engines.base import InferenceFunction, is_engine_out_of_memory
from models.errors import BundleError, EngineError, first_line, last_line

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def precisions(bundle: Bundle, device: str) -> tuple[str, ...]:
    """F32 alone: its CPU has no bf16, and a bundle's int8 graph is OpenVINO's."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineError("The engine onnxruntime is not installed: `pip install onnxruntime` (or onnxruntime-gpu).")
    import onnxruntime

    if device not in PROVIDERS:
        raise EngineError(f"The engine onnxruntime runs on {' or '.join(PROVIDERS)}, not on {device!r}.")
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise EngineError(
            f"The onnxruntime that is installed has no {PROVIDERS[device]}; `pip install onnxruntime-gpu` brings it."
        )
    return ("f32",)


def load(bundle: Bundle, device: str, precision: str, threads: int, concurrency: int = 1) -> InferenceFunction:
    """Open the bundle's graph in a session; `models/engines/base.py` tells the rest. Raises: BundleError."""
    import onnxruntime

    graph = bundle.verify_file(MODEL_FILE)
    options = onnxruntime.SessionOptions()
    threads = threads or quota_limited_cores()
    # Who calls computes too; beside them is one pool for all. 0: as many as there are cores.
    options.intra_op_num_threads = threads and concurrency * (threads - 1) + 1
    # Between two steps threads else turn in circles, on cores that other workers and requests could use: with two workers
    # of two threads on two cores this gave 1.4 times the images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # it plans the memory of one size of image, and would plan each anew
    options.log_severity_level = 3
    # Kernels of a GPU are else searched through for each new size, which takes seconds.
    chosen: list[Any] = [
        (PROVIDERS["cuda"], {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0})
        if device == "cuda"
        else PROVIDERS["cpu"]
    ]
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=chosen)
    except Exception as error:  # its kinds have no common root but this
        raise BundleError(f"{graph}: ONNX Runtime cannot open it: {last_line(error)}") from error
    if PROVIDERS[device] not in session.get_providers():  # it falls back to the CPU with a log line
        raise EngineError("ONNX Runtime found no GPU that its CUDA provider can use; take the device cpu.")

    def run(images: NDArray[np.uint8], logits: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        names = ["labels", "logits"] if logits else ["labels"]
        try:
            answer = session.run(names, {"images": np.ascontiguousarray(images)})
        except Exception as error:
            if is_engine_out_of_memory(error):
                raise MemoryError(f"ONNX Runtime: {last_line(error)}") from error
            raise RuntimeError(f"ONNX Runtime: {first_line(error)}") from error  # its own kinds have no common root
        return answer[0], answer[1] if logits else None

    return run
