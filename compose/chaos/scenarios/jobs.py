"""The job queue: deliveries that mean nothing, while every worker lives; and a job that is lost with its worker."""

from __future__ import annotations

from compose.chaos.faults.job import deliveries, duplicate, redeliver, settle
from compose.chaos.faults.process import kill
from compose.chaos.round import Round, Spoiled
from compose.chaos.scenario import scenario
from compose.chaos.viewer import Viewer

NOWHERE = "okome.chaos.nowhere"  # a reply subject that is nobody's delivery: what a control run strikes


async def _held(round: Round, seconds: float) -> tuple[str, str]:
    """A running answer and its newest delivery."""
    await round.work(seconds)
    held = await deliveries(round.system.bus)
    going = [one.asked[0].gid for one in round.crowd.watched if not one.viewers[0].ended]
    mine = [gid for gid in going if gid in held]
    if not mine:
        raise Spoiled("no worker holds a job of this round")
    gid = round.rng.choice(sorted(mine))
    return gid, held[gid]


def _viewer(round: Round, gid: str) -> Viewer:
    return next(one.viewers[0] for one in round.crowd.watched if one.asked[0].gid == gid)


@scenario("a job is in the queue twice", bound=0.25)
async def job_duplicated(round: Round) -> None:
    gid, _ = await _held(round, 4)
    await round.hurt(duplicate(round.system.bus, gid, wrong=round.control))


@scenario("a delivery is given back although its worker lives", bound=0.25)
async def job_redelivered(round: Round) -> None:
    gid, reply = await _held(round, 4)
    await round.hurt(redeliver(round.system.bus, gid, NOWHERE if round.control else reply))


@scenario("an old delivery is given back after a newer one", bound=0.25)
async def job_stale_nak(round: Round) -> None:
    gid, reply = await _held(round, 4)
    await round.hurt(redeliver(round.system.bus, gid, NOWHERE if round.control else reply))
    await round.hurt(redeliver(round.system.bus, gid, NOWHERE if round.control else reply))


@scenario("an old delivery is acknowledged: the job is gone, its worker goes on", bound=0.25)
async def job_stale_ack(round: Round) -> None:
    gid, reply = await _held(round, 4)
    viewer = _viewer(round, gid)
    await round.hurt(settle(round.system.bus, gid, NOWHERE if round.control else reply, lambda: not viewer.ended))


@scenario("a job is lost from the queue, then its worker is killed", takeovers=True, weight=1)
async def job_lost_with_worker(round: Round) -> None:
    gid, reply = await _held(round, 4)
    viewer = _viewer(round, gid)
    fault = settle(round.system.bus, gid, NOWHERE if round.control else reply, lambda: not viewer.ended)
    await round.hurt(fault, [])
    victim = round.system.process(viewer.worker)
    await round.hurt(kill(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)
