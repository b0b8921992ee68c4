"""Speed beside other work: `python -m benchmarks.busy [--policies NAME,...] [--busy 0,1,2] ...`.

Training and inference on the CPU, alone and beside processes that compute without end, for several ways in which OpenMP's
threads may wait for each other. Every policy has a process of its own, and they take turns, so that other load on the
machine affects all alike; a figure is a ratio to the policy `default` of the same rounds without a busy process.
Results: benchmarks/results/busy.json, with the machine.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Environment of each policy. `product`: nothing is set, so that the product's own choice holds. `default` is libgomp's own:
# a waiting thread spins about 300,000 times before it sleeps, or 1,000 times if there are more threads than cores.
POLICIES: dict[str, dict[str, str]] = {
    "product": {},
    "default": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin1000": {"GOMP_SPINCOUNT": "1000"},
    "spin10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
TASKS = ("training", "torch", "openvino")
NUM_IMAGES = 4  # per step


def make_task(task: str, folder: Path) -> Callable[[], None]:
    """One call is a training step with the product's loader, or the inference of `NUM_IMAGES` images."""
    import numpy as np

    from training.config import TrainConfig
    from training.data import load_split

    samples = load_split(folder / "shapes", "train")
    if task == "training":
        from benchmarks.training import make_product_step
        from models.architectures import build
        from training.engine.model_factory import architecture_options

        config = TrainConfig.model_validate({"crop": (128, 160), "batch": NUM_IMAGES, "lr": 0.01, "workers": 1})
        network = build(config.architecture, len(samples.classes), **architecture_options(config))
        return make_product_step(network, samples, config, "cpu", "f32")
    from models.bundle import open_bundle
    from models.inference.segmenter import Segmenter

    segmenter = Segmenter.load(open_bundle(folder / "tiny"), task, "f32", "cpu")
    images = [np.ascontiguousarray(samples.image(index)) for index in range(NUM_IMAGES)]

    def step() -> None:
        for image in images:
            segmenter.segment(image)

    return step


def worker_main(task: str, folder: str) -> None:
    """Answer each line of standard input, a number of seconds, with the calls per second during that time."""
    sys.path.insert(0, str(ROOT))
    step = make_task(task, Path(folder))
    step()
    print("ready", flush=True)
    for line in sys.stdin:
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - start < float(line):
            step()
            count += 1
        print(count / (time.perf_counter() - start), flush=True)


class Worker:
    """A process that runs one task under one policy."""

    def __init__(self, task: str, policy: str, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        environment |= POLICIES[policy]
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks.busy import worker_main; "
        command = [sys.executable, "-c", code + f"worker_main({task!r}, {str(folder)!r})"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"

    def measure(self, seconds: float) -> float:
        """Calls per second."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """`count` processes that compute until the block ends."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_task(
    task: str, policies: list[str], busy: list[int], rounds: int, seconds: float, folder: Path
) -> dict[str, dict[str, float]]:
    """Median calls per second by policy and number of busy processes."""
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in itertools.product(policies, busy)}
    with ExitStack() as stack:
        workers = {policy: Worker(task, policy, folder) for policy in policies}
        for worker in workers.values():
            stack.callback(worker.close)
            worker.measure(seconds)
        for _, count in itertools.product(range(rounds), busy):
            with busy_processes(count):
                for policy, worker in workers.items():
                    rates[policy, count].append(worker.measure(seconds))
    return {
        policy: {str(count): round(statistics.median(rates[policy, count]), 3) for count in busy} for policy in policies
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--policies", default="product,default,passive")
    parser.add_argument("--busy", default="0,1,2", help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="per turn")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/busy.json")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from models.engines.host_info import host_info
    from tests.fixtures_bundles import tiny_bundle
    from training.data.synthetic import generate_dataset

    policies, busy = arguments.policies.split(","), [int(number) for number in arguments.busy.split(",")]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_dataset(folder / "shapes", counts={"train": 32, "val": 2}, size=(240, 320))
        tiny_bundle(folder)
        for task in arguments.tasks.split(","):
            rates = measure_task(task, policies, busy, arguments.rounds, arguments.seconds, folder)
            results[task] = rates
            reference = rates.get("default", rates[policies[0]])["0"]
            print(f"{task}: {NUM_IMAGES * reference:.1f} images/s by default without a busy process")
            for policy, values in rates.items():
                print(f"  {policy:12}", *(f"{count} busy: {rate / reference:5.2f}" for count, rate in values.items()))
    if arguments.save:
        settings = {"rounds": arguments.rounds, "seconds": arguments.seconds, "images_per_call": NUM_IMAGES}
        target = Path(__file__).parent / "results" / "busy.json"
        target.write_text(json.dumps({**host_info(), **settings, "calls_per_second": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
