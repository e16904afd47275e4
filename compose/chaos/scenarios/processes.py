"""Processes of our roles and of Redis: killed, drained, frozen, while everybody watches."""

from __future__ import annotations

import asyncio

from compose.chaos.faults.process import freeze, kill, terminate
from compose.chaos.round import Round
from compose.chaos.scenario import scenario

FROZEN = 2.5  # seconds: longer than any silence after which others act


@scenario("a stream node is killed; its viewers go on over another leg", bound=0.25, weight=12)
async def node_kill(round: Round) -> None:
    await round.work(2.5)
    victim = round.busiest("node")
    await round.hurt(kill(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)


@scenario("a stream node is asked to end; it hands its viewers over", bound=0.1, weight=8)
async def node_drain(round: Round) -> None:
    await round.work(2.5)
    victim = round.busiest("node")
    await round.hurt(terminate(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)


@scenario("a stream node is frozen and thaws again", bound=1.5, weight=6)
async def node_freeze(round: Round) -> None:
    await round.work(4)
    victim = round.busiest("node")
    fault = freeze(victim, round.aim(victim))
    await round.hurt(fault, round.crowd.on(victim.id))
    await asyncio.sleep(FROZEN)
    await round.heal(fault)


@scenario("a worker is killed; another one decodes on from the prefix", bound=2.0, takeovers=True, weight=8)
async def worker_kill(round: Round) -> None:
    await round.work(3.5)
    victim = round.busiest("worker")
    await round.hurt(kill(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)


@scenario("a worker is asked to end; it finishes what it can, and gives back the rest", takeovers=True, weight=4)
async def worker_drain(round: Round) -> None:
    await round.work(3.5)
    victim = round.busiest("worker")
    await round.hurt(terminate(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)


@scenario(
    "a worker is frozen until others took over, then comes back and tries to publish",
    bound=2.0,
    takeovers=True,
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
    await round.work(2.5)
    victim = round.busiest("ingress")
    await round.hurt(kill(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)


@scenario("an ingress is asked to end; its viewers are told where to go on", bound=1.0, weight=6)
async def ingress_drain(round: Round) -> None:
    await round.work(2.5)
    victim = round.busiest("ingress")
    await round.hurt(terminate(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)


@scenario("every replica of OKOME is killed; what runs goes on, and viewers attach meanwhile", bound=0.25, weight=6)
async def control_kill(round: Round) -> None:
    watched = await round.work(3)
    for victim in round.system.processes("control"):
        await round.hurt(kill(victim, round.aim(victim)))
    for session in round.rng.sample(watched, min(4, len(watched))):
        round.crowd.watch(session)  # attaching needs no OKOME


@scenario("Redis is killed; caches miss, limits are counted by each", bound=0.25, weight=4)
async def redis_kill(round: Round) -> None:
    await round.work(2.5)
    victim = round.pick("redis")
    await round.hurt(kill(victim, round.aim(victim)))
    await round.system.back(victim)


@scenario("Redis does not answer", bound=0.25, weight=4)
async def redis_freeze(round: Round) -> None:
    watched = await round.work(3)
    victim = round.pick("redis")
    fault = freeze(victim, round.aim(victim))
    await round.hurt(fault)
    for session in round.rng.sample(watched, min(4, len(watched))):
        round.crowd.watch(session)
    await asyncio.sleep(1)
    await round.heal(fault)


@scenario("the only NATS server is killed and started again on its store", bound=2.0, weight=6)
async def nats_kill(round: Round) -> None:
    await round.work(4)
    victim = round.pick("nats")
    await round.hurt(kill(victim, round.aim(victim)))
    await round.system.back(victim)


@scenario("the only NATS server stands still and goes on", weight=3)
async def nats_freeze(round: Round) -> None:
    await round.work(4)
    victim = round.pick("nats")
    fault = freeze(victim, round.aim(victim))
    await round.hurt(fault)
    await asyncio.sleep(round.rng.uniform(0.5, FROZEN))
    await round.heal(fault)
