"""The queue: no more jobs than wanted, none lost, and whoever holds one is the only one who decides about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from broker.bus import log, pull
from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus
from broker.bus.observer import SILENCE
from broker.bus.queue import EXPIRES, Delivery, Queue, nak
from compose.chaos.link import Link
from gpu_worker.pulse import INTERVAL as BEAT_INTERVAL
from tests.broker.bus.conftest import DEADLINE, eventually, make_stream, restarted
from tests.fixtures.nats_server import NatsServer

RENEWED = 10.0  # seconds, of which 2.5 heartbeats of silence, a look every heartbeat and the reconnect take some 2
SETTLED = 0.3  # seconds in which whatever was to arrive has arrived


async def make_queue(bus: Bus, *, ack_wait: float = 30.0) -> str:
    """A work queue and its durable `any`, as docs/bus.md has them."""
    stream = await make_stream(bus, retention="workqueue")
    await make_consumer(bus, stream, ack_wait)
    return stream


async def make_consumer(bus: Bus, stream: str, ack_wait: float = 30.0) -> None:
    config: dict[str, Any] = {
        "durable_name": "any",
        "filter_subject": f"{stream}.>",
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait * 1e9),
        "max_ack_pending": -1,
    }
    await bus.api(f"CONSUMER.CREATE.{stream}.any.{stream}.>", {"stream_name": stream, "config": config})


@asynccontextmanager
async def taking(bus: Bus, stream: str, want: int) -> AsyncIterator[tuple[Queue, list[Delivery]]]:
    taken: list[Delivery] = []
    queue = Queue(bus, stream, "any", taken.append)
    await queue.start()
    queue.want(want)
    try:
        yield queue, taken
    finally:
        await queue.close()


async def enqueue(bus: Bus, stream: str, count: int) -> None:
    for index in range(count):
        await log.store(bus, f"{stream}.job", b"%d" % index, msg_id=f"g{index}", timeout=DEADLINE)


async def left(bus: Bus, stream: str) -> int:
    return (await log.stream_info(bus, stream)).messages


async def test_no_more_arrive_than_are_wanted(bus: Bus) -> None:
    stream = await make_queue(bus)
    await enqueue(bus, stream, 10)
    async with taking(bus, stream, 2) as (queue, taken):
        await eventually(lambda: len(taken) == 2)
        queue.want(0)
        await asyncio.wait({asyncio.ensure_future(queue.missing.wait())}, timeout=SETTLED)
        assert [each.data for each in taken] == [b"0", b"1"]
        queue.want(1)
        queue.want(3)
        await eventually(lambda: len(taken) == 5)
        await bus.request("$JS.API.INFO")
        assert [each.data for each in taken] == [b"0", b"1", b"2", b"3", b"4"]
        assert {each.attempts for each in taken} == {1}


async def test_a_job_wanted_before_it_exists_comes_when_it_does(bus: Bus) -> None:
    stream = await make_queue(bus)
    async with taking(bus, stream, 1) as (_, taken):
        await enqueue(bus, stream, 3)
        await eventually(lambda: taken)
        await bus.request("$JS.API.INFO")
        assert len(taken) == 1


async def test_an_acknowledged_job_is_gone_and_a_given_back_one_comes_again(bus: Bus) -> None:
    stream = await make_queue(bus)
    await enqueue(bus, stream, 2)
    async with taking(bus, stream, 2) as (queue, taken):
        await eventually(lambda: len(taken) == 2)
        await taken[0].ack()
        assert await left(bus, stream) == 1
        await taken[1].nak()
        queue.want(1)
        await eventually(lambda: len(taken) == 3)
        again = taken[2]
        assert (again.data, again.seq, again.attempts) == (b"1", taken[1].seq, 2)
        await again.ack()
        assert await left(bus, stream) == 0


async def test_a_job_given_back_with_a_delay_comes_after_it(bus: Bus) -> None:
    """As an observer gives it back for a dead worker: by its reply subject alone."""
    stream = await make_queue(bus)
    await enqueue(bus, stream, 1)
    async with taking(bus, stream, 1) as (queue, taken):
        await eventually(lambda: taken)
        await nak(bus, taken[0].reply, 0.4)
        queue.want(1)
        took = await eventually(lambda: len(taken) == 2)
        assert took > 0.3
        await taken[1].ack()


async def test_a_job_in_progress_is_not_given_to_another(local_bus: Bus) -> None:
    stream = await make_queue(local_bus, ack_wait=1.5)
    await enqueue(local_bus, stream, 1)
    async with taking(local_bus, stream, 1) as (queue, taken):
        await eventually(lambda: taken)
        queue.want(1)
        for _ in range(8):
            await taken[0].in_progress()
            await asyncio.wait({asyncio.ensure_future(queue.missing.wait())}, timeout=0.25)
        assert len(taken) == 1
        await eventually(lambda: len(taken) == 2)  # nobody says so any more
        assert taken[1].attempts == 2


async def test_an_ack_that_nobody_confirms_is_said_so(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    stream = await make_queue(fresh_bus)
    await enqueue(fresh_bus, stream, 1)
    async with taking(fresh_bus, stream, 1) as (_, taken):
        await eventually(lambda: taken)
        fresh_nats.freeze()
        with pytest.raises(BusUnavailable):
            await taken[0].ack(timeout=0.3)
        fresh_nats.thaw()


async def test_a_missing_consumer_is_noticed_and_jobs_come_once_it_is_back(bus: Bus) -> None:
    stream = await make_queue(bus)
    async with taking(bus, stream, 1) as (queue, taken):
        await bus.request("$JS.API.INFO")
        await bus.api(f"CONSUMER.DELETE.{stream}.any")
        await asyncio.wait_for(queue.missing.wait(), RENEWED)
        await make_consumer(bus, stream)
        queue.missing.clear()
        await enqueue(bus, stream, 1)
        await eventually(lambda: taken, RENEWED)


async def test_a_consumer_that_never_was_is_missing(local_bus: Bus) -> None:
    stream = await make_stream(local_bus, retention="workqueue")
    async with taking(local_bus, stream, 1) as (queue, _):
        await asyncio.wait_for(queue.missing.wait(), RENEWED)


async def test_pulls_are_renewed_after_a_server_was_killed(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    """Two waiting, then the server restarts on its store: the pull died with it, the durable and the jobs did not."""
    stream = await make_queue(fresh_bus)
    async with taking(fresh_bus, stream, 2) as (_, taken):
        await fresh_bus.request("$JS.API.INFO")
        await restarted(fresh_nats, fresh_bus)
        await enqueue(fresh_bus, stream, 3)
        await eventually(lambda: len(taken) == 2, RENEWED)
        for each in taken:
            await each.ack()
        assert await left(fresh_bus, stream) == 1


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each pull asks for."""
    asked: list[int] = []
    plain = pull.request

    def counted(batch: int, *, expires: float, heartbeat: float) -> bytes:
        asked.append(batch)
        return plain(batch, expires=expires, heartbeat=heartbeat)

    monkeypatch.setattr(pull, "request", counted)
    return asked


async def test_a_pull_that_expires_is_renewed(local_bus: Bus, requests: list[int]) -> None:
    stream = await make_queue(local_bus)
    async with taking(local_bus, stream, 2) as (queue, taken):
        await eventually(lambda: len(requests) == 2)
        await enqueue(local_bus, stream, 5)
        await eventually(lambda: len(taken) == 2)
        assert requests[:2] == [2, 2]
        assert not queue.missing.is_set()
        assert len(taken) == 2


async def test_what_is_wanted_no_more_does_not_come_once_its_pull_is_over(local_bus: Bus) -> None:
    stream = await make_queue(local_bus)
    async with taking(local_bus, stream, 3) as (queue, taken):
        queue.want(1)
        assert queue._outstanding == 3, "a pull cannot be taken back"
        await eventually(lambda: queue._outstanding == 1)
        await enqueue(local_bus, stream, 3)
        await eventually(lambda: taken)
        await local_bus.request("$JS.API.INFO")
        assert [each.data for each in taken] == [b"0"]


async def test_room_that_becomes_free_bit_by_bit_is_one_pull_in_the_end(local_bus: Bus, requests: list[int]) -> None:
    """A pull for each would be renewed for each, and take as many turns as there are of them."""
    stream = await make_queue(local_bus)
    async with taking(local_bus, stream, 1) as (queue, _):
        for count in range(2, 65):
            queue.want(count)
        assert len(requests) < 10
        await eventually(lambda: requests[-1] == queue._outstanding == 64)


async def test_after_a_standstill_no_more_is_asked_for_than_is_wanted(local_bus: Bus) -> None:
    """The end of the pull from before it is read only after somebody has asked for more."""
    stream = await make_queue(local_bus)
    async with taking(local_bus, stream, 3) as (queue, taken):
        await local_bus.request("$JS.API.INFO")
        time.sleep(1.5 * SILENCE)  # noqa: ASYNC251 - the fault: this process stands still, as under SIGSTOP
        queue.want(3)
        await local_bus.request("$JS.API.INFO")
        await asyncio.wait({asyncio.ensure_future(queue.missing.wait())}, timeout=3 * EXPIRES)
        await enqueue(local_bus, stream, 8)
        await eventually(lambda: len(taken) >= 3)
        await local_bus.request("$JS.API.INFO")
        assert len(taken) == 3


async def test_what_a_silent_holder_had_goes_to_somebody_alive(local_bus: Bus, nats: NatsServer) -> None:
    """Its pull still stands in the server when it is cut off, and has ended when an observer gives its job back."""
    stream = await make_queue(local_bus)
    where = urlsplit(nats.url)
    async with Link("holder") as link:
        link.aim(where.hostname or "", where.port or 0)
        holder = await Bus.connect(f"nats://127.0.0.1:{link.port}", "holder")
        try:
            async with taking(holder, stream, 8) as (_, held):
                await enqueue(local_bus, stream, 1)
                await eventually(lambda: held)
                link.hush()
                await asyncio.sleep(SILENCE - BEAT_INTERVAL)  # when an observer can act at the earliest
                async with taking(local_bus, stream, 8) as (_, taken):
                    await local_bus.api("INFO")  # the pull has arrived, behind the silent one's
                    await nak(local_bus, held[0].reply)
                    await eventually(lambda: taken)
                assert len(held) == 1
        finally:
            link.speak()
            await holder.close()
