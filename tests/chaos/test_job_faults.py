"""Faults of the job queue prove themselves by the job that they hurt, whatever is delivered beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from broker.bus.jobs import consumer_name, ensure_consumer
from broker.bus.log import store
from broker.bus.nats import Bus
from broker.bus.queue import Delivery, Queue
from broker.bus.records import Job, Request
from broker.bus.subjects import JOBS_STREAM
from compose.chaos.fault import DidNotHappen, Fault
from compose.chaos.faults import job as faults
from tests.control.okome import connected
from tests.fixtures.nats_server import NatsServer

STREAM = {"name": JOBS_STREAM, "subjects": ["job.*.*"], "retention": "workqueue", "allow_direct": True}
DEADLINE = 20.0
NOBODY = "okome.chaos.nowhere"


@asynccontextmanager
async def held(nats: NatsServer, *gids: str) -> AsyncIterator[tuple[Bus, asyncio.Queue[Delivery]]]:
    """A queue of these jobs, and whoever takes what is delivered of it."""
    async with connected(nats.url) as bus:
        await bus.api(f"STREAM.CREATE.{JOBS_STREAM}", STREAM)
        await ensure_consumer(bus, "scripted")
        for gid in gids:
            await put(bus, gid)
        taken: asyncio.Queue[Delivery] = asyncio.Queue()
        queue = Queue(bus, JOBS_STREAM, consumer_name("scripted"), taken.put_nowait)
        await queue.start()
        queue.want(10)
        try:
            async with asyncio.timeout(DEADLINE):
                yield bus, taken
        finally:
            await queue.close()


async def put(bus: Bus, gid: str) -> None:
    job = Job(gid, "s", "default", Request(model="scripted", messages=[]), 0, 0)
    await store(bus, "job.scripted.any", msgspec.json.encode(job), msg_id=gid)


async def proof(fault: Fault) -> str:
    try:
        await fault.strike()
        return await fault.happened()
    finally:
        await fault.undo()


async def test_a_nak_is_proven_by_the_delivery_that_was_naked_be_it_the_newest_or_a_stale_one(
    fresh_nats: NatsServer,
) -> None:
    async with held(fresh_nats, "g1") as (bus, taken):
        first = await taken.get()
        for attempts in (2, 3):
            assert "delivery 1 of g1" in await proof(faults.redeliver(bus, "g1", first.reply, first.reply))
            assert (await taken.get()).attempts == attempts


async def test_what_is_delivered_beside_it_proves_no_nak_and_no_copy(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another job's redelivery, nor this one's by an earlier nak, nor a new job."""
    monkeypatch.setattr(faults, "WRONG_TIMEOUT", 0.5)
    async with held(fresh_nats, "g1", "g2") as (bus, taken):
        first, other = await taken.get(), await taken.get()
        await proof(faults.redeliver(bus, "g1", first.reply, first.reply))
        await taken.get()

        for fault in (faults.redeliver(bus, "g1", first.reply, NOBODY), faults.duplicate(bus, "g1", wrong=True)):
            await fault.strike()
            await other.nak()
            await put(bus, f"new-{taken.qsize()}")
            with pytest.raises(DidNotHappen):
                await fault.happened()
            await fault.undo()
        assert taken.qsize() >= 3


async def test_a_copy_is_proven_by_its_own_delivery(fresh_nats: NatsServer) -> None:
    async with held(fresh_nats, "g1") as (bus, taken):
        await taken.get()
        assert "stored again as 2 and delivered" in await proof(faults.duplicate(bus, "g1", wrong=False))
        assert (await taken.get()).seq == 2
