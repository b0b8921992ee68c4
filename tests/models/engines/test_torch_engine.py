"""What the torch engine does on a GPU, told by stand-ins for CUDA; the last part asks a real one where there is one."""

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
from models.engines import cuda_graphs as graphs_file
from models.engines import torch_engine as engine
from models.engines.cuda_graphs import GRAPHS, MET, Graphs
from models.errors import EngineError
from models.inference.segmenter import agreement
from tests.fixtures_bundles import drawing

pytestmark = pytest.mark.usefixtures("one_thread")

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB"
UNCAPTURABLE = "CUDA error: operation not permitted when stream is capturing"


def batch(side: int, fill: int = 0) -> np.ndarray:
    return np.full((1, side, side, 3), fill, np.uint8)


class OnGpu:
    """A result in the memory that all graphs share: only what was copied to the host outlives another's replay."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def contiguous(self) -> "OnGpu":
        return self

    def cpu(self) -> torch.Tensor:
        return self.value.clone()


class Gpu:
    """A stand-in for CUDA: it notes what is asked of it, and refuses what it is told to."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.out_of_memory: Callable[[str, Graphs], bool] = lambda what, graphs: False
        self.uncapturable = False
        self.handles = 0
        self.results: list[OnGpu] = []

    def graphs(self, tf32: bool = False) -> Graphs:
        made = Graphs(lambda images: self.network("plain", images, made), tf32, "cpu")
        made._record = lambda shape: self.record(shape, made)  # type: ignore[method-assign]
        return made

    def network(self, what: str, images: torch.Tensor, graphs: Graphs) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels are the first channel, and logits twice as much."""
        self.did.append(f"{what} {images.shape[1]}")
        if self.out_of_memory(what, graphs):
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return images[..., 0].clone(), images.permute(0, 3, 1, 2).float() * 2

    def record(self, shape: tuple[int, ...], graphs: Graphs) -> tuple[Any, ...]:
        entry = torch.zeros(shape, dtype=torch.uint8)
        answer = tuple(OnGpu(part) for part in self.network("record", entry, graphs))
        if self.uncapturable:
            raise RuntimeError(UNCAPTURABLE)
        self.results += answer
        return SimpleNamespace(replay=lambda: self.replay(entry, answer, graphs)), entry, answer

    def replay(self, entry: torch.Tensor, answer: tuple[OnGpu, ...], graphs: Graphs) -> None:
        for result in self.results:
            result.value.fill_(77)
        for result, part in zip(answer, self.network("replay", entry, graphs), strict=True):
            result.value.copy_(part)

    def handle(self) -> tuple[int, int]:
        self.handles += 1
        return 0, self.handles


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: made.did.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: made.did.append("empty"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", made.handle)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda device, pool: made.did.append(f"end {pool}"), raising=False
    )
    return made


def did(gpu: Gpu) -> list[str]:
    """What was done since this was last asked, without the synchronising."""
    steps, gpu.did = [step for step in gpu.did if step != "synchronize"], []
    return steps


def ask(graphs: Graphs, side: int, fill: int = 5) -> None:
    labels, logits = graphs(batch(side, fill), logits=True)
    assert (labels == fill).all() and labels.shape == (1, side, side)
    assert logits is not None and (logits == 2 * fill).all() and logits.shape == (1, 3, side, side)


def test_a_size_is_captured_when_it_comes_again(gpu: Gpu) -> None:
    graphs = gpu.graphs()
    for fill in range(4):
        ask(graphs, 8, fill)
    ask(graphs, 9)
    assert did(gpu) == ["plain 8", "record 8", "replay 8", "replay 8", "replay 8", "plain 9"]
    assert graphs(batch(8))[1] is None  # nobody asked


def test_an_answer_outlives_the_next_replay(gpu: Gpu) -> None:
    graphs = gpu.graphs()
    answers = [(fill, side, graphs(batch(side, fill), True)) for fill in range(6) for side in (8, 9)]
    for fill, side, (labels, logits) in answers:
        assert logits is not None
        assert (labels == fill).all() and (logits == 2 * fill).all(), side


def test_the_graph_least_asked_for_makes_room_and_must_come_twice_again(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_file, "GRAPHS", 2)
    graphs = gpu.graphs()
    for side in (8, 8, 9, 9, 8, 10, 10):  # 8 is asked for after 9
        ask(graphs, side)
    assert [shape[1] for shape in graphs.captured] == [8, 10]
    did(gpu)
    for side in (8, 10, 9, 9):
        ask(graphs, side)
    assert did(gpu) == ["replay 8", "replay 10", "plain 9", "record 9", "replay 9"]
    assert gpu.handles == 1  # one pool for all


def test_few_sizes_are_kept_of_many(gpu: Gpu) -> None:
    graphs = gpu.graphs()
    for side in range(1, MET + 50):
        ask(graphs, side)
    assert len(graphs.met) == MET and not graphs.captured
    for side in range(MET, MET + 49):
        ask(graphs, side)
    assert len(graphs.captured) == GRAPHS and len(graphs.met) <= MET


def test_a_network_that_cannot_be_captured_is_answered_plainly(gpu: Gpu) -> None:
    graphs = gpu.graphs()
    ask(graphs, 8)
    ask(graphs, 8)
    gpu.uncapturable = True
    did(gpu)
    for side in (9, 9, 9, 10, 10, 8):
        ask(graphs, side)
    assert did(gpu) == ["plain 9", "record 9", "end (0, 1)", *["plain 9"] * 2, *["plain 10"] * 2, "replay 8"]
    assert graphs.pool == (0, 1)


def test_a_torch_whose_failed_capture_needs_no_help(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*asked: object) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    gpu.uncapturable = True
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refuse)
    graphs = gpu.graphs()
    ask(graphs, 8)
    ask(graphs, 8)
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    graphs = gpu.graphs()
    ask(graphs, 8)
    ask(graphs, 8)


def test_what_a_broken_network_says_is_said(gpu: Gpu) -> None:
    def broken(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("mismatched shapes")

    graphs = Graphs(broken, False, "cpu")
    for _ in range(3):
        with pytest.raises(RuntimeError, match="mismatched shapes"):
            graphs(batch(8))
    assert not graphs.alone.locked()
    assert gpu.did.count("synchronize") == 3


def test_graphs_that_leave_too_little_memory_are_dropped(gpu: Gpu) -> None:
    graphs = gpu.graphs()
    for side in (8, 8, 9, 9):
        ask(graphs, side)
    gpu.out_of_memory = lambda what, graphs: bool(graphs.captured)
    did(gpu)
    ask(graphs, 10)
    assert did(gpu) == ["plain 10", "empty", "plain 10"]
    gpu.out_of_memory = lambda what, graphs: False
    for side in (10, 10, 8, 8):
        ask(graphs, side)
    assert did(gpu) == ["record 10", "replay 10", "replay 10", "plain 8", "record 8", "replay 8"]
    assert gpu.handles == 2  # the first pool went with its graphs


@pytest.mark.parametrize("when", ["record", "replay"])
def test_a_size_that_is_too_large_for_a_graph_is_not_captured_again(when: str, gpu: Gpu) -> None:
    graphs = gpu.graphs()
    ask(graphs, 8)
    ask(graphs, 8)
    ask(graphs, 9)
    gpu.out_of_memory = lambda what, graphs: what == when
    did(gpu)
    ask(graphs, 9)
    assert did(gpu)[-3:] == [f"{when} 9", "empty", "plain 9"]
    assert not graphs.captured
    gpu.out_of_memory = lambda what, graphs: False
    for side in (9, 9, 8, 8):
        ask(graphs, side)
    assert did(gpu) == ["plain 9", "plain 9", "plain 8", "record 8", "replay 8"]


def test_copying_the_answer_out_may_run_out_of_memory_too(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = gpu.graphs()
    ask(graphs, 8)
    ask(graphs, 8)

    def refuse(result: OnGpu) -> OnGpu:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(OnGpu, "contiguous", refuse)
    ask(graphs, 8)
    assert did(gpu)[-2:] == ["empty", "plain 8"]


def test_memory_that_is_too_small_all_the_same(gpu: Gpu) -> None:
    graphs = gpu.graphs()
    gpu.out_of_memory = lambda what, graphs: True
    with pytest.raises(torch.OutOfMemoryError):
        graphs(batch(8))
    assert gpu.did == ["plain 8", "empty", "plain 8", "synchronize"]
    assert not graphs.alone.locked()
    gpu.out_of_memory = lambda what, graphs: False
    ask(graphs, 8)


def test_one_thread_at_a_time_also_of_two_networks(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    within, most = 0, 0
    inner = Gpu.network

    def counted(self: Gpu, *asked: Any) -> Any:
        nonlocal within, most
        within += 1
        most = max(most, within)
        time.sleep(0.001)
        within -= 1
        return inner(self, *asked)

    monkeypatch.setattr(Gpu, "network", counted)
    pair = [gpu.graphs(), gpu.graphs()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda place: ask(pair[place % 2], 8 + place % 3, place), range(60)))
    assert most == 1
    assert did(gpu).count("record 8") == 2


def test_the_gpu_is_idle_before_the_next_thread_comes(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: held.append(Graphs.alone.locked()))
    ask(gpu.graphs(), 8)
    assert held == [True]


@pytest.mark.parametrize("tf32", [False, True])
def test_cudnns_settings_hold_for_the_call_alone(tf32: bool, gpu: Gpu) -> None:
    cudnn, seen = torch.backends.cudnn, []

    def settings() -> tuple[bool, bool, bool]:
        return cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(settings())
        return images[..., 0], images.float()

    before = settings()
    Graphs(network, tf32, "cpu")(batch(8))
    assert seen == [(True, False, tf32)]
    assert settings() == before
    assert not torch.backends.cuda.matmul.allow_tf32  # what f32 relies on


# The capture itself, under a CUDA that only notes what it is told.


class Cuda:
    """Streams, and a capture that like torch's own stays on its stream where its end fails."""

    def __init__(self) -> None:
        self.current = "main"
        self.fails = False
        self.did: list[str] = []
        self.streams = 0

    def new_stream(self) -> "Cuda.Stream":
        self.streams += 1
        return self.Stream(self, f"side {self.streams}")

    class Stream:
        def __init__(self, cuda: "Cuda", name: str) -> None:
            self.cuda, self.name = cuda, name

        def wait_stream(self, other: str) -> None:
            self.cuda.did.append(f"{self.name} waits for {other}")

    @contextlib.contextmanager
    def stream(self, stream: "Cuda.Stream") -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: object, pool: object, stream: "Cuda.Stream", capture_error_mode: str) -> Iterator[None]:
        before, self.current = self.current, stream.name
        self.did.append(f"capture into {pool}, {capture_error_mode}")
        yield
        if self.fails:
            self.current = "lost"
            raise RuntimeError(UNCAPTURABLE)
        self.current = before


@pytest.fixture
def cuda(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(torch.cuda, "Stream", made.new_stream)
    monkeypatch.setattr(torch.cuda, "stream", made.stream)
    monkeypatch.setattr(torch.cuda, "graph", made.graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: made.current)

    class Graph:
        def replay(self) -> None:
            made.did.append(f"replay on {made.current}")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    return made


def noting(cuda: Cuda) -> Graphs:
    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cuda.did.append(f"run on {cuda.current}")
        return images[..., 0], images.float()

    return Graphs(network, False, "cpu")


def test_capture_is_warmed_up_on_its_own_stream(cuda: Cuda) -> None:
    graphs = noting(cuda)
    for side in (8, 8, 8, 9, 9):
        graphs(batch(side))
    captured = ["side 1 waits for main", *["run on side 1"] * 3, "capture into (0, 1), thread_local", "run on side 1"]
    replay = "replay on main"
    assert cuda.did == ["run on main", *captured, replay, replay, "run on main", *captured, replay]
    assert cuda.streams == 1


def test_a_capture_that_fails_leaves_the_thread_on_its_stream(cuda: Cuda) -> None:
    graphs = noting(cuda)
    cuda.fails = True
    for _ in range(3):
        graphs(batch(8))
        assert cuda.current == "main"
    assert [step for step in cuda.did if step == "run on main"] == ["run on main"] * 3
    assert sum(step.startswith("capture") for step in cuda.did) == 1


# What the CPU takes.


@pytest.mark.parametrize("writeable", [True, False])
def test_pictures_become_tensors_without_warning_or_needless_copy(writeable: bool) -> None:
    images = batch(8, 3)
    images.flags.writeable = writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = graphs_file._tensor(images)
    assert (tensor.numpy() == images).all()
    assert (tensor.data_ptr() == images.ctypes.data) == writeable
    turned = images[:, ::-1]
    assert (graphs_file._tensor(turned).numpy() == turned).all()


@pytest.mark.parametrize(
    ("lacks", "offered"),
    [
        ((), ("f32", "bf16")),
        (("_is_amx_tile_supported",), ("f32", "bf16")),
        (("_is_avx512_bf16_supported",), ("f32", "bf16")),
        (("_is_avx512_bf16_supported", "_is_amx_tile_supported"), ("f32",)),
    ],
)
@pytest.mark.parametrize("gone", [True, False])
def test_bf16_where_the_cpu_computes_in_it(
    lacks: tuple[str, ...], gone: bool, offered: tuple[str, ...], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda has=name not in lacks: has, raising=False)
        if gone and name in lacks:
            monkeypatch.delattr(torch.cpu, name)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    bundle = open_bundle(tiny_bundle)
    assert engine.precisions(bundle, "cpu") == offered
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert engine.precisions(bundle, "cpu") == ("f32",)


@pytest.mark.parametrize("package", ["safetensors", "models.architectures"])
def test_torch_without_the_rest_of_its_extra(package: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(models, "architectures", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=r"The engine torch is not installed here.*" + package):
        engine.load(open_bundle(tiny_bundle), "cpu", "f32", 0)


def test_weights_that_the_memory_does_not_hold(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*asked: object) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(Network, "to", refuse)
    with pytest.raises(MemoryError, match="out of memory"):
        engine.load(open_bundle(tiny_bundle), "cpu", "f32", 0)


# A real GPU.

real = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def load(bundle: Path, precision: str) -> Callable[..., Any]:
    if precision not in engine.precisions(open_bundle(bundle), "cuda"):
        pytest.skip(f"this GPU has no {precision}")
    return engine.load(open_bundle(bundle), "cuda", precision, 0)


@real
@pytest.mark.parametrize(("precision", "least"), [("f32", 0.999), ("bf16", 0.97), ("fp16", 0.97)])
def test_a_gpu_answers_as_the_live_network(precision: str, least: float, tiny_bundle: Path) -> None:
    run, live = load(tiny_bundle, precision), engine.build(open_bundle(tiny_bundle))
    for count, height, width in ((2, 128, 192), (1, 320, 256)):
        images = np.stack([drawing(height, width, seed) for seed in range(count)])
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
def test_a_gpu_answers_two_threads(tiny_bundle: Path) -> None:
    run = load(tiny_bundle, "f32")
    images = [drawing(64 + 64 * (seed % 2), 64 + 64 * (seed % 3), seed)[None] for seed in range(24)]
    alone = [run(image)[0] for image in images]
    with ThreadPoolExecutor(2) as pool:
        for labels, expected in zip(pool.map(lambda image: run(image)[0], images * 2), alone * 2, strict=True):
            assert agreement(labels, expected) >= 0.999


@real
def test_a_gpus_memory_stays_bounded_over_forty_sizes(tiny_bundle: Path) -> None:
    run = load(tiny_bundle, "f32")
    reserved = []
    for _ in range(3):
        for side in range(1, 41):
            image = drawing(64 * (1 + side % 8), 64 * (1 + side // 8), side)[None]
            for _ in range(3):
                run(image)
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= 1.2 * reserved[0], reserved


@real
def test_a_gpu_goes_on_after_a_network_that_waits_for_it() -> None:
    def waiting(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert images.float().mean().item() >= 0
        return images[..., 0], images.float()

    graphs, stream = Graphs(waiting, False), torch.cuda.current_stream()
    for fill in range(4):
        assert (graphs(batch(64, fill))[0] == fill).all()
        assert torch.cuda.current_stream() == stream
    assert not graphs.capturable
    torch.cuda.empty_cache()
    again = Graphs(lambda images: (images[..., 0] + 1, images.float()), False)
    for fill in range(4):
        assert (again(batch(64, fill))[0] == fill + 1).all()
    assert len(again.captured) == 1
