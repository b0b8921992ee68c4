"""Overhead of the service over its engine, and comparison with three tutorial servers: `python -m benchmarks.serving [FOLDER]`.

All in one run; systems that are compared are measured in alternating rounds, while the other servers idle. Writes
benchmarks/results/serving.json, serving.png and overload.png. Takes half an hour on a quiet machine; FOLDER keeps the bundles
(random weights, as in benchmarks/inference.py) for another run.

throughput  FCN-ResNet-50 at stride 8, 640x480 JPEG in, PNG out: images per second at concurrency 4 of the service in f32,
            bf16 and int8, of the bare engine (Segmenter.segment in a loop), and of the three servers in
            benchmarks/servers/ with torchvision's eager network; p50 at concurrency 1 compared with the engine's time
overhead    FCN-8s, ResNet-18, 320x240: CPU time per image without the inference: that of the service minus that of the
            bare engine with the same threads; the cost of a rejected body, and of a tutorial server without a network
workers     the same model: throughput with one worker and with two, and how long a killed worker is gone
overload    both models, up to twenty times the capacity: benchmarks/overload.py

Tutorial servers whose package is missing are skipped with a message; LitServe: benchmarks/servers/litserve_tutorial.py.
"""

import io
import json
import os
import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.inference import LARGE_MODEL, MODELS, RESULTS, draw_image, make_bundle, temporary_cache
from benchmarks.load import LoadResult, closed_loop, measure_generator_cost, percentile
from benchmarks.overload import measure_overload
from benchmarks.overload import plot_overload as draw_overload
from benchmarks.processes import (
    BenchEngine,
    BenchServer,
    kill_worker,
    missing_servers,
    start_service,
    start_tutorial_servers,
)
from benchmarks.usage import print_help_if_requested
from models.bundle import open_bundle
from models.engines.host_info import host_info
from models.engines.openvino_engine import precisions
from models.imaging.decode import decode_image

SMALL_MODEL = "FCN-8s, ResNet-18"
SIZES = {LARGE_MODEL: (640, 480), SMALL_MODEL: (320, 240)}  # width, height in pixels
PRECISIONS = ("f32", "bf16", "int8")  # those that the CPU supports are measured
ROUNDS, SECONDS, CONCURRENCY = 4, 10, 4
PACKAGES = ("torch", "torchvision", "openvino", "bentoml", "fastapi", "uvicorn", "starlette", "litserve", "pillow")


def main(folder: Path) -> None:
    bundles = {name: folder / name.replace(", ", "-").replace(" ", "-").lower() for name in SIZES}
    for name, bundle in bundles.items():
        if not bundle.exists():
            make_bundle(bundle, MODELS[name])
    jpegs = {name: draw_jpeg(*size) for name, size in SIZES.items()}
    result: dict[str, Any] = {
        "machine": host_info(), "versions": {name: package_version(name) for name in PACKAGES},
        "jpeg_bytes": {f"{width}x{height}": len(jpegs[name]) for name, (width, height) in SIZES.items()},
        "generator_core_ms": round(measure_generator_cost(), 3), "left_out": missing_servers(),
    }  # fmt: skip
    with temporary_cache():
        result["throughput"] = measure_throughput(bundles[LARGE_MODEL], jpegs[LARGE_MODEL])
        result["overhead"] = measure_overhead(bundles[SMALL_MODEL], jpegs[SMALL_MODEL])
        result["workers"] = measure_workers(bundles[SMALL_MODEL], jpegs[SMALL_MODEL])
        result["overload"] = {
            name: measure_overload(name, bundles[name], jpegs[name], default_precision(bundles[name]))
            for name in (SMALL_MODEL, LARGE_MODEL)
        }
    result["load_at_end"] = os.getloadavg()[0]
    result["goals"] = check_goals(result)
    RESULTS.joinpath("serving.json").write_text(json.dumps(result, indent=2) + "\n")
    plot_throughput(result, RESULTS / "serving.png")
    draw_overload(result["overload"], result["machine"]["cpu"], RESULTS / "overload.png")
    for goal in result["goals"]:
        print(f"{'reached' if goal['reached'] else 'MISSED':8} {goal['what']}: {goal['value']} (goal {goal['goal']})")


def draw_jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_image(0)).resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def default_precision(bundle: Path) -> str:
    """The precision in which a trained bundle is served here: bf16 if the CPU supports it."""
    return "bf16" if "bf16" in precisions(open_bundle(bundle), "cpu") else "f32"


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def measure_throughput(bundle: Path, body: bytes) -> dict[str, Any]:
    """Images per second of all servers, measured in alternating rounds, and the latency that the service adds to the engine."""
    with ExitStack() as stack:
        offered = precisions(open_bundle(bundle), "cpu")
        # The tutorial servers queue without limit; for comparison ours must not reject requests either.
        patient = {"queue_seconds": 600, "timeout_seconds": 600}
        mine = {one: stack.enter_context(start_service(one, bundle, precision=one, **patient)) for one in offered}
        engines = {one: BenchEngine(bundle, one, decode_image(body)) for one in offered}
        for engine in engines.values():
            stack.callback(engine.stop)
        servers = [*mine.values(), *start_tutorial_servers(stack)]
        loads: dict[str, list[LoadResult]] = {server.name: [] for server in servers}
        bare: dict[str, list[float]] = {one: [] for one in mine}
        alone: dict[str, list[list[float]]] = {one: [] for one in mine}
        for server in servers:
            closed_loop(server.url, iter([server.request(body)] * 4), CONCURRENCY)
        for turn in range(ROUNDS):
            random.Random(turn).shuffle(servers)
            for server in servers:
                request = server.request(body)
                loads[server.name].append(closed_loop(server.url, iter(lambda: request, b""), CONCURRENCY, SECONDS))  # noqa: B023
                if server.name in mine:
                    times = max(2, round(1000 * SECONDS / statistics.median(engines[server.name].time_segment(1)[0])))
                    bare[server.name].append(1000 / statistics.fmean(engines[server.name].time_segment(times)[0]))
                    alone[server.name] += paired_latencies(server, request, engines[server.name])
                print(
                    f"round {turn + 1}  {server.name:9} {loads[server.name][-1].responses_per_second():7.2f} images/s",
                    flush=True,
                )
    rates = {
        name: round(statistics.median(load.responses_per_second() for load in each), 3) for name, each in loads.items()
    }
    found: dict[str, Any] = {"concurrency": CONCURRENCY, "images_s": rates}
    found["rounds"] = {name: [round(load.responses_per_second(), 3) for load in each] for name, each in loads.items()}
    found["counts"] = {name: merge_loads(each).status_counts() for name, each in loads.items()}
    found["stages_ms"] = {name: merge_loads(loads[name]).stages() for name in mine}
    found["engine_images_s"] = {one: round(statistics.median(each), 3) for one, each in bare.items()}
    best = max((rates[name] for name in rates if name not in mine), default=None)
    found["times_best_tutorial"] = {one: round(rates[one] / best, 2) if best else None for one in mine}
    found["share_of_engine"] = {
        one: round(
            statistics.median(
                load.responses_per_second() / rate for load, rate in zip(loads[one], bare[one], strict=True)
            ),
            3,
        )
        for one in mine
    }
    found["alone"] = {
        one: {"p50_ms": round(statistics.median(served for served, _ in each), 1),
              "engine_ms": round(statistics.median(engine for _, engine in each), 1),
              "more_ms": round(statistics.median(served - engine for served, engine in each), 1)}
        for one, each in alone.items()
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    return found


def paired_latencies(server: BenchServer, request: bytes, engine: BenchEngine) -> list[list[float]]:
    """Milliseconds over HTTP at concurrency 1 and of the bare engine, measured alternately; each the median of three."""
    found = []
    for _ in range(4):
        latencies = [1000 * one.latency_s for one in closed_loop(server.url, iter([request] * 4), 1).responses[1:]]
        found.append([statistics.median(latencies), statistics.median(engine.time_segment(3)[0])])
    return found


def merge_loads(loads: list[LoadResult]) -> LoadResult:
    whole = LoadResult()
    for load in loads:
        whole.merge(load)
    return whole


def measure_overhead(bundle: Path, body: bytes) -> dict[str, Any]:
    """Core-milliseconds per image without the inference, and milliseconds by stage."""
    precision = default_precision(bundle)
    found: dict[str, Any] = {"precision": precision, "rows": []}
    for threads in (0, 1):
        with start_service("small", bundle, precision=precision, threads=threads) as server:
            engine = BenchEngine(bundle, precision, decode_image(body), threads)
            try:
                found["rows"] += [
                    {"threads": threads, **cpu_overhead(server, engine, body, many)} for many in (1, CONCURRENCY)
                ]
            finally:
                engine.stop()
            if threads == 0:
                found["refused_core_ms"] = round(core_ms(server, server.request(bytes(len(body))), 400)[0], 2)
                found["livez_core_ms"] = round(core_ms(server, livez_request(server), 400)[0], 2)
    with ExitStack() as stack:
        found["tutorials_without_network_core_ms"] = {
            peer.name: round(core_ms(peer, peer.request(body), 60)[0], 2)
            for peer in start_tutorial_servers(stack, TUTORIAL_NETWORK="none")
        }
    print(json.dumps(found, indent=1))
    return found


def cpu_overhead(server: BenchServer, engine: BenchEngine, body: bytes, concurrency: int) -> dict[str, Any]:
    """Service and engine alternately: the medians of their CPU times per image, and of the differences."""
    request, rounds, loads = server.request(body), [], []
    core_ms(server, request, 50, concurrency)
    for _ in range(2 * ROUNDS):
        whole, load = core_ms(server, request, 150, concurrency)
        rounds.append((whole, engine.time_segment(150)[1]))
        loads.append(load)
    return {
        "concurrency": concurrency,
        "service_core_ms": round(statistics.median(whole for whole, _ in rounds), 2),
        "engine_core_ms": round(statistics.median(bare for _, bare in rounds), 2),
        "more_core_ms": round(statistics.median(whole - bare for whole, bare in rounds), 2),
        "p50_ms": round(percentile(merge_loads(loads).latencies_ms(), 50) or 0, 2),
        "stages_ms": merge_loads(loads).stages(),
    }


def core_ms(
    server: BenchServer, request: bytes, count: int, concurrency: int = CONCURRENCY
) -> tuple[float, LoadResult]:
    """The CPU time of the server per request, in milliseconds, over `count` requests."""
    before = server.cpu_seconds()
    load = closed_loop(server.url, iter([request] * count), concurrency)
    return 1000 * (server.cpu_seconds() - before) / count, load


def livez_request(server: BenchServer) -> bytes:
    """The cheapest request to BentoML and uvicorn."""
    return b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def measure_workers(bundle: Path, body: bytes) -> dict[str, Any]:
    """Images per second of the small model with one worker and with two, alternately; seconds until a killed one is back."""
    with ExitStack() as stack:
        servers = {
            n: stack.enter_context(
                start_service(str(n), bundle, precision=default_precision(bundle), workers=n, reload_seconds=0)
            )
            for n in (1, 2)
        }
        rates: dict[str, list[float]] = {str(n): [] for n in servers}
        for turn in range(-1, ROUNDS):
            for number, server in servers.items():
                request = server.request(body)
                load = closed_loop(server.url, iter(lambda: request, b""), 2 * CONCURRENCY, SECONDS / 2)  # noqa: B023
                rates[str(number)] += [load.responses_per_second()] * (turn >= 0)
        memory = {str(number): round(server.memory_mb()) for number, server in servers.items()}
        gone = [kill_worker(servers[2]) for _ in range(3)]
    found = {number: round(statistics.median(each), 2) for number, each in rates.items()}
    print("workers", found, memory, "gone", gone, flush=True)
    return {"concurrency": 2 * CONCURRENCY, "images_s": found, "memory_mb": memory, "killed_gone_s": gone}


def check_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals, with the measured values."""
    found = result["throughput"]
    speed, share, alone = found["times_best_tutorial"], found["share_of_engine"], found["alone"]
    rows: list[tuple[str, Any, str, bool]] = [
        (f"{one}: times the best tutorial server", speed.get(one), f">= {least}", (speed.get(one) or 0) >= least)
        for one, least in (("bf16", 6), ("int8", 12))
    ]
    rows += [
        (f"{one}: fraction of the bare engine's throughput", share[one], ">= 0.9", share[one] >= 0.9) for one in share
    ]
    rows += [
        (f"{one}: ms added to the engine at concurrency 1", alone[one]["more_ms"], "<= 12", alone[one]["more_ms"] <= 12)
        for one in alone
    ]
    rows += [
        (f"small model: core-ms without the inference, concurrency {row['concurrency']}, threads {row['threads'] or 'all'}",
         row["more_core_ms"], "<= 6", row["more_core_ms"] <= 6)
        for row in result["overhead"]["rows"]
    ]  # fmt: skip
    gone = max(result["workers"]["killed_gone_s"])
    rows.append(("longest time that a killed worker was gone, s", gone, "<= 20", gone <= 20))
    for name, model in result["overload"].items():
        last, bound = model["rows"][-1], model.get("bound_ms")
        rows.append((f"{name} at 20x: longest accepted, ms", last["max_ms"], f"<= {bound}",
                     bool(bound and last["max_ms"] and last["max_ms"] <= bound)))  # fmt: skip
        rows.append((f"{name} at 20x: p99 of 429, ms", last["p99_429_ms"], "<= 50", (last["p99_429_ms"] or 1e9) <= 50))
        statuses = sorted({status for row in model["rows"] for status in row["counts"]})
        rows.append((f"{name}: statuses at any load", statuses, "200 and 429", set(statuses) <= {"200", "429"}))
    return [dict(zip(("what", "value", "goal", "reached"), row, strict=True)) for row in rows]


def plot_throughput(result: dict[str, Any], target: Path) -> None:
    """Bars of the throughput of each server and bare engine, relative to the best tutorial server."""
    from matplotlib.figure import Figure

    found = result["throughput"]
    bars = [(name, rate, "#b0b0b0") for name, rate in found["images_s"].items() if name not in PRECISIONS]
    best = max((rate for _, rate, _ in bars), default=1.0)
    for one in found["engine_images_s"]:
        bars.append((f"maskserve {one}", found["images_s"][one], "#1f5fa8"))
        bars.append((f"bare engine {one}", found["engine_images_s"][one], "#7fa8d6"))
    host = result["machine"]
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(bars)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for index, (_, rate, color) in enumerate(bars):
        axes.barh(index, rate / best, height=0.66, color=color)
        axes.text(rate / best, index, f" {rate / best:.1f}x   {rate:.2f} images/s", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(rate for _, rate, _ in bars) / best)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_title("FCN-ResNet-50, stride 8: 640x480 JPEG in, PNG mask out", loc="left", fontsize=10, weight="bold")
    axes.set_xlabel(
        f"times the best tutorial server's throughput (torchvision's eager network), concurrency {CONCURRENCY}\n"
        f"{host['cpu']}, {host['cores']} cores: {', '.join(host['flags']) or 'no AMX, no VNNI'}",
        loc="left", fontsize=9, color="#666666",
    )  # fmt: skip
    figure.savefig(target)


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
