"""The job queue: deliveries that mean nothing, while every worker lives; and a job that is lost with its worker."""

from __future__ import annotations

from compose.chaos.fault import Fault
from compose.chaos.faults.job import deliveries, duplicate, redeliver, settle
from compose.chaos.faults.process import kill
from compose.chaos.round import Round, Spoiled
from compose.chaos.scenario import scenario
from compose.chaos.viewer import Viewer

SECONDS = 6.0  # of an answer whose job is hurt: it must still run when the last one has begun and all beats were heard
TRIES = 3
NOWHERE = "okome.chaos.nowhere"  # a reply subject that is nobody's delivery: what a control run strikes


async def _held(round: Round) -> tuple[str, str]:
    """The running answer that began last, so that it runs longest, and its newest delivery."""
    for _ in range(TRIES):
        await round.work(SECONDS)
        held = await deliveries(round.system.bus)
        going = [one for one in round.crowd.watched if not one.viewers[0].ended and one.asked[0].gid in held]
        if going:
            gid = max(going, key=lambda one: one.viewers[0].stored()[0].at).asked[0].gid
            return gid, held[gid]
    raise Spoiled("no worker holds a job of this round")


def _viewer(round: Round, gid: str) -> Viewer:
    return next(one.viewers[0] for one in round.crowd.watched if one.asked[0].gid == gid)


def _redeliver(round: Round, gid: str, reply: str) -> Fault:
    return redeliver(round.system.bus, gid, reply, NOWHERE if round.control else reply)


def _settle(round: Round, gid: str, reply: str) -> Fault:
    viewer, aim = _viewer(round, gid), NOWHERE if round.control else reply
    return settle(round.system.bus, gid, aim, lambda: not viewer.ended, wrong=round.control)


@scenario("a job is in the queue twice", bound=0.25, keeps_connections=True)
async def job_duplicated(round: Round) -> None:
    gid, _ = await _held(round)
    await round.hurt(duplicate(round.system.bus, gid, wrong=round.control))


@scenario("a delivery is given back although its worker lives", bound=0.25, keeps_connections=True)
async def job_redelivered(round: Round) -> None:
    gid, reply = await _held(round)
    await round.hurt(_redeliver(round, gid, reply))


@scenario("an old delivery is given back after a newer one", bound=0.25, keeps_connections=True)
async def job_stale_nak(round: Round) -> None:
    gid, reply = await _held(round)
    await round.hurt(_redeliver(round, gid, reply))
    await round.hurt(_redeliver(round, gid, reply))


@scenario("an old delivery is acknowledged: the job is gone, its worker goes on", bound=0.25, keeps_connections=True)
async def job_stale_ack(round: Round) -> None:
    gid, reply = await _held(round)
    await round.hurt(_settle(round, gid, reply))


@scenario("a job is lost from the queue, then its worker is killed", takeovers=True, keeps_connections=True, weight=1)
async def job_lost_with_worker(round: Round) -> None:
    gid, reply = await _held(round)
    await round.hurt(_settle(round, gid, reply), [])
    victim = round.system.process(_viewer(round, gid).worker)
    await round.hurt(kill(victim, round.aim(victim)), round.crowd.on(victim.id))
    await round.system.back(victim)
