"""Streams and consumers of one NATS server: what an operator, a bug or retention may do to them under live viewers."""

from __future__ import annotations

import asyncio

from broker.bus.log import StreamInfo, stream_info
from broker.bus.subjects import log_stream, partition_of
from compose.chaos.answers import answered
from compose.chaos.crowd import Watched
from compose.chaos.faults.stream import consumers, delete_consumer, fill, last_sequence, purge, recreate
from compose.chaos.round import UNDERWAY_TIMEOUT, Round, Spoiled
from compose.chaos.scenario import scenario
from compose.chaos.viewer import Viewer
from compose.chaos.world import TIGHT

NOBODY = "00" + "0" * 20  # a session that does not exist: what a control run strikes
MISSED = 40  # frames that a late viewer has not seen: more than any ring of this world has


@scenario("the consumer of a node's tail is deleted under it", bound=1.5, keeps_connections=True, weight=6)
async def consumer_delete(round: Round) -> None:
    watched = await round.work(3)
    session = round.rng.choice(watched)
    stream = log_stream(partition_of(session.sid))
    names = await consumers(round.system.bus, stream)
    name = round.rng.choice(sorted(names))
    fault = delete_consumer(round.system.bus, stream, name, "nobody" if round.control else name)
    same = [v for one in watched if partition_of(one.sid) == partition_of(session.sid) for v in one.viewers]
    await round.hurt(fault, same)


@scenario(
    "the beginning of a log is taken away under live viewers, and under one who is behind",
    world=TIGHT,
    keeps_connections=True,
    weight=3,
)
async def frames_purged(round: Round) -> None:
    watched = await round.work(6, rate=50, burst=1, tokens=300)
    session = round.rng.choice(round.going(watched))
    live = session.viewers[0]
    late = round.crowd.watch(session)
    await late.seen(2)
    if late.over:
        raise Spoiled("the late viewer had seen the end before it could fall behind")
    late.hold()
    late.kick()
    behind = late.stored()[-1].seq
    await live.changed(lambda viewer: viewer.over or _missed(viewer, behind) > MISSED)
    if _missed(live, behind) <= MISSED:
        raise Spoiled(f"{_missed(live, behind)} frames followed, too few for a viewer to be behind")
    last = await last_sequence(round.system.bus, session.sid)
    _forget(round, session)
    aim = NOBODY if round.control else session.sid
    await round.hurt(purge(round.system.bus, session.sid, aim, before=last - 3), [live])
    late.go_on()
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await late.changed(lambda viewer: viewer.ended > 0)
    if "reset" not in late.names():
        round.broken("reset", session.sid, "what the viewer had not seen was taken away, and it was not told")


def _missed(viewer: Viewer, behind: int) -> int:
    """How many frames it has seen that another one, `behind`, has not."""
    return sum(event.seq > behind for event in viewer.stored())


@scenario("a whole log is purged under its writer and its viewers", world=TIGHT, takeovers=True, weight=1)
async def log_purged(round: Round) -> None:
    watched = await round.work(3)
    session = round.rng.choice(watched)
    _forget(round, session)
    aim = NOBODY if round.control else session.sid
    await round.hurt(purge(round.system.bus, session.sid, aim), session.viewers)


@scenario(
    "a partition's stream is deleted and made anew, with another incarnation",
    world=TIGHT,
    takeovers=True,
    weight=1,
)
async def stream_recreated(round: Round) -> None:
    watched = await round.work(3)
    session = round.rng.choice(watched)
    partition = partition_of(session.sid)
    info = await answered(lambda: stream_info(round.system.bus, log_stream(partition)))
    same = [one for one in watched if partition_of(one.sid) == partition]
    for one in same:
        _forget(round, one)
    aim = "TOK_none" if round.control else log_stream(partition)
    await round.hurt(
        recreate(round.system.bus, partition, info.incarnation, aim), [v for one in same for v in one.viewers]
    )


@scenario("a partition is full: its running answer ends in words, and the others go on", weight=3)
async def stream_full(round: Round) -> None:
    watched = await round.work(5, rate=300, burst=4, tokens=1500)
    session = round.rng.choice(round.going(watched))
    partition = partition_of(session.sid)
    for one in watched:
        if partition_of(one.sid) == partition:
            one.asked[0].ends = ("failed", "done")
    other = next(name for name in ("00", "01") if name != partition)
    aim = log_stream(other if round.control else partition)
    fault = fill(round.system.bus, partition, aim)
    roomy = await answered(lambda: stream_info(round.system.bus, log_stream(partition)))
    await round.hurt(fault, [])
    proven = asyncio.get_running_loop().time()
    viewer = session.viewers[0]
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await viewer.changed(lambda one: one.ended > 0)
    ended = viewer.stored()[-1]
    full = await answered(lambda: stream_info(round.system.bus, log_stream(partition)))
    # Room again: OKOME has repaired the limit, or purged a session of an earlier round.
    room = full.max_bytes == roomy.max_bytes or _taken_away(full) != _taken_away(roomy)
    if b'"log_full"' not in ended.data and ended.at > proven and not room:
        round.broken("terminal", session.sid, f"the log was full, and the answer ended with {ended.data!r}")
    await round.heal(fault)


def _taken_away(info: StreamInfo) -> int:
    """How many frames the log has lost so far."""
    return info.last_seq - info.messages


def _forget(round: Round, session: Watched) -> None:
    if not round.control:
        round.purged.add(session.sid)
