"""A crowd that watches a system of the tests, judged as a fault run judges its own: to the byte, by script and log."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from broker.bus.nats import Bus
from broker.bus.script import Script
from compose.chaos.checker import check_log, check_transcript
from compose.chaos.crowd import Crowd, Watched
from compose.chaos.log import read_log
from compose.chaos.viewer import Viewer
from tests.fixtures.system import System

DEADLINE = 60.0


def crowd_of(system: System, key: str = "") -> Crowd:
    """Nobody yet; sessions are opened with `key`, or the system's own."""
    return Crowd(lambda: system.url, key or system.api_key, random.Random(1))


def told(viewer: Viewer) -> list[tuple[str, str, bytes]]:
    """The stored events it saw, without the moment of each: name, id and data."""
    return [(event.name, event.id, event.data) for event in viewer.stored()]


@asynccontextmanager
async def watching(system: System, sessions: int, tokens: int, rate: float) -> AsyncIterator[list[Watched]]:
    """So many answers that have begun, every third watched over WebSocket; at the end all are waited for and judged."""
    scripts = [Script(tokens=tokens, rate=rate, seed=seed) for seed in range(1, sessions + 1)]
    async with asyncio.timeout(DEADLINE), crowd_of(system) as crowd:
        watched = await crowd.gather(scripts)
        await crowd.underway(1)
        yield watched
        assert await crowd.over(DEADLINE) == []
        await judge(system, watched)


async def judge(system: System, watched: Sequence[Watched]) -> None:
    """Nothing of what they saw is broken; AssertionError names every rule that is. The caller has the deadline."""
    bus = await Bus.connect(system.nats_url, "judge")
    try:
        for one in watched:
            frames, incarnation = await read_log(bus, one.sid)
            broken = check_log(frames, one.asked)
            for viewer in one.viewers:
                broken += check_transcript(viewer.events, frames, one.asked, incarnation)
            assert broken == [], one.sid
    finally:
        await bus.close()
