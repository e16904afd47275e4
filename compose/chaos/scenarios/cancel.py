"""Answers that are cancelled, from any device: before the first token, in the middle, twice, too late."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from broker.bus.frames import CANCELLED, START
from broker.bus.log import last
from broker.bus.subjects import log_stream, log_subject, partition_of
from compose.chaos.answers import answered
from compose.chaos.crowd import Watched
from compose.chaos.faults.cancel import Device, cancel, insisting, over_http, over_socket
from compose.chaos.round import Round
from compose.chaos.scenario import scenario
from compose.chaos.world import IMPATIENT

LONG = 45.0  # seconds: no answer that is to be cancelled ends by itself before
WRONG_LONG = 12.0  # the same in a control run, where it does
BUSY = 15.0  # seconds that a slot is taken: until every slot is, on a busy machine, and all who wait are cancelled
CANCELS_PER_SECOND = 16
TAKEN_TIMEOUT = 45.0
AT_ONCE = 0.25  # seconds, p99: a worker is nudged
QUEUED = 3.0  # the same on workers whose every slot decodes


def _stopped(when: str, bound: float) -> dict[str, float]:
    """The bounds of what `_cancel_all` measures."""
    return {f"cancel_to_stopped_{when}": bound, f"cancel_to_worker_stopped_{when}": bound}


@scenario(
    "answers are cancelled in the middle of a word; those beside them go on",
    weight=6,
    figures=_stopped("mid_decode", AT_ONCE),
)
async def cancel_mid_decode(round: Round) -> None:
    watched = await round.work(_long(round))
    await _cancel_all(round, watched, "mid_decode")


@scenario(
    "answers are cancelled before their first token: the log holds what was asked, and the end",
    weight=4,
    figures=_stopped("unbegun", AT_ONCE),
)
async def cancel_unbegun(round: Round) -> None:
    scripts = [round.script(1, ttft_ms=int(_long(round) * 1000)) for _ in range(round.sessions)]
    watched = await round.crowd.gather(scripts)
    # At once, when a worker may not have it yet, and later, when one is in the middle of its prefill.
    await _cancel_all(round, watched, "unbegun")
    for session in watched:
        _expect(round, session, [START, CANCELLED])


@scenario(
    "answers are cancelled that wait for a slot, while every slot decodes",
    world=IMPATIENT,
    weight=3,
    figures=_stopped("queued", QUEUED),
)
async def cancel_queued(round: Round) -> None:
    slots = int(IMPATIENT.environment["OKOME_WORKER_SCRIPTED_SLOTS"]) * len(round.system.processes("worker"))
    scripts = [round.script(BUSY) for _ in range(slots + max(2, round.sessions // 2))]
    watched = await round.crowd.gather(scripts)
    async with asyncio.timeout(TAKEN_TIMEOUT):
        await round.system.until(lambda: sum(bool(viewer.worker) for viewer in round.crowd.viewers) >= slots)
    waiting = [session for session in watched if not session.viewers[0].worker]
    await _cancel_all(round, waiting, "queued")
    for session in waiting:
        _expect(round, session, [START, CANCELLED])


@scenario(
    "an answer is cancelled by three devices at once, again when it is over, and one that was finished",
    weight=4,
    figures={"cancel_to_stopped": AT_ONCE},
)
async def cancel_twice_and_late(round: Round) -> None:
    short = await round.crowd.gather([round.script(0.5) for _ in range(2)])
    watched = await round.work(_long(round))
    for session in watched:
        devices = _devices(round, session)
        (asked,) = session.asked
        first, *others = round.rng.sample(devices, len(devices))
        fault, led = cancel(session, asked, first, wrong=round.control)
        answers, _ = await asyncio.gather(
            asyncio.gather(*(device(session.sid, asked.gid) for device in others if not round.control)),
            round.hurt(fault, []),
        )
        round.figure("cancel_to_stopped", led.seen_after)
        _accepted(round, session, answers, {CANCELLED, "running", "queued"})
    await asyncio.gather(*(viewer.changed(lambda one: one.ended > 0) for one in short for viewer in one.viewers))
    for session in (*watched, *short):
        await _too_late(round, session)


def _long(round: Round) -> float:
    return WRONG_LONG if round.control else LONG


async def _cancel_all(round: Round, watched: Sequence[Watched], when: str) -> None:
    """Each at a moment of its own, by a device drawn by chance."""

    async def one(session: Watched, pause: float, device: Device) -> None:
        await asyncio.sleep(pause)
        fault, led = cancel(session, session.asked[0], device, wrong=round.control)
        await round.hurt(fault, [])
        round.figure(f"cancel_to_stopped_{when}", led.seen_after)
        round.figure(f"cancel_to_worker_stopped_{when}", led.stopped_after)

    rng, seconds = round.rng, max(0.5, len(watched) / CANCELS_PER_SECOND)
    pauses = [rng.choice((0, 1, 1)) * rng.uniform(0, seconds) for _ in watched]  # some at once
    devices = [rng.choice(_devices(round, session)) for session in watched]
    await asyncio.gather(*map(one, watched, pauses, devices))


def _devices(round: Round, session: Watched) -> list[Device]:
    """Another tab, the tenant's own server, and a WebSocket, each at an ingress of its own choice."""
    return [
        insisting(over_http(round.door, session.token)),
        insisting(over_http(round.door, round.system.api_key)),
        insisting(over_socket(round.door, session.token)),
    ]


async def _too_late(round: Round, session: Watched) -> None:
    """A cancel of what is over: accepted, told how it ended, and not a frame more in the log."""
    (asked,) = session.asked
    before = await _last(round, session.sid)
    answers = await asyncio.gather(*(device(session.sid, asked.gid) for device in _devices(round, session)))
    # The record follows the log: until OKOME has written it, it may still say `running`.
    _accepted(round, session, answers, {*asked.ends, "running", "queued"})
    if await _last(round, session.sid) != before:
        round.broken("terminal", session.sid, "a cancel after the end has changed the log")


def _accepted(round: Round, session: Watched, answers: Sequence[tuple[bool, str]], statuses: set[str]) -> None:
    for accepted, status in answers:
        if not accepted or status not in statuses:
            round.broken("cancel", session.sid, f"answered {'accepted' if accepted else 'rejected'}, {status}")


def _expect(round: Round, session: Watched, names: list[str]) -> None:
    for viewer in session.viewers:
        seen = [event.name for event in viewer.stored()]
        if seen != names:
            round.broken("cancel", session.sid, f"the log has {seen}, not {names}")


async def _last(round: Round, sid: str) -> int:
    stream, subject = log_stream(partition_of(sid)), log_subject(sid)
    stored = await answered(lambda: last(round.system.bus, stream, subject))
    return stored.seq if stored is not None else 0
