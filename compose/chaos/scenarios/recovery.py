"""`okome up --data DIR` killed with everything at once, and started again: as it was, or with the ends of logs lost."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from broker.bus.frames import START
from broker.bus.kv import Bucket
from broker.bus.log import get, stream_info
from broker.bus.script import Script
from broker.bus.subjects import log_stream, partition_of
from compose.chaos.answers import answered
from compose.chaos.crowd import Watched
from compose.chaos.fault import DidNotHappen, Fault
from compose.chaos.faults.process import kill_all
from compose.chaos.faults.store import Record, cut, last_sequence
from compose.chaos.household import Household
from compose.chaos.round import Round
from compose.chaos.scenario import scenario
from compose.chaos.viewer import Viewer
from compose.chaos.world import RECOVERY

RESUMED_TIMEOUT = 60.0
ENDED_TIMEOUT = 60.0
FLOORS_TIMEOUT = 45.0
DEAD = 1.0  # seconds after a kill at which nothing that was under way can still arrive: it takes longer to start anew


@scenario(
    "everything is killed at once and started again on the same directory: what runs is taken over",
    world=RECOVERY,
    takeovers=True,
)
async def everything_killed(round: Round) -> None:
    system = _household(round)
    await round.work(4)
    family = system.family()
    running = round.crowd.running()
    await round.hurt(kill_all(family, [system.decoy] if round.control else family))
    killed = asyncio.get_running_loop().time()
    await system.forget()
    await system.start()
    await _resumed(round, running, killed)


@scenario(
    "power is lost, and with it the ends of some logs, of running answers and of one that had ended",
    world=RECOVERY,
    takeovers=True,
    weight=3,
)
async def store_cut(round: Round) -> None:
    """What is cut away reaches below the floor that OKOME keeps, or is so little that only the machine's own new start
    tells of it."""
    system = _household(round)
    power = round.rng.random() < 0.5
    ended, twice = await round.crowd.open(), await round.crowd.open()
    for one in (ended, twice):
        round.crowd.watch(one, terminals=2 if one is twice else 1)
        await round.crowd.ask(one, Script(tokens=12, rate=100, seed=round.rng.randrange(1000)))
    async with asyncio.timeout(ENDED_TIMEOUT):
        for one in (ended, twice):
            await one.viewers[0].changed(lambda one: one.ended > 0)
            await system.until(lambda one=one: _recorded(system, one))  # type: ignore[misc]
    await round.crowd.ask(twice, round.script(6))  # longer: it must still run when all the others have begun
    watched = await round.work(4)
    hurt = [ended, twice, *round.rng.sample(watched, max(1, len(watched) // 2))]
    moment = _Moment()
    fault = _cut(round, system, hurt, power, moment)
    incarnations = await asyncio.gather(*(_incarnation(system, one) for one in round.crowd.watched))
    before = dict(zip((one.sid for one in round.crowd.watched), incarnations, strict=True))
    running = round.crowd.running()
    cut_off = {partition_of(one.sid) for one in hurt}
    if not round.control:
        round.renamed.update(one.sid for one in round.crowd.watched if power or partition_of(one.sid) in cut_off)
    await round.hurt(fault)
    for viewer in round.crowd.viewers:
        if _over_at(viewer, moment.killed) and (power or partition_of(viewer.sid) in cut_off):
            round.excused.add(viewer)  # it left with what it had come for; what is told to one who returns counts
    returned = round.crowd.watch(ended, after=ended.viewers[0].cursor)
    await _resumed(round, running, moment.killed)
    async with asyncio.timeout(ENDED_TIMEOUT):
        await asyncio.gather(*(viewer.changed(lambda one: one.ended > 0) for viewer in (*running, returned)))
    for one in round.crowd.watched:
        lost = partition_of(one.sid) in cut_off
        changed = await _incarnation(system, one) != before[one.sid]
        if changed != (lost or power):
            round.broken("reset", one.sid, f"the log {'lost its end' if lost else 'is whole'}; renamed: {changed}")
        for viewer in one.viewers:
            if viewer in round.excused:
                continue
            if ("reset" in viewer.names()) != (lost or power):
                round.broken("reset", one.sid, f"renamed: {changed}; a viewer was told {sorted(viewer.names())}")
            elif "reset" in viewer.names() and not _from_the_start(viewer, one.asked[0].gid):
                round.broken("gap", one.sid, "after its reset a viewer was not told everything from the start")


@dataclass
class _Moment:
    """When everything was killed, in loop time."""

    killed: float = 0.0


def _cut(round: Round, system: Household, hurt: Sequence[Watched], power: bool, moment: _Moment) -> Fault:
    """Kill everything, at a `moment` that is told, cut the logs of these sessions, start again. A control run cuts
    nothing."""
    streams = sorted({log_stream(partition_of(one.sid)) for one in hurt})
    taken: dict[str, list[Record]] = {}

    async def strike() -> None:
        async with asyncio.timeout(FLOORS_TIMEOUT):
            floors = {stream: await _floor(system, stream) for stream in streams}
        family = system.family()
        all_of_them = kill_all(family, family)
        await all_of_them.strike()
        await all_of_them.happened()
        moment.killed = asyncio.get_running_loop().time()
        await system.forget()
        store = system.data / "nats-1"
        for stream in streams if not round.control else ():
            end = last_sequence(store, stream)
            keep = end - round.rng.randint(1, 3) if power else round.rng.randrange(min(floors[stream], end))
            taken[stream] = cut(store, stream, max(0, keep))
        started_anew = {"OKOME_CONTROL_STORE_BOOT": f"chaos-{round.number}"} if power and not round.control else {}
        await system.start(**started_anew)

    async def shorter() -> str:
        proofs = []
        for stream in streams:
            lost = taken.get(stream)
            if not lost:
                raise DidNotHappen(f"{stream} lost nothing")
            first = await answered(functools.partial(get, system.bus, stream, lost[0].seq))
            if first is not None and first.data in lost[0].data:
                raise DidNotHappen(f"{stream} has message {lost[0].seq} still")
            proofs.append(f"{stream} lost {lost[0].seq} to {lost[-1].seq}")
        return f"{', '.join(proofs)}, {'behind' if power else 'from below'} the floors"

    return Fault(f"the ends of {', '.join(streams)}", strike, shorter)


async def _floor(system: Household, stream: str) -> int:
    """Where OKOME last saw the log's end, once it has seen something in it."""
    secrets = Bucket(system.bus, "secrets")
    seq = 0

    async def seen() -> int:
        nonlocal seq
        entry = await answered(lambda: secrets.get(f"floor.{stream.removeprefix('TOK_')}"))
        seq = int(msgspec.json.decode(entry.value)["seq"]) if entry else 0
        return seq

    await system.until(seen)
    return seq


async def _incarnation(system: Household, one: Watched) -> str:
    return (await answered(lambda: stream_info(system.bus, log_stream(partition_of(one.sid))))).incarnation


async def _recorded(system: Household, one: Watched) -> bool:
    """OKOME's record of its answer is closed."""
    records = Bucket(system.bus, "generations")
    entry = await answered(lambda: records.get(f"{one.sid}.{one.asked[0].gid}"))
    return entry is not None and bool(msgspec.json.decode(entry.value).get("last_seq"))


async def _resumed(round: Round, running: Sequence[Viewer], killed: float) -> None:
    """Wait until every viewer's answer goes on, and note how long that took; somebody's must not have ended before."""
    cut_short = [viewer for viewer in running if not _over_at(viewer, killed)]
    if not cut_short:
        round.spoil("every answer was over when everything was killed")
    async with asyncio.timeout(RESUMED_TIMEOUT):
        await asyncio.gather(*(viewer.changed(lambda one: _after(one, killed) > 0) for viewer in cut_short))
    for viewer in cut_short:
        round.figure("killed_to_next_token", _after(viewer, killed) - killed)


def _after(viewer: Viewer, killed: float) -> float:
    """When the first stored event came that was not under way when everything was killed; 0 while none has."""
    return next((event.at for event in viewer.events if event.stored and event.at > killed + DEAD), 0.0)


def _over_at(viewer: Viewer, killed: float) -> bool:
    """It had seen the end, or was about to, when everything was killed."""
    return viewer.over and viewer.stored()[-1].at <= killed + DEAD


def _from_the_start(viewer: Viewer, gid: str) -> bool:
    """What it was told since its last `reset` begins with the beginning of the first answer."""
    since = max(index for index, event in enumerate(viewer.events) if event.name == "reset")
    first = next((event for event in viewer.events[since:] if event.stored), None)
    return first is not None and first.name == START and gid in first.data.decode()


def _household(round: Round) -> Household:
    assert isinstance(round.system, Household)
    return round.system
