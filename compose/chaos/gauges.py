"""What every process of a system holds at one moment: memory, files, tasks, and the gauges that it tells of itself.

For whoever asks whether something was left behind: two readings, between them whatever was done to the system, and
`left` names what did not come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from broker.bus.errors import BusError
from broker.bus.subjects import JOBS_STREAM
from compose.chaos.http import call
from compose.chaos.subject import Running
from compose.chaos.system import System
from compose.chaos.whole import Process

RSS = "rss_bytes"
LIVE = "live_bytes"
"""Of a NATS server: what a collection of its garbage leaves, which is asked for. Its `rss_bytes` is what it has taken
from the kernel, and goes up and down with what nobody has collected yet."""
BLOCKS = "okome_python_blocks"
"""Of our roles: how much their objects hold, however their memory is scattered. What is garbage counts until it is
collected, so it is never the same twice."""
FDS = "fds"
TASKS = "okome_tasks"
CONSUMERS = "consumers"
JETSTREAM = "jetstream"
"""Not a process: what JetStream holds, whichever servers it is made of."""

Reading = dict[str, dict[str, float]]
"""Process id → gauge → value. A gauge with labels is named as Prometheus has it: `name{label="value"}`."""


async def read(system: System | Running) -> Reading:
    """Every process, and `jetstream`; what does not answer now is left out.

    Of every process `rss_bytes` and `fds`, as the kernel counts them; of our roles `okome_tasks` and all other gauges
    of theirs named `okome_*`; of a NATS server `live_bytes`, `connections` and `subscriptions`; of `jetstream`
    `streams`, `consumers`, and `jobs`, which are waiting or held.
    """
    found: Reading = {process.id: _of_kernel(process.pid) for process in system.processes()}

    async def ask(process: Process) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError):
            found[process.id].update(await _told(process, system.api_key))
        if profile := system.profiles.get(process.id):
            with contextlib.suppress(OSError, EOFError, ValueError):
                found[process.id][LIVE] = await _live(profile)

    async with asyncio.TaskGroup() as tasks:
        for process in system.processes():
            if process.url:
                tasks.create_task(ask(process))
        tasks.create_task(_jetstream(system, found))
    return {id: gauges for id, gauges in found.items() if gauges}


def silent(system: System | Running, reading: Reading) -> list[str]:
    """Who could have told something of itself in this reading, and did not: what it holds is not known."""
    asked = [one.id for one in system.processes() if one.url and one.role != "redis"]
    return [id for id in (*asked, JETSTREAM) if not told(reading.get(id, {}))]


def told(held: Mapping[str, float]) -> bool:
    """Whether somebody said anything, besides what is said of it."""
    return any(name not in (RSS, FDS, LIVE) for name in held)


def left(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]], names: Iterable[str] = ()
) -> list[str]:
    """What is higher after than before, in words; `names`: only these gauges, labels apart, else all but memory.

    Of two readings in which nobody was `silent`: who is in one of them only has left nothing.
    """
    wanted = frozenset(names)
    return [
        f"{id}: {gauge} {value:g}, before {before[id].get(gauge, 0):g}"
        for id, gauges in after.items()
        for gauge, value in gauges.items()
        if id in before
        and (gauge.partition("{")[0] in wanted if wanted else gauge not in (RSS, LIVE, BLOCKS))
        and value > before[id].get(gauge, 0)
    ]


def total(reading: Reading, name: str) -> float:
    """A gauge summed over all processes and labels."""
    return sum(
        value for gauges in reading.values() for gauge, value in gauges.items() if gauge.partition("{")[0] == name
    )


def _of_kernel(pid: int) -> dict[str, float]:
    """Nothing of a process that is gone."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {RSS: float(resident), FDS: float(len(os.listdir(f"/proc/{pid}/fd")))}
    except OSError:
        return {}


async def _told(process: Process, api_key: str) -> dict[str, float]:
    if process.role == "nats":
        told = (await call(process.url, "GET", "/varz", api_key)).json()
        return {name: float(told[name]) for name in ("connections", "subscriptions")}
    answer = await call(process.url, "GET", "/metrics", api_key)
    return {
        _name(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        if family.type == "gauge" and family.name.startswith("okome_") and not family.name.endswith("_created")
        for sample in family.samples
    }


async def _live(profile: str) -> float:
    """Collected twice: the first one may have begun before what is garbage now was."""
    for _ in range(2):
        answer = await call(profile, "GET", "/debug/pprof/heap?debug=1&gc=1", "")
    _, _, rest = answer.body.decode().partition("# HeapAlloc = ")
    return float(rest.split("\n", 1)[0])


def _name(name: str, labels: Mapping[str, str]) -> str:
    told = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{told}}}" if told else name


async def _jetstream(system: System | Running, found: Reading) -> None:
    with contextlib.suppress(BusError):
        account = await system.bus.api("INFO")
        jobs = await system.bus.api(f"STREAM.INFO.{JOBS_STREAM}")
        found[JETSTREAM] = {
            "streams": float(account["streams"]),
            CONSUMERS: float(account["consumers"]),
            "jobs": float(jobs["state"]["messages"]),
        }
