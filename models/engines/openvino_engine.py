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
from models.engines.base import Images, InferenceFunction, graph_inputs, is_engine_out_of_memory
from models.errors import BundleError, EngineError, last_line, quoted

if TYPE_CHECKING:  # imported only if this engine is used
    import openvino

# Kernels in OpenVINO's cache, about 30 for each image size. Its default is 5,000; with 512, a ResNet-18 over 600 random
# sizes used 260 MB instead of 333, at the same speed.
KERNEL_CACHE_CAPACITY = 512
MAX_CACHED_BUNDLES, MAX_CACHED_SETTINGS = 5, 4  # compiled graphs on disk: bundles, and settings of each bundle

_CORE_LOCK = threading.Lock()


def get_core() -> "openvino.Core":
    """The one `openvino.Core` of the process.

    The CPU plugin sets an alternate signal stack for the thread that opens a Core, and restores the previous one when the
    Core is closed. If two are open and the older one closes first, the younger restores a stack that was freed, and the
    next signal (SIGCHLD, for example) kills the process with a segmentation fault.
    """
    with _CORE_LOCK:
        return _create_core()


@functools.cache
def _create_core() -> "openvino.Core":
    import openvino

    # The binding must convert its first array in one thread only: with two threads, 2026.4 deadlocked, one holding the GIL
    # and waiting for the other, which waited for the GIL.
    openvino.Tensor(np.zeros(1, np.uint8), shared_memory=True)
    return openvino.Core()


def has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 (AMX or AVX512-BF16)."""
    return "BF16" in get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def precisions(bundle: Bundle, device: str) -> tuple[str, ...]:
    """f32; bf16 if the CPU supports it; int8 if the bundle contains such a graph."""
    if importlib.util.find_spec("openvino") is None:
        raise EngineError("The engine openvino is not installed: `pip install openvino`.")
    if device != "cpu":
        raise EngineError(f"The engine openvino runs on the cpu, not on {quoted(device)}.")
    return "f32", *(["bf16"] if has_bf16() else []), *(["int8"] if bundle.has_file(INT8_MODEL_FILE) else [])


def load(bundle: Bundle, device: str, precision: str, threads: int, concurrency: int = 1) -> InferenceFunction:
    """Compile the bundle's graph. Raises: BundleError, MemoryError. See `models/engines/base.py`."""
    graph = bundle.verify_file(INT8_MODEL_FILE if precision == "int8" else MODEL_FILE)
    if precision == "int8":
        bundle.verify_file(INT8_WEIGHTS_FILE)
    limited_cores = quota_limited_cores()
    total = threads * concurrency or (max(limited_cores, concurrency) if limited_cores else 0)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # Of all concurrent inferences. By default it uses all visible cores, even if a container may not use them.
        "INFERENCE_NUM_THREADS": total,
        # Every process would pin its threads to the same first cores: two workers of one thread each were half as fast.
        "ENABLE_CPU_PINNING": False,
        # Layers that an int8 graph leaves in float are computed in bf16 if the CPU supports it.
        "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" or not has_bf16() else "bf16",
        "CPU_RUNTIME_CACHE_CAPACITY": KERNEL_CACHE_CAPACITY,
    }
    if concurrency > 1:  # by default there is one stream, and concurrent calls wait for it, whatever the threads
        settings["NUM_STREAMS"] = concurrency
    return _ThreadSafeModel(
        functools.partial(_compile, graph, settings, _cache_folder(bundle, f"{precision}-{total}x{concurrency}"))
    )


class _ThreadSafeModel:
    """A compiled graph with one inference request per calling thread, because a request has its own buffers."""

    def __init__(self, compile: "Callable[[], openvino.CompiledModel]") -> None:
        self.compile_model = compile
        self.compiled: openvino.CompiledModel | None = compile()
        self.lock = threading.Lock()
        self.local = threading.local()

    def __call__(
        self, images: Images, logits: bool = False, statistics: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        with self.lock:
            self.compiled = compiled = self.compiled or self.compile_model()
        if getattr(self.local, "compiled", None) is not compiled:
            self.local.request, self.local.compiled = compiled.create_infer_request(), compiled
        request = self.local.request
        try:
            # Not `infer`: when memory ran out, 2026.4 returned the previous result from it, without an error.
            request.start_async(graph_inputs(images, statistics), share_inputs=True)
            request.wait()
        except RuntimeError as error:
            if not is_engine_out_of_memory(error):
                raise
            self.compiled = self.local.compiled = None  # else it keeps requesting the memory that it did not get
            del request, self.local.request
            raise MemoryError(f"OpenVINO: {last_line(error)}") from error
        return request.get_tensor("labels").data, request.get_tensor("logits").data if logits else None

    def release_memory(self) -> None:
        """Give back the buffers of inferences, which have grown to the largest image; not while an inference runs."""
        with self.lock, contextlib.suppress(RuntimeError):  # an inference runs
            if self.compiled is not None:
                self.compiled.release_memory()


def _compile(graph: Path, settings: dict[str, Any], cache: Path | None) -> "openvino.CompiledModel":
    """Load a compiled graph from the cache, or compile it into the cache. Raises: BundleError, MemoryError."""
    if cache is not None:
        with _exclusive_lock(cache):
            if _verify_cache(cache):
                try:
                    compiled = get_core().compile_model(graph, "CPU", {**settings, "CACHE_DIR": str(cache)})
                    _write_checksum(cache)
                    return compiled
                except (
                    RuntimeError,
                    OSError,
                ) as error:  # a full disk, or another version's cache: the graph may be valid
                    if not is_engine_out_of_memory(error):
                        shutil.rmtree(cache, ignore_errors=True)
    try:
        return get_core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        if is_engine_out_of_memory(error):
            raise MemoryError(f"OpenVINO: {last_line(error)}") from error
        raise BundleError(f"{graph}: OpenVINO cannot compile it: {last_line(error)}") from error


def _cache_folder(bundle: Bundle, settings_name: str) -> Path | None:
    """The cache folder for a bundle's compiled graph; None for a draft, or if it cannot be written.

    Its name is the bundle's hash: OpenVINO identifies a graph by its path, size and time, and used the old network when
    another one replaced it with these three unchanged.
    """
    if not bundle.hash:
        return None
    try:
        root = user_cache_dir("openvino")
        folder = root / bundle.hash / settings_name
        folder.mkdir(parents=True, exist_ok=True)
        for used, limit in ((root / bundle.hash, MAX_CACHED_BUNDLES), (folder, MAX_CACHED_SETTINGS)):
            os.utime(used)
            for old in _newest_first(used.parent.iterdir())[limit:]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError):  # a read-only container, or a user without home folder
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextlib.contextmanager
def _exclusive_lock(cache: Path) -> Iterator[None]:
    """Lock the cache against other processes, if the system supports it: workers open the same bundle at the same time.

    One of them compiles, the others read the cache. Without a lock, each would rewrite a file that others have mapped into
    memory; truncating such a file kills those processes (SIGBUS).
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
    """Delete altered files from the cache; False if the cache cannot be read.

    OpenVINO loads a file with changed bytes, and computes wrong labels.
    """
    try:
        for blob in cache.glob("*.blob"):
            checksum_file = blob.with_suffix(".sha256")
            if not checksum_file.exists() or checksum_file.read_text() != file_sha256(blob):
                blob.unlink(missing_ok=True)
                checksum_file.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _write_checksum(cache: Path) -> None:
    """Write the sha256 of OpenVINO's file; of several files (the bundle was moved) only the newest is kept."""
    blobs = _newest_first(cache.glob("*.blob"))
    for old in blobs[1:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".sha256").unlink(missing_ok=True)
    if blobs and not blobs[0].with_suffix(".sha256").exists():
        blobs[0].with_suffix(".sha256").write_text(file_sha256(blobs[0]))
