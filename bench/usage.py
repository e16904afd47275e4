"""What processes have used, from the operating system: CPU seconds and resident bytes, their children's with theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import psutil

from bench.record import Held


def used(processes: Mapping[str, int]) -> dict[str, Held]:
    """By name. Raises ProcessLookupError, with the name of one that has ended."""
    return {name: _held(name, pid) for name, pid in processes.items()}


def _held(name: str, pid: int) -> Held:
    try:
        one = psutil.Process(pid)
        if one.status() == psutil.STATUS_ZOMBIE:
            raise psutil.NoSuchProcess(pid)
        times, rss = one.cpu_times(), one.memory_info().rss
        children = one.children(recursive=True)
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(f"{name} has ended") from error
    cpu = times.user + times.system
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end at any time
            more, held = child.cpu_times(), child.memory_info().rss
            cpu, rss = cpu + more.user + more.system, rss + held
    return Held(cpu, rss)


def between(before: Mapping[str, Held], after: Mapping[str, Held]) -> dict[str, Held]:
    """What was used from one reading to the next, of the same processes."""
    return {name: Held(after[name].cpu - before[name].cpu, after[name].rss) for name in before}
