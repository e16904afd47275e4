"""A soak: a system churns for half an hour, and whatever every process holds is read again and again, at rest.

Waves of churn with a rest behind each. At rest nobody is there but a few who always are, so what is counted then is
what was left behind; a leak of one file in a thousand sessions is a staircase among numbers that stand still.

The first third warms up and is left out. In its first half and in the last third one process is killed or drained in
every wave, always the second one of its role: the first ones live through all of it and are judged over both thirds,
the second ones over the calm third alone. A process that was started anew begins a new series.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from broker.bus.script import Script
from broker.bus.version import VERSION
from compose.chaos import gauges, holdings
from compose.chaos.churn import Churn
from compose.chaos.crowd import Crowd, NotAdmitted, Watched
from compose.chaos.faults.process import kill, terminate
from compose.chaos.gauges import Reading
from compose.chaos.run import machine
from compose.chaos.soaked import MIB, SAMPLE_INTERVAL, SAMPLES, STANDING, Plan, Series, Soak, plan
from compose.chaos.system import System
from compose.chaos.viewer import Transport, Viewer
from compose.chaos.world import World

MANY = "1000000/minute"  # limits that count, and refuse nobody

SOAK = World(
    "soak",
    "two of everything but the servers, and short lives for all that is kept for a while, so that it is soon full",
    {"engine": "scripted", "controls": 2, "nodes": 2, "workers": 2, "ingresses": 2},
    {
        "OKOME_INGRESS_KEY_LIMIT": MANY,
        "OKOME_INGRESS_SESSION_LIMIT": MANY,
        "OKOME_INGRESS_IP_LIMIT": MANY,
        "OKOME_INGRESS_PARTITIONS": "4",
        "OKOME_CONTROL_PARTITIONS": "4",
        "OKOME_CONTROL_LOG_MAX_AGE": "60",
        "OKOME_CONTROL_LOG_MAX_BYTES": str(4 * 1024 * 1024),
        "OKOME_CONTROL_JOBS_MAX_BYTES": str(4 * 1024 * 1024),
        "OKOME_CONTROL_IDEMPOTENCY_LIFE": "120",
        "OKOME_CONTROL_DELETED_LIFE": "60",
        "OKOME_NODE_PARTITION_BYTES": str(256 * 1024),
        "OKOME_NODE_TAIL_IDLE_TIMEOUT": "3",
        "OKOME_WORKER_GRACE": "2",
    },
)

_MORTAL = ("control-2", "node-2", "worker-2", "ingress-2")


async def soak(minutes: float, seed: int, sessions: int, progress: Callable[[str], None]) -> Soak:
    """Start a system, churn, end it. `sessions`: so many live at a time. Raises StartFailed, NotBack.

    Whoever cancels it gets what was read until then, if anything was.
    """
    with tempfile.TemporaryDirectory(prefix="okome-soak-", ignore_cleanup_errors=True) as directory:
        async with System(SOAK, Path(directory)) as system:
            soaking = Soaking(system, plan(minutes, sessions), seed, progress)
            try:
                await soaking.run()
            except asyncio.CancelledError:
                if not soaking.readings:
                    raise
            return soaking.told(f"okome chaos soak --minutes {minutes:g} --seed {seed} --sessions {sessions}")


class Soaking:
    """One soak of one system that runs."""

    def __init__(self, system: System, plan: Plan, seed: int, progress: Callable[[str], None]) -> None:
        self.plan = plan
        self.churn = Churn(system, seed)
        self.readings: list[tuple[float, dict[str, tuple[int, dict[str, float]]]]] = []
        """At every rest: when, and by process its pid and gauges."""
        self.killed: Counter[str] = Counter()
        self.fell: list[str] = []
        """Processes that ended although nobody had killed them, and how."""
        self._restarts = {one.id: one.restarts for one in system.processes()}
        self._system = system
        self._homes: dict[Viewer, str] = {}
        """On which node those who are always there were placed first."""
        self.rng = random.Random(f"{seed}/soak")
        deaths = [(id, strike) for id in _MORTAL for strike in (kill, terminate)]
        self._deaths = itertools.cycle(self.rng.sample(deaths, len(deaths)))
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._warm_at = self._began
        self._warm_did: Counter[str] = Counter()

    async def run(self) -> None:
        """All waves. Raises NotBack."""
        standing = Crowd(lambda: self._system.process("ingress-1").url, self._system.api_key, self.rng)
        async with standing:
            for number in range(STANDING):
                session = await standing.open()
                standing.watch(session, Transport.WS if number % 3 == 2 else Transport.SSE, terminals=10**9)
            for number in range(self.plan.waves):
                await self._wave(number, standing)

    async def _wave(self, number: int, standing: Crowd) -> None:
        if number == self.plan.warm:
            self._warm_at, self._warm_did = self._loop.time(), Counter(self.churn.did)
        seconds = max(0.2, self.plan.wave - self.plan.rest - SAMPLES * SAMPLE_INTERVAL)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.churn.wave(seconds, self.plan.living(number)))
                tasks.create_task(self._stir(standing.watched, seconds))
                if self.plan.deadly(number):
                    tasks.create_task(self._kill(self.rng.uniform(0.1, 0.5) * seconds))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        for viewer in standing.viewers:
            if viewer.node != self._homes.setdefault(viewer, viewer.node):
                viewer.kick()  # a fault has moved it: it is placed anew, and what is counted can be compared
        await asyncio.sleep(self.plan.rest)
        for one in self._system.processes():
            if one.restarts != self._restarts.get(one.id, one.restarts):
                self.fell.append(f"{one.id} in wave {number + 1}: {self._system.last_end(one.id)}")
                self._restarts[one.id] = one.restarts
        self.readings.append((self._loop.time() - self._began, await self._read()))
        self._progress(self._line(number))

    async def _stir(self, standing: list[Watched], seconds: float) -> None:
        """Those who are always there ask for something, too, one after the other."""
        crowd = Crowd(lambda: self._system.url, self._system.api_key, self.rng)
        for session in standing:
            await asyncio.sleep(seconds / (len(standing) + 1))
            for viewer in session.viewers:
                viewer.events.clear()
            try:
                await crowd.ask(session, Script(tokens=20, rate=50, seed=7))
            except NotAdmitted:
                self.churn.did["given up"] += 1
            session.asked.clear()

    async def _kill(self, delay: float) -> None:
        await asyncio.sleep(delay)
        id, strike = next(self._deaths)
        victim = self._system.process(id)
        fault = strike(victim, victim)
        await fault.strike()
        await fault.happened()
        self.killed[f"{victim.id} {'killed' if strike is kill else 'drained'}"] += 1
        back = await self._system.back(victim)
        self._restarts[back.id] = back.restarts
        await self._system.whole()

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read(self) -> dict[str, tuple[int, dict[str, float]]]:
        """The median of a few readings."""
        samples: list[Reading] = []
        for _ in range(SAMPLES):
            await asyncio.sleep(SAMPLE_INTERVAL)
            samples.append(_merged(await gauges.read(self._system), await holdings.read(self._system)))
        pids = {one.id: one.pid for one in self._system.processes()}
        return {
            id: (pids.get(id, 0), {gauge: median(_all(samples, id, gauge)) for gauge in held})
            for id, held in samples[-1].items()
        }

    def _line(self, number: int) -> str:
        now = self.readings[-1][1]
        resident = sum(held.get(gauges.RSS, 0.0) for _, held in now.values()) / MIB
        files = sum(held.get(gauges.FDS, 0.0) for _, held in now.values())
        return (
            f"wave {number + 1} of {self.plan.waves}: {self.churn.did['sessions']} sessions so far; "
            f"at rest {resident:.1f} MiB, {files:g} files"
        )

    # -- telling -----------------------------------------------------------------------------------------------------

    def told(self, command: str) -> Soak:
        """What was read so far."""
        seconds = self._loop.time() - self._began
        last = {id: pid for id, (pid, _) in self.readings[-1][1].items()}
        return Soak(
            command=command,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine(),
            version=VERSION,
            plan=self.plan,
            seconds=seconds,
            measured_seconds=self._loop.time() - self._warm_at,
            did=dict(self.churn.did),
            measured=dict(self.churn.did - self._warm_did),
            killed=dict(self.killed),
            fell=tuple(self.fell),
            interrupted=len(self.readings) < self.plan.waves,
            series=tuple(self.series_of(len(self.readings), frozenset(last) - frozenset(_MORTAL))),
            calm=tuple(self.series_of(self.plan.calm, frozenset(_MORTAL) & frozenset(last))),
        )

    def series_of(self, until: int, ids: frozenset[str]) -> list[Series]:
        """Of the processes that lived until then, from when the one began that was there then."""
        readings = self.readings[:until]
        found = []
        for id in sorted(ids & readings[-1][1].keys()):
            pid, held = readings[-1][1][id]
            own = [(at, told[id]) for at, told in readings if id in told and told[id][0] == pid]
            for gauge in sorted(held):
                points = tuple((at, values.get(gauge, 0.0)) for at, (_, values) in own)
                found.append(Series(id, gauge, points, max(0, self.plan.warm - (len(readings) - len(own)))))
        return found


def _merged(one: Reading, other: Reading) -> Reading:
    """Together, with the files that are connections of a bounded pool counted apart."""
    both = {id: {**one.get(id, {}), **other.get(id, {})} for id in {**one, **other}}
    for held in both.values():
        if gauges.FDS in held:
            held[gauges.FDS] -= held.get(holdings.POOLED, 0.0)
    return both


def _all(samples: list[Reading], id: str, gauge: str) -> list[float]:
    """A gauge that was not told in one of them counts as the others say."""
    return [sample[id][gauge] for sample in samples if gauge in sample.get(id, {})]
