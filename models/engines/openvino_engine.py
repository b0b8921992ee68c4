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

from models.bundle import INT8_MODEL_FILE, INT8_WEIGHTS_FILE, MODEL_FILE, Bundle, file_sha256
from models.cache_dir import user_cache_dir
from models.cgroup_limits import quota_limited_cores
from models.engines.base import InferenceFunction, is_engine_out_of_memory
from models.errors import BundleError, EngineError, last_line

if TYPE_CHECKING:  # the other engines do without
    import openvino

# Kernels that OpenVINO keeps, about 30 for each size of image. By default it keeps 5,000; with 512 the memory of a
# ResNet-18 over 600 random sizes was 260 MB in place of 333, at the same speed.
KERNEL_CACHE_CAPACITY = 512
MAX_CACHED_BUNDLES, MAX_CACHED_SETTINGS = (
    5,
    4,
)  # whose compiled graphs stay on disk: of so many bundles, in so many settings of each

_CORE_LOCK = threading.Lock()


def get_core() -> "openvino.Core":
    """OpenVINO's entry, one for the life of the process.

    Its CPU plugin gives the thread that opens it an alternate signal stack and takes it back when it is closed. Where
    two are open and the older one closes first, the younger later puts back a stack that is gone, and the next signal
    (a child's end, say) kills the process with a segmentation fault.
    """
    with _CORE_LOCK:
        return _create_core()


@functools.cache
def _create_core() -> "openvino.Core":
    import openvino

    # The first array that its binding meets, it must meet alone: of two threads one was seen (2026.4) to hold Python's
    # lock and wait for the other, which wanted that lock. The process then stands still for ever.
    openvino.Tensor(np.zeros(1, np.uint8), shared_memory=True)
    return openvino.Core()


def has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 (AMX or AVX512-BF16)."""
    return "BF16" in get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def precisions(bundle: Bundle, device: str) -> tuple[str, ...]:
    """f32; bf16 where the CPU computes in it; int8 where the bundle holds such a graph."""
    if importlib.util.find_spec("openvino") is None:
        raise EngineError("The engine openvino is not installed: `pip install openvino`.")
    if device != "cpu":
        raise EngineError(f"The engine openvino runs on the cpu, not on {device!r}.")
    return "f32", *(["bf16"] if has_bf16() else []), *(["int8"] if bundle.has_file(INT8_MODEL_FILE) else [])


def load(bundle: Bundle, device: str, precision: str, threads: int, concurrency: int = 1) -> InferenceFunction:
    """Compile the bundle's graph; `models/engines/base.py` tells the rest.

    Raises: BundleError, MemoryError.
    """
    graph = bundle.verify_file(INT8_MODEL_FILE if precision == "int8" else MODEL_FILE)
    if precision == "int8":
        bundle.verify_file(INT8_WEIGHTS_FILE)
    granted = quota_limited_cores()
    total = threads * concurrency or (max(granted, concurrency) if granted else 0)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # Of all that are answered at once. Left to itself it takes all cores in sight, also where a container may not use them.
        "INFERENCE_NUM_THREADS": total,
        # Each process pins its threads to the same cores, the first ones: two workers of a thread each were half as fast.
        "ENABLE_CPU_PINNING": False,
        # What an int8 graph leaves in float is computed in bf16 where the CPU can.
        "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" or not has_bf16() else "bf16",
        "CPU_RUNTIME_CACHE_CAPACITY": KERNEL_CACHE_CAPACITY,
    }
    if (
        concurrency > 1
    ):  # by its own choice it has one stream, and who calls meanwhile waits for it, whatever the threads
        settings["NUM_STREAMS"] = concurrency
    return _ThreadSafeModel(
        functools.partial(_compile, graph, settings, _cache_folder(bundle, f"{precision}-{total}x{concurrency}"))
    )


class _ThreadSafeModel:
    """A compiled graph, and a request for each thread that calls: a request holds its own buffers."""

    def __init__(self, compile: "Callable[[], openvino.CompiledModel]") -> None:
        self.compile_model = compile
        self.compiled: openvino.CompiledModel | None = compile()
        self.lock = threading.Lock()
        self.local = threading.local()

    def __call__(
        self, images: NDArray[np.uint8], logits: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        with self.lock:
            self.compiled = compiled = self.compiled or self.compile_model()
        if getattr(self.local, "compiled", None) is not compiled:
            self.local.request, self.local.compiled = compiled.create_infer_request(), compiled
        request = self.local.request
        try:
            # Not `infer`: where memory ran out, that was seen (2026.4) to return the answer before, without a word.
            request.start_async({"images": images}, share_inputs=True)
            request.wait()
        except RuntimeError as error:
            if not is_engine_out_of_memory(error):
                raise
            self.compiled = self.local.compiled = None  # it was seen to go on asking for what it was refused
            del request, self.local.request
            raise MemoryError(f"OpenVINO: {last_line(error)}") from error
        return request.get_tensor("labels").data, request.get_tensor("logits").data if logits else None


def _compile(graph: Path, settings: dict[str, Any], cache: Path | None) -> "openvino.CompiledModel":
    """Compile a graph, or take it from the cache, and put it there. Raises: BundleError, MemoryError."""
    if cache is not None:
        with _exclusive_lock(cache):
            if _verify_cache(cache):
                try:
                    compiled = get_core().compile_model(graph, "CPU", {**settings, "CACHE_DIR": str(cache)})
                    _write_checksum(cache)
                    return compiled
                except (RuntimeError, OSError) as error:  # a full disk, or another OpenVINO's: the graph may be good
                    if not is_engine_out_of_memory(error):
                        shutil.rmtree(cache, ignore_errors=True)
    try:
        return get_core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        if is_engine_out_of_memory(error):
            raise MemoryError(f"OpenVINO: {last_line(error)}") from error
        raise BundleError(f"{graph}: OpenVINO cannot compile it: {last_line(error)}") from error


def _cache_folder(bundle: Bundle, way: str) -> Path | None:
    """The folder for this bundle's compiled graphs; None for a draft, or where nothing can be written.

    It is named by the bundle's hash: OpenVINO knows a graph by its path, size and time, and was seen to answer with the
    old network where another was put into its place with these three unchanged.
    """
    if not bundle.hash:
        return None
    try:
        home = user_cache_dir("openvino")
        folder = home / bundle.hash / way
        folder.mkdir(parents=True, exist_ok=True)
        for used, kept in ((home / bundle.hash, MAX_CACHED_BUNDLES), (folder, MAX_CACHED_SETTINGS)):
            os.utime(used)
            for old in _newest_first(used.parent.iterdir())[kept:]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError):  # a read-only container, or a user without a home
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextlib.contextmanager
def _exclusive_lock(cache: Path) -> Iterator[None]:
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


def _verify_cache(cache: Path) -> bool:
    """Whether what lies in the cache is what was put there; what is not is taken away.

    OpenVINO opens a file with some bytes changed, and answers wrongly.
    """
    try:
        for blob in cache.glob("*.blob"):
            summed = blob.with_suffix(".sha256")
            if not summed.exists() or summed.read_text() != file_sha256(blob):
                blob.unlink(missing_ok=True)
                summed.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _write_checksum(cache: Path) -> None:
    """Note the sha256 of what OpenVINO has put there; of several files (the bundle was moved) the newest stays."""
    blobs = _newest_first(cache.glob("*.blob"))
    for old in blobs[1:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".sha256").unlink(missing_ok=True)
    if blobs and not blobs[0].with_suffix(".sha256").exists():
        blobs[0].with_suffix(".sha256").write_text(file_sha256(blobs[0]))
