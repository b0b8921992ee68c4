"""OpenVINO: the default engine on a CPU."""

import contextlib
import functools
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import INT8, INT8_WEIGHTS, MODEL, Bundle, sha256
from models.cache_dir import cache_home
from models.cpu_quota import granted_cores
from models.engines.base import Run, ran_out_of_memory
from models.errors import BundleError, EngineError, last_line

if TYPE_CHECKING:  # the other engines do without
    import openvino

# Kernels that OpenVINO keeps, about 30 for each size of picture. By default it keeps 5,000; with 512 the memory of a
# ResNet-18 over 600 random sizes was 260 MB in place of 333, at the same speed.
KERNELS = 512
BUNDLES, WAYS = 5, 4  # whose compiled graphs stay on disk: of so many bundles, in so many settings of each

_OPENING = threading.Lock()


def core() -> "openvino.Core":
    """OpenVINO's entry, one for the life of the process.

    Its CPU plugin gives the thread that opens it an alternate signal stack and takes it back when it is closed. Where
    two are open and the older one closes first, the younger later puts back a stack that is gone, and the next signal
    (a child's end, say) kills the process with a segmentation fault.
    """
    with _OPENING:
        return _core()


@functools.cache
def _core() -> "openvino.Core":
    import openvino

    # The first array that its binding meets, it must meet alone: of two threads one was seen (2026.4) to hold Python's
    # lock and wait for the other, which wanted that lock. The process then stands still for ever.
    openvino.Tensor(np.zeros(1, np.uint8), shared_memory=True)
    return openvino.Core()


def has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 (AMX or AVX512-BF16)."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def precisions(bundle: Bundle, device: str) -> tuple[str, ...]:
    """f32; bf16 where the CPU computes in it; int8 where the bundle holds such a graph."""
    if importlib.util.find_spec("openvino") is None:
        raise EngineError("The engine openvino is not installed: `pip install openvino`.")
    if device != "cpu":
        raise EngineError(f"The engine openvino runs on the cpu, not on {device!r}.")
    return "f32", *(["bf16"] if has_bf16() else []), *(["int8"] if bundle.has(INT8) else [])


def load(bundle: Bundle, device: str, precision: str, threads: int, at_once: int = 1) -> Run:
    """Compile the bundle's graph; `models/engines/base.py` tells the rest.

    Raises: BundleError, MemoryError.
    """
    graph = bundle.verified(INT8 if precision == "int8" else MODEL)
    if precision == "int8":
        bundle.verified(INT8_WEIGHTS)
    granted = granted_cores()
    total = threads * at_once or (max(granted, at_once) if granted else 0)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # Of all that are answered at once. Left to itself it takes all cores in sight, also where a container may not use them.
        "INFERENCE_NUM_THREADS": total,
        # Each process pins its threads to the same cores, the first ones: two workers of a thread each were half as fast.
        "ENABLE_CPU_PINNING": False,
        # What an int8 graph leaves in float is computed in bf16 where the CPU can.
        "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" or not has_bf16() else "bf16",
        "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
    }
    if at_once > 1:  # by its own choice it has one stream, and who calls meanwhile waits for it, whatever the threads
        settings["NUM_STREAMS"] = at_once
    return _Network(functools.partial(_compile, graph, settings, _cache(bundle, f"{precision}-{total}x{at_once}")))


class _Network:
    """A compiled graph, and a request for each thread that calls: a request holds its own buffers."""

    def __init__(self, compile: "Callable[[], openvino.CompiledModel]") -> None:
        self.compile = compile
        self.compiled: openvino.CompiledModel | None = compile()
        self.lock = threading.Lock()
        self.local = threading.local()

    def __call__(
        self, images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        with self.lock:
            self.compiled = compiled = self.compiled or self.compile()
        if getattr(self.local, "compiled", None) is not compiled:
            self.local.request, self.local.compiled = compiled.create_infer_request(), compiled
        request = self.local.request
        try:
            # Not `infer`: where memory ran out, that was seen (2026.4) to return the answer before, without a word.
            request.start_async({"images": images}, share_inputs=True)
            request.wait()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            self.compiled = self.local.compiled = None  # it was seen to go on asking for what it was refused
            del request, self.local.request
            raise MemoryError(f"OpenVINO: {last_line(error)}") from error
        return request.get_tensor("labels").data, request.get_tensor("logits").data if logits else None


def _compile(graph: Path, settings: dict[str, Any], cache: Path | None) -> "openvino.CompiledModel":
    """Compile a graph, or take it from the cache, and put it there. Raises: BundleError, MemoryError."""
    if cache is not None:
        with _alone(cache):
            if _unharmed(cache):
                try:
                    compiled = core().compile_model(graph, "CPU", {**settings, "CACHE_DIR": str(cache)})
                    _sum(cache)
                    return compiled
                except (RuntimeError, OSError) as error:  # a full disk, or another OpenVINO's: the graph may be good
                    if not ran_out_of_memory(error):
                        shutil.rmtree(cache, ignore_errors=True)
    try:
        return core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise MemoryError(f"OpenVINO: {last_line(error)}") from error
        raise BundleError(f"{graph}: OpenVINO cannot compile it: {last_line(error)}") from error


def _cache(bundle: Bundle, way: str) -> Path | None:
    """The folder for this bundle's compiled graphs; None for a draft, or where nothing can be written.

    It is named by the bundle's hash: OpenVINO knows a graph by its path, size and time, and was seen to answer with the
    old network where another was put into its place with these three unchanged.
    """
    if not bundle.hash:
        return None
    try:
        home = cache_home("openvino")
        folder = home / bundle.hash / way
        folder.mkdir(parents=True, exist_ok=True)
        for used, kept in ((home / bundle.hash, BUNDLES), (folder, WAYS)):
            os.utime(used)
            for old in _newest_first(used.parent.iterdir())[kept:]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError):  # a read-only container, or a user without a home
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Keep other processes away meanwhile, where the system can: workers open the same bundle at the same time.

    One then compiles for all. Without, each would, and write the file anew under those that have it mapped into memory;
    a process dies (SIGBUS) where such a file is cut.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows, or a file system without locks
            import fcntl

            file = stack.enter_context((cache / "lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file, and with the process
        yield


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _unharmed(cache: Path) -> bool:
    """Whether what lies in the cache is what was put there; what is not is taken away.

    OpenVINO opens a file with some bytes changed, and answers wrongly.
    """
    try:
        for blob in cache.glob("*.blob"):
            summed = blob.with_suffix(".sha256")
            if not summed.exists() or summed.read_text() != sha256(blob):
                blob.unlink(missing_ok=True)
                summed.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _sum(cache: Path) -> None:
    """Note the sha256 of what OpenVINO has put there; of several files (the bundle was moved) the newest stays."""
    blobs = _newest_first(cache.glob("*.blob"))
    for old in blobs[1:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".sha256").unlink(missing_ok=True)
    if blobs and not blobs[0].with_suffix(".sha256").exists():
        blobs[0].with_suffix(".sha256").write_text(sha256(blobs[0]))
