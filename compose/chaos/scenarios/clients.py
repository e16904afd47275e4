"""Viewers who behave as clients do: they come back all at once, change the transport, stop reading."""

from __future__ import annotations

import asyncio

from compose.chaos.fault import DidNotHappen, Fault, shows
from compose.chaos.round import Round
from compose.chaos.scenario import scenario
from compose.chaos.viewer import Viewer
from compose.chaos.world import TIGHT

SIGN_TIMEOUT = 20.0
WRONG_TIMEOUT = 5.0  # in a control run, where nobody breaks off
KICKS = 6
AHEAD = 100  # events that the others see meanwhile
UNDER_WAY = 20  # events that they see before
ONE_WAKE_UP = 64  # events that may still have been on their way when a reader has stopped


def _kick(viewers: list[Viewer], *, wrong: bool) -> Fault:
    """All of them break off at once, by RST. `wrong`: nobody does."""
    before = {viewer: viewer.connections for viewer in viewers}

    async def strike() -> None:
        if not wrong:
            for viewer in viewers:
                viewer.kick()

    def back() -> str | None:
        # One whose answer ended in that moment has no reason to come back.
        came = sum(viewer.connections > before[viewer] or viewer.ended > 0 for viewer in viewers)
        again = sum(viewer.connections > before[viewer] for viewer in viewers)
        return f"{again} of {len(viewers)} came over a new connection" if came == len(viewers) and again else None

    what = f"new connections of {len(viewers)} viewers"
    timeout = WRONG_TIMEOUT if wrong else SIGN_TIMEOUT
    return Fault(f"{len(viewers)} viewers", strike, lambda: shows(back, what, timeout))


def _are_few(round: Round, viewers: list[Viewer]) -> bool:
    """Whether most answers have ended: then the last ones end in this moment, and nobody comes back for those."""
    return 2 * len(viewers) < len(round.crowd.viewers)


@scenario("everybody is thrown out at once, again and again, while tokens are published", bound=1.0, weight=6)
async def reconnect_storm(round: Round) -> None:
    await round.work(4, viewers=2)
    for number in range(KICKS):
        viewers = round.crowd.running()
        if number and _are_few(round, viewers):
            break
        await round.hurt(_kick(viewers, wrong=round.control), viewers)


@scenario("viewers change between SSE and WebSocket in the middle of a token", bound=1.0, weight=6)
async def transport_switch(round: Round) -> None:
    await round.work(3)
    for number in range(2):
        viewers = round.crowd.running()
        if number and _are_few(round, viewers):
            break
        for viewer in viewers:
            viewer.transport = viewer.transport.other
        await round.hurt(_kick(viewers, wrong=round.control), viewers)


@scenario(
    "a reader stops reading altogether; it disturbs nobody, and goes on where it was", world=TIGHT, bound=0.25, weight=4
)
async def reader_stops(round: Round) -> None:
    watched = await round.work(3, sessions=4, rate=1000, burst=1, tokens=4000)
    session = round.rng.choice(round.going(watched))
    still = round.crowd.watch(session, receive_buffer=4096)
    await still.seen(2)

    async def strike() -> None:
        if not round.control:
            still.hold()

    async def stands() -> str:
        others = [viewer for viewer in round.crowd.viewers if viewer is not still]
        await _go_on(others, UNDER_WAY)  # meanwhile the page arrives that it was reading when it stopped
        read = len(still.events)
        await _go_on(others, AHEAD)
        read = len(still.events) - read
        if still.over:
            raise DidNotHappen("the viewer had read everything when it was to stop")
        if read > ONE_WAKE_UP:
            raise DidNotHappen(f"the viewer went on reading ({read} events)")
        return f"the viewer has read nothing while {len(others)} others saw {AHEAD} more events each"

    async def undo() -> None:
        still.go_on()

    fault = Fault(f"a viewer of {session.sid}", strike, stands, undo)
    await round.hurt(fault, [viewer for viewer in round.crowd.running() if viewer is not still])
    await round.crowd.over_but(still)
    await round.heal(fault)


async def _go_on(viewers: list[Viewer], more: int) -> None:
    """Wait until each of them has seen so many more events, or all."""
    seen = {viewer: len(viewer.events) for viewer in viewers}
    async with asyncio.timeout(SIGN_TIMEOUT):
        await asyncio.gather(
            *(viewer.changed(lambda one: len(one.events) >= seen[one] + more or one.ended > 0) for viewer in viewers)
        )
