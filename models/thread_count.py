"""How many threads torch uses on a CPU beside other programs.

By default, torch's OpenMP threads spin while they wait for each other: the fastest way alone, and several times slower than one
thread if another program has the core of the one that is waited for (benchmarks/busy.py). Threads that sleep instead
(`OMP_WAIT_POLICY=PASSIVE`) lose a fifth of the speed on an idle virtual machine, where waking a thread is slow. So threads
spin here, and no more of them run than there are free cores.
"""

import functools
import os
import time
from pathlib import Path

PROC = Path("/proc")
INTERVAL_SECONDS = 2.0
# The user's own choice of any of these is kept.
OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
OPENMP_SETTINGS = ("OMP_NUM_THREADS", *OPENMP_WAITING)


class ThreadCount:
    """Sets torch's number of threads to the cores that other programs leave free, at least one.

    Call `update` between operations, in the thread that computes. It measures every two seconds, and does nothing where the
    environment sets how OpenMP's threads work, or the system has no /proc (Linux's `proc(5)`).
    """

    def __init__(self, enabled: bool = True, proc: Path = PROC) -> None:
        self.maximum, self.proc = _initial_threads(), proc
        self.enabled = enabled and self.maximum > 1 and not any(name in os.environ for name in OPENMP_SETTINGS)
        self.last = self._measure()

    def update(self) -> None:
        """Measure, if the last time is two seconds ago, and set the number of threads."""
        if not self.enabled or time.monotonic() - self.last[0] < INTERVAL_SECONDS:
            return
        import torch

        before, self.last = self.last, self._measure()
        if (seconds := self.last[0] - before[0]) > 2 * INTERVAL_SECONDS:  # nothing was computed here meanwhile
            return
        others = (self.last[1] - before[1]) / seconds  # in cores
        threads = max(1, min(self.maximum, round(len(os.sched_getaffinity(0)) - others)))
        if self.enabled and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def _measure(self) -> tuple[float, float]:
        """The time by the monotonic clock, and the seconds that other programs have used of this process's cores so far."""
        try:
            return time.monotonic(), _busy_seconds(self.proc) - _own_seconds(self.proc)
        except (OSError, ValueError, IndexError, AttributeError):  # no /proc, no sched_getaffinity
            self.enabled = False
            return time.monotonic(), 0.0


@functools.cache
def _initial_threads() -> int:
    """Torch's number of threads before any was set here."""
    import torch  # the service imports no torch unless it uses this engine

    return torch.get_num_threads()


def _busy_seconds(proc: Path) -> float:
    """Seconds since the start of the system in which this process's cores were not idle.

    Time that a hypervisor gave to other machines counts: user, nice, system, irq, softirq and steal in `/proc/stat`.
    """
    allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in (proc / "stat").read_text().splitlines():
        name, *counts = line.split()
        if name in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_seconds(proc: Path) -> float:
    """Processor time of this process, of its living children (workers that load data), and of those that have ended."""
    times = os.times()
    seconds = times.user + times.system + times.children_user + times.children_system
    for task in (proc / "self" / "task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                fields = (proc / child / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended: the next measurement counts it among the ended ones
                continue
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime
    return seconds
