"""What waits in the queue, held by nobody: its turn costs it nothing, and OKOME ends it as soon as somebody asks."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from broker.bus.jobs import consumer_name, ensure_consumer
from broker.bus.queue import Delivery, Queue
from broker.bus.records import Generation, Load
from broker.bus.subjects import JOBS_STREAM
from control.lanes import queued_jobs
from control.sweeper import TURN_LOOK, Sweeper
from tests.control.okome import (
    DEADLINE,
    cancel,
    connected,
    generate,
    generation_record,
    jobs,
    new_session,
    replica,
    status_of,
    until,
    worker,
)
from tests.fixtures.nats_server import NatsServer


async def test_what_waits_for_its_turn_does_not_expire(fresh_nats: NatsServer) -> None:
    """However long every slot is taken; once one is free, it counts that nobody takes it."""
    async with replica(fresh_nats.url, job_wait=1) as okome, connected(fresh_nats.url) as bus:
        sid, loop = await new_session(bus), asyncio.get_running_loop()
        async with worker(okome, bus) as played:
            played.load = Load(4, 3, 1, 4)
            await until(lambda: okome.pulse.workers()["w1"].models["m"].running == 3, "it is known to be full")
            accepted = loop.time()
            made = await generate(bus, sid)
            await until(lambda: loop.time() > accepted + 2.5, "it has waited for longer than job_wait")
            assert (await generation_record(bus, sid, made.generation_id)).status.open  # type: ignore[union-attr]
            free_at = loop.time()
            played.load = Load(4, 3, 0, 4)
            record = await until(lambda: status_of(bus, sid, made.generation_id), "it expires in the end")
            assert record.status == "expired"
            assert loop.time() - free_at > 0.8


async def test_a_cancel_is_not_waited_for_until_the_next_round(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, sweep_interval=DEADLINE) as okome, connected(fresh_nats.url) as bus:
        sids = [await new_session(bus) for _ in range(3)]
        async with worker(okome, bus) as played:
            gids = [(sid, (await generate(bus, sid)).generation_id) for sid in sids[:2]]
            again = itertools.cycle(gids)

            async def ended_by_now() -> Generation | None:
                await cancel(bus, *next(again))
                return await status_of(bus, *gids[0])

            # The first rounds see who is there, and since when; each is begun by a cancel.
            assert (await until(ended_by_now, "it is cancelled")).status == "cancelled"
            played.load = Load(4, 4, 0, 4)
            await until(lambda: okome.pulse.workers()["w1"].models["m"].running == 4, "it is known to be full")
            last = await generate(bus, sids[2])
            await cancel(bus, sids[2], last.generation_id)  # before anybody would be known to have taken it
            await until(lambda: status_of(bus, sids[2], last.generation_id), "it is cancelled without another round")


async def test_a_cancel_of_what_a_worker_holds_begins_no_round(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker ends it; a round looks at every open generation, and most cancels are of those that run."""
    rounds: list[float] = []
    sweep = Sweeper.sweep

    async def counted(sweeper: Sweeper) -> None:
        rounds.append(asyncio.get_running_loop().time())
        await sweep(sweeper)

    monkeypatch.setattr(Sweeper, "sweep", counted)
    async with replica(fresh_nats.url, sweep_interval=DEADLINE) as okome, connected(fresh_nats.url) as bus:
        sid, other = await new_session(bus), await new_session(bus)
        async with worker(okome, bus) as played:
            held, free = await generate(bus, sid), await generate(bus, other)
            played.held[held.generation_id] = "$JS.ACK.x"
            await until(lambda: okome.pulse.holder(held.generation_id), "it is held")
            await cancel(bus, sid, held.generation_id)
            await asyncio.sleep(0.3)
            assert not rounds
            await cancel(bus, other, free.generation_id)
            await until(lambda: rounds, "a round begins")


async def test_a_cancel_is_not_waited_for_until_the_next_look(fresh_nats: NatsServer) -> None:
    """It was looked at already, as something that nobody could take for a while."""
    async with replica(fresh_nats.url) as okome, connected(fresh_nats.url) as bus:
        sid, loop = await new_session(bus), asyncio.get_running_loop()
        async with worker(okome, bus) as played:
            played.load = Load(4, 4, 0, 4)
            await until(lambda: okome.pulse.workers()["w1"].models["m"].running == 4, "it is known to be full")
            made = await generate(bus, sid)
            await until(lambda: made.generation_id in okome.sweeper._looked_at, "it is looked at")
            asked = loop.time()
            await cancel(bus, sid, made.generation_id)
            await until(lambda: status_of(bus, sid, made.generation_id), "it is cancelled")
            assert loop.time() - asked < TURN_LOOK / 2


async def test_what_ended_while_it_waited_leaves_the_queue(fresh_nats: NatsServer) -> None:
    """▸ No worker asks for it while all are full, and its place is one that others are refused for."""
    async with replica(fresh_nats.url) as okome, connected(fresh_nats.url) as bus:
        sid, other = await new_session(bus), await new_session(bus)
        async with worker(okome, bus) as played:
            played.load = Load(4, 4, 0, 4)
            await until(lambda: okome.pulse.workers()["w1"].models["m"].running == 4, "it is known to be full")
            made, kept = await generate(bus, sid), await generate(bus, other)
            await cancel(bus, sid, made.generation_id)
            await until(lambda: status_of(bus, sid, made.generation_id), "it is cancelled")

            async def only_one_waits() -> bool:
                return await jobs(bus) == {"job.m.any": 1}

            await until(only_one_waits, "its job is taken out")
            assert list(await queued_jobs(bus)) == [kept.generation_id]


async def test_what_waited_for_its_turn_is_looked_at_soon_once_a_slot_is_free(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took it may have died before a beat told of it: then nobody gives it back but OKOME."""
    monkeypatch.setattr("control.sweeper.TURN_LOOK", 10 * DEADLINE)
    deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
    async with replica(fresh_nats.url) as okome, connected(fresh_nats.url) as bus:
        sid = await new_session(bus)
        async with worker(okome, bus) as played, asyncio.timeout(DEADLINE):
            await ensure_consumer(bus, "m")
            played.load = Load(4, 4, 0, 4)
            await until(lambda: okome.pulse.workers()["w1"].models["m"].running == 4, "it is known to be full")
            made = await generate(bus, sid)
            await until(lambda: made.generation_id in okome.sweeper._looked_at, "it is looked at")
            queue = Queue(bus, JOBS_STREAM, consumer_name("m"), deliveries.put_nowait)
            await queue.start()
            queue.want(1)
            await deliveries.get()
            played.load = Load(4, 3, 0, 4)
            queue.want(1)
            assert (await deliveries.get()).attempts == 2
            await queue.close()
