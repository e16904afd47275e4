"""▸ The chain, not a count and not an answer "nothing there", proves that nothing is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from broker.bus.frames import TOKEN, Frame, encode_tokens
from broker.bus.log import store
from broker.bus.nats import Bus
from broker.bus.subjects import log_subject, new_session_id
from broker.node.history import History
from broker.node.log_reader import LogReader
from broker.node.ring import EMPTY, Added, Ring
from broker.node.settings import NodeSettings
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from broker.node.tail import Tail
from control.provisioning import provision
from control.settings import ControlSettings
from tests.broker.node.faults import Gapped, Lagging
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import Author

DEADLINE = 10.0
SMALL: dict[str, Any] = {"partitions": 2}
Kind = TypeVar("Kind", bound=Bus)


@asynccontextmanager
async def plane(server: NatsServer, kind: type[Kind]) -> AsyncIterator[Kind]:
    """Streams and buckets, and a connection of that kind."""
    bus = await kind.connect(server.url, "rules")
    assert isinstance(bus, kind)
    try:
        await provision(bus, ControlSettings(**SMALL))
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def following(bus: Bus, kind: type[Tail] = Tail, **settings: Any) -> AsyncIterator[Tail]:
    tail = kind(bus, "00", NodeSettings(**settings))
    await tail.start()
    try:
        yield tail
    finally:
        await tail.close()


async def watched(tail: Tail, bus: Bus, sid: str, upto: str = "done", after: str = "first") -> list[tuple[str, str]]:
    """What a viewer from the first frame on is given: (name, data), up to the first event of that name."""
    subscriber = Subscriber(tail, History(bus), "acme", sid, Start(after), "node-t")
    seen: list[tuple[str, str]] = []
    stream = subscriber.events()
    try:
        async with asyncio.timeout(DEADLINE):
            async for batch in stream:
                seen += [(event.name, event.data.decode()) for event in batch]
                if any(event.name == upto for event in batch):
                    return seen
        raise AssertionError(f"the stream ended before {upto}")
    finally:
        await stream.aclose()


def frames_of(seen: list[tuple[str, str]]) -> list[str]:
    return [data for name, data in seen if name not in ("hello", "caught_up", "queued")]


def token(seq: int, prev: int, offset: int) -> Frame:
    return Frame(seq, TOKEN, "g1", 1, "attempt1", prev, offset, 1, b"{}")


def test_a_frame_is_taken_only_behind_the_frame_it_names() -> None:
    ring = Ring("00session1", "inc", 64)
    assert ring.add(token(5, 3, 0)) is Added.TAKEN
    assert ring.add(token(9, 7, 2)) is Added.HOLE
    assert (ring.last, len(ring)) == (5, 1)
    assert ring.add(token(7, 5, 1)) is Added.TAKEN
    assert ring.add(token(9, 7, 2)) is Added.TAKEN
    assert ring.add(token(7, 5, 1)) is Added.OLD
    assert ring.add(token(11, 9, 7)) is Added.BROKEN, "an offset that does not follow"
    assert [event.cursor for event in ring.read(3, 10)[0]] == ["inc-5", "inc-7", "inc-9"]


def test_a_place_that_is_no_frame_of_the_session_is_not_held() -> None:
    ring = Ring("00session1", "inc", 64)
    for seq, prev, offset in ((5, 3, 0), (7, 5, 1), (9, 7, 2)):
        ring.add(token(seq, prev, offset))
    assert [seq for seq in range(12) if ring.holds(seq)] == [3, 5, 7, 9]


class Losing(Tail):
    """Loses the deliveries of these positions on its way from the consumer to the rings."""

    losing: frozenset[int] = frozenset({3, 4, 20})
    count = 0
    lost = ""

    def _receive(self, seq: int, subject: str, payload: bytes, headers: dict[str, str] | None) -> None:
        self.count += 1
        if self.count not in self.losing:
            super()._receive(seq, subject, payload, headers)


async def test_a_hole_is_filled_before_what_is_behind_it_is_shown(nats: NatsServer) -> None:
    async with plane(nats, Bus) as bus, following(bus, Losing, warm_frames=0) as tail:
        author = Author(bus, new_session_id("00"))
        viewer = asyncio.create_task(watched(tail, bus, author.sid))
        await author.answer(30)
        assert frames_of(await viewer) == author.data
        assert isinstance(tail, Losing)
        async with asyncio.timeout(DEADLINE):  # the page that filled a hole may have had more than was delivered
            while tail.count < 32:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.005)


async def test_an_empty_answer_of_a_replica_is_not_believed(nats: NatsServer) -> None:
    """▸ History has met the ring by prev, never because a 404 came: the replica lacks all, the leader has it."""
    async with plane(nats, Lagging) as bus, following(bus, warm_frames=0, ring_frames=16) as tail:
        author = Author(bus, new_session_id("00"))
        await author.answer(60)
        await tail.locate(author.sid)
        bus.knows = author.seqs[10]
        assert frames_of(await watched(tail, bus, author.sid)) == author.data
        assert bus.believed_empty >= 3, "the fault happened"


async def test_a_replica_that_skips_a_frame_is_asked_again(nats: NatsServer) -> None:
    async with plane(nats, Gapped) as bus:
        author = Author(bus, new_session_id("00"))
        await author.answer(20)
        reader = LogReader(bus, author.stream, 4)
        try:
            for gapped in (1, 5):  # two more than replicas are asked: the leader has it
                bus.left = gapped
                page = await reader.page(author.sid, author.seqs[2])
                assert not page.broken
                assert page.frames[0].prev == author.seqs[2]
                assert page.frames[0].seq == author.seqs[3]
            assert bus.gapped >= 4, "the fault happened"
        finally:
            await reader.close()


async def test_readers_of_one_session_share_their_pages(nats: NatsServer) -> None:
    """A crowd that falls behind together costs what one of them costs."""
    async with plane(nats, Bus) as bus:
        author = Author(bus, new_session_id("00"))
        await author.answer(20)
        asked: list[str] = []

        async def overhear(msg: Any) -> None:
            asked.append(msg.subject)

        await bus.subscribe(f"$JS.API.DIRECT.GET.{author.stream}", overhear)
        await bus.api("INFO")  # the server has read the subscription
        reader = LogReader(bus, author.stream, 4)
        try:
            pages = await asyncio.gather(*(reader.page(author.sid, 0) for _ in range(50)))
            await bus.api("INFO")
        finally:
            await reader.close()
        assert all(page.frames == pages[0].frames and len(page.frames) == 22 for page in pages)
        assert len(asked) == 1


async def test_the_pages_read_at_once_are_bounded(nats: NatsServer) -> None:
    class Counting(Bus):
        now = most = 0

        async def collect(self, *arguments: Any, **options: Any) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return await super().collect(*arguments, **options)
            finally:
                self.now -= 1

    async with plane(nats, Counting) as bus:
        authors = [Author(bus, new_session_id("00")) for _ in range(12)]
        await asyncio.gather(*(author.start() for author in authors))
        reader = LogReader(bus, authors[0].stream, 3)
        try:
            await asyncio.gather(*(reader.page(author.sid, 0) for author in authors))
        finally:
            await reader.close()
        assert bus.most == 3


async def test_a_stored_frame_that_may_not_follow_is_never_shown(nats: NatsServer) -> None:
    """Readers check like writers: behind a terminal nothing is shown, although it is stored under a right fence."""
    async with plane(nats, Bus) as bus:
        author = Author(bus, new_session_id("00"))
        await author.answer(3)
        forged = encode_tokens(TOKEN, author.gid, 1, "attempt1", author.prev, 3, 1, "FORGED")
        await store(bus, log_subject(author.sid), forged, expect_last=author.prev)
        async with following(bus, warm_frames=0) as tail:
            seen = await watched(tail, bus, author.sid, upto="closed")
        assert not any("FORGED" in data for _, data in seen)
        assert frames_of(seen)[: len(author.data)] == author.data


async def test_a_viewer_who_was_there_is_not_shown_it_by_the_log_either(nats: NatsServer) -> None:
    """The ring refuses the frame and is forgotten; the log that is read instead is judged from the frame before on."""
    async with plane(nats, Bus) as bus, following(bus) as tail:
        author = Author(bus, new_session_id("00"))
        await author.answer(3)
        subscriber = Subscriber(tail, History(bus), "acme", author.sid, Start("now"), "node-t")
        seen: list[tuple[str, str]] = []
        async with asyncio.timeout(DEADLINE):
            async for batch in subscriber.events():
                seen += [(event.name, event.data.decode()) for event in batch]
                if any(event.name == "caught_up" for event in batch):
                    forged = encode_tokens(TOKEN, author.gid, 1, "attempt1", author.prev, 3, 1, "FORGED")
                    await store(bus, log_subject(author.sid), forged, expect_last=author.prev)
        assert not [data for _, data in seen if "FORGED" in data]
        assert seen[-1][0] == "closed", "it cannot go on, and says so"


async def test_memory_of_a_partition_is_bounded_and_nobody_loses_a_frame_by_that(nats: NatsServer) -> None:
    limit = 65536
    async with plane(nats, Bus) as bus, following(bus, warm_frames=0, partition_bytes=limit) as tail:
        read = Author(bus, new_session_id("00"))
        unread = [Author(bus, new_session_id("00")) for _ in range(4)]
        viewer = asyncio.create_task(watched(tail, bus, read.sid))
        for author in unread:
            await author.start()
            await author.tokens(20, "x" * 1000)
        await read.start()
        await read.tokens(120, "y" * 1000)
        await read.done()
        assert frames_of(await viewer) == read.data
        held = [ring for author in (*unread, read) if (ring := tail._rings.get(author.sid)) is not None]
        assert sum(ring.size for ring in held) <= limit


async def test_sessions_in_which_nothing_was_asked_are_forgotten_like_others(nats: NatsServer) -> None:
    """Who opens one session after the other, looks at it and goes, fills no node."""
    limit = 65536
    async with plane(nats, Bus) as bus, following(bus, partition_bytes=limit) as tail:
        held = []
        for _ in range(limit // EMPTY + 20):
            await tail.locate(new_session_id("00"))
            held.append(len(tail._rings))
        assert max(held) <= limit // EMPTY
        assert tail._bytes == EMPTY * len(tail._rings)
