"""Scans: every message of a subject once and in order, in pages; and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.bus.errors import BusUnavailable, StoreRejected
from broker.bus.log import PAGE_BYTES, Stored, store
from broker.bus.nats import Bus, Heard
from broker.bus.scan import TIMEOUT, Scan
from tests.broker.bus.conftest import DEADLINE, consumers, consumers_left, make_stream


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads goes on without a scan that is not open soon; here there is nothing else to go on with."""
    monkeypatch.setattr("broker.bus.scan.OPEN_TIMEOUT", DEADLINE)


@asynccontextmanager
async def scanning(bus: Bus, stream: str, after: int = 0) -> AsyncIterator[Scan]:
    scan = Scan(bus, stream, f"{stream}.a", "scan-test")
    try:
        await scan.open(after)
        yield scan
    finally:
        await scan.close()


@pytest.fixture
async def stream(bus: Bus) -> str:
    """25 messages of `a`, at the odd sequences, and as many of `b`."""
    name = await make_stream(bus)
    for number in range(25):
        fence = max(0, 2 * number - 1)
        await store(bus, f"{name}.a", b"%d" % number, expect_last=fence, headers={"Some": "head"}, timeout=DEADLINE)
        await store(bus, f"{name}.b", b"not wanted", timeout=DEADLINE)
    return name


async def not_empty(scan: Scan) -> list[Stored]:
    """NATS answers the one that stores before it wakes its consumers: their first page behind it may be empty."""
    async with asyncio.timeout(DEADLINE):
        while not (page := await scan.page(10)):
            pass
    return page


async def test_pages_follow_one_another_to_the_end(bus: Bus, stream: str) -> None:
    async with scanning(bus, stream) as scan:
        pages = []
        while not scan.at_end:
            pages.append(await scan.page(10))
        found = [message for page in pages for message in page]
        assert [len(page) for page in pages] == [10, 10, 5]
        assert [message.seq for message in found] == list(range(1, 50, 2))
        assert [message.data for message in found] == [b"%d" % number for number in range(25)]
        assert {message.subject for message in found} == {f"{stream}.a"}
        await store(bus, f"{stream}.a", b"late")
        assert [message.data for message in await not_empty(scan)] == [b"late"]


async def test_it_begins_behind_a_sequence(bus: Bus, stream: str) -> None:
    async with scanning(bus, stream, 21) as scan:
        assert [message.seq for message in await scan.page(2)] == [23, 25]
        assert not scan.at_end


async def test_a_page_is_bounded_in_bytes(bus: Bus) -> None:
    """One message that is larger than a page gives none: a direct get gives it."""
    stream = await make_stream(bus)
    half = b"x" * (PAGE_BYTES // 2 - 1000)
    for data in (half, half, half, b"x" * (PAGE_BYTES + 1)):
        await store(bus, f"{stream}.a", data)
    async with scanning(bus, stream) as scan:
        assert [message.seq for message in await scan.page(10)] == [1, 2]
        assert [message.seq for message in await scan.page(10)] == [3]
        assert await scan.page(10) == []
        assert not scan.at_end


async def test_nothing_is_left_of_it(bus: Bus, stream: str) -> None:
    async with scanning(bus, stream) as scan:
        await scan.page(10)
        (name,) = await consumers(bus, stream)
        assert name.startswith("scan-test-")
        before = len(bus._inlet.takers)
    await scan.close()
    assert len(bus._inlet.takers) == before - 1
    await consumers_left(bus, stream)


async def test_without_its_consumer_it_is_of_no_more_use_and_says_so_at_once(bus: Bus, stream: str) -> None:
    async with scanning(bus, stream) as scan:
        await scan.page(10)
        (name,) = await consumers(bus, stream)
        await bus.api(f"CONSUMER.DELETE.{stream}.{name}")
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(BusUnavailable, match="gone"):
                await scan.page(10)


async def test_an_answer_that_does_not_come_has_a_deadline(
    bus: Bus, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.bus.scan.TIMEOUT", 0.05)
    async with scanning(bus, stream) as scan:
        monkeypatch.setattr(bus, "publish_now", lambda *args: None)
        with pytest.raises(BusUnavailable, match="no end"):
            await scan.page(10)


async def test_of_a_stream_that_is_not_there_there_is_none(bus: Bus) -> None:
    with pytest.raises(StoreRejected):
        async with scanning(bus, "NOWHERE"):
            raise AssertionError("unreachable")


async def test_acknowledgement_subjects_of_the_second_version_are_read_too(bus: Bus, stream: str) -> None:
    async with scanning(bus, stream) as scan:
        (name,) = await consumers(bus, stream)
        reading = asyncio.create_task(scan.page(10))
        await asyncio.sleep(0)
        scan._take(Heard("s", f"$JS.ACK.hub.hash.{stream}.{name}.1.4711.1.1795000000000000000.0.x", b"first"))
        assert [message.seq for message in await reading][:2] == [4711, 1]
