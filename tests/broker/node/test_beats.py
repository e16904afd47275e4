"""What a node knows of who holds what, from beats in one message or in many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.bus.beats import split
from broker.bus.nats import Bus
from broker.bus.records import Beat, Load, encode
from broker.bus.subjects import beat_subject
from broker.node.beats import Beats
from tests.fixtures.nats_server import NatsServer

DEADLINE = 10.0
HELD = {f"g{number}": f"$JS.ACK.JOBS.any_m.1.{number}.{number}.1700000000000000000.0" for number in range(60)}


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(nats.url, "beats")
    yield bus
    await bus.close()


@pytest.fixture
async def beats(bus: Bus) -> AsyncIterator[Beats]:
    beats = Beats(bus)
    await beats.start()
    yield beats
    await beats.close()


def beat(t: int, worker: str = "w1") -> list[bytes]:
    return [encode(part) for part in split(Beat(worker, "one", t, {"m": Load(4, 1, 0, 4)}, HELD), 1500)]


async def say(bus: Bus, parts: list[bytes], worker: str = "w1") -> None:
    for part in parts:
        await bus.publish(beat_subject(worker), part)


async def all_held(beats: Beats) -> None:
    async with asyncio.timeout(DEADLINE):
        while not any(found.held == HELD for found in beats.live()):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.005)


async def test_a_job_in_any_part_of_a_beat_has_its_holder(beats: Beats, bus: Bus) -> None:
    assert len(beat(1)) > 2
    await say(bus, [encode(Beat("w2", "two", 1, {"m": Load(4, 0, 0, 4)}))], "w2")
    await say(bus, beat(1))
    await all_held(beats)
    for gid in HELD:
        assert beats.holders(gid) == ["w1"]


async def test_a_lost_part_is_made_good_by_the_next_beat_and_nothing_piles_up(beats: Beats, bus: Bus) -> None:
    for t in range(1, 20):
        await say(bus, beat(t)[1:])  # the first one is lost
    await say(bus, [encode(Beat("w2", "two", 1, {"m": Load(4, 0, 0, 4)}, HELD))], "w2")
    await all_held(beats)
    assert len(beats._raw["w1"][1]) <= len(beat(1))
    await say(bus, beat(98)[:1])  # all but the first one are lost
    await say(bus, beat(99))
    async with asyncio.timeout(DEADLINE):
        while not all(beats.holders(gid) == ["w1", "w2"] for gid in HELD):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.005)
    assert len(beats._raw["w1"][1]) == len(beat(99))
