"""Every engine gives the results of PyTorch, and reports what it does not support."""

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.architectures.base import Network
from models.bundle import (
    CHECKSUM_FILE,
    INT8_MODEL_FILE,
    INT8_WEIGHTS_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    Bundle,
    bundle_writer,
    file_sha256,
    open_bundle,
)
from models.engines import ENGINES, openvino_engine, torch_engine
from models.engines.base import InferenceFunction, is_engine_out_of_memory
from models.errors import BundleError, EngineError
from models.inference.segmenter import Segmenter, agreement
from models.spec import Architecture
from tests.fixtures_bundles import synthetic_image
from training.freezing.quantise import quantise

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with an int8 graph."""
    target = tmp_path_factory.mktemp("engines") / "tiny"
    with bundle_writer(target) as new:
        shutil.copytree(tiny_bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE))
        quantise(new / MODEL_FILE, (synthetic_image(128, 192, seed) for seed in range(8)), new / INT8_MODEL_FILE)
    return open_bundle(target)


@pytest.fixture(scope="module")
def live_network(bundle: Bundle) -> Network:
    """The network in torch, built with the bundle's weights."""
    return torch_engine.build_network(bundle)


def run_network(network: Network, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        labels, logits = network(torch.from_numpy(images))
    return labels.numpy(), logits.numpy()


def synthetic_batch(count: int, height: int, width: int) -> np.ndarray:
    return np.stack([synthetic_image(height, width, seed=seed) for seed in range(count)])


def engine_precisions() -> list[tuple[str, str]]:
    """Each engine with each precision that it may support on a CPU."""
    offered = {"openvino": ["f32", "bf16", "int8"], "onnxruntime": ["f32"], "torch": ["f32", "bf16"]}
    assert offered.keys() == ENGINES.keys()
    return [(engine, precision) for engine, precisions in offered.items() for precision in precisions]


LOADED: dict[tuple[str, str, int], InferenceFunction] = {}  # engines of the fixture `bundle`, loaded once


def load_or_skip(engine: str, precision: str, bundle: Bundle, threads: int = 0) -> InferenceFunction:
    if precision not in ENGINES[engine].precisions(bundle, "cpu"):
        pytest.skip(f"this CPU has no {precision} for {engine}")
    key = engine, precision, threads
    if key not in LOADED:
        LOADED[key] = ENGINES[engine].load(bundle, "cpu", precision, threads)
    return LOADED[key]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 128, 192), (3, 131, 97), (1, 37, 213), (5, 65, 63)])
def test_f32_equals_pytorch(engine: str, shape: tuple[int, int, int], bundle: Bundle, live_network: Network) -> None:
    images = synthetic_batch(*shape)
    labels, logits = load_or_skip(engine, "f32", bundle)(images, logits=True)
    live_labels, live_logits = run_network(live_network, images)
    assert logits is not None
    assert (labels.dtype, labels.shape) == (np.uint8, shape)
    assert (logits.dtype, logits.shape) == (np.float32, live_logits.shape)
    assert len(np.unique(live_labels)) > 1
    assert agreement(labels, live_labels) >= 0.999
    np.testing.assert_allclose(logits, live_logits, rtol=1e-3, atol=1e-3 * np.abs(live_logits).max())


@pytest.mark.parametrize(("engine", "precision"), engine_precisions())
def test_every_precision_is_close_to_pytorch(
    engine: str, precision: str, bundle: Bundle, live_network: Network
) -> None:
    images = synthetic_batch(2, 128, 192)
    run = load_or_skip(engine, precision, bundle)
    labels, logits = (np.array(part) for part in run(images, logits=True))
    expected, scores = run_network(live_network, images)
    # Random weights are the hard case: the classes are near each other everywhere.
    assert agreement(labels, expected) > (0.97 if precision != "int8" else 0.9)
    noise = np.abs(logits - scores).mean() / scores.std()
    assert noise < {"f32": 1e-4, "bf16": 0.02, "int8": 0.1}[precision]
    assert precision == "f32" or noise > 1e-5  # another precision is actually used
    assert run(images)[1] is None  # no logits were requested


@pytest.mark.parametrize(("engine", "precision"), engine_precisions())
def test_labels_are_the_argmax_of_the_logits(engine: str, precision: str, bundle: Bundle) -> None:
    images = synthetic_batch(1, 128, 192)
    labels, logits = load_or_skip(engine, precision, bundle)(images, logits=True)
    maps = torch.nn.functional.interpolate(torch.from_numpy(np.array(logits)), size=(128, 192), mode="bilinear")
    # In bf16 the graph also upsamples in bf16, and labels change where two classes are almost equal.
    assert agreement(labels, maps.argmax(1).numpy()) > (0.999 if precision == "f32" or engine != "openvino" else 0.99)


@pytest.mark.parametrize(("engine", "precision"), engine_precisions())
def test_labels_with_confidence_are_those_without(engine: str, precision: str, bundle: Bundle) -> None:
    segmenter = Segmenter(load_or_skip(engine, precision, bundle), bundle.spec.input)
    for seed, size in enumerate([(192, 256), (101, 67), (33, 190), (384, 120)]):
        image = synthetic_image(*size, seed=seed)
        labels = segmenter.segment(image).labels
        both = segmenter.segment(image, confidence=True)
        assert both.confidence is not None
        np.testing.assert_array_equal(both.labels, labels)
        assert 0.5 / len(bundle.spec.classes) < both.confidence.min() and both.confidence.max() <= 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [0, 1])  # torch has one number of threads per process
def test_four_concurrent_threads(engine: str, threads: int, bundle: Bundle) -> None:
    run = load_or_skip(engine, "f32", bundle, threads)
    images = [synthetic_image(64 + 64 * (seed % 2), 64 + 64 * (seed % 3), seed)[None] for seed in range(24)]

    def run_and_copy(image: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.array(part) for part in run(image, logits=True))

    sequential = [run_and_copy(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        concurrent = list(pool.map(run_and_copy, images))
    for (labels, logits), (expected, scores) in zip(concurrent, sequential, strict=True):
        assert agreement(labels, expected) >= 0.999
        np.testing.assert_allclose(logits, scores, rtol=1e-3, atol=1e-3 * np.abs(scores).max())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("size", [(144, 192), (150, 180)], ids=["fits already", "is resized"])
def test_a_prediction_is_not_overwritten_by_the_next(
    engine: str, confidence: bool, size: tuple[int, int], bundle: Bundle
) -> None:
    segmenter = Segmenter.load(bundle, engine, "f32", "cpu")
    first = segmenter.segment(synthetic_image(*size, 1), confidence)
    copies = first.labels.copy(), np.array(first.confidence)
    assert agreement(segmenter.segment(synthetic_image(*size, 2), confidence).labels, copies[0]) < 1
    np.testing.assert_array_equal(first.labels, copies[0])
    np.testing.assert_array_equal(first.confidence, copies[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_read_only_images(engine: str, bundle: Bundle) -> None:
    segmenter = Segmenter.load(bundle, engine, "f32", "cpu")
    image = synthetic_image(144, 192)
    labels = segmenter.segment(image).labels
    image.flags.writeable = False
    np.testing.assert_array_equal(segmenter.segment(image).labels, labels)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_device(engine: str, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"'abacus'"):
        ENGINES[engine].precisions(bundle, "abacus")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu(engine: str, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"openvino runs on the cpu|CUDAExecutionProvider|finds no GPU"):
        ENGINES[engine].precisions(bundle, "cuda")


@pytest.mark.parametrize(
    ("engine", "precision", "name"),
    [
        ("openvino", "f32", MODEL_FILE),
        ("openvino", "int8", INT8_MODEL_FILE),
        ("openvino", "int8", INT8_WEIGHTS_FILE),
        ("onnxruntime", "f32", MODEL_FILE),
        ("torch", "f32", WEIGHTS_FILE),
    ],
)
@pytest.mark.parametrize("change", ["altered", "cut", "checksums updated"])
def test_altered_files_are_refused(
    engine: str, precision: str, name: str, change: str, bundle: Bundle, tmp_path: Path
) -> None:
    with bundle_writer(tmp_path / "changed") as new:
        shutil.copytree(bundle.folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE))
        if change == "checksums updated":
            (new / name).write_bytes(b"not a network")
    file = tmp_path / "changed" / name
    if change == "altered":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    if change == "cut":
        os.truncate(file, file.stat().st_size // 2)
    opened = open_bundle(tmp_path / "changed")
    expected = name.removesuffix(".bin") if change == "checksums updated" else name
    with pytest.raises(BundleError, match=expected) as caught:
        ENGINES[engine].load(opened, "cpu", precision, 0)
    assert ("is not the file that was exported" in str(caught.value)) == (change != "checksums updated")
    assert "\n" not in str(caught.value)


def test_weights_of_another_network(bundle: Bundle, tmp_path: Path) -> None:
    original = bundle.spec.architecture
    for architecture, message in (
        (replace_options(original, encoder="resnet34"), "weights.safetensors does not match the network"),
        (original.model_copy(update={"name": "fcn2"}), "has no network as described .*fcn2"),
        (replace_options(original, dilate=True), "no option 'dilate'"),
    ):
        wrong = replace(bundle, spec=bundle.spec.model_copy(update={"architecture": architecture}))
        with pytest.raises(BundleError, match=message):
            ENGINES["torch"].load(wrong, "cpu", "f32", 0)


def replace_options(architecture: Architecture, **options: object) -> Architecture:
    return architecture.model_copy(update={"options": {**architecture.options, **options}})


def test_an_imported_graph_has_no_torch_engine(bundle: Bundle, tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "imported") as new:
        shutil.copytree(
            bundle.folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE, WEIGHTS_FILE)
        )
    imported = open_bundle(tmp_path / "imported")
    with pytest.raises(EngineError, match=r"engine torch cannot run .* made from an ONNX graph.*Choose openvino"):
        Segmenter.load(imported, "torch")
    assert Segmenter.load(imported).choice


@pytest.mark.parametrize(("engine", "next_one"), [("openvino", "onnxruntime"), ("onnxruntime", None), ("torch", None)])
def test_an_engine_that_is_not_installed_is_skipped(
    engine: str, next_one: str | None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == engine else find(name, *rest))
    with pytest.raises(EngineError, match=f"The engine {engine} is not installed"):
        Segmenter.load(bundle, engine)
    choice = Segmenter.load(bundle, precision="f32").choice
    assert choice and choice.engine == (next_one or "openvino")


# The cache of compiled graphs.


def test_the_cache_is_not_used_for_another_bundle_at_the_same_path(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO identifies a cached graph by path, size and time, and would use the old one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, image = tmp_path / "served", synthetic_image(100, 140)
    shutil.copytree(bundle.folder, folder)
    times = (folder / MODEL_FILE).stat()
    before = Segmenter.load(open_bundle(folder), "openvino", "f32").segment(image).labels
    again = Segmenter.load(open_bundle(folder), "openvino", "f32").segment(image).labels
    np.testing.assert_array_equal(again, before)

    graph = (folder / MODEL_FILE).read_bytes()
    network = torch_engine.build_network(bundle)
    bias = network.body.score.bias.detach().numpy().tobytes()
    assert graph.count(bias) == 1
    shifted = np.frombuffer(bias, np.float32) + np.float32(100) * (np.arange(6) == 3)
    (folder / MODEL_FILE).write_bytes(graph.replace(bias, shifted.astype(np.float32).tobytes()))
    os.utime(folder / MODEL_FILE, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (folder / MODEL_FILE).stat().st_size == times.st_size
    with pytest.raises(BundleError, match="is not the file"):
        Segmenter.load(open_bundle(folder), "openvino", "f32")
    sums = (folder / CHECKSUM_FILE).read_text().splitlines()
    (folder / CHECKSUM_FILE).write_text(
        "".join(f"{file_sha256(folder / line.split()[1])}  {line.split()[1]}\n" for line in sums)  # as an export would
    )
    after = Segmenter.load(open_bundle(folder), "openvino", "f32").segment(image).labels
    assert (after == 3).all() and not (before == 3).all()
    assert len(list((tmp_path / "cache" / "maskserve" / "openvino").iterdir())) == 2


def test_a_damaged_cache_is_rebuilt(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = synthetic_image(100, 140)
    labels = Segmenter.load(bundle, "openvino", "f32").segment(image).labels
    blobs = list(tmp_path.rglob("*.blob"))
    assert blobs
    middle = len(blobs[0].read_bytes()) // 2
    for change in (
        lambda data: data[:middle],
        lambda data: b"",
        lambda data: b"?" * len(data),
        lambda data: (
            data[:middle] + bytes(byte ^ 0x55 for byte in data[middle : middle + 4096]) + data[middle + 4096 :]
        ),
    ):
        for blob in tmp_path.rglob("*.blob"):
            blob.chmod(0o644)
            blob.write_bytes(change(blob.read_bytes()))
        np.testing.assert_array_equal(Segmenter.load(bundle, "openvino", "f32").segment(image).labels, labels)


def test_no_cache_is_used_if_it_cannot_be_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maskserve").write_text("a file instead of a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Segmenter.load(bundle, "openvino", "f32").segment(synthetic_image(50, 60)).labels.shape == (50, 60)


def test_a_moved_bundle_keeps_one_graph_per_setting(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("old", "new"):
        shutil.copytree(bundle.folder, tmp_path / name)
        for threads in (1, 2):
            Segmenter.load(open_bundle(tmp_path / name), "openvino", "f32", threads=threads)
    blobs = list((tmp_path / "cache").rglob("*.blob"))
    assert {blob.parent.name for blob in blobs} == {"f32-1x1", "f32-2x1"} and len(blobs) == 2
    for threads in range(3, 7):
        Segmenter.load(bundle, "openvino", "f32", threads=threads)
    assert {blob.parent.name for blob in (tmp_path / "cache").rglob("*.blob")} == {f"f32-{n}x1" for n in range(3, 7)}


def test_old_bundles_are_removed_from_the_cache(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "maskserve" / "openvino"
    for age in range(8):
        (cache / str(age)).mkdir(parents=True)
        os.utime(cache / str(age), (age, age))
    Segmenter.load(bundle, "openvino", "f32")
    assert sorted(path.name for path in cache.iterdir()) == sorted([bundle.hash, "4", "5", "6", "7"])


# Memory.


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "precision"), engine_precisions())
def test_memory_stays_flat_over_a_thousand_sizes(engine: str, precision: str, bundle: Bundle) -> None:
    load_or_skip(engine, precision, bundle)  # or skip
    code = (
        "import sys, numpy as np, pathlib\n"
        "from models.bundle import open_bundle\n"
        "from models.inference.segmenter import Segmenter\n"
        "from models.spec import InputRule\n"
        "segmenter = Segmenter.load(open_bundle(pathlib.Path(sys.argv[1])), *sys.argv[2:4], 'cpu', 1)\n"
        "segmenter.rule = InputRule(rule='native')\n"
        "def megabytes():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(line for line in lines if line.startswith('VmRSS')).split()[1]) / 1024\n"
        "sizes = np.random.default_rng(0).integers(1, 225, (1000, 2))\n"
        "for count, (height, width) in enumerate(sizes, start=1):\n"
        "    segmenter.segment(np.zeros((height, width, 3), np.uint8))\n"
        "    if count % 250 == 0: print(round(megabytes()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.folder), engine, precision],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    quarters = [int(line) for line in done.stdout.split()]
    assert len(quarters) == 4
    # The images have 49 canvas sizes, and nearly all of them occur in the first quarter. oneDNN keeps the code that it
    # generated for a size, so that memory grows while new sizes come: with torch by 40% over the first 169.
    assert quarters[3] <= quarters[0] * 1.1 + 10, quarters


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=() if name == "openvino" else pytest.mark.slow) for name in ENGINES]
)
def test_out_of_memory_raises_memory_error(engine: str, bundle: Bundle) -> None:
    """The engine runs an image of 67 megapixels under a memory limit that is enough for the network."""
    code = (
        "import sys, resource, numpy as np, pathlib\n"
        "from models.bundle import open_bundle\n"
        "from models.engines import ENGINES\n"
        "run = ENGINES[sys.argv[2]].load(open_bundle(pathlib.Path(sys.argv[1])), 'cpu', 'f32', 1)\n"
        "run(np.zeros((1, 128, 128, 3), np.uint8))\n"
        "image = np.zeros((1, 8192, 8192, 3), np.uint8)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "try: run(image)\n"
        "except MemoryError as error: print('MemoryError', error)\n"
        "run(np.zeros((1, 128, 128, 3), np.uint8))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.folder), engine], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("MemoryError")


def test_openvino_recovers_after_compiling_ran_out_of_memory(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = ENGINES["openvino"].load(bundle, "cpu", "f32", 1)
    blobs = sorted(tmp_path.rglob("*.blob"))

    class Core:
        def compile_model(self, *arguments: object) -> None:
            raise RuntimeError("std::bad_alloc")

    with monkeypatch.context() as patch:
        patch.setattr(openvino_engine, "get_core", Core)
        run.compiled = None  # type: ignore[attr-defined]  # as after an image that was too large
        with pytest.raises(MemoryError, match="bad_alloc"):
            run(synthetic_batch(1, 64, 64))
    assert sorted(tmp_path.rglob("*.blob")) == blobs  # the cache is kept
    assert run(synthetic_batch(1, 64, 64))[0].shape == (1, 64, 64)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_error_for_a_graph_with_another_input(engine: str, bundle: Bundle, tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "wrong") as new:
        shutil.copytree(bundle.folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUM_FILE))
        model = onnx.load(new / MODEL_FILE)
        for axis, length in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 96, 96, 3), strict=True):
            axis.dim_value = length
        onnx.save(model, new / MODEL_FILE)
    with pytest.raises(
        BundleError, match=r"wrong: (its network cannot be run|the network does not match spec\.json)"
    ) as caught:
        Segmenter.load(open_bundle(tmp_path / "wrong"), engine, "f32")
    assert "\n" not in str(caught.value)


def test_is_engine_out_of_memory() -> None:
    assert is_engine_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    assert not is_engine_out_of_memory(RuntimeError("no kernel image is available"))
    assert not is_engine_out_of_memory(ValueError("mismatched shapes"))


def test_openvino_keeps_few_kernels(bundle: Bundle) -> None:
    """OpenVINO does not document the setting; this fails if a release drops it."""
    network = openvino_engine.get_core().compile_model(
        bundle.model_path,
        "CPU",
        {"CPU_RUNTIME_CACHE_CAPACITY": openvino_engine.KERNEL_CACHE_CAPACITY, "INFERENCE_NUM_THREADS": 1},
    )
    assert network is not None
    with pytest.raises(RuntimeError):
        openvino_engine.get_core().compile_model(bundle.model_path, "CPU", {"CPU_RUNTIME_CACHE_CAPACITIES": 1})
