"""How many cores a process may use: what the kernel says, in the files of its control groups too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.cores import quota, threads_for, usable_cores

ROOT = Path(__file__).parent.parent.parent
SEEN = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Files as the kernel shows them: the root of the control groups, and the process's memberships."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text + "\n")
    (folder / "self").write_text(membership)
    return folder / "cgroup", folder / "self"


V1 = "9:name=systemd:/\n4:memory:/m\n1:cpu,cpuacct:/docker/ab\n0::/\n"


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
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2.5),
        (
            V1,
            {"cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "5000", "cpu,cpuacct/docker/ab/cpu.cfs_period_us": "10000"},
            0.5,
        ),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None),
        (V1, {"memory/m/cpu.cfs_quota_us": "5000", "memory/m/cpu.cfs_period_us": "10000"}, None),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1.0),
        ("1:cpuacct,cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2.0),
        ("1:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, None),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "gibberish here"}, None),
        ("", {"cpu.max": "200000 100000"}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, membership: str, files: dict[str, str], cores: float | None) -> None:
    at = machine(tmp_path, membership, files)
    assert quota(*at) == cores
    assert usable_cores(*at) == (SEEN if cores is None else max(1, min(SEEN, -(-cores // 1))))


def test_where_the_kernel_says_nothing(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "no", tmp_path / "none") == SEEN


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")
def test_a_process_that_may_use_one_core() -> None:
    code = "import os, models.cores; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "print(models.cores.usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("workers", "concurrency", "cores", "threads"),
    [(1, 1, 8, 8), (2, 1, 8, 4), (2, 2, 8, 2), (3, 1, 8, 2), (1, 3, 8, 2), (16, 1, 8, 1), (1, 1, 1, 1), (4, 4, 1, 1)],
)
def test_inferences_share_the_cores(workers: int, concurrency: int, cores: int, threads: int) -> None:
    assert threads_for(workers, concurrency, cores) == threads
    assert threads * workers * concurrency <= max(cores, workers * concurrency)


def test_all_cores_for_one() -> None:
    assert threads_for(1, 1) == usable_cores()
