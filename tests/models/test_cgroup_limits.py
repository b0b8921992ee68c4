"""CPU and memory limits as read from cgroup files, and how the engines use the cores."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from models.bundle import open_bundle
from models.cgroup_limits import cpu_quota, free_memory, threads_per_inference, usable_cores
from models.engines import ENGINES, openvino_engine
from tests.fixtures_bundles import synthetic_image

ROOT = Path(__file__).parents[2]
AFFINITY_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def fake_cgroups(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Files as the kernel provides them: the root of the control groups, and the process's memberships."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text + "\n")
    (folder / "self").write_text(membership)
    return folder / "cgroup", folder / "self"


CGROUP_V1_MEMBERSHIP = "9:name=systemd:/\n4:memory:/m\n1:cpu,cpuacct:/docker/ab\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "max 100000", "other/cpu.max": "100000 100000"}, None),
        ("0::/../../host/name\n", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/not/seen/from/inside\n", {"cpu.max": "300000 100000"}, 3.0),
        (
            CGROUP_V1_MEMBERSHIP,
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (
            CGROUP_V1_MEMBERSHIP,
            {"cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "5000", "cpu,cpuacct/docker/ab/cpu.cfs_period_us": "10000"},
            0.5,
        ),
        (CGROUP_V1_MEMBERSHIP, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None),
        (CGROUP_V1_MEMBERSHIP, {"memory/m/cpu.cfs_quota_us": "5000", "memory/m/cpu.cfs_period_us": "10000"}, None),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1.0),
        ("1:cpuacct,cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2.0),
        ("1:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, None),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "gibberish here"}, None),
        ("", {"cpu.max": "200000 100000"}, None),
    ],
)
def test_cpu_quota_of_a_container(tmp_path: Path, membership: str, files: dict[str, str], cores: float | None) -> None:
    at = fake_cgroups(tmp_path, membership, files)
    assert cpu_quota(*at) == cores
    assert usable_cores(*at) == (AFFINITY_CORES if cores is None else max(1, min(AFFINITY_CORES, -(-cores // 1))))


def test_limits_without_cgroups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "no", tmp_path / "none") == AFFINITY_CORES
    assert 2**26 < free_memory(tmp_path / "no", tmp_path / "none") < 2**44


MIB = 2**20


@pytest.mark.parametrize(
    ("membership", "folder", "names", "prefix"),
    [
        ("0::/\n", ".", ("memory.max", "memory.current"), ""),
        ("0::/a/b\n", "a", ("memory.max", "memory.current"), ""),  # the limit of a parent
        ("0::/not/seen/from/inside\n", ".", ("memory.max", "memory.current"), ""),
        (CGROUP_V1_MEMBERSHIP, "memory/m", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
        (CGROUP_V1_MEMBERSHIP, "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
    ],
)
def test_free_memory_is_what_the_group_has_left(
    tmp_path: Path, membership: str, folder: str, names: tuple[str, str], prefix: str
) -> None:
    limit, usage = (f"{folder}/{name}" for name in names)
    stat = {f"{folder}/memory.stat": f"anon 5\n{prefix}active_file {2 * MIB}\n{prefix}inactive_file {3 * MIB}"}
    at = fake_cgroups(tmp_path, membership, {limit: str(64 * MIB), usage: str(40 * MIB), **stat})
    assert free_memory(*at) == (64 - 40 + 2 + 3) * MIB  # cached files can be dropped
    (at[0] / limit).write_text("max\n")
    assert free_memory(*at) > 64 * MIB


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")
def test_usable_cores_of_a_process_pinned_to_one_core() -> None:
    code = "import os, models.cgroup_limits; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "print(models.cgroup_limits.usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("workers", "concurrency", "cores", "threads"),
    [(1, 1, 8, 8), (2, 1, 8, 4), (2, 2, 8, 2), (3, 1, 8, 2), (1, 3, 8, 2), (16, 1, 8, 1), (1, 1, 1, 1), (4, 4, 1, 1)],
)
def test_inferences_share_the_cores(workers: int, concurrency: int, cores: int, threads: int) -> None:
    assert threads_per_inference(workers, concurrency, cores) == threads
    assert threads * workers * concurrency <= max(cores, workers * concurrency)


def test_one_inference_uses_all_cores() -> None:
    assert threads_per_inference(1, 1) == usable_cores()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("threads", "concurrency"), [(0, 2), (1, 2), (2, 2)])
def test_concurrent_inferences_equal_sequential_ones(
    engine: str, threads: int, concurrency: int, tiny_bundle: Path
) -> None:
    bundle, images = (
        open_bundle(tiny_bundle),
        [synthetic_image(64, 64 + 64 * (seed % 2), seed)[None] for seed in range(8)],
    )
    alone = ENGINES[engine].load(bundle, "cpu", "f32", 1)
    expected = [alone(image)[0].copy() for image in images]
    run = ENGINES[engine].load(bundle, "cpu", "f32", threads, concurrency)
    with ThreadPoolExecutor(concurrency + 1) as pool:  # one more than the concurrency
        for one, labels in zip(pool.map(lambda image: run(image)[0].copy(), images), expected, strict=True):
            assert np.mean(one == labels) > 0.999


@pytest.mark.skipif(usable_cores() < 2, reason="OpenVINO has no more threads than there are cores")
@pytest.mark.parametrize(
    ("threads", "concurrency", "expected"), [(1, 1, (1, 1)), (2, 1, (2, 1)), (1, 2, (2, 2)), (2, 2, (4, 2))]
)
def test_openvino_has_a_stream_for_each_concurrent_inference(
    threads: int, concurrency: int, expected: tuple[int, int], tiny_bundle: Path
) -> None:
    run = openvino_engine.load(open_bundle(tiny_bundle), "cpu", "f32", threads, concurrency)
    assert isinstance(run, openvino_engine._ThreadSafeModel) and run.compiled is not None
    found = tuple(run.compiled.get_property(name) for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS"))
    assert found == (min(expected[0], os.cpu_count() or 1), expected[1]) or found == expected


# A process that runs inferences and meanwhile prints the cores on which its threads may run.
AFFINITY_SCRIPT = """
import pathlib, re, sys, threading

import numpy as np

from models.bundle import open_bundle
from models.engines import openvino_engine as openvino

run = openvino.load(open_bundle(pathlib.Path(sys.argv[1])), "cpu", "f32", 1)
image, done = np.zeros((1, 256, 256, 3), np.uint8), threading.Event()
run(image)

def infer():
    while not done.is_set():
        run(image)

caller = threading.Thread(target=infer)
caller.start()
seen = set()
for _ in range(40):
    done.wait(0.005)
    for status in pathlib.Path("/proc/self/task").glob("*/status"):
        seen.update(re.findall("Cpus_allowed_list:\\t(.*)", status.read_text()))
done.set()
caller.join()
print(*sorted(seen))
"""


@pytest.mark.skipif(
    not Path("/proc/self/task").exists() or (AFFINITY_CORES or 1) < 2, reason="needs Linux and two cores"
)
def test_threads_are_not_pinned_to_cores(tiny_bundle: Path) -> None:
    """Workers would all pin their threads to the same core."""
    command = [sys.executable, "-c", AFFINITY_SCRIPT, str(tiny_bundle)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    allowed = next(line for line in Path("/proc/self/status").read_text().splitlines() if "Cpus_allowed_list" in line)
    assert done.stdout.split() == [allowed.split()[1]]


COMPILE_SCRIPT = """
import pathlib, sys
from models.bundle import open_bundle
from models.engines import openvino_engine as openvino

bundle = open_bundle(pathlib.Path(sys.argv[1]))
openvino.get_core()
print("ready", flush=True)
sys.stdin.readline()
print(openvino.load(bundle, "cpu", "f32", 1).compiled.get_property("LOADED_FROM_CACHE"))
"""


def test_one_of_several_workers_compiles_a_bundle(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", COMPILE_SCRIPT, str(tiny_bundle)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    outputs = [worker.communicate()[0] for worker in workers]
    assert sorted(outputs) == ["False\n", "True\n", "True\n"]
