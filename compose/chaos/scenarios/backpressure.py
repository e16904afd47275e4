"""Backpressure: an engine waits while nobody keeps up, not for ever; and for one who is slow nobody waits."""

from __future__ import annotations

import asyncio
import itertools
from urllib.parse import urlsplit

from broker.bus.frames import TOKEN
from broker.bus.script import Script
from compose.chaos.crowd import Watched
from compose.chaos.fault import Fault
from compose.chaos.faults import link as links
from compose.chaos.faults.lag import RESUMES, Engine, stop_reading
from compose.chaos.link import Link
from compose.chaos.round import UNDERWAY_TIMEOUT, Round
from compose.chaos.scenario import scenario
from compose.chaos.viewer import Viewer
from compose.chaos.world import BRIMFUL

SMALL = 4096  # bytes that a kernel keeps for a reader
WORDY = 10**15  # a seed of that many digits makes every token sixteen bytes longer: buffers are soon full
TORRENT = 20_000  # tokens per second
LASTS = 7.0  # seconds that a torrent would take, if nobody held it up
WAITS_TIMEOUT = 30.0  # until an engine waits
FLOWS_TIMEOUT = 6.0  # the same in a control run, where none does
GOES_ON_TIMEOUT = 30.0
ENDS_TIMEOUT = 40.0

NINE = 9
HALF = 3.0  # seconds that the nine are watched alone, and again beside the slow one
RATE = 100  # tokens per second meanwhile
BEFORE = Script(tokens=80_000, rate=0, seed=WORDY)  # an answer of more bytes than the way to a viewer keeps
TRICKLE = 1000.0  # bytes per second


async def _torrent(round: Round, viewers: int = 3) -> tuple[Watched, Engine]:
    """Beside the crowd's, an answer of more bytes than anything on the way to its viewers keeps."""
    await round.work(3, sessions=max(1, round.sessions // 2))
    session = await round.crowd.open()
    for _ in range(viewers):
        round.crowd.watch(session, receive_buffer=SMALL)
    await round.crowd.ask(session, Script(tokens=int(LASTS * TORRENT), rate=TORRENT, burst=64, seed=WORDY))
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await asyncio.gather(*(viewer.seen(3) for viewer in session.viewers))
    worker = round.system.process(session.viewers[0].worker)
    return session, Engine(round.system.bus, worker, round.system.api_key, session.sid)


def _nobody_reads(round: Round, session: Watched, engine: Engine) -> tuple[Fault, list[Viewer]]:
    """The fault, and everybody else. A control run stops the others: an engine does not wait for those."""
    others = [viewer for viewer in round.crowd.running() if viewer.sid != session.sid]
    aim = others[:1] if round.control else session.viewers
    timeout = FLOWS_TIMEOUT if round.control else WAITS_TIMEOUT
    return stop_reading(engine, session.viewers, aim, timeout), others


@scenario(
    "every viewer of a session stops reading: its engine waits, and goes on when one of them reads again", world=BRIMFUL
)
async def all_readers_lag(round: Round) -> None:
    session, engine = await _torrent(round)
    fault, others = _nobody_reads(round, session, engine)
    await round.hurt(fault, others)
    stood = (await engine.end()).seq
    before = {by: await engine.counted(RESUMES, by) for by in ("viewers", "max_pause")}
    began = asyncio.get_running_loop().time()
    for viewer in round.rng.choice((session.viewers, session.viewers[:1])):
        viewer.go_on()
    async with asyncio.timeout(GOES_ON_TIMEOUT):
        while (await engine.end()).seq == stood:  # noqa: ASYNC110 - only the log tells
            await asyncio.sleep(0)
    round.figure("pause_to_resume", asyncio.get_running_loop().time() - began)
    after = {by: await engine.counted(RESUMES, by) for by in before}
    if after["viewers"] == before["viewers"]:
        why = f"{after['max_pause'] - before['max_pause']:.0f} pauses ended by max_pause"
        round.broken("pause", session.sid, f"a viewer read again, and that ended no pause; {why}")
    await round.heal(fault)


@scenario(
    "every viewer of a session stops reading for good: after max_pause its answer is written to its end", world=BRIMFUL
)
async def pause_gives_up(round: Round) -> None:
    session, engine = await _torrent(round)
    fault, others = _nobody_reads(round, session, engine)
    await round.hurt(fault, others)
    before = await engine.counted(RESUMES, "max_pause")
    async with asyncio.timeout(ENDS_TIMEOUT):
        while not (await engine.end()).terminal:  # noqa: ASYNC110 - only the log tells
            await asyncio.sleep(0.05)
    if await engine.counted(RESUMES, "max_pause") == before:
        round.broken("pause", session.sid, "nobody read again, and the answer went on before max_pause")
    await round.heal(fault)


@scenario(
    "of ten viewers of a session one gets a thousand bytes a second; the nine see no difference",
    world=BRIMFUL,
    weight=2,
)
async def one_slow_of_ten(round: Round) -> None:
    """The nine's gaps between tokens, alone and beside the slow one, in one answer: a shared machine's good and bad
    minutes are the same for both."""
    loop = asyncio.get_running_loop()
    session = await round.crowd.open()
    nine = [round.crowd.watch(session, terminals=2) for _ in range(NINE)]
    await round.crowd.ask(session, BEFORE)
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await asyncio.gather(*(viewer.changed(lambda one: one.ended > 0) for viewer in nine))
    seen = len(nine[0].events)
    await round.crowd.ask(session, Script(tokens=int(2.5 * HALF * RATE), rate=RATE, seed=round.rng.randrange(10**6)))
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await asyncio.gather(*(viewer.changed(lambda one: len(one.events) > seen + RATE // 10) for viewer in nine))
    began = loop.time()
    await asyncio.sleep(HALF)
    link = await round.stack.enter_async_context(Link("a slow client"))
    where = urlsplit(round.system.url)
    link.aim(where.hostname or link.host, where.port or 0)
    aim = await round.stack.enter_async_context(Link("decoy")) if round.control else link
    trickle = links.trickle(link, aim, TRICKLE)

    async def strike() -> None:
        """The answer before fills everything on the way to it: from the start it is out of the node's memory."""
        await trickle.strike()
        round.crowd.watch(session, terminals=2, door=lambda: link.url, receive_buffer=SMALL)

    struck = loop.time()
    fault = Fault("one of ten viewers", strike, trickle.happened, trickle.undo)
    await round.hurt(fault, nine)
    await round.crowd.over_but(session.viewers[-1])
    for viewer in nine:
        for name, since in (("nine_alone", began), ("nine_beside_slow", struck)):
            for gap in _gaps(viewer, since, since + HALF):
                round.figure(name, gap)
    await round.heal(fault)


def _gaps(viewer: Viewer, since: float, until: float) -> list[float]:
    """Seconds between two token events one after the other, both within this time. In 10 µs: there are thousands."""
    times = [event.at for event in viewer.events if event.name == TOKEN and since <= event.at < until]
    return [float(f"{after - before:.5f}") for before, after in itertools.pairwise(times)]
