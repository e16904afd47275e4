"""What processes have used, from the operating system: CPU seconds and resident bytes, their children's with theirs.
And what the whole machine has."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping

import psutil

from bench.record import Held

_WORK = ("user", "nice", "system", "irq", "softirq", "steal")
CPU_CLOCK = 2
"""Of a process, in the number of a clock: what clock_getcpuclockid(3) gives, which Python does not have."""


def used(processes: Mapping[str, int]) -> dict[str, Held]:
    """By name. Raises ProcessLookupError, with the name of one that has ended."""
    return {name: _held(name, pid) for name, pid in processes.items()}


def _held(name: str, pid: int) -> Held:
    try:
        one = psutil.Process(pid)
        if one.status() == psutil.STATUS_ZOMBIE:
            raise psutil.NoSuchProcess(pid)
        cpu, rss = _cpu(one), one.memory_info().rss
        children = one.children(recursive=True)
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(f"{name} has ended") from error
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end at any time
            more, held = _cpu(child), child.memory_info().rss
            cpu, rss = cpu + more, rss + held
    return Held(cpu, rss)


def _cpu(one: psutil.Process) -> float:
    """Seconds, those of threads that have ended among them. psutil tells hundredths: too coarse for few tokens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return time.clock_gettime((~one.pid << 3) | CPU_CLOCK)
    times = one.cpu_times()
    return times.user + times.system


def cores() -> list[int]:
    """That this process may run on, and those of a benchmark with it."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(psutil.cpu_count() or 1))


def busy() -> float:
    """CPU seconds of these cores that anybody has used, or another guest of the host has taken."""
    each = psutil.cpu_times(percpu=True)
    return sum(getattr(each[core], kind, 0.0) for core in cores() for kind in _WORK)


def between(before: Mapping[str, Held], after: Mapping[str, Held]) -> dict[str, Held]:
    """What was used from one reading to the next, of the same processes."""
    return {name: Held(after[name].cpu - before[name].cpu, after[name].rss) for name in before}
