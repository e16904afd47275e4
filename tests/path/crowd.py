"""A crowd of viewers, each watching a scripted generation of its own; every transcript is checked at the end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.fixtures.system import System
from tests.path.viewer import Viewer, call, check_transcript

DEADLINE = 60.0


class Watched(NamedTuple):
    viewer: Viewer
    seed: int
    tokens: int


async def start(system: System, seed: int, tokens: int, rate: float) -> Watched:
    """A new session, its viewer, and a scripted generation in it."""
    created = await call(system.url, "POST", "/v1/sessions", system.api_key, {"model": "scripted"})
    assert created.status == 201, created.body
    session = created.json()
    viewer = Viewer(system.url, session["session_id"], session["token"])
    script = json.dumps({"tokens": tokens, "rate": rate, "seed": seed})
    path = f"/v1/sessions/{viewer.sid}/generations"
    for _ in range(50):
        accepted = await call(system.url, "POST", path, session["token"], {"prompt": script})
        if accepted.status != 503:
            break
        await asyncio.sleep(float(accepted.headers["retry-after"]) / 10)  # what a client does when told so
    assert accepted.status == 202, accepted.body
    return Watched(viewer, seed, tokens)


@asynccontextmanager
async def watching(system: System, sessions: int, tokens: int, rate: float) -> AsyncIterator[list[Watched]]:
    """So many generations that are being watched; at the end all are waited for, and every transcript is checked."""
    async with asyncio.timeout(DEADLINE):
        watched = list(await asyncio.gather(*(start(system, seed, tokens, rate) for seed in range(1, sessions + 1))))
        async with asyncio.TaskGroup() as tasks:
            for one in watched:
                tasks.create_task(one.viewer.watch())
            await asyncio.gather(*(one.viewer.seen(5) for one in watched))  # all are in the middle of it
            yield watched
    for one in watched:
        check_transcript(one.viewer.stored(), seed=one.seed, tokens=one.tokens)
        assert "reset" not in one.viewer.names()
