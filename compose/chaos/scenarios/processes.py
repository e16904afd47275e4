"""Processes of our roles and of Redis: killed, drained, frozen, while everybody watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from compose.chaos.fault import Fault
from compose.chaos.faults.process import freeze, kill, terminate
from compose.chaos.round import Round
from compose.chaos.scenario import scenario
from compose.chaos.whole import Process

FROZEN = 2.5  # seconds: longer than any silence after which others act


async def _strike(round: Round, role: str, end: Callable[[Process, Process], Fault], seconds: float) -> None:
    """In the middle of answers of so many seconds, end the process that most viewers depend on, until it is back."""
    await round.work(seconds)
    victim = round.busiest(role)
    await round.hurt(end(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)


@scenario("a stream node is killed; its viewers go on over another leg", bound=0.25, keeps_connections=True, weight=12)
async def node_kill(round: Round) -> None:
    await _strike(round, "node", kill, 2.5)


@scenario("a stream node is asked to end; it hands its viewers over", bound=0.1, keeps_connections=True, weight=8)
async def node_drain(round: Round) -> None:
    await _strike(round, "node", terminate, 2.5)


@scenario("a stream node is frozen and thaws again", bound=1.5, keeps_connections=True, weight=6)
async def node_freeze(round: Round) -> None:
    await round.work(4)
    victim = round.busiest("node")
    fault = freeze(victim, round.aim(victim))
    await round.hurt(fault, round.crowd.on(victim.id))
    await asyncio.sleep(FROZEN)
    await round.heal(fault)


@scenario(
    "a worker is killed; another one decodes on from the prefix",
    bound=2.0,
    takeovers=True,
    keeps_connections=True,
    weight=8,
)
async def worker_kill(round: Round) -> None:
    await _strike(round, "worker", kill, 3.5)


@scenario(
    "a worker is asked to end; it finishes what it can, and gives back the rest",
    takeovers=True,
    keeps_connections=True,
    weight=4,
)
async def worker_drain(round: Round) -> None:
    await _strike(round, "worker", terminate, 3.5)


@scenario(
    "a worker is frozen until others took over, then comes back and tries to publish",
    bound=2.0,
    takeovers=True,
    keeps_connections=True,
    weight=4,
)
async def worker_freeze(round: Round) -> None:
    await round.work(6)
    victim = round.busiest("worker")
    fault = freeze(victim, round.aim(victim))
    await round.hurt(fault, round.crowd.on(victim.id))
    await asyncio.sleep(FROZEN)
    await round.heal(fault)


@scenario("an ingress is killed; its viewers come back to another one with their cursors", bound=1.0, weight=10)
async def ingress_kill(round: Round) -> None:
    await _strike(round, "ingress", kill, 2.5)


@scenario("an ingress is asked to end; its viewers are told where to go on", bound=1.0, weight=6)
async def ingress_drain(round: Round) -> None:
    await _strike(round, "ingress", terminate, 2.5)


@scenario(
    "every replica of OKOME is killed; what runs goes on, and viewers attach meanwhile",
    bound=0.25,
    keeps_connections=True,
    weight=6,
)
async def control_kill(round: Round) -> None:
    watched = await round.work(3)
    for victim in round.system.processes("control"):
        await round.hurt(kill(victim, round.aim(victim)))
    for session in round.rng.sample(watched, min(4, len(watched))):
        round.crowd.watch(session)  # attaching needs no OKOME


@scenario("Redis is killed; caches miss, limits are counted by each", bound=0.25, keeps_connections=True, weight=4)
async def redis_kill(round: Round) -> None:
    await round.work(2.5)
    victim = round.pick("redis")
    await round.hurt(kill(victim, round.aim(victim)))
    await round.system.back(victim)


@scenario("Redis does not answer", bound=0.25, keeps_connections=True, weight=4)
async def redis_freeze(round: Round) -> None:
    watched = await round.work(3)
    victim = round.pick("redis")
    fault = freeze(victim, round.aim(victim))
    await round.hurt(fault)
    for session in round.rng.sample(watched, min(4, len(watched))):
        round.crowd.watch(session)
    await asyncio.sleep(1)
    await round.heal(fault)


@scenario("the only NATS server is killed and started again on its store", bound=2.0, keeps_connections=True, weight=6)
async def nats_kill(round: Round) -> None:
    await round.work(4)
    victim = round.pick("nats")
    await round.hurt(kill(victim, round.aim(victim)))
    await round.system.back(victim)


# A worker may be suspected though it lives, when everybody was deaf: that costs an epoch, never a frame.
@scenario("the only NATS server stands still and goes on", takeovers=True, keeps_connections=True, weight=3)
async def nats_freeze(round: Round) -> None:
    await round.work(4)
    victim = round.pick("nats")
    fault = freeze(victim, round.aim(victim))
    await round.hurt(fault)
    await asyncio.sleep(round.rng.uniform(0.5, FROZEN))
    await round.heal(fault)
