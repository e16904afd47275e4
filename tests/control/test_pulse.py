"""The pulse: a dead worker's delivery is given back within two seconds, and OKOME is heard as an observer."""

from __future__ import annotations

import asyncio
import contextlib
import json

from broker.bus.jobs import consumer_name, ensure_consumer
from broker.bus.log import store
from broker.bus.nats import Bus, Msg
from broker.bus.queue import Delivery, Queue
from broker.bus.records import Beat, decode
from control.app import Okome
from tests.control.okome import DEADLINE, connected, generate, new_session, replica, until, worker
from tests.fixtures.nats_server import NatsServer


async def take(bus: Bus, arrived: asyncio.Queue[Delivery]) -> Queue:
    queue = Queue(bus, "JOBS", consumer_name("m"), arrived.put_nowait)
    await queue.start()
    queue.want(8)
    return queue


async def test_okome_beats_without_models(okome: Okome, bus: Bus) -> None:
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await bus.subscribe("beat.*", heard.put)
    async with asyncio.timeout(5):
        beats = [decode((await heard.get()).data, Beat) for _ in range(3)]
    assert {beat.worker for beat in beats} == {okome.pulse.name} == {f"okome-{okome.id}"}
    assert len({beat.instance for beat in beats}) == 1
    assert not any(beat.models or beat.held for beat in beats)


async def test_the_job_of_a_worker_that_fell_silent_is_delivered_again_within_two_seconds(
    okome: Okome, bus: Bus
) -> None:
    await ensure_consumer(bus, "m")
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    queue = await take(bus, arrived)
    async with worker(okome, bus, "w1", "m") as dying:
        await store(bus, "job.m.any", b"job", msg_id="g")
        async with asyncio.timeout(5):
            first = await arrived.get()
        dying.held = {"g": first.reply}
        await until(lambda: okome.pulse.holder("g") == "w1", "it is seen to hold the job")
        await dying.die()
        loop = asyncio.get_running_loop()
        died = loop.time()
        async with asyncio.timeout(DEADLINE):
            again = await arrived.get()
        # Of a time in which this process or the server stood still, nobody can say that he heard nothing.
        assert loop.time() - max(died, okome.pulse.observer.hearing_since) < 2
        assert (again.seq, again.attempts) == (first.seq, 2)
        await again.ack()
    await queue.close()


async def test_the_job_of_a_replaced_instance_is_delivered_again_at_once(okome: Okome, bus: Bus) -> None:
    await ensure_consumer(bus, "m")
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    queue = await take(bus, arrived)
    async with worker(okome, bus, "w1", "m") as restarted:
        await store(bus, "job.m.any", b"job", msg_id="g")
        async with asyncio.timeout(5):
            first = await arrived.get()
        restarted.held = {"g": first.reply}
        await until(lambda: okome.pulse.holder("g") == "w1", "it is seen to hold the job")
        restarted.held = {}
        restarted.instance = "w1/2"
        await restarted.say()
        async with asyncio.timeout(5):  # never by silence, because its id beats on; and sooner than by ack_wait
            assert (await arrived.get()).attempts == 2
    await queue.close()


async def test_a_worker_is_not_suspected_while_the_server_is_frozen(fresh_nats: NatsServer) -> None:
    """Nobody's beat can be heard then: afterwards everybody is given a full second.

    The worker beats on OKOME's own connection: one that reconnects a second later than OKOME is rightly suspected.
    """
    async with replica(fresh_nats.url) as okome, connected(fresh_nats.url) as bus, worker(okome, okome.bus) as alive:
        alive.held = {"g": "naks.are.heard.here"}
        naks: asyncio.Queue[Msg] = asyncio.Queue()
        await bus.subscribe("naks.are.heard.here", naks.put)
        await until(lambda: okome.pulse.holder("g"), "it is seen to hold the job")
        fresh_nats.freeze()
        await until(lambda: not okome.bus.round_trip_ok, "the round trip fails")
        await until(lambda: not okome.health.ready, "and that is said")
        fresh_nats.thaw()
        await until(lambda: okome.bus.round_trip_ok and okome.pulse.holder("g"), "it is heard again")
        await until(lambda: okome.health.ready, "ready again")
        assert naks.empty()
        alive.held = {}


async def test_a_beat_that_cannot_be_read_disturbs_nobody(okome: Okome, bus: Bus) -> None:
    await bus.publish("beat.w9", b"\xff")
    await bus.publish("beat.w9", json.dumps({"worker": 7}).encode())
    async with worker(okome, bus):
        assert set(okome.pulse.workers()) == {"w1"}


async def test_a_replica_that_just_started_knows_the_workers_when_it_is_first_asked(fresh_nats: NatsServer) -> None:
    async with connected(fresh_nats.url) as bus, contextlib.AsyncExitStack() as first:
        okome = await first.enter_async_context(replica(fresh_nats.url))
        async with worker(okome, bus):
            sid = await new_session(bus)
            await first.aclose()
            async with replica(fresh_nats.url):
                assert (await generate(bus, sid)).generation_id
