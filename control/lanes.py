"""Lanes: the jobs that were meant for one worker. When it takes no more they go back to the common queue."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import structlog

from broker.bus.errors import StoreRejected
from broker.bus.jobs import copy_to_common, count_jobs
from broker.bus.log import get, page
from broker.bus.nats import Bus
from broker.bus.pull import ack_subject
from broker.bus.subjects import JOBS_STREAM

MOVES = 1000  # in one go; the next look moves the rest
MESSAGE_GONE = frozenset({10043, 10057})  # deleted by somebody else; which of the two is told by what is left around it

log = structlog.get_logger("control")


class Place(NamedTuple):
    """Where a job is in the queue. `lost`: the ack subject of a delivery of it, where it was delivered to somebody."""

    seq: int
    lost: str


async def lanes(bus: Bus) -> dict[str, int]:
    """Lane subjects with jobs in them, and how many. Raises BusError."""
    subjects = await count_jobs(bus, "job.*.*")
    return {subject: count for subject, count in subjects.items() if worker_of(subject) != "any"}


def worker_of(subject: str) -> str:
    return subject.rpartition(".")[2]


def every(gid: str) -> bool:
    return True


async def empty_lane(bus: Bus, subject: str, wanted: Callable[[str], bool] = every) -> int:
    """Move a lane's jobs, those of the `wanted` gids, to the common queue; returns how many. Raises BusError."""
    seq = moved = 0
    while moved < MOVES and (job := await get(bus, JOBS_STREAM, seq + 1, next_by=subject)) is not None:
        seq, gid = job.seq, job_id(job.headers)
        if not wanted(gid):
            continue
        await copy_to_common(bus, subject, job.seq, gid, job.data)
        await delete_job(bus, job.seq)
        log.info("job.moved", gid=gid, lane=subject)
        moved += 1
    return moved


async def delete_job(bus: Bus, seq: int) -> None:
    """Idempotent. Raises BusError."""
    try:
        await bus.api(f"STREAM.MSG.DELETE.{JOBS_STREAM}", {"seq": seq, "no_erase": True})
    except StoreRejected as error:
        if error.err_code not in MESSAGE_GONE:
            raise


async def remove_lanes(bus: Bus, keep: Collection[str]) -> None:
    """Delete the consumers of lanes whose workers are not in `keep`. Raises BusError."""
    for consumer in await _consumers(bus):
        name = consumer["name"]
        worker = worker_of(consumer["config"].get("filter_subject", ""))
        if name.startswith("lane_") and worker not in keep:
            await bus.api(f"CONSUMER.DELETE.{JOBS_STREAM}.{name}")
            log.info("lane.removed", worker=worker, consumer=name)


async def queued_jobs(bus: Bus) -> dict[str, list[Place]]:
    """The gids of all jobs in the queue, in lanes or held, and where they are. Raises BusError."""
    found: dict[str, list[Place]] = {}
    consumers = {one["config"].get("filter_subject", ""): one for one in await _consumers(bus)}
    after = 0
    while messages := await page(bus, JOBS_STREAM, "job.*.*", after):
        for message in messages:
            consumer = consumers.get(message.subject)
            place = Place(message.seq, _delivery(consumer, message.seq) if consumer else "")
            found.setdefault(job_id(message.headers), []).append(place)
        after = messages[-1].seq
    return found


def _delivery(consumer: dict[str, Any], seq: int) -> str:
    """An ack subject of a consumer's delivery of message `seq`, "" where it has not delivered it yet.

    Who got it knows the true one and may be dead; the server asks of a nak only that the message is pending and that
    the consumer's own count is one that it has reached.
    """
    delivered = consumer["delivered"]
    if seq > delivered["stream_seq"]:
        return ""
    return ack_subject(JOBS_STREAM, consumer["name"], seq, delivered["consumer_seq"])


def job_id(headers: dict[str, str] | None) -> str:
    """The gid in a job's message id, which has more behind an @ where the job was moved or queued again."""
    return (headers or {}).get("Nats-Msg-Id", "").partition("@")[0]


async def _consumers(bus: Bus) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = await bus.api(f"CONSUMER.LIST.{JOBS_STREAM}", {"offset": len(found)})
        consumers = answer.get("consumers") or []
        found += consumers
        if not consumers or len(found) >= answer["total"]:
            return found
