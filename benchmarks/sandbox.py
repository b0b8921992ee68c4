"""What decoding in child processes costs: `python -m benchmarks.sandbox [--rounds N] [--seconds S] [--save] [BUNDLE]`.

Two services of the same bundle, with MASKSERVE_SANDBOX=on and =off, get a JPEG of 640x480 in turns, so that other load on the
machine affects both; while one is measured, the other idles. With one request at a time: the median milliseconds that the sandbox
adds, to the whole response and to decoding alone (Server-Timing). With four at a time: its throughput divided by that without.
Each figure has a 95% interval (bootstrap over the rounds). BUNDLE: another than an FCN-8s on a ResNet-18 with random weights.
`--save` writes benchmarks/results/sandbox.json.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference import MODELS, RESULTS, make_bundle, temporary_cache
from benchmarks.load import LoadResult, closed_loop
from benchmarks.processes import BenchServer, start_service
from benchmarks.serving import draw_jpeg
from models.engines.host_info import host_info

WIDTH, HEIGHT, CONCURRENCY = 640, 480, 4
ROUNDS, SECONDS = 20, 3.0  # of one service at one concurrency
RESAMPLES = 10_000
SANDBOX = ("on", "off")
Round = dict[str, LoadResult]  # by the setting


def main(rounds: int, seconds: float, bundle: Path) -> dict[str, Any]:
    """Measure both services, print the figures and return them."""
    with temporary_cache(), ExitStack() as stack:
        servers = {name: stack.enter_context(start_service(name, bundle, sandbox=name)) for name in SANDBOX}
        for server in servers.values():
            run_load(server, CONCURRENCY, 2.0)
        alone = [measure_round(servers, 1, seconds, index) for index in range(rounds)]
        together = [measure_round(servers, CONCURRENCY, seconds, index) for index in range(rounds)]
    figures = {
        "added_ms": estimate([median_ms(one["on"]) - median_ms(one["off"]) for one in alone], statistics.median),
        "added_decode_ms": estimate([decode_ms(one["on"]) - decode_ms(one["off"]) for one in alone], statistics.median),
        "throughput_ratio": estimate(
            [one["on"].responses_per_second() / one["off"].responses_per_second() for one in together],
            statistics.geometric_mean,
        ),
    }
    print(f"{'':18} {'estimate':>9}  95% interval, {rounds} rounds of {seconds:g} s")
    for name, (value, low, high) in figures.items():
        print(f"{name:18} {value:9.3f}  {low:.3f} to {high:.3f}")
    return {
        "machine": host_info(), "image": f"{WIDTH}x{HEIGHT} JPEG", "rounds": rounds, "seconds": seconds,
        "concurrency": CONCURRENCY, "figures": figures,
        "median_ms": {name: round(statistics.median(median_ms(one[name]) for one in alone), 2) for name in SANDBOX},
        "per_second": {
            name: round(statistics.fmean(one[name].responses_per_second() for one in together), 2) for name in SANDBOX
        },
        "load_at_end": os.getloadavg()[0],
    }  # fmt: skip


def measure_round(servers: dict[str, BenchServer], concurrency: int, seconds: float, index: int) -> Round:
    """Measure both services, every second time in the opposite order."""
    order = SANDBOX if index % 2 == 0 else SANDBOX[::-1]
    return {name: run_load(servers[name], concurrency, seconds) for name in order}


def run_load(server: BenchServer, concurrency: int, seconds: float) -> LoadResult:
    """Send the image for some seconds. Raises: RuntimeError if a response is not a 200, because its time would mislead."""
    request = server.request(draw_jpeg(WIDTH, HEIGHT))
    load = closed_loop(server.url, iter(lambda: request, b""), concurrency, seconds)
    if set(counts := load.status_counts()) != {"200"}:
        raise RuntimeError(f"The service with MASKSERVE_SANDBOX={server.name} responded {counts} instead of 200 only.")
    return load


def median_ms(load: LoadResult) -> float:
    """The median latency in milliseconds."""
    return statistics.median(load.latencies_ms())


def decode_ms(load: LoadResult) -> float:
    """The median time of decoding in milliseconds, as the service reports it."""
    return statistics.median(response.stages()["decode"] for response in load.responses)


def estimate(values: list[float], combine: Callable[[Sequence[float]], float]) -> tuple[float, float, float]:
    """The combined value of the rounds, and the ends of its 95% interval, from rounds that are drawn with replacement."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile([combine(row.tolist()) for row in drawn], [2.5, 97.5])
    return round(combine(values), 4), round(float(low), 4), round(float(high), 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/sandbox.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = arguments.bundle or Path(scratch) / "small"
        if not arguments.bundle:
            make_bundle(bundle, MODELS["FCN-8s, ResNet-18"])
        result = main(arguments.rounds, arguments.seconds, bundle)
    if arguments.save:
        RESULTS.joinpath("sandbox.json").write_text(json.dumps(result, indent=2) + "\n")
