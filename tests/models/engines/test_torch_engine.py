"""The torch engine on a GPU, tested with fakes for CUDA; the last part uses a real GPU if there is one."""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import models
from models.architectures.base import Network
from models.bundle import open_bundle
from models.engines import cuda_graphs
from models.engines import torch_engine as engine
from models.engines.cuda_graphs import MAX_GRAPHS, MAX_SEEN_SHAPES, CudaGraphCache
from models.errors import EngineError
from models.inference.segmenter import agreement
from tests.fixtures_bundles import synthetic_image

pytestmark = pytest.mark.usefixtures("one_thread")

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB"
UNCAPTURABLE = "CUDA error: operation not permitted when stream is capturing"


def uniform_batch(side: int, fill: int = 0) -> np.ndarray:
    return np.full((1, side, side, 3), fill, np.uint8)


class SharedResult:
    """A result in the memory that all graphs share: the next replay overwrites it unless it was copied to the host."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def contiguous(self) -> "SharedResult":
        return self

    def cpu(self) -> torch.Tensor:
        return self.value.clone()


class FakeGpu:
    """A fake for CUDA that records its calls, and fails on request."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.out_of_memory: Callable[[str, CudaGraphCache], bool] = lambda what, graphs: False
        self.uncapturable = False
        self.pool_count = 0
        self.results: list[SharedResult] = []

    def new_cache(self, tf32: bool = False) -> CudaGraphCache:
        made = CudaGraphCache(lambda images: self.network("plain", images, made), tf32, "cpu")
        made._record_graph = lambda shape: self.record(shape, made)  # type: ignore[method-assign]
        return made

    def network(self, what: str, images: torch.Tensor, graphs: CudaGraphCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels are the first channel, and logits twice as much."""
        self.calls.append(f"{what} {images.shape[1]}")
        if self.out_of_memory(what, graphs):
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return images[..., 0].clone(), images.permute(0, 3, 1, 2).float() * 2

    def record(self, shape: tuple[int, ...], graphs: CudaGraphCache) -> tuple[Any, ...]:
        entry = torch.zeros(shape, dtype=torch.uint8)
        outputs = tuple(SharedResult(part) for part in self.network("record", entry, graphs))
        if self.uncapturable:
            raise RuntimeError(UNCAPTURABLE)
        self.results += outputs
        return SimpleNamespace(replay=lambda: self.replay(entry, outputs, graphs)), entry, outputs

    def replay(self, entry: torch.Tensor, outputs: tuple[SharedResult, ...], graphs: CudaGraphCache) -> None:
        for result in self.results:
            result.value.fill_(77)
        for result, part in zip(outputs, self.network("replay", entry, graphs), strict=True):
            result.value.copy_(part)

    def new_pool(self) -> tuple[int, int]:
        self.pool_count += 1
        return 0, self.pool_count


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: made.calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: made.calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", made.new_pool)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda device, pool: made.calls.append(f"end {pool}"), raising=False
    )
    return made


def take_calls(gpu: FakeGpu) -> list[str]:
    """Return and clear the recorded calls, without the synchronizations."""
    steps, gpu.calls = [step for step in gpu.calls if step != "synchronize"], []
    return steps


def run_and_check(graphs: CudaGraphCache, side: int, fill: int = 5) -> None:
    labels, logits = graphs(uniform_batch(side, fill), logits=True)
    assert (labels == fill).all() and labels.shape == (1, side, side)
    assert logits is not None and (logits == 2 * fill).all() and logits.shape == (1, 3, side, side)


def test_a_shape_is_captured_the_second_time(fake_gpu: FakeGpu) -> None:
    graphs = fake_gpu.new_cache()
    for fill in range(4):
        run_and_check(graphs, 8, fill)
    run_and_check(graphs, 9)
    assert take_calls(fake_gpu) == ["plain 8", "record 8", "replay 8", "replay 8", "replay 8", "plain 9"]
    assert graphs(uniform_batch(8))[1] is None  # no logits were requested


def test_results_are_not_overwritten_by_the_next_replay(fake_gpu: FakeGpu) -> None:
    graphs = fake_gpu.new_cache()
    results = [(fill, side, graphs(uniform_batch(side, fill), True)) for fill in range(6) for side in (8, 9)]
    for fill, side, (labels, logits) in results:
        assert logits is not None
        assert (labels == fill).all() and (logits == 2 * fill).all(), side


def test_the_least_recently_used_graph_is_dropped(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    graphs = fake_gpu.new_cache()
    for side in (8, 8, 9, 9, 8, 10, 10):  # 8 is used after 9
        run_and_check(graphs, side)
    assert [shape[1] for shape in graphs.graphs] == [8, 10]
    take_calls(fake_gpu)
    for side in (8, 10, 9, 9):
        run_and_check(graphs, side)
    assert take_calls(fake_gpu) == ["replay 8", "replay 10", "plain 9", "record 9", "replay 9"]
    assert fake_gpu.pool_count == 1  # one pool for all


def test_the_number_of_graphs_and_shapes_is_bounded(fake_gpu: FakeGpu) -> None:
    graphs = fake_gpu.new_cache()
    for side in range(1, MAX_SEEN_SHAPES + 50):
        run_and_check(graphs, side)
    assert len(graphs.seen_shapes) == MAX_SEEN_SHAPES and not graphs.graphs
    for side in range(MAX_SEEN_SHAPES, MAX_SEEN_SHAPES + 49):
        run_and_check(graphs, side)
    assert len(graphs.graphs) == MAX_GRAPHS and len(graphs.seen_shapes) <= MAX_SEEN_SHAPES


def test_a_network_that_cannot_be_captured_runs_eagerly(fake_gpu: FakeGpu) -> None:
    graphs = fake_gpu.new_cache()
    run_and_check(graphs, 8)
    run_and_check(graphs, 8)
    fake_gpu.uncapturable = True
    take_calls(fake_gpu)
    for side in (9, 9, 9, 10, 10, 8):
        run_and_check(graphs, side)
    assert take_calls(fake_gpu) == [
        "plain 9",
        "record 9",
        "end (0, 1)",
        *["plain 9"] * 2,
        *["plain 10"] * 2,
        "replay 8",
    ]
    assert graphs.memory_pool == (0, 1)


def test_a_failed_capture_without_the_workaround(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    fake_gpu.uncapturable = True
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refuse)
    graphs = fake_gpu.new_cache()
    run_and_check(graphs, 8)
    run_and_check(graphs, 8)
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    graphs = fake_gpu.new_cache()
    run_and_check(graphs, 8)
    run_and_check(graphs, 8)


def test_errors_of_the_network_are_raised(fake_gpu: FakeGpu) -> None:
    def broken(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("mismatched shapes")

    graphs = CudaGraphCache(broken, False, "cpu")
    for _ in range(3):
        with pytest.raises(RuntimeError, match="mismatched shapes"):
            graphs(uniform_batch(8))
    assert not graphs.gpu_lock.locked()
    assert fake_gpu.calls.count("synchronize") == 3


def test_graphs_are_dropped_if_memory_runs_out(fake_gpu: FakeGpu) -> None:
    graphs = fake_gpu.new_cache()
    for side in (8, 8, 9, 9):
        run_and_check(graphs, side)
    fake_gpu.out_of_memory = lambda what, graphs: bool(graphs.graphs)
    take_calls(fake_gpu)
    run_and_check(graphs, 10)
    assert take_calls(fake_gpu) == ["plain 10", "empty", "plain 10"]
    fake_gpu.out_of_memory = lambda what, graphs: False
    for side in (10, 10, 8, 8):
        run_and_check(graphs, side)
    assert take_calls(fake_gpu) == ["record 10", "replay 10", "replay 10", "plain 8", "record 8", "replay 8"]
    assert fake_gpu.pool_count == 2  # the first pool was released with its graphs


@pytest.mark.parametrize("when", ["record", "replay"])
def test_a_shape_that_is_too_large_for_a_graph_is_not_captured_again(when: str, fake_gpu: FakeGpu) -> None:
    graphs = fake_gpu.new_cache()
    run_and_check(graphs, 8)
    run_and_check(graphs, 8)
    run_and_check(graphs, 9)
    fake_gpu.out_of_memory = lambda what, graphs: what == when
    take_calls(fake_gpu)
    run_and_check(graphs, 9)
    assert take_calls(fake_gpu)[-3:] == [f"{when} 9", "empty", "plain 9"]
    assert not graphs.graphs
    fake_gpu.out_of_memory = lambda what, graphs: False
    for side in (9, 9, 8, 8):
        run_and_check(graphs, side)
    assert take_calls(fake_gpu) == ["plain 9", "plain 9", "plain 8", "record 8", "replay 8"]


def test_copying_the_result_may_run_out_of_memory(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = fake_gpu.new_cache()
    run_and_check(graphs, 8)
    run_and_check(graphs, 8)

    def refuse(result: SharedResult) -> SharedResult:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(SharedResult, "contiguous", refuse)
    run_and_check(graphs, 8)
    assert take_calls(fake_gpu)[-2:] == ["empty", "plain 8"]


def test_memory_error_without_graphs(fake_gpu: FakeGpu) -> None:
    graphs = fake_gpu.new_cache()
    fake_gpu.out_of_memory = lambda what, graphs: True
    with pytest.raises(torch.OutOfMemoryError):
        graphs(uniform_batch(8))
    assert fake_gpu.calls == ["plain 8", "empty", "plain 8", "synchronize"]
    assert not graphs.gpu_lock.locked()
    fake_gpu.out_of_memory = lambda what, graphs: False
    run_and_check(graphs, 8)


def test_two_networks_never_run_at_the_same_time(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    running, maximum = 0, 0
    inner = FakeGpu.network

    def counted(self: FakeGpu, *args: Any) -> Any:
        nonlocal running, maximum
        running += 1
        maximum = max(maximum, running)
        time.sleep(0.001)
        running -= 1
        return inner(self, *args)

    monkeypatch.setattr(FakeGpu, "network", counted)
    pair = [fake_gpu.new_cache(), fake_gpu.new_cache()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: run_and_check(pair[index % 2], 8 + index % 3, index), range(60)))
    assert maximum == 1
    assert take_calls(fake_gpu).count("record 8") == 2


def test_the_gpu_is_idle_before_the_next_thread_runs(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: held.append(CudaGraphCache.gpu_lock.locked()))
    run_and_check(fake_gpu.new_cache(), 8)
    assert held == [True]


@pytest.mark.parametrize("tf32", [False, True])
def test_cudnn_settings_are_restored_after_the_call(tf32: bool, fake_gpu: FakeGpu) -> None:
    cudnn, seen = torch.backends.cudnn, []

    def settings() -> tuple[bool, bool, bool]:
        return cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(settings())
        return images[..., 0], images.float()

    before = settings()
    CudaGraphCache(network, tf32, "cpu")(uniform_batch(8))
    assert seen == [(True, False, tf32)]
    assert settings() == before
    assert not torch.backends.cuda.matmul.allow_tf32  # f32 depends on it


# The capture itself, with a CUDA that only records its calls.


class FakeCuda:
    """Streams, and a capture that, like torch's, stays on its stream if its end fails."""

    def __init__(self) -> None:
        self.current_stream = "main"
        self.capture_fails = False
        self.calls: list[str] = []
        self.streams = 0

    def new_stream(self) -> "FakeCuda.Stream":
        self.streams += 1
        return self.Stream(self, f"side {self.streams}")

    class Stream:
        def __init__(self, cuda: "FakeCuda", name: str) -> None:
            self.cuda, self.name = cuda, name

        def wait_stream(self, other: str) -> None:
            self.cuda.calls.append(f"{self.name} waits for {other}")

    @contextlib.contextmanager
    def stream(self, stream: "FakeCuda.Stream") -> Iterator[None]:
        before, self.current_stream = self.current_stream, stream.name
        try:
            yield
        finally:
            self.current_stream = before

    @contextlib.contextmanager
    def graph(self, graph: object, pool: object, stream: "FakeCuda.Stream", capture_error_mode: str) -> Iterator[None]:
        before, self.current_stream = self.current_stream, stream.name
        self.calls.append(f"capture into {pool}, {capture_error_mode}")
        yield
        if self.capture_fails:
            self.current_stream = "lost"
            raise RuntimeError(UNCAPTURABLE)
        self.current_stream = before


@pytest.fixture
def fake_cuda(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", made.new_stream)
    monkeypatch.setattr(torch.cuda, "stream", made.stream)
    monkeypatch.setattr(torch.cuda, "graph", made.graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: made.current_stream)

    class Graph:
        def replay(self) -> None:
            made.calls.append(f"replay on {made.current_stream}")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    return made


def recording_cache(cuda: FakeCuda) -> CudaGraphCache:
    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cuda.calls.append(f"run on {cuda.current_stream}")
        return images[..., 0], images.float()

    return CudaGraphCache(network, False, "cpu")


def test_a_capture_is_warmed_up_on_its_own_stream(fake_cuda: FakeCuda) -> None:
    graphs = recording_cache(fake_cuda)
    for side in (8, 8, 8, 9, 9):
        graphs(uniform_batch(side))
    captured = ["side 1 waits for main", *["run on side 1"] * 3, "capture into (0, 1), thread_local", "run on side 1"]
    replay = "replay on main"
    assert fake_cuda.calls == ["run on main", *captured, replay, replay, "run on main", *captured, replay]
    assert fake_cuda.streams == 1


def test_a_failed_capture_restores_the_stream(fake_cuda: FakeCuda) -> None:
    graphs = recording_cache(fake_cuda)
    fake_cuda.capture_fails = True
    for _ in range(3):
        graphs(uniform_batch(8))
        assert fake_cuda.current_stream == "main"
    assert [step for step in fake_cuda.calls if step == "run on main"] == ["run on main"] * 3
    assert sum(step.startswith("capture") for step in fake_cuda.calls) == 1


# On the CPU.


@pytest.mark.parametrize("writeable", [True, False])
def test_images_become_tensors_without_warning_or_copy(writeable: bool) -> None:
    images = uniform_batch(8, 3)
    images.flags.writeable = writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = cuda_graphs._to_tensor(images)
    assert (tensor.numpy() == images).all()
    assert (tensor.data_ptr() == images.ctypes.data) == writeable
    turned = images[:, ::-1]
    assert (cuda_graphs._to_tensor(turned).numpy() == turned).all()


@pytest.mark.parametrize(
    ("missing", "supported"),
    [
        ((), ("f32", "bf16")),
        (("_is_amx_tile_supported",), ("f32", "bf16")),
        (("_is_avx512_bf16_supported",), ("f32", "bf16")),
        (("_is_avx512_bf16_supported", "_is_amx_tile_supported"), ("f32",)),
    ],
)
@pytest.mark.parametrize("removed", [True, False])
def test_bf16_if_the_cpu_supports_it(
    missing: tuple[str, ...],
    removed: bool,
    supported: tuple[str, ...],
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda has=name not in missing: has, raising=False)
        if removed and name in missing:
            monkeypatch.delattr(torch.cpu, name)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    bundle = open_bundle(tiny_bundle)
    assert engine.precisions(bundle, "cpu") == supported
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert engine.precisions(bundle, "cpu") == ("f32",)


@pytest.mark.parametrize("package", ["safetensors", "models.architectures"])
def test_torch_without_the_other_packages_of_its_extra(
    package: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(models, "architectures", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=r"The engine torch is not installed.*" + package):
        engine.load(open_bundle(tiny_bundle), "cpu", "f32", 0)


def test_weights_that_do_not_fit_into_memory(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(Network, "to", refuse)
    with pytest.raises(MemoryError, match="out of memory"):
        engine.load(open_bundle(tiny_bundle), "cpu", "f32", 0)


# A real GPU.

real = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def load_engine(bundle: Path, precision: str) -> Callable[..., Any]:
    if precision not in engine.precisions(open_bundle(bundle), "cuda"):
        pytest.skip(f"this GPU has no {precision}")
    return engine.load(open_bundle(bundle), "cuda", precision, 0)


@real
@pytest.mark.parametrize(("precision", "least"), [("f32", 0.999), ("bf16", 0.97), ("fp16", 0.97)])
def test_a_gpu_agrees_with_pytorch(precision: str, least: float, tiny_bundle: Path) -> None:
    run, live = load_engine(tiny_bundle, precision), engine.build_network(open_bundle(tiny_bundle))
    for count, height, width in ((2, 128, 192), (1, 320, 256)):
        images = np.stack([synthetic_image(height, width, seed) for seed in range(count)])
        plain, captured, replayed = (run(images, True) for _ in range(3))
        with torch.inference_mode():
            labels, logits = (part.numpy() for part in live(torch.from_numpy(images)))
        assert agreement(plain[0], labels) >= least
        if precision == "f32":  # with TF32 it is a thousandth
            np.testing.assert_allclose(plain[1], logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
        for other in (captured, replayed):
            assert agreement(other[0], plain[0]) >= 0.999
            np.testing.assert_allclose(other[1], plain[1], rtol=1e-3, atol=1e-2 * np.abs(logits).max())
        np.testing.assert_array_equal(replayed[0], captured[0])


@real
def test_two_threads_on_a_gpu(tiny_bundle: Path) -> None:
    run = load_engine(tiny_bundle, "f32")
    images = [synthetic_image(64 + 64 * (seed % 2), 64 + 64 * (seed % 3), seed)[None] for seed in range(24)]
    alone = [run(image)[0] for image in images]
    with ThreadPoolExecutor(2) as pool:
        for labels, expected in zip(pool.map(lambda image: run(image)[0], images * 2), alone * 2, strict=True):
            assert agreement(labels, expected) >= 0.999


@real
def test_gpu_memory_is_bounded_over_forty_sizes(tiny_bundle: Path) -> None:
    run = load_engine(tiny_bundle, "f32")
    reserved = []
    for _ in range(3):
        for side in range(1, 41):
            image = synthetic_image(64 * (1 + side % 8), 64 * (1 + side // 8), side)[None]
            for _ in range(3):
                run(image)
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= 1.2 * reserved[0], reserved


@real
def test_a_gpu_works_after_a_network_that_synchronizes() -> None:
    def waiting(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert images.float().mean().item() >= 0
        return images[..., 0], images.float()

    graphs, stream = CudaGraphCache(waiting, False), torch.cuda.current_stream()
    for fill in range(4):
        assert (graphs(uniform_batch(64, fill))[0] == fill).all()
        assert torch.cuda.current_stream() == stream
    assert not graphs.capturable
    torch.cuda.empty_cache()
    again = CudaGraphCache(lambda images: (images[..., 0] + 1, images.float()), False)
    for fill in range(4):
        assert (again(uniform_batch(64, fill))[0] == fill + 1).all()
    assert len(again.graphs) == 1
