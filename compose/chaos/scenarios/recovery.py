"""`okome up --data DIR`, killed with everything at once and started again: by itself, and on a store that lost its ends."""

from __future__ import annotations

import asyncio

from compose.chaos.faults.process import kill_all
from compose.chaos.household import Household
from compose.chaos.round import Round
from compose.chaos.scenario import scenario
from compose.chaos.world import RECOVERY

RESUMED_TIMEOUT = 60.0


@scenario(
    "everything is killed at once and started again on the same directory: what runs is taken over",
    world=RECOVERY,
    takeovers=True,
)
async def everything_killed(round: Round) -> None:
    system = _household(round)
    await round.work(4)
    struck = asyncio.get_running_loop().time()
    running = round.crowd.running()
    family = system.family()
    await round.hurt(kill_all(family, [system.decoy] if round.control else family))
    await system.forget()
    await system.start()


    async with asyncio.timeout(RESUMED_TIMEOUT):
        await asyncio.gather(*(viewer.changed(lambda one: one.stored()[-1].at > struck + 1) for viewer in running))
    for viewer in running:
        following = next(event.at for event in viewer.stored() if event.at > struck + 1)
        round.figure("killed_to_next_token", following - struck)


def _household(round: Round) -> Household:
    assert isinstance(round.system, Household)
    return round.system
