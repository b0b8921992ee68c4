"""ONNX Runtime: the portable engine. It runs on a GPU if its CUDA provider is installed."""

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import MODEL_FILE, Bundle
from models.cgroup_limits import quota_limited_cores
from models.engines.base import Images, InferenceFunction, graph_inputs, is_engine_out_of_memory
from models.errors import BundleError, EngineError, first_line, last_line, quoted

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def precisions(bundle: Bundle, device: str) -> tuple[str, ...]:
    """Only f32: ONNX Runtime has no bf16 on CPUs, and the int8 graph of a bundle is for OpenVINO."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineError("The engine onnxruntime is not installed: `pip install onnxruntime` (or onnxruntime-gpu).")
    import onnxruntime

    if device not in PROVIDERS:
        raise EngineError(f"The engine onnxruntime runs on {' or '.join(PROVIDERS)}, not on {quoted(device)}.")
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise EngineError(
            f"The installed onnxruntime has no {PROVIDERS[device]}. Install it with `pip install onnxruntime-gpu`."
        )
    return ("f32",)


def load(bundle: Bundle, device: str, precision: str, threads: int, concurrency: int = 1) -> InferenceFunction:
    """Open the bundle's graph in a session. Raises: BundleError, EngineError. See `models/engines/base.py`."""
    import onnxruntime

    graph = bundle.verify_file(MODEL_FILE)
    options = onnxruntime.SessionOptions()
    threads = threads or quota_limited_cores()
    # The calling threads compute too, and share one pool of further threads. 0 is one thread per core.
    options.intra_op_num_threads = threads and concurrency * (threads - 1) + 1
    # By default, idle threads spin on cores that other workers and requests could use: without spinning, two workers of two
    # threads on two cores segment 1.4 times the images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # memory is planned for one image size, and would be planned again for each
    options.log_severity_level = 3
    # By default, cuDNN searches for the fastest kernels for each new size, which takes seconds.
    chosen: list[Any] = [
        (PROVIDERS["cuda"], {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0})
        if device == "cuda"
        else PROVIDERS["cpu"]
    ]
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=chosen)
    except Exception as error:  # its exceptions have no other base class
        raise BundleError(f"{graph}: ONNX Runtime cannot open it: {last_line(error)}") from error
    if PROVIDERS[device] not in session.get_providers():  # ONNX Runtime falls back to the CPU and only logs it
        raise EngineError("ONNX Runtime found no GPU that its CUDA provider can use. Choose the device cpu.")

    def run(
        images: Images, logits: bool = False, statistics: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        names = ["labels", "logits"] if logits else ["labels"]
        try:
            outputs = session.run(names, graph_inputs(np.ascontiguousarray(images), statistics))
        except Exception as error:  # its exceptions have no other base class
            if is_engine_out_of_memory(error):
                raise MemoryError(f"ONNX Runtime: {last_line(error)}") from error
            raise RuntimeError(f"ONNX Runtime: {first_line(error)}") from error
        return outputs[0], outputs[1] if logits else None

    return run
