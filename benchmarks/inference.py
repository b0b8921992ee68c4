"""Speed of each engine and precision, compared with plain PyTorch: `python -m benchmarks.inference [BUNDLE...]`.

Exports three networks with random weights of a fixed seed, their norms calibrated on synthetic images. They segment a
synthetic 640x480 image on two threads: each engine and precision through the Segmenter, and the plain network in torch
eager float32, in turn in one run. For the first network it also measures the overhead of the Segmenter over the engine,
and the time to load. Each BUNDLE, a trained one with the input rule `native`, is measured in the same way on its first
probe, resized to 640x480: only there, the agreement of bf16 and int8 is meaningful.
Writes benchmarks/results/inference.json and .png. Takes some minutes on a quiet machine.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.usage import print_help_if_requested

if TYPE_CHECKING:  # measured processes import this module, so that heavy imports are inside functions
    from maskserve.bench_workers import EngineConfig
    from models.imaging.decode import RGB, Labels

RESULTS = Path(__file__).parent / "results"
CLASSES, SIZE, THREADS, ROUNDS = 21, (480, 640), 2, 8  # SIZE is (height, width) in pixels
CALIBRATION, SEED = 10, 0
LARGE_MODEL = "FCN-ResNet-50, stride 8"
MODELS: dict[str, dict[str, Any]] = {
    LARGE_MODEL: {"encoder": "resnet50", "output_stride": 8, "skips": "32s", "head": "fcn"},
    "FCN-8s, ResNet-18": {"encoder": "resnet18"},
    "ASPP, MobileNetV2": {"encoder": "mobilenet_v2", "head": "aspp", "separable": True},
}
COLORS = {"torch eager": "#b0b0b0", "openvino": "#1f5fa8", "onnxruntime": "#7fa8d6", "torch": "#d9a05b"}
NOTE = (
    "Networks with random weights take the time and memory of trained ones, but their classes score almost equally, so that "
    "the agreement of bf16 and above all of int8 says little. Ratio: milliseconds of the plain network in torch eager "
    "float32, in the faster memory layout (reference), divided by those of this row. Agreement: fraction of labels equal to "
    "those of PyTorch in float32 (engine torch) on the same input; torch eager gets the image without the padding to a "
    "multiple of 32, which changes the result of heads that pool the whole image."
)


def main(folder: Path, trained: list[Path]) -> None:
    from models.engines.host_info import host_info

    packages = ("torch", "openvino", "onnxruntime", "nncf", "onnx", "numpy")
    result: dict[str, Any] = {"machine": host_info(), "versions": {name: version(name) for name in packages}}
    result |= {"image": f"{SIZE[1]}x{SIZE[0]}", "classes": CLASSES, "threads": THREADS, "note": NOTE, "models": {}}
    for name, options in MODELS.items():
        bundle = folder / name.replace(", ", "-").replace(" ", "-").lower()
        make_bundle(bundle, options)
        with temporary_cache():
            result["models"][name] = {"options": options, **benchmark_bundle(name, bundle, draw_image(SEED))}
        if name == LARGE_MODEL:
            result["models"][name] |= {"segmenter": segmenter_overhead(bundle), "opening": startup_times(bundle)}
    for bundle in trained:
        name, options, probe = open_trained_bundle(bundle)
        with temporary_cache():
            result["models"][name] = {"trained": True, "options": options, **benchmark_bundle(name, bundle, probe)}
    result["load_at_end"] = os.getloadavg()[0]
    RESULTS.joinpath("inference.json").write_text(json.dumps(result, indent=2) + "\n")
    plot_results(result, RESULTS / "inference.png")


def make_bundle(target: Path, options: dict[str, Any]) -> None:
    """Write a bundle as `maskserve export` does, but without a training and metrics."""
    import numpy as np
    import torch

    from models import architectures
    from models.bundle import INT8_MODEL_FILE, MODEL_FILE, SPEC_FILE, bundle_writer
    from models.spec import BundleSpec, ClassInfo, InputRule, Int8Metrics, default_rgb
    from tests.fixtures_networks import calibrate_norms
    from training.freezing.calibration import middle_canvas
    from training.freezing.onnx_export import export_network
    from training.freezing.quantise import quantise

    torch.manual_seed(SEED)
    network = architectures.build("fcn", CLASSES, **options)
    calibrate_norms(network, torch.from_numpy(np.stack([draw_image(seed) for seed in range(1, 5)])))
    rule = InputRule(rule="native")
    with bundle_writer(target) as new:
        export_network(network, new)
        quantise(
            new / MODEL_FILE,
            (middle_canvas(draw_image(seed), rule) for seed in range(1, 1 + CALIBRATION)),
            new / INT8_MODEL_FILE,
        )
        spec = BundleSpec(
            name=target.name,
            classes=[ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(CLASSES)],
            input=rule,
            architecture=network.architecture,
            int8=Int8Metrics(miou=0, float_miou=0, calibration_images=CALIBRATION),
        )
        (new / SPEC_FILE).write_text(spec.model_dump_json(indent=2))


def draw_image(seed: int) -> "RGB":
    import numpy as np

    from training.data.synthetic import generate_scene

    return generate_scene(np.random.default_rng(seed), SIZE)[0]


def open_trained_bundle(bundle: Path) -> tuple[str, dict[str, Any], "RGB"]:
    """The name and options of a trained bundle, and its first probe at the size of the benchmark."""
    from models.bundle import open_bundle
    from models.imaging.decode import read_image
    from models.inference.geometry import resize_image

    opened = open_bundle(bundle)
    architecture = opened.spec.architecture
    name = f"{architecture.name} on {architecture.options.get('encoder', '')}, trained: {opened.spec.name}"
    if opened.spec.input.rule != "native":
        sys.exit(f"{bundle} has the input rule {opened.spec.input.rule!r}; export it with --input native.")
    return name, architecture.options, resize_image(read_image(opened.probes()[0][0]), SIZE)


def benchmark_bundle(name: str, bundle: Path, image: "RGB") -> dict[str, Any]:
    """Measure all engines in one run: the ratio to the faster layout of torch eager, and the agreement of the labels."""
    from maskserve.bench import list_engine_configs, make_row
    from maskserve.bench_workers import EngineConfig, benchmark_engines
    from models.bundle import open_bundle

    eager = [
        EngineConfig("torch eager", "cpu", f"f32 {layout}", "benchmarks.inference:open_eager")
        for layout in ("NCHW", "NHWC")
    ]
    configs, _ = list_engine_configs(open_bundle(bundle))
    load = os.getloadavg()[0]
    results = benchmark_engines(bundle, [*eager, *configs], [image], ROUNDS, THREADS, progress_printer(name))
    reference = min(results[:2], key=lambda result: statistics.median(result.times_ms))
    pytorch = next(one for one in results if (one.config.engine, one.config.precision) == ("torch", "f32"))
    rows = [asdict(make_row(full_engine_name(result.config), result, pytorch)) for result in results]
    for row in rows:
        row["ratio"] = row["ms"] and round(statistics.median(reference.times_ms) / row["ms"], 2)
        print(
            *(row[key] for key in ("engine", "precision", "ms", "ratio", "agreement", "memory_mb", "error")), sep="  "
        )
    return {"reference": reference.config.precision, "load": load, "rows": rows}


def full_engine_name(config: "EngineConfig") -> str:
    from models.engines.selection import engine_id

    return engine_id(config.engine, config.device)


def open_eager(folder: Path, config: "EngineConfig", threads: int) -> Callable[["RGB"], "Labels"]:
    """The plain network in PyTorch, without graph, Segmenter and padding; runs in a worker process."""
    import torch

    from models.bundle import open_bundle
    from models.engines.torch_engine import build_network

    torch.set_num_threads(threads)
    network = build_network(open_bundle(folder))
    if config.precision.endswith("NHWC"):
        network.to(memory_format=torch.channels_last)

    def predict(image: "RGB") -> "Labels":
        with torch.inference_mode():
            return network(torch.from_numpy(image)[None])[0][0].numpy()

    return predict


def segmenter_overhead(bundle: Path) -> dict[str, dict[str, float]]:
    """The time of Segmenter.segment beyond that of the engine for the padded image, in ms and percent."""
    from models.bundle import open_bundle
    from models.engines.openvino_engine import precisions
    from models.inference.geometry import canvas_size, resize_and_pad
    from models.inference.segmenter import Segmenter

    opened, image, found = open_bundle(bundle), draw_image(SEED), {}
    canvas = resize_and_pad(image, SIZE, canvas_size(SIZE, opened.spec.input))[None].copy()
    for precision in precisions(opened, "cpu"):
        segmenter = Segmenter.load(opened, "openvino", precision, "cpu", THREADS)
        engine, total = time_alternately(lambda: segmenter.run(canvas), lambda: segmenter.segment(image))  # noqa: B023
        found[precision] = {
            "engine_ms": round(engine, 2), "segment_ms": round(total, 2), "overhead_ms": round(total - engine, 2),
            "overhead_percent": round(100 * (total / engine - 1), 2),
        }  # fmt: skip
        print("segmenter", precision, found[precision])
    return found


def time_alternately(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of two functions called in turn: the median of the first, and that plus the median difference."""
    pairs = []
    for repetition in range(4 + 5 * ROUNDS):
        elapsed = {}
        for function in (first, second) if repetition % 2 else (second, first):
            start = time.perf_counter()
            function()
            elapsed[function] = 1000 * (time.perf_counter() - start)
        pairs.append((elapsed[first], elapsed[second]))
    pairs = pairs[4:]  # without warm-up
    base = statistics.median(one for one, _ in pairs)
    return base, base + statistics.median(two - one for one, two in pairs)


def startup_times(bundle: Path) -> dict[str, dict[str, float]]:
    """Seconds from before the imports to the first prediction, without and with compiled graphs on disk."""
    from maskserve.bench_workers import BenchWorker, EngineConfig
    from models.bundle import open_bundle
    from models.engines.openvino_engine import precisions

    found = {}
    for precision in precisions(open_bundle(bundle), "cpu"):
        seconds = []
        with temporary_cache():
            for _ in range(4):
                worker = BenchWorker()
                try:
                    job = (str(bundle), EngineConfig("openvino", "cpu", precision), THREADS, [draw_image(SEED)])
                    seconds.append(worker.request(job)[0])
                finally:
                    worker.stop()
        found[precision] = {"cold_s": round(seconds[0], 2), "warm_s": round(statistics.median(seconds[1:]), 2)}
        print("startup", precision, found[precision])
    return found


@contextmanager
def temporary_cache() -> Iterator[None]:
    """Cache compiled graphs in a new folder, also in child processes."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def progress_printer(name: str) -> Callable[[str, int, int], None]:
    print(name)
    if not sys.stderr.isatty():
        return lambda what, done, total: None
    return lambda what, done, total: print(f"{done:4} of {total}  {what:40}", end="\r", file=sys.stderr)


def plot_results(result: dict[str, Any], target: Path) -> None:
    """For each model, bars of the speed of each engine relative to torch eager float32."""
    from matplotlib.figure import Figure

    from maskserve.bench import format_number

    models = result["models"]
    counts = [len(model["rows"]) for model in models.values()]
    figure = Figure(figsize=(9, 1 + 0.34 * sum(counts) + 0.5 * len(counts)), dpi=100, layout="constrained")
    panels = figure.subplots(len(models), height_ratios=counts, sharex=True, squeeze=False)[:, 0]
    longest = max(row["ratio"] or 0 for model in models.values() for row in model["rows"])
    for axes, (name, model) in zip(panels, models.items(), strict=True):
        for index, row in enumerate(model["rows"]):
            axes.barh(index, row["ratio"] or 0, height=0.66, color=COLORS[row["engine"]])
            label = (
                f"{row['ratio']:.1f}x   {format_number(row['ms'])} ms   {row['memory_mb']:,} MB"
                if row["ms"]
                else "failed"
            )
            if row["engine"] != "torch eager" and row["ms"] and "trained" in model:
                label += f"   {100 * row['agreement']:.2f}% agreement"
            background = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text((row["ratio"] or 0) + longest / 100, index, label, va="center", fontsize=9, bbox=background)
        axes.set_yticks(range(len(model["rows"])), [f"{row['engine']} {row['precision']}" for row in model["rows"]])
        axes.invert_yaxis()
        axes.set_title(name, loc="left", fontsize=10, weight="bold")
        axes.tick_params(length=0, labelsize=9)
        axes.axvline(1, color="#888888", linewidth=0.8, zorder=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    host = result["machine"]
    panels[-1].set_xlim(0, 1.6 * longest)
    panels[-1].set_xlabel(
        f"speed relative to torch eager float32, {result['image']}, {THREADS} threads\n"
        f"{host['cpu']}: {', '.join(host['flags'])}", loc="left", fontsize=9, color="#666666",
    )  # fmt: skip
    figure.savefig(target)


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), [Path(argument) for argument in sys.argv[1:]])
