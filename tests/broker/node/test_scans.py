"""Long pages of a log: by scans, which are few, give way to direct gets, and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.bus import log as jetstream
from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus
from broker.bus.scan import Scan
from broker.bus.subjects import log_subject
from broker.node.log_reader import SCANS, LogReader
from tests.broker.bus.conftest import consumers, consumers_left
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import Author, provisioned

LONG = 16


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    async with provisioned(nats) as bus:
        yield bus


@pytest.fixture
async def reader(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LogReader]:
    monkeypatch.setattr("broker.node.log_reader.SCAN_IDLE", 60.0)  # however slow this machine is just now
    reader = LogReader(bus, "TOK_00", 4)
    reader.page_size = 4
    yield reader
    await reader.close()
    await consumers_left(bus, "TOK_00")


class Opened:
    """How many scans were opened, and how many direct gets were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scans = self.gets = 0
        scan, get = Scan.open, jetstream.page

        async def opening(it: Scan, after: int) -> None:
            self.scans += 1
            await scan(it, after)

        async def getting(*args: object, **options: object) -> list[jetstream.Stored]:
            self.gets += 1
            return await get(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Scan, "open", opening)
        monkeypatch.setattr(jetstream, "page", getting)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


async def rest(reader: LogReader, author: Author, after: int, size: int = LONG) -> list[int]:
    """The sequences of what is behind a place, in pages of this size."""
    found: list[int] = []
    while (page := await reader.begin(author.sid, after, size)).frames:
        assert not page.broken
        found += [frame.seq for frame in page.frames]
        after = found[-1]
        size = size if len(page.frames) == size else reader.page_size  # as a subscriber asks
    assert not page.broken
    return found


async def long_session(bus: Bus, tokens: int = 100) -> Author:
    author = await Author.of(bus)
    await author.answer(tokens)
    return author


async def test_a_long_history_is_read_by_one_consumer_with_its_readers_name(
    reader: LogReader, bus: Bus, opened: Opened
) -> None:
    author, other = await long_session(bus), await long_session(bus, 3)
    first = await reader.begin(author.sid, 0, LONG)
    assert [frame.seq for frame in first.frames] == author.seqs[:LONG]
    (name,) = await consumers(bus, "TOK_00")
    assert name.startswith(f"scan-{bus.id}-")
    assert await rest(reader, author, author.seqs[LONG - 1]) == author.seqs[LONG:]
    assert await rest(reader, other, 0, 4) == other.seqs
    assert opened.scans == 1
    await consumers_left(bus, "TOK_00")


async def test_who_goes_on_more_slowly_goes_on_by_the_same_one(reader: LogReader, bus: Bus, opened: Opened) -> None:
    author = await long_session(bus)
    await reader.begin(author.sid, 0, LONG)
    assert await rest(reader, author, author.seqs[LONG - 1], 4) == author.seqs[LONG:]
    assert opened.scans == 1
    assert opened.gets == 1, "the last page, where there is nothing more"


async def test_short_pages_make_no_consumer(reader: LogReader, bus: Bus, opened: Opened) -> None:
    author = await long_session(bus)
    assert await rest(reader, author, 0, 4) == author.seqs
    assert opened.scans == 0


async def test_without_consumers_direct_gets_give_all_and_no_more_are_tried_for_a_while(
    reader: LogReader, bus: Bus, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = await long_session(bus)
    await reader.begin(author.sid, 0, LONG)
    (name,) = await consumers(bus, "TOK_00")
    await bus.api(f"CONSUMER.DELETE.TOK_00.{name}")
    await reader.begin(author.sid, author.seqs[LONG - 1], LONG)
    assert (opened.scans, opened.gets) == (1, 1), "this one was lost: which says nothing of others"

    async def failing(it: Scan, after: int) -> None:
        opened.scans += 1
        raise BusUnavailable("no consumers now")

    monkeypatch.setattr(Scan, "open", failing)
    assert await rest(reader, author, 0) == author.seqs
    assert opened.scans == 2
    monkeypatch.setattr(reader, "_no_scan_before", 0.0)
    assert await rest(reader, author, 0) == author.seqs
    assert opened.scans == 3


async def test_few_are_open_at_a_time_and_whoever_comes_later_reads_by_direct_gets(
    reader: LogReader, bus: Bus, opened: Opened
) -> None:
    """He takes none from those who read: each goes on with his own."""
    authors = [await long_session(bus, 40) for _ in range(SCANS + 4)]
    places = dict.fromkeys(authors, 0)
    for _ in range(2):
        for author in authors:
            page = await reader.begin(author.sid, author.seqs[places[author] - 1] if places[author] else 0, LONG)
            places[author] += len(page.frames)
        assert len(await consumers(bus, "TOK_00")) == SCANS
    assert opened.scans == SCANS
    for author in authors:
        assert await rest(reader, author, author.seqs[places[author] - 1]) == author.seqs[places[author] :]


async def test_one_that_nobody_goes_on_with_goes(reader: LogReader, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.node.log_reader.SCAN_IDLE", 0.05)
    author = await long_session(bus)
    await reader.begin(author.sid, 0, LONG)
    await consumers_left(bus, "TOK_00")
    assert not reader._scans
    assert await rest(reader, author, author.seqs[LONG - 1]) == author.seqs[LONG:]


async def test_of_another_log_they_know_nothing(reader: LogReader, bus: Bus) -> None:
    author = await long_session(bus)
    await reader.begin(author.sid, 0, LONG)
    reader.renew()
    assert not reader._scans
    await consumers_left(bus, "TOK_00")


async def test_a_page_of_the_log_before_leaves_no_scan_to_the_next(reader: LogReader, bus: Bus) -> None:
    author = await long_session(bus)
    page = reader.begin(author.sid, 0, LONG)
    await asyncio.sleep(0)
    reader.renew()
    assert (await page).frames
    assert not reader._scans


async def test_bytes_that_are_no_frame_end_a_page_and_then_break_it(reader: LogReader, bus: Bus) -> None:
    author = await Author.of(bus)
    await author.start()
    await author.tokens(6)
    await jetstream.store(bus, log_subject(author.sid), b"rubbish")
    page = await reader.begin(author.sid, 0, LONG)
    assert ([frame.seq for frame in page.frames], page.broken) == (author.seqs, False)
    assert not reader._scans
    page = await reader.begin(author.sid, author.seqs[-1], LONG)
    assert (page.frames, page.broken) == ([], True)
    await bus.api("STREAM.PURGE.TOK_00", {"filter": log_subject(author.sid)})  # other nodes would report it


async def test_two_who_come_to_the_same_place_leave_one(reader: LogReader, bus: Bus) -> None:
    author = await long_session(bus)
    for _ in range(3):
        await reader.begin(author.sid, author.seqs[3], LONG)
    assert len(reader._scans) == 1
    await consumers_left(bus, "TOK_00", 1)


@pytest.mark.parametrize("turns", range(0, 12, 2))
async def test_a_page_that_is_given_up_leaves_nothing(
    reader: LogReader, bus: Bus, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was at: asking for a consumer (which NATS may make after it was told to delete it: then it forgets it
    by itself), or for its messages."""
    monkeypatch.setattr("broker.bus.scan.INACTIVE", 1.0)
    author = await long_session(bus, 40)
    for pause in (0.0, 0.001, 0.002):
        reading = reader.begin(author.sid, 0, LONG)
        for _ in range(turns):
            await asyncio.sleep(pause)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    reader.renew()
    await consumers_left(bus, "TOK_00")
