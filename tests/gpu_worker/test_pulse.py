"""The pulse: a worker that lives is heard, however much it holds and whatever went wrong a moment ago."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from broker.bus.clock import now_ms
from broker.bus.errors import StoreRejected
from broker.bus.nats import Bus, Msg
from broker.bus.records import Beat, Generation, Load, decode, encode
from gpu_worker.pulse import Pulse
from gpu_worker.takeover import HELD_ELSEWHERE_DELAY, NakLater, decide
from tests.gpu_worker.bed import Bed

DEADLINE = 20.0


def describing(worker: str, held: int) -> Beat:
    jobs = {f"g{number:019}": f"$JS.ACK.JOBS.any_m.1.{number}.{number}.1700000000000000000.0" for number in range(held)}
    return Beat(worker, f"{worker}/1", now_ms(), {"m": Load(held, held, 0, 0)}, jobs)


async def heard(listener: Pulse, worker: str, than: int = 0) -> Beat:
    async with asyncio.timeout(DEADLINE):
        while worker not in (others := listener.others()) or others[worker].t <= than:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    return others[worker]


async def test_more_jobs_than_one_message_can_name_are_all_told_and_the_worker_stays_alive(bed: Bed) -> None:
    """Else it would be silent and dead to the others, with all that it holds; or a part of it would be nobody's."""
    many = describing("w1", 3000)
    async with pulses(bed, lambda: describing("w1", 3000), limit=64 * 1024) as (speaker, listener):
        with pytest.raises(StoreRejected):  # the fault happened
            speaker._bus.publish_now("beat.w1", encode(many))
        first = await heard(listener, "w1")
        assert first.held == many.held
        assert (await heard(listener, "w1", first.t)).held == many.held
        assert (await bed.until(lambda: bed.beats.get("w1"))).parts > 3
        job = await bed.ask(next(reversed(many.held)), [], enqueue=False)
        record = await bed.generations.get(f"{job.sid}.{job.gid}")
        assert record is not None
        await heard(listener, "w1")  # also where reading took a second
        found = decide(job, [], 0, decode(record.value, Generation), (), listener.others())
        assert found == NakLater(HELD_ELSEWHERE_DELAY, "held by w1"), "nobody takes it over"


async def test_of_a_worker_that_holds_much_only_what_is_new_is_told_soon(bed: Bed) -> None:
    """And it is told: a job that no beat names is not missed when the worker is gone."""
    told: list[Beat] = []

    async def hear(msg: Msg) -> None:
        told.extend(beat for beat in [decode(msg.data, Beat)] if beat.more)

    await bed.bus.subscribe("beat.w1", hear)
    async with pulses(bed, lambda: describing("w1", 1000)) as (speaker, listener):
        first = set((await heard(listener, "w1")).held)  # what is new is added to the beat itself
        async with asyncio.timeout(DEADLINE):
            while not told:  # a whole beat that is due just then takes its place
                speaker.beat_soon("new", "reply")
                await asyncio.sleep(0.1)
        assert told[0].held == {"new": "reply"}
        assert set((await heard(listener, "w1")).held) >= first


async def test_an_error_that_nobody_foresaw_costs_a_beat_and_not_the_pulse(bed: Bed) -> None:
    broken = 0

    def describe() -> Beat:
        nonlocal broken
        if 0 < broken < 3:
            broken += 1
            raise ValueError("a defect")
        return describing("w1", 1)

    async with pulses(bed, describe) as (_, listener):
        first = await heard(listener, "w1")
        broken = 1
        async with asyncio.timeout(DEADLINE):
            while broken < 3:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        await heard(listener, "w1", first.t)


@asynccontextmanager
async def pulses(bed: Bed, describe: Callable[[], Beat], limit: int = 0) -> AsyncIterator[tuple[Pulse, Pulse]]:
    """Of w1, which says what `describe` returns, and of w2, which listens. `limit`: bytes of a message from w1."""
    buses = [await Bus.connect(bed.url, name) for name in ("w1", "w2")]
    if limit:
        buses[0]._client._max_payload = limit  # as a server says that is told so; it keeps to it by itself
    speaker, listener = Pulse(buses[0], "w1", describe), Pulse(buses[1], "w2", lambda: describing("w2", 0))
    await listener.start()
    await speaker.start()
    try:
        yield speaker, listener
    finally:
        for pulse in (speaker, listener):
            await pulse.close()
        for bus in buses:
            await bus.close()
