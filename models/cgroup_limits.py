"""CPU cores and memory that this process may use: the machine's, or less where a control group (version 1 or 2) limits it.

A process's group in each hierarchy is named in /proc/self/cgroup. In a container that name may be the host's and lead
nowhere; the container's own group is then the root of the hierarchy that it sees.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUP_ROOT, PROC_SELF_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# File names by version of cgroups: limit, usage (bytes), and the prefix of the totals in memory.stat.
MEMORY_FILES = (("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))


def usable_cores(cgroups: Path = CGROUP_ROOT, membership: Path = PROC_SELF_CGROUP) -> int:
    """Cores that this process may run on, or its container's CPU quota rounded up if that is less.

    `docker run --cpus=2` leaves 64 cores visible: 64 threads would then be throttled for most of each 100 ms period.
    """
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroups, membership)
    return visible if quota is None else max(1, min(visible, math.ceil(quota)))


def quota_limited_cores() -> int:
    """The usable cores if a quota limits them; 0 if not, because engines see the number of cores themselves."""
    return usable_cores() if cpu_quota() is not None else 0


def threads_per_inference(workers: int, concurrency: int, cores: int | None = None) -> int:
    """Threads of one inference if `workers` processes each run `concurrency` inferences at once on `cores` cores."""
    return max(1, (cores or usable_cores()) // (workers * concurrency))


def cpu_quota(cgroups: Path = CGROUP_ROOT, membership: Path = PROC_SELF_CGROUP) -> float | None:
    """CPU time that the strictest of this process's control groups grants, in cores; None without a limit."""
    quotas = [_group_cpu_quota(folder) for folder in _group_folders("cpu", cgroups, membership)]
    return min((quota for quota in quotas if quota), default=None)


def free_memory(cgroups: Path = CGROUP_ROOT, membership: Path = PROC_SELF_CGROUP) -> int:
    """Bytes of memory that this process can take without swapping, within the limits of its control groups."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [8 * 2**30]
    with suppress(KeyError, ValueError):
        found.append(int(_read_table(Path("/proc/meminfo"))["MemAvailable:"]) * 1024)
    for folder in _group_folders("memory", cgroups, membership):
        for limit_file, usage_file, prefix in MEMORY_FILES:
            with suppress(OSError, KeyError, ValueError):  # the file is missing, or the limit is the word `max`
                limit, usage = (int((folder / name).read_text()) for name in (limit_file, usage_file))
                stat = _read_table(folder / "memory.stat")
                # The usage counts cached files, which the kernel drops when memory is needed.
                cached = sum(int(stat[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
                found.append(limit - max(0, usage - cached))
    return max(0, min(found))


def _group_folders(controller: str, cgroups: Path, membership: Path) -> Iterator[Path]:
    """The folders of this process's group for a controller (`cpu`, `memory`) and of its parents; they may not exist."""
    for line in _read_lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in {cgroups / controllers, cgroups / controller} if controllers else {cgroups}:
            group = root / path.strip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _group_cpu_quota(folder: Path) -> float | None:
    words = " ".join(_read_lines(folder / "cpu.max")).split()
    if not words:
        words = [*_read_lines(folder / "cpu.cfs_quota_us"), *_read_lines(folder / "cpu.cfs_period_us")]
    try:
        quota, period = map(float, words)  # microseconds; `max` or -1 is no limit
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read_table(file: Path) -> dict[str, str]:
    """The first two words of each line; nothing if the file cannot be read."""
    rows = (line.split() for line in _read_lines(file))
    return {words[0]: words[1] for words in rows if len(words) > 1}


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []
