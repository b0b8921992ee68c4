"""How many cores this process may use, and how many of them each of its inferences gets."""

import math
import os
from pathlib import Path

CGROUP_ROOT, PROC_SELF_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUP_ROOT, membership: Path = PROC_SELF_CGROUP) -> int:
    """Those that the process may run on; fewer where a container's quota of time is less, begun ones counted whole.

    `docker run --cpus=2` leaves 64 cores in sight: 64 threads would then stand still for most of each tenth of a second.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cpu_quota(cgroups, membership)
    return seen if share is None else max(1, min(seen, math.ceil(share)))


def quota_limited_cores() -> int:
    """The usable ones where a quota limits them; 0 where engines see the limit themselves."""
    return usable_cores() if cpu_quota() is not None else 0


def threads_per_inference(workers: int, concurrency: int, cores: int | None = None) -> int:
    """Threads of one inference, where so many worker processes run so many inferences each at once."""
    return max(1, (cores or usable_cores()) // (workers * concurrency))


def cpu_quota(cgroups: Path = CGROUP_ROOT, membership: Path = PROC_SELF_CGROUP) -> float | None:
    """Cores' worth of time that control groups (version 1 or 2) grant to this process, in the strictest; None: all.

    `membership` names the process's group in each hierarchy under `cgroups`. In a container that name may be the host's
    and lead nowhere; the container's own group is then the root of what it sees.
    """
    found = []
    for line in _read_lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in {cgroups / controllers, cgroups / "cpu"} if controllers else {cgroups}:
            group = root / path.strip("/")
            found += [_cgroup_quota(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min((share for share in found if share), default=None)


def _cgroup_quota(folder: Path) -> float | None:
    words = " ".join(_read_lines(folder / "cpu.max")).split()
    if not words:
        words = [*_read_lines(folder / "cpu.cfs_quota_us"), *_read_lines(folder / "cpu.cfs_period_us")]
    try:
        granted, period = map(float, words)  # microseconds; `max` or -1 is no limit
    except ValueError:
        return None
    return granted / period if granted > 0 and period > 0 else None


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []
