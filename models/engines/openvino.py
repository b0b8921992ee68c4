"""OpenVINO: the default engine on a CPU."""

import functools
import threading
from collections.abc import Callable

import numpy as np
import openvino
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import BundleError, EngineError

# Below this share of pixels equal to f32's, measured at export, bf16 is not chosen.
BF16_AGREEMENT = 0.995


@functools.cache
def core() -> openvino.Core:
    """OpenVINO's entry, one for the life of the process.

    Its CPU plugin gives the thread that opens it an alternate signal stack and takes it back when it is closed. Where
    two are open and the older one closes first, the younger later puts back a stack that is gone, and the next signal
    (a child's end, say) kills the process with a segmentation fault.
    """
    return openvino.Core()


def has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 (AMX or AVX512-BF16)."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def load(
    bundle: Bundle, device: str, precision: str, threads: int
) -> Callable[[NDArray[np.uint8]], tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Compile the bundle's graph.

    `precision` is f32, bf16, or auto: bf16 where the CPU has it and the export measured it as good, else f32.
    `threads=0` takes every core.
    """
    if device != "cpu":
        raise EngineError(f"The engine openvino runs on the cpu, not on {device!r}.")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": choose_precision(bundle, precision),
        "INFERENCE_NUM_THREADS": threads,
    }
    try:
        network = core().compile_model(bundle.model, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BundleError(f"{bundle.model}: OpenVINO cannot compile it: {reason}") from error
    local = threading.local()  # a request holds its own buffers, so each thread that calls has one

    def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        if not hasattr(local, "request"):
            local.request = network.create_infer_request()
        answer = local.request.infer({"images": images}, share_inputs=True)
        return answer["labels"], answer["logits"]

    return run


def choose_precision(bundle: Bundle, precision: str) -> str:
    """The precision that `load` takes for what was asked: f32 or bf16. Raises EngineError."""
    if precision == "auto":
        return "bf16" if has_bf16() and bundle.spec.parity.get("bf16", 0.0) >= BF16_AGREEMENT else "f32"
    if precision not in ("f32", "bf16"):
        raise EngineError(f"The precision {precision!r} is not known to openvino; choose auto, f32 or bf16.")
    if precision == "bf16" and not has_bf16():
        raise EngineError("This CPU has no bfloat16 (AMX or AVX512-BF16); choose auto or f32.")
    return precision
