"""Viewers who leave: an answer is finished without them, or after the grace is not; and nobody is held on to."""

from __future__ import annotations

import asyncio
import json
from weakref import WeakKeyDictionary

from broker.bus.chain import Chain
from broker.bus.clock import now_ms
from broker.bus.errors import ChainBroken
from broker.bus.frames import CANCELLED, DONE, TERMINAL, Frame, decode_frame
from broker.bus.log import last
from broker.bus.subjects import log_stream, log_subject, partition_of
from compose.chaos import gauges
from compose.chaos.answers import answered
from compose.chaos.crowd import Watched
from compose.chaos.faults.abort import Aborters, abort, nowhere
from compose.chaos.faults.leave import leave
from compose.chaos.log import read_log
from compose.chaos.round import UNDERWAY_TIMEOUT, Round
from compose.chaos.scenario import scenario
from compose.chaos.viewer import Transport
from compose.chaos.world import IMPATIENT

GRACE = float(IMPATIENT.environment["OKOME_WORKER_GRACE"])
DEMAND_INTERVAL = 2.0 + 1.0
"""Seconds between two words of a node about its viewers, and of its looking whether one is due: the silence may have
begun so long before they left."""
LATENESS = 3.0  # seconds after the grace in which a worker has noticed
RUNS = 40.0  # seconds that an answer would take which is cancelled long before
END_TIMEOUT = 60.0
BACK_TIMEOUT = 30.0
ABORTS_PER_SESSION = 25

NAMES = (
    gauges.FDS,
    gauges.TASKS,
    gauges.CONSUMERS,
    "jobs",
    "connections",
    "subscriptions",
    "okome_control_open_generations",
    "okome_ingress_connections",
    "okome_ingress_streams_active",
    "okome_node_subscribers",
    "okome_node_tails",
    "okome_worker_held",
    "okome_worker_running",
)

_first: WeakKeyDictionary[object, gauges.Reading] = WeakKeyDictionary()
"""What a system held before anybody broke off, in the first round of a run."""


@scenario("everybody leaves in the middle of the answer: it is finished all the same, and waits for them", weight=4)
async def disconnect(round: Round) -> None:
    watched = await round.work(6, viewers=2)  # so that nobody's answer has ended when the last one's has begun
    viewers = [viewer for session in watched for viewer in session.viewers]
    fault = leave(round.system, viewers, wrong=round.control)
    await round.hurt(fault, [])
    await asyncio.gather(*(_terminal(round, session.sid) for session in watched))
    await round.heal(fault)


@scenario(
    "sessions that say so are cancelled when nobody has watched for the grace; who comes back in time finds it running",
    world=IMPATIENT,
    weight=3,
)
async def grace_cancel(round: Round) -> None:
    watched = await _impatient(round)
    # Twice: nodes say it once a second, and who was never said to watch cannot have left.
    await asyncio.sleep(DEMAND_INTERVAL)
    fault = leave(round.system, round.crowd.viewers, wrong=round.control)
    left_at = now_ms()
    await round.hurt(fault, [])
    back, gone = watched[::2], watched[1::2]
    if any(session.viewers[0].over for session in gone):
        round.spoil("an answer that nobody was to watch was over when its viewer left")
    await asyncio.sleep(round.rng.uniform(0, GRACE - DEMAND_INTERVAL))
    await asyncio.gather(*(_come_back(session, left_at) for session in back))
    for session in gone:
        end = await _terminal(round, session.sid)
        after = (json.loads(end.data)["t"] - left_at) / 1000
        if end.type != CANCELLED:
            round.broken("grace", session.sid, f"nobody watched, and it ended with {end.type}")
        elif after < GRACE - DEMAND_INTERVAL:
            round.broken("grace", session.sid, f"cancelled {after:.1f} s after its viewer left")
        session.asked[0].ends = (CANCELLED,)
        round.figure("left_to_cancelled", after)
    await round.heal(fault)


async def _impatient(round: Round) -> list[Watched]:
    """Running answers of sessions that are not to be finished for nobody; every second viewer will not come back.

    Those answers are long, because they are cancelled; in a control run they are not.
    """

    async def begin(number: int) -> Watched:
        session = await round.crowd.open(on_disconnect="cancel")
        round.crowd.watch(session, Transport.WS if number % 3 == 2 else Transport.SSE)
        await round.crowd.ask(session, scripts[number])
        return session

    watched_to_the_end = 2 * GRACE + LATENESS
    seconds = (watched_to_the_end, watched_to_the_end if round.control else RUNS)
    scripts = [round.script(seconds[number % 2]) for number in range(max(4, round.sessions))]
    watched = list(await asyncio.gather(*map(begin, range(len(scripts)))))
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await round.crowd.underway()
    return watched


async def _come_back(session: Watched, left_at: int) -> None:
    """Watch again. Whoever is not there again in time, on a machine that has much to do, may find it cancelled."""
    viewer = session.viewers[0]
    connections = viewer.connections
    viewer.go_on()
    async with asyncio.timeout(END_TIMEOUT):
        await viewer.changed(lambda one: one.over or one.connections > connections)
    if (now_ms() - left_at) / 1000 > GRACE - DEMAND_INTERVAL:
        session.asked[0].ends = (DONE, CANCELLED)


@scenario("hundreds of clients break off anywhere in what they say or hear; nothing of them is left", world=IMPATIENT)
async def aborts(round: Round) -> None:
    """`okome chaos --scenario aborts --sessions 16 --faults 25` is 10 000 of them, every round of which is compared
    with its own start and with the start of the run."""
    before = await _read(round)
    first = _first.setdefault(round.system, before)
    sessions = [await round.crowd.open() for _ in range(max(2, round.sessions // 2))]
    watched = await round.work(4)
    decoy = await round.stack.enter_async_context(nowhere())
    clients = Aborters((lambda: decoy) if round.control else round.door, round.system.api_key, sessions, round.rng)
    times = round.sessions * ABORTS_PER_SESSION
    await round.hurt(abort(round.system, clients, times, wrong=round.control))
    await asyncio.gather(*(_terminal(round, session.sid) for session in watched))
    await round.crowd.over(END_TIMEOUT)
    for session in sessions:
        await _closed(round, session)
    for since, start in (("this round", before), ("the first one", first)):
        if left := await _left(round, start):
            round.broken("left", "", f"since the beginning of {since}: {'; '.join(left)}")


async def _read(round: Round) -> gauges.Reading:
    """Of everybody: what one did not tell would be found left behind later."""
    reading: gauges.Reading = {}

    async def complete() -> bool:
        nonlocal reading
        reading = await gauges.read(round.system)
        return not gauges.silent(round.system, reading)

    async with asyncio.timeout(BACK_TIMEOUT):
        await round.system.until(complete)
    return reading


async def _left(round: Round, start: gauges.Reading) -> list[str]:
    """What has not come back to where it was, when it had time to."""
    left: list[str] = []

    async def back() -> bool:
        nonlocal left
        now = await gauges.read(round.system)
        left = [f"{id} did not tell what it holds" for id in gauges.silent(round.system, now)]
        left = left or gauges.left(_comparable(start), _comparable(now), NAMES)
        return not left

    try:
        async with asyncio.timeout(BACK_TIMEOUT):
            await round.system.until(back)
    except TimeoutError:
        pass  # `left` says what
    return left


def _comparable(reading: gauges.Reading) -> gauges.Reading:
    """As it can be compared: files of our roles together, and without those of two that nobody can leave behind.

    A role's pool of connections to Redis is bounded (16 a node, 64 an ingress) and never shrinks; each of them is a
    file at both ends. NATS servers open and close the files of their streams as they please.
    """
    found = {id: {name: value for name, value in held.items() if name != gauges.FDS} for id, held in reading.items()}
    files = {id: held.get(gauges.FDS, 0.0) for id, held in reading.items() if not id.startswith("nats")}
    pooled = sum(value for id, value in files.items() if id.startswith("redis"))
    return {**found, "roles": {gauges.FDS: sum(files.values()) - 2 * pooled}}


async def _terminal(round: Round, sid: str) -> Frame:
    """The last frame of a session's log, once it is a terminal."""
    async with asyncio.timeout(END_TIMEOUT):
        while True:
            stored = await answered(lambda: last(round.system.bus, log_stream(partition_of(sid)), log_subject(sid)))
            if stored is not None and (frame := decode_frame(stored.data, stored.seq)).type in TERMINAL:
                return frame
            await asyncio.sleep(0.05)  # the log is looked at; there is no event, because nobody watches


async def _closed(round: Round, session: Watched) -> None:
    """Whatever was asked for in it has ended, once."""
    if not (await read_log(round.system.bus, session.sid))[0]:
        return
    await _terminal(round, session.sid)
    frames, _ = await read_log(round.system.bus, session.sid)
    chain = Chain()
    try:
        for frame in frames:
            chain.advance(frame)
    except ChainBroken as error:
        round.broken("chain", session.sid, str(error))
