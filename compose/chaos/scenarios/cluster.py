"""Three NATS servers: one is killed, leaves, lets another lead, or is cut off with a minority."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

from broker.bus.errors import BusError
from broker.bus.log import get, is_end_of_batch, stream_info
from broker.bus.nats import Bus
from broker.bus.subjects import JOBS_STREAM, log_stream, log_subject, partition_of
from compose.chaos.fault import Fault, comes_true
from compose.chaos.faults.process import kill, lame_duck
from compose.chaos.faults.stream import step_down
from compose.chaos.http import call
from compose.chaos.link import Link
from compose.chaos.round import UNDERWAY_TIMEOUT, Round, Spoiled
from compose.chaos.scenario import scenario
from compose.chaos.whole import Process
from compose.chaos.world import CLUSTER

ELECTION = 9.0
"""Longest election by NATS's own constants (4 to 9 s), and what the failure table adds to it is 1 s."""
CUT = 6.0
SIGN_TIMEOUT = 45.0
ASK_TIMEOUT = 1.0  # of one question to a server that may be cut off
BEHIND = 5  # frames by which a replica must lag, so that it is not only a moment late


async def _leader(round: Round, stream: str) -> Process:
    """The server that leads a stream now."""
    while True:
        try:
            if name := (await stream_info(round.system.bus, stream)).leader:
                return round.system.process(name)
        except BusError:
            pass  # an election is under way: asked again, within the round's deadline
        await asyncio.sleep(0.1)


async def _busiest(round: Round) -> Process:
    """The server that leads most of the logs that are being written."""
    led = Counter([(await _leader(round, log_stream(partition_of(one.sid)))).id for one in round.crowd.watched])
    return round.system.process(led.most_common(1)[0][0])


@scenario(
    "the server that leads most of the running logs is killed",
    world=CLUSTER,
    bound=ELECTION + 1,
    takeovers=True,
    keeps_connections=True,
    weight=3,
)
async def leader_kill(round: Round) -> None:
    await round.work(14)
    victim = await _busiest(round)
    await round.hurt(kill(victim, round.aim(victim)))
    await round.system.back(victim)


@scenario(
    "the server that leads the job queue is killed: every held job is delivered again, and nobody takes over",
    world=CLUSTER,
    bound=ELECTION + 1,
    keeps_connections=True,
    weight=3,
)
async def jobs_leader_kill(round: Round) -> None:
    await round.work(14)
    victim = await _leader(round, JOBS_STREAM)
    await round.hurt(kill(victim, round.aim(victim)))
    await round.system.back(victim)


@scenario("the leader of a log lets another server lead", world=CLUSTER, bound=1.0, keeps_connections=True, weight=6)
async def leader_stepdown(round: Round) -> None:
    watched = await round.work(4)
    for session in round.rng.sample(watched, min(3, len(watched))):
        stream = log_stream(partition_of(session.sid))
        leader = (await _leader(round, stream)).id
        fault = step_down(round.system.bus, stream, leader, "KV_tickets" if round.control else stream)
        await round.hurt(fault, session.viewers)


@scenario(
    "a server enters lame duck mode; its clients move before it ends",
    world=CLUSTER,
    bound=0.25,
    keeps_connections=True,
    weight=3,
)
async def nats_lame_duck(round: Round) -> None:
    await round.work(6)
    victim = round.pick("nats")
    await round.hurt(lame_duck(victim, round.aim(victim), lambda: round.system.log(victim.id)))
    await asyncio.sleep(3)  # by then everybody has left; it would take its 30 s to end by itself
    if not round.control:
        await round.hurt(kill(victim, victim), [])
        await round.system.back(victim)


@scenario(
    "a server is cut off from the two others, with everybody who hangs on it",
    world=CLUSTER,
    takeovers=True,
    keeps_connections=True,
    weight=2,
)
async def minority_cut(round: Round) -> None:
    await round.work(14)
    fault = _cut_off(round, round.pick("nats"))
    await round.hurt(fault)
    await asyncio.sleep(CUT)
    await round.heal(fault)


@scenario(
    "viewers come back while a replica that lags answers for the log",
    world=CLUSTER,
    takeovers=True,
    keeps_connections=True,
    weight=2,
)
async def replica_lags(round: Round) -> None:
    watched = await round.work(12)
    busiest = (await _busiest(round)).id
    victim = round.rng.choice([one for one in round.system.processes("nats") if one.id != busiest])
    behind = [round.crowd.watch(session) for session in watched]
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await asyncio.gather(*(viewer.seen(2) for viewer in behind))
    if all(viewer.over for viewer in behind):
        raise Spoiled("every answer was over when the last viewer had come")
    for viewer in behind:
        viewer.hold()
        viewer.kick()
    fault = _cut_off(round, victim)
    await round.hurt(fault)
    for viewer in behind:
        viewer.go_on()
    await asyncio.sleep(CUT / 2)
    await round.heal(fault)


def _cut_off(round: Round, victim: Process) -> Fault:
    """Nothing passes between a server and the others: no FIN, no RST, silence.

    Proven by its stale answer to a get, or by its own word that it has lost the others.
    """
    links = [link for name, link in round.system.links.items() if victim.id in name.split(">")]
    struck = [Link("decoy")] if round.control else links
    addresses = {f"nats-{number}": url for number, url in enumerate(round.system.nats_url.split(","), 1)}

    async def strike() -> None:
        for link in struck:
            link.hush()

    async def stale() -> str | None:
        others = ",".join(url for name, url in addresses.items() if name != victim.id)
        async with AsyncExitStack() as connected:
            bus = await _connect(connected, addresses[victim.id], "okome-chaos-minority")
            majority = await _connect(connected, others, "okome-chaos-majority")
            asked = (_lag(majority, bus, session.sid) for session in round.crowd.watched)
            for sid, newest, told in filter(None, await asyncio.gather(*asked)):
                if newest - told > BEHIND:
                    return f"{victim.id} says that {sid} ends at {told}, its leader says {newest}"
        # A replica that has just been started answers no gets yet; but it misses its leader like everybody.
        health = await call(victim.url, "GET", "/healthz?js-meta-only=true", "")
        return f"{victim.id} has lost the others: {health.body[:120].decode()}" if health.status != 200 else None

    async def undo() -> None:
        for link in struck:
            link.speak()

    where = urlsplit(addresses[victim.id])
    what = f"a stale answer of {victim.id} at port {where.port}, or its loss of the others,"
    timeout = 2.0 if round.control else SIGN_TIMEOUT
    return Fault(f"routes of {victim.id}", strike, lambda: comes_true(stale, what, timeout), undo)


async def _connect(stack: AsyncExitStack, url: str, name: str) -> Bus:
    """Closed with the stack. Raises BusUnavailable."""
    bus = await Bus.connect(url, name)
    stack.push_async_callback(bus.close)
    return bus


async def _lag(majority: Bus, minority: Bus, sid: str) -> tuple[str, int, int] | None:
    """A session, and where its log ends for the majority and, asked later, for the others; None: not both answered."""
    stream, subject = log_stream(partition_of(sid)), log_subject(sid)
    try:
        newest = await get(majority, stream, last_by=subject, timeout=ASK_TIMEOUT)
        answer = await minority.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout=ASK_TIMEOUT)
    except BusError:
        return None
    if newest is None or is_end_of_batch(answer):
        return None
    return sid, newest.seq, int((answer.headers or {}).get("Nats-Sequence", 0))
