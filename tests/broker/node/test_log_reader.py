"""Log reader: pages that prove what they say; what a replica lacks is asked of the leader, and nobody is told "broken"
because a replica lags."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from broker.bus import log as jetstream
from broker.bus.errors import BusUnavailable
from broker.bus.log import Stored, store
from broker.bus.nats import Bus
from broker.bus.subjects import log_subject
from broker.node import log_reader
from broker.node.log_reader import LEADER_PAGE, REPLICA_TRIES, LogReader, Page
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import Author, provisioned


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    async with provisioned(nats) as bus:
        yield bus


@pytest.fixture
async def reader(bus: Bus) -> AsyncIterator[LogReader]:
    reader = LogReader(bus, "TOK_00", 4)
    yield reader
    await reader.close()


@pytest.fixture
async def author(bus: Bus) -> Author:
    return await Author.of(bus)


Replica = Callable[[list[Stored]], list[Stored]]


class Lagging:
    """Replicas that answer what `lag` makes of the truth; the leader says the truth. Counts both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lag: Replica, times: int = 1000) -> None:
        self.asked = {"replica": 0, "leader": 0}
        truth = jetstream.page

        async def page(*args: Any, leader: bool = False, **options: Any) -> list[Stored]:
            self.asked["leader" if leader else "replica"] += 1
            found = await truth(*args, leader=leader, **options)
            return found if leader or self.asked["replica"] > times else lag(found)

        monkeypatch.setattr(jetstream, "page", page)
        monkeypatch.setattr(log_reader, "REPLICA_RETRY", 0.001)


async def everything(reader: LogReader, author: Author) -> list[int]:
    """All sequences of the log, by pages; each page is as long as it may be but the last."""
    found: list[int] = []
    while True:
        page = await reader.page(author.sid, found[-1] if found else 0)
        assert not page.broken
        if not page.frames:
            return found
        found += [frame.seq for frame in page.frames]


async def test_pages_follow_one_another_to_the_end(reader: LogReader, author: Author) -> None:
    await author.start()
    await author.tokens(2 * LogReader.page_size)
    first = await reader.page(author.sid, 0)
    assert len(first.frames) == LogReader.page_size
    assert await everything(reader, author) == author.seqs
    assert await reader.page(author.sid, author.seqs[-1]) == Page([], broken=False)


@pytest.mark.parametrize(
    ("lag", "name"),
    [(lambda found: [], "says 404"), (lambda found: found[1:], "lacks the first"), (lambda found: found[3:], "gapped")],
)
async def test_a_lagging_replica_is_asked_again_and_then_the_leader(
    reader: LogReader, author: Author, monkeypatch: pytest.MonkeyPatch, lag: Replica, name: str
) -> None:
    await author.answer(10)
    lagging = Lagging(monkeypatch, lag)
    page = await reader.page(author.sid, author.seqs[0])
    assert [frame.seq for frame in page.frames] == author.seqs[1 : 1 + LEADER_PAGE]
    assert not page.broken
    assert lagging.asked == {"replica": REPLICA_TRIES, "leader": 1}


async def test_a_replica_that_has_come_up_is_enough(
    reader: LogReader, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    await author.answer(10)
    lagging = Lagging(monkeypatch, lambda found: [], times=2)
    assert len((await reader.page(author.sid, 0)).frames) == 12
    assert lagging.asked == {"replica": 3, "leader": 0}


async def test_what_a_replica_has_is_used_and_the_rest_comes_later(
    reader: LogReader, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short page is a page; a hole in its middle is nobody's loss before the leader confirms it."""
    await author.answer(10)
    Lagging(monkeypatch, lambda found: found[:2] + found[3:])
    page = await reader.page(author.sid, 0)
    assert ([frame.seq for frame in page.frames], page.broken) == (author.seqs[:2], False)
    assert await everything(reader, author) == author.seqs


async def test_only_the_leader_says_that_this_is_the_end(
    reader: LogReader, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    await author.answer(2)
    lagging = Lagging(monkeypatch, lambda found: [])
    assert await reader.page(author.sid, author.seqs[-1]) == Page([], broken=False)
    assert lagging.asked["replica"] == 1, "its last sequence is one question, not a page"


async def test_a_place_that_no_frame_follows_is_broken(reader: LogReader, author: Author, bus: Bus) -> None:
    """Foreign, aged out or beyond the end: said so, by the leader."""
    await author.answer(5)
    assert (await reader.page(author.sid, author.seqs[-1] + 5)).broken
    other = await Author.of(bus)
    await other.answer(1)
    await author.answer(1)
    assert (await reader.page(author.sid, other.seqs[0])).broken


async def test_bytes_that_are_no_frame_end_the_page_before_them(reader: LogReader, author: Author, bus: Bus) -> None:
    await author.answer(3)
    seq = await store(bus, log_subject(author.sid), b"rubbish")
    page = await reader.page(author.sid, 0)
    assert [frame.seq for frame in page.frames] == author.seqs
    assert (await reader.page(author.sid, author.seqs[-1])) == Page([], broken=True)
    assert await reader.end(author.sid) == (seq, None)


async def test_the_ends_of_a_log(reader: LogReader, author: Author, bus: Bus) -> None:
    assert await reader.end(author.sid) == (0, None)
    assert await reader.earliest(author.sid) is None
    await author.answer(4)
    end = await reader.end(author.sid)
    assert end.frame is not None
    assert (end.seq, end.frame.terminal) == (author.seqs[-1], True)
    assert await reader.earliest(author.sid) == 0
    await bus.api("STREAM.PURGE.TOK_00", {"filter": log_subject(author.sid), "keep": 2})
    assert await reader.earliest(author.sid) == author.seqs[-3]


class Counted(LogReader):
    """Reads when it is told to."""

    reads = 0

    def __init__(self, bus: Bus, readers: int = 4) -> None:
        super().__init__(bus, "TOK_00", readers)
        self.go = asyncio.Event()
        self.most = self.now = 0

    async def _read(self, sid: str, after: int, size: int) -> Page:
        self.reads += 1
        async with self._budget:
            self.now += 1
            self.most = max(self.most, self.now)
            await self.go.wait()
            self.now -= 1
            if sid == "down":
                raise BusUnavailable("down")
            return Page([], broken=False)


async def test_readers_of_one_place_share_one_page_and_one_that_leaves_takes_it_from_nobody(bus: Bus) -> None:
    reader = Counted(bus)
    asking = [asyncio.create_task(reader.page("s", 0)) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    asking[3].cancel()
    await asyncio.sleep(0)
    reader.go.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers].count(asyncio.CancelledError) == 2
    assert [answer for answer in answers if isinstance(answer, Page)] == [Page([], broken=False)] * 3
    assert reader.reads == 1
    await reader.page("s", 0)
    assert reader.reads == 2, "an answer is not kept"


async def test_pages_of_a_partition_are_read_under_a_budget(bus: Bus) -> None:
    reader = Counted(bus, readers=3)
    asking = [asyncio.create_task(reader.page("s", place)) for place in range(20)]
    for _ in range(5):
        await asyncio.sleep(0)
    reader.go.set()
    await asyncio.gather(*asking)
    assert (reader.reads, reader.most) == (20, 3)


async def test_a_page_that_fails_after_its_readers_left_fails_quietly(bus: Bus) -> None:
    """The loop reports what nobody retrieved, and that fails this test."""
    reader = Counted(bus)
    asking = asyncio.create_task(reader.page("down", 0))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    reader.go.set()
    for _ in range(5):
        await asyncio.sleep(0)
    await reader.close()


async def test_pages_of_the_log_before_are_not_shared_with_readers_of_the_next(bus: Bus) -> None:
    reader = Counted(bus)
    before = asyncio.create_task(reader.page("s", 0))
    await asyncio.sleep(0)
    reader.renew()
    after = asyncio.create_task(reader.page("s", 0))
    await asyncio.sleep(0)
    reader.go.set()
    await asyncio.gather(before, after)
    assert reader.reads == 2
