"""Load while a worker is killed, and while the service stops: `python -m benchmarks.failures [SECONDS] [BUNDLE]`.

200 connections send requests without a pause for SECONDS (60 by default) to a service of two workers. After a third of the time a
worker is killed with SIGKILL; at the end the service gets SIGTERM while all continue. Counts the responses by status in each phase,
those that were lost, and those whose connection was refused after the stop. No response may be a 5xx other than 503, and none
may be lost but on the killed worker. Writes benchmarks/results/failures.json, and exits with 1 on a failure.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.inference import MODELS, RESULTS, make_bundle, temporary_cache
from benchmarks.load import LOST_STATUS, REFUSED_STATUS, LoadResult, closed_loop
from benchmarks.processes import start_service, worker_pids
from benchmarks.serving import draw_jpeg
from models.engines.host_info import host_info

CONNECTIONS, SECONDS, WORKERS = 200, 60.0, 2
STOP_SECONDS = 0.5  # for which requests are sent after SIGTERM


def main(seconds: float, bundle: Path) -> int:
    with temporary_cache(), start_service("failures", bundle, workers=WORKERS) as server:
        request = server.request(draw_jpeg(320, 240))
        closed_loop(server.url, iter([request] * 20), 4)
        times: dict[str, float] = {}
        sent_at: list[float] = []
        done = threading.Event()

        def requests() -> Iterator[bytes]:
            while not done.is_set():
                sent_at.append(time.perf_counter())
                yield request

        loads: list[LoadResult] = []
        generator = threading.Thread(target=lambda: loads.append(closed_loop(server.url, requests(), CONNECTIONS)))
        start = time.perf_counter()
        generator.start()
        time.sleep(seconds / 3)
        times["kill"] = time.perf_counter()
        os.kill(min(worker_pids(server.pid)), signal.SIGKILL)
        time.sleep(max(0.0, start + seconds - time.perf_counter()))
        workers = len(worker_pids(server.pid))
        times["stop"] = time.perf_counter()
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        done.set()
        generator.join()
        stopped = round(time.perf_counter() - times["stop"], 1)
    result: dict[str, Any] = {
        "machine": host_info(), "connections": CONNECTIONS, "workers": WORKERS, "seconds": seconds,
        "phases": count_by_phase(loads[0], sent_at, times), "counts": loads[0].status_counts(), "workers_before_stop": workers,
        "last_response_after_stop_s": stopped, "generator_cores": round(loads[0].generator_cpu_seconds / loads[0].seconds, 2),
        "load_at_end": os.getloadavg()[0],
    }  # fmt: skip
    result["failures"] = find_failures(loads[0], sent_at, times, workers)
    RESULTS.joinpath("failures.json").write_text(json.dumps(result, indent=2) + "\n")
    for phase, counts in result["phases"].items():
        print(f"{phase:24} {counts}")
    for failure in result["failures"]:
        print("FAILED:", failure)
    return int(bool(result["failures"]))


def count_by_phase(load: LoadResult, sent_at: list[float], times: dict[str, float]) -> dict[str, dict[str, int]]:
    """Responses by status, by when their requests were answered or lost: before the kill, until the stop, and after it."""
    phases: dict[str, LoadResult] = {
        "before the kill": LoadResult(),
        "after the kill": LoadResult(),
        "after SIGTERM": LoadResult(),
    }
    for response in load.responses:
        end = sent_at[response.index] + response.latency_s
        name = (
            "before the kill" if end < times["kill"] else "after the kill" if end < times["stop"] else "after SIGTERM"
        )
        phases[name].responses.append(response)
    return {name: phase.status_counts() for name, phase in phases.items()}


def find_failures(load: LoadResult, sent_at: list[float], times: dict[str, float], workers: int) -> list[str]:
    """What must not happen."""
    failures = [
        f"a response has status {response.status}" for response in load.responses if response.status in (500, 502, 504)
    ]
    for response in load.responses:
        end = sent_at[response.index] + response.latency_s
        if response.status == LOST_STATUS and not times["kill"] <= end <= times["kill"] + 1:
            failures.append(f"a request was lost {end - times['stop']:+.2f} s from the stop")
        if response.status == REFUSED_STATUS and end < times["stop"]:
            failures.append("a connection was refused before the stop")
    if workers != WORKERS:
        failures.append(f"{workers} of {WORKERS} workers ran at the end")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS)
    parser.add_argument("bundle", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.bundle:
        sys.exit(main(arguments.seconds, arguments.bundle))
    with tempfile.TemporaryDirectory() as scratch:
        make_bundle(Path(scratch) / "small", MODELS["FCN-8s, ResNet-18"])
        sys.exit(main(arguments.seconds, Path(scratch) / "small"))
