"""Engines that raise, stand still, or say what is no answer: one terminal, and nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from compose.chaos.fault import Fault, shows
from compose.chaos.faults.process import kill
from compose.chaos.round import Round
from compose.chaos.scenario import scenario
from compose.chaos.world import MODEL

SIGN_TIMEOUT = 20.0
STALL = 1.5


async def _beside(round: Round, ends: Sequence[str], sign: bytes, what: str, **script: object) -> None:
    """One more answer beside the crowd's, whose engine misbehaves as its script says; its end must show `sign`."""
    await round.work(3)
    others = round.crowd.running()
    session = await round.crowd.open()
    viewer = round.crowd.watch(session)
    told = round.script(2, **({} if round.control else script))

    async def strike() -> None:
        asked = await round.crowd.ask(session, told)
        asked.ends = ("done",) if round.control else tuple(ends)

    def shown() -> str | None:
        found = next((event for event in viewer.events if event.stored and sign in event.data), None)
        return f"{what}: {found.name} {found.data[:160].decode(errors='replace')}" if found is not None else None

    timeout = 4.0 if round.control else SIGN_TIMEOUT
    await round.hurt(Fault(f"the engine of {session.sid}", strike, lambda: shows(shown, what, timeout)), others)


@scenario("an engine raises in the middle of an answer", bound=0.25, keeps_connections=True)
async def engine_raises(round: Round) -> None:
    await _beside(round, ["failed"], b'"code":"engine_failed"', "the answer failed with engine_failed", fail_at=20)


@scenario("an engine says what is no answer, again and again", bound=0.25, takeovers=True, keeps_connections=True)
async def engine_broken(round: Round) -> None:
    sign = b'"code":"attempts_exhausted"'
    await _beside(round, ["failed"], sign, "the answer failed with attempts_exhausted", broken_at=20)


@scenario("an engine stands still for a while; nobody takes over", keeps_connections=True)
async def engine_stalls(round: Round) -> None:
    await round.work(3)
    others = round.crowd.running()
    session = await round.crowd.open()
    viewer = round.crowd.watch(session)
    told = round.script(2, **({} if round.control else {"stall_at": 20, "stall_ms": int(STALL * 1000)}))

    async def strike() -> None:
        await round.crowd.ask(session, told)

    async def stood() -> str:
        def gap() -> str | None:
            times = [event.at for event in viewer.events if event.stored]
            longest = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
            return f"{longest:.2f} s without a token" if longest > 0.8 * STALL else None

        return await shows(gap, "a pause of the engine", 5.0 if round.control else SIGN_TIMEOUT)

    await round.hurt(Fault(f"the engine of {session.sid}", strike, stood), others)
    async with asyncio.timeout(SIGN_TIMEOUT):
        await viewer.changed(lambda one: one.ended > 0)


@scenario("the process of a real model is killed in the middle of an answer", world=MODEL, takeovers=True, weight=3)
async def engine_child_kill(round: Round) -> None:
    session = await round.crowd.open(model="smollm2")
    viewer = round.crowd.watch(session)
    await round.crowd.ask(session, None, prompt="Count from one to fifty in words.", max_tokens=120, temperature=0)
    async with asyncio.timeout(SIGN_TIMEOUT):
        await viewer.seen(8)
    victim = round.pick("engine")
    await round.hurt(kill(victim, round.aim(victim)))
    async with asyncio.timeout(2 * SIGN_TIMEOUT):
        await viewer.changed(lambda one: one.ended > 0)
    if "attempt" not in viewer.names():
        round.broken("epoch", session.sid, "its engine was killed, and no other attempt was made")
