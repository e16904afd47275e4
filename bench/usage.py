"""What processes have used, from the operating system: CPU seconds and resident bytes, their children's with theirs."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from bench.record import Held


def used(processes: Mapping[str, int]) -> dict[str, Held]:
    """By name; a process that is gone is left out, which is for the caller to notice."""
    found = {}
    for name, pid in processes.items():
        try:
            one = psutil.Process(pid)
            family = [one, *one.children(recursive=True)]
            times = [each.cpu_times() for each in family]
            rss = sum(each.memory_info().rss for each in family)
        except psutil.NoSuchProcess:
            continue
        found[name] = Held(sum(each.user + each.system for each in times), rss)
    return found


def between(before: Mapping[str, Held], after: Mapping[str, Held]) -> dict[str, Held]:
    """What was used from one reading to the next. Raises KeyError: a process has ended meanwhile."""
    return {name: Held(after[name].cpu - before[name].cpu, after[name].rss) for name in before}
