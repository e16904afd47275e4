"""Machines: a disk that is full, clocks that are minutes apart."""

from __future__ import annotations

import asyncio
import json

from compose.chaos import disk
from compose.chaos.fault import Fault, shows
from compose.chaos.faults.process import kill
from compose.chaos.round import Round
from compose.chaos.scenario import scenario
from compose.chaos.world import DISK, SKEWED

SIGN = "no space left on device"
SIGN_TIMEOUT = 20.0
FULL_FOR = 1.0
SKEW_MS = 120_000


@scenario("JetStream's disk is full until an operator makes room and starts NATS again", world=DISK, weight=1)
async def disk_full(round: Round) -> None:
    await round.work(4)
    victim = round.pick("nats")
    store = round.system.data / "nats-1"
    before = round.system.log(victim.id).count(SIGN)

    async def strike() -> None:
        if not round.control:
            disk.fill(store)

    def full() -> str | None:
        told = round.system.log(victim.id).count(SIGN) > before
        return f"{victim.id} wrote {SIGN!r}, {disk.free(store)} bytes are left" if told else None

    async def undo() -> None:
        (store / "filler").unlink(missing_ok=True)

    timeout = 2.0 if round.control else SIGN_TIMEOUT
    what = f"{victim.id} writing {SIGN!r}"
    fault = Fault(f"the disk of {victim.id}", strike, lambda: shows(full, what, timeout), undo)
    await round.hurt(fault)
    await asyncio.sleep(FULL_FOR)
    await round.heal(fault)
    await round.hurt(kill(victim, round.aim(victim)), [])
    await round.system.back(victim)


@scenario(
    "clocks are minutes apart, and a node and a worker are killed",
    world=SKEWED,
    takeovers=True,
    keeps_connections=True,
    weight=3,
)
async def clocks_apart(round: Round) -> None:
    watched = await round.work(5)
    for role in ("node", "worker"):
        victim = round.busiest(role)
        await round.hurt(kill(victim, round.aim(victim)), round.crowd.on(victim.id))
        await round.system.back(victim)
    events = watched[0].viewers[0].events
    told = {event.name: json.loads(event.data)["t"] for event in events if event.name in ("hello", "start")}
    if abs(told["hello"] - told["start"]) < SKEW_MS:
        round.broken("stuck", watched[0].sid, f"the clocks of this world are not apart: {told}")
