"""torch uses as many threads as other programs leave free cores, unless the environment says otherwise."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models import thread_count
from models.thread_count import OPENMP_SETTINGS, OPENMP_WAITING, ThreadCount

ROOT = Path(__file__).parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A /proc of 8 cores, of which the first four belong to this process, and a clock."""

    def __init__(self, proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.seconds, self.own, self.core_ticks = proc, 0.0, 0.0, [0] * 8
        (proc / "self" / "task" / "1").mkdir(parents=True)
        (proc / "self" / "task" / "1" / "children").write_text("7 9 ")  # 9 has ended meanwhile
        (proc / "7").mkdir()
        self.pass_time(0, [0] * 8)
        for name in OPENMP_SETTINGS:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(thread_count.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(thread_count, "_initial_threads", lambda: 4)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
        monkeypatch.setattr(os, "times", lambda: os.times_result((self.own, 0, 0, 0, 0)))

    def pass_time(self, seconds: float, busy: list[float], own: float = 0.0, worker: float = 0.0) -> None:
        """`busy`: cores' busy fraction; `own` and `worker`: cores that this process and its child use."""
        self.seconds += seconds
        self.own += own * seconds
        for core, fraction in enumerate(busy):
            self.core_ticks[core] += round(fraction * seconds * TICKS)
        # user nice system idle iowait irq softirq steal: half of the work as nice, half as steal; idle and iowait do not count
        lines = [f"cpu{core} 0 {t // 2} 0 555 777 0 0 {t - t // 2} 0 0" for core, t in enumerate(self.core_ticks)]
        (self.proc / "stat").write_text("\n".join(["cpu 0 0 0 0 0 0 0 0 0 0", *lines, "intr 1 2"]))
        if seconds:
            self.worker_ticks += round(worker * seconds * TICKS)
        else:
            self.worker_ticks = 0
        (self.proc / "7" / "stat").write_text(f"7 (a) b) S {'0 ' * 10}{self.worker_ticks} 0 0 0")


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number that was set last."""
    current = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: current[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: current.__setitem__(0, number))
    return current


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_threads_follow_the_free_cores(machine: Machine, threads: list[int]) -> None:
    count = ThreadCount(proc=machine.proc)

    def after(seconds: float, busy: list[float], **own: float) -> int:
        machine.pass_time(seconds, busy, **own)
        count.update()
        return threads[0]

    assert after(2, [1, 1, 1, 1, 1, 1, 1, 1], own=3.5, worker=0.5) == 4  # its own work, and others' cores
    assert after(2, [1, 1, 1, 1, 0, 0, 0, 0], own=2.0, worker=1.0) == 3  # one core of others
    assert after(2, [1, 1, 1, 1, 0, 0, 0, 0]) == 1  # at least one
    assert after(1, [0, 0, 0, 0, 0, 0, 0, 0]) == 1  # not yet
    assert after(1, [0, 0, 0, 0, 0, 0, 0, 0]) == 4
    assert after(60, [1, 1, 1, 1, 0, 0, 0, 0]) == 4  # a pause says nothing of now


@pytest.mark.parametrize("name", OPENMP_SETTINGS)
def test_the_users_setting_is_kept(
    name: str, machine: Machine, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "2")
    count = ThreadCount(proc=machine.proc)
    machine.pass_time(2, [1.0] * 8)
    count.update()
    assert threads == [4]


def test_nothing_changes_without_proc(machine: Machine, threads: list[int], tmp_path: Path) -> None:
    count = ThreadCount(proc=tmp_path / "none")
    machine.pass_time(2, [1.0] * 8)
    count.update()
    assert threads == [4]


def test_children_count_as_this_process() -> None:
    own, busy = thread_count._own_seconds(Path("/proc")), thread_count._busy_seconds(Path("/proc"))
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        deadline = time.monotonic() + 20
        while (used := thread_count._own_seconds(Path("/proc")) - own) < 0.2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert thread_count._busy_seconds(Path("/proc")) - busy >= used / 2
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("chosen", [None, *OPENMP_WAITING])
def test_waiting_threads_of_the_service_sleep(chosen: str | None) -> None:
    """The policy is set before torch is imported, and inherited by the workers; not if the user chose otherwise."""
    code = "import os, sys, service; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP_SETTINGS}
    if chosen:
        environment[chosen] = "1000"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    expected = {None: "PASSIVE", "OMP_WAIT_POLICY": "1000"}.get(chosen, "None")
    assert done.stdout.split() == [expected, "False"], done.stderr
