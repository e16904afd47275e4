"""How old an open generation is, with clocks that differ and replicas that come later: never too old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.bus.clock import SKEW, now_ms
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Generation, Message, Request, encode
from control.app import Okome
from control.open_generations import OpenGenerations
from tests.control.okome import TENANT, new_session, until
from tests.fixtures.clock import clock_off


@pytest.fixture
async def opened(okome: Okome, bus: Bus) -> AsyncIterator[OpenGenerations]:
    """As another replica has them."""
    opened = OpenGenerations(bus)
    await opened.start()
    yield opened
    await opened.close()


async def accepted(bus: Bus, gid: str, ago: float) -> Generation:
    """A generation that was accepted `ago` seconds ago, by the clock of whoever accepted it."""
    sid = await new_session(bus)
    request = Request("m", [Message("user", "x")])
    record = Generation(gid, sid, TENANT, request, now_ms() - int(ago * 1000), 0)
    await Bucket(bus, "generations").put(f"{sid}.{gid}", encode(record))
    return record


async def known(opened: OpenGenerations, gid: str) -> None:
    await until(lambda: gid in opened.records, "it is known")


async def test_a_clock_that_is_ahead_makes_no_generation_older(opened: OpenGenerations, bus: Bus) -> None:
    """Or every generation that waits for a moment would expire, as soon as the wrong replica sweeps."""
    record = await accepted(bus, "gnew", 0)
    await known(opened, "gnew")
    with clock_off(540):
        assert opened.age(record) < 60
    with clock_off(-540):
        assert opened.age(record) >= 0


async def test_what_passed_since_it_is_known_counts(opened: OpenGenerations, bus: Bus) -> None:
    record = await accepted(bus, "gnew", 0)
    await known(opened, "gnew")
    began = asyncio.get_running_loop().time()
    before = opened.age(record)
    await until(lambda: opened.age(record) > before, "it grows older")
    age = opened.age(record)
    assert age - before <= asyncio.get_running_loop().time() - began


async def test_a_replica_that_came_later_knows_how_old_it_is_at_least(opened: OpenGenerations, bus: Bus) -> None:
    record = await accepted(bus, "gold", SKEW + 1000)
    await known(opened, "gold")
    assert opened.age(record) >= 1000
