"""Tail: the chain proves that nothing is missing; what cannot be trusted says so, and moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.bus.errors import BusUnavailable
from broker.bus.follow import Follow
from broker.bus.log import store
from broker.bus.nats import Bus, Heard, Msg
from broker.bus.subjects import Cursor, log_subject
from broker.node import tail as tail_module
from broker.node.history import History
from broker.node.settings import NodeSettings
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from broker.node.tail import Tail
from tests.broker.node.memory_log import SID, MemoryHistory, MemoryLog, MemoryTail, Viewer, settle
from tests.broker.node.memory_log import end as end_viewers
from tests.control.okome import until
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import TENANT, Author, provisioned

DEADLINE = 15.0


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    async with provisioned(nats) as bus:
        yield bus


@asynccontextmanager
async def following(bus: Bus, **settings: Any) -> AsyncIterator[Tail]:
    tail = Tail(bus, "00", NodeSettings(**settings))
    try:
        await tail.start()
        yield tail
    finally:
        await tail.close()


class Seen:
    """What a viewer of a real tail has seen."""

    def __init__(self, tail: Tail, bus: Bus, sid: str, start: Start) -> None:
        self.subscriber = Subscriber(tail, History(bus), TENANT, sid, start, "node")
        self.names: list[str] = []
        self.data: list[str] = []
        self.gate: Callable[[], Awaitable[Any]] = _at_once
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for batch in self.subscriber.events():
            for event in batch:
                self.names.append(event.name)
                if event.cursor and event.name not in ("hello", "message"):
                    self.data.append(event.data.decode())
            await self.gate()

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        await until(lambda: condition() or (self.task.done() and self.task.result()), what, DEADLINE)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def _at_once() -> None: ...


def swallow(monkeypatch: pytest.MonkeyPatch, swallowed: Callable[[Msg], bool]) -> None:
    """Messages of that kind never reach a follow of a log."""
    receive = Follow._receive

    def lossy(self: Follow, msg: Heard) -> None:
        if not (self.stream == "TOK_00" and swallowed(msg)):
            receive(self, msg)

    monkeypatch.setattr(Follow, "_receive", lossy)


async def test_the_last_frame_is_found_missing_though_nothing_follows_it(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat counts more than arrived."""
    lost: list[str] = []

    def once(msg: Msg) -> bool:
        if b" done " in msg.data[:20] and author.sid in msg.subject and not lost:
            lost.append(msg.reply)
            return True
        return False

    author = await Author.of(bus)
    swallow(monkeypatch, once)
    async with following(bus) as tail:
        seen = Seen(tail, bus, author.sid, Start("first"))
        await author.answer(5)
        await seen.until(lambda: "done" in seen.names, "the frame that was lost")
        assert lost, "the fault happened"
        assert seen.data == author.data
        await seen.leave()


async def test_a_frame_lost_while_a_tail_begins_does_not_keep_it_from_beginning(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = await Author.of(bus)
    for _ in range(20):
        await author.answer(5)
    lost: list[str] = []

    def once(msg: Msg) -> bool:
        if b" done " in msg.data[:20] and not lost:
            lost.append(msg.reply)
        return lost[-1:] == [msg.reply]

    swallow(monkeypatch, once)
    async with following(bus) as tail:
        assert lost, "the fault happened"
        seen = Seen(tail, bus, author.sid, Start("first"))
        await seen.until(lambda: "caught_up" in seen.names, "history")
        assert seen.data == author.data
        await seen.leave()


async def test_a_consumer_deleted_under_the_tail_is_replaced_without_a_gap(bus: Bus) -> None:
    async with following(bus) as tail:
        author = await Author.of(bus)
        seen = Seen(tail, bus, author.sid, Start("first"))
        await author.start()
        follow, deleted = tail._follow, {""}
        assert follow is not None
        for _ in range(4):
            await author.tokens(3)
            await until(lambda: follow._consumer not in deleted, "there is one to delete")
            deleted.add(mine := follow._consumer)
            await bus.api(f"CONSUMER.DELETE.TOK_00.{mine}")
            await author.tokens(3)
        await author.done()
        await seen.until(lambda: "done" in seen.names, "the end")
        assert seen.data == author.data
        assert follow.restarts >= 1, "the fault happened"
        await seen.leave()


async def test_a_tail_the_leader_is_ahead_of_for_too_long_is_lost_moves_and_comes_back(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer on a minority side: it heartbeats happily and delivers nothing."""
    monkeypatch.setattr(tail_module, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(tail_module, "LAG_TIMEOUT", 0.2)
    cut = False
    receive = Follow._receive

    def happily(self: Follow, msg: Heard) -> None:
        if cut and self.stream == "TOK_00":
            self._silence.hear(asyncio.get_running_loop().time())  # as if by a heartbeat that counts what has come
        else:
            receive(self, msg)

    monkeypatch.setattr(Follow, "_receive", happily)
    async with following(bus) as tail:
        author = await Author.of(bus)
        seen = Seen(tail, bus, author.sid, Start("now"))
        await seen.until(lambda: "caught_up" in seen.names, "the start")
        moves: list[int] = []
        kick = bus.kick

        async def counted() -> None:
            moves.append(1)
            await kick()

        monkeypatch.setattr(bus, "kick", counted)
        cut = True
        await author.answer(3)
        await until(lambda: tail.lost, "the tail is distrusted", DEADLINE)
        assert moves, "another server was taken"
        cut = False
        await until(lambda: not tail.lost, "the tail is trusted again", DEADLINE)
        await seen.until(lambda: "done" in seen.names, "what was missing")
        assert seen.data == author.data
        await seen.leave()


async def test_where_the_newest_frames_were_purged_nobody_calls_that_lag(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session deleted just before a node starts, or a log aged out: the leader's last sequence is never seen."""
    monkeypatch.setattr(tail_module, "CHECK_INTERVAL", 0.02)
    monkeypatch.setattr(tail_module, "LAG_TIMEOUT", 0.1)
    author = await Author.of(bus)
    await author.answer(5)
    await bus.api("STREAM.PURGE.TOK_00", {"filter": log_subject(author.sid)})
    async with following(bus) as tail:
        assert tail._follow is not None
        assert tail._follow.seq < author.seqs[-1], "the tail has not seen the end"
        await until(lambda: tail._hollow >= author.seqs[-1], "the leader was asked what is there", DEADLINE)
        looks = 0
        judge = tail._judge

        async def counted(info: Any) -> None:
            nonlocal looks
            looks += 1
            await judge(info)

        monkeypatch.setattr(tail, "_judge", counted)
        await until(lambda: looks > 12, "more looks than LAG_TIMEOUT has", DEADLINE)
        assert not tail.lost


@pytest.fixture
async def own_bus(fresh_nats: NatsServer) -> AsyncIterator[Bus]:
    async with provisioned(fresh_nats) as bus:
        yield bus


async def test_a_stream_made_anew_is_a_reset_and_then_shown_whole(own_bus: Bus) -> None:
    """Also where the new log goes on, by chance, exactly where the viewer is: nothing of it passes for the old one."""
    bus = own_bus
    async with following(bus) as tail:
        author = await Author.of(bus)
        seen = Seen(tail, bus, author.sid, Start("now"))
        await seen.until(lambda: "caught_up" in seen.names, "the start")
        await remake(bus, "one")
        first = Author(bus, author.sid)
        await first.answer(3)
        await seen.until(lambda: seen.names.count("done") == 1, "the first log")
        await remake(bus, "two")
        second = Author(bus, author.sid)
        await second.answer(3)  # sequences 1 to 5 again ...
        await second.answer(2)  # ... and a start at 6 whose prev is 5, where the viewer is
        await seen.until(lambda: seen.names.count("done") >= 3, "the second log")
        assert seen.names.count("reset") == 2
        assert seen.data == first.data + second.data
        await seen.leave()


async def remake(bus: Bus, incarnation: str) -> None:
    config = (await bus.api("STREAM.INFO.TOK_00"))["config"]
    await bus.api("STREAM.DELETE.TOK_00")
    config["metadata"] = {"incarnation": f"{incarnation}xxxxx"}
    await bus.api("STREAM.CREATE.TOK_00", config)


async def test_a_stream_purged_under_live_viewers_is_a_reset(bus: Bus) -> None:
    async with following(bus) as tail:
        author = await Author.of(bus)
        seen = Seen(tail, bus, author.sid, Start("first"))
        await author.answer(3)
        await seen.until(lambda: "done" in seen.names, "the first answer")
        await bus.api("STREAM.PURGE.TOK_00")
        again = Author(bus, author.sid)
        await again.answer(3)
        await seen.until(lambda: seen.names.count("done") == 2, "the second answer")
        assert seen.names.count("reset") == 1
        assert seen.data == author.data + again.data
        await seen.leave()


async def test_a_restart_that_fails_is_tried_again(own_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is made anew, and the leader does not answer just then."""
    bus = own_bus
    monkeypatch.setattr(tail_module, "CHECK_INTERVAL", 0.05)
    async with following(bus) as tail:
        failures: list[int] = []
        start = Follow.start

        async def failing(self: Follow) -> None:
            if len(failures) < 2:
                failures.append(1)
                raise BusUnavailable("not now")
            await start(self)

        monkeypatch.setattr(Follow, "start", failing)
        author = await Author.of(bus)
        await remake(bus, "three")
        await until(lambda: len(failures) == 2, "the restart failed", DEADLINE)
        seen = Seen(tail, bus, author.sid, Start("first"))
        await author.answer(3)
        await seen.until(lambda: "done" in seen.names, "frames through the new consumer")
        assert seen.data == author.data
        assert tail.incarnation == "threexxxxx"
        await seen.leave()


async def test_a_tail_that_cannot_begin_anew_is_lost(own_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its viewers would hear heartbeats and no token, and new ones would come."""
    monkeypatch.setattr(tail_module, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(tail_module, "LAG_TIMEOUT", 0.3)

    async def failing(self: Follow) -> None:
        raise BusUnavailable("no consumer can be made")

    async with following(own_bus) as tail:
        monkeypatch.setattr(Follow, "start", failing)
        await remake(own_bus, "three")
        await until(lambda: "no consumer can be made" in tail.lost, "it is said to be lost", DEADLINE)


async def test_bytes_that_are_no_frame_are_never_shown(bus: Bus) -> None:
    async with following(bus) as tail:
        author = await Author.of(bus)
        seen = Seen(tail, bus, author.sid, Start("first"))
        await author.answer(2)
        await store(bus, log_subject(author.sid), b"rubbish")
        late = Seen(tail, bus, author.sid, Start("first"))
        await late.until(lambda: "done" in late.names, "the history")
        other = await Author.of(bus)
        beside = Seen(tail, bus, other.sid, Start("first"))
        await other.answer(2)
        await beside.until(lambda: "done" in beside.names, "another session")
        for viewer in (seen, late):
            assert viewer.data[: len(author.data)] == author.data
            assert "rubbish" not in "".join(viewer.data)
            await viewer.leave()
        await beside.leave()
        await bus.api("STREAM.PURGE.TOK_00", {"filter": log_subject(author.sid)})  # other nodes would report it


@pytest.mark.parametrize("part", range(3))
async def test_interleavings_on_the_real_server(bus: Bus, part: int) -> None:
    """Authors write, viewers come and dawdle, rings are cut, deliveries are lost, consumers deleted: all exact."""
    for seed in range(8):
        await interleaved(bus, random.Random(f"{part} {seed}"))


async def interleaved(bus: Bus, dice: random.Random) -> None:
    async with following(bus, ring_frames=16, partition_bytes=65536, warm_frames=dice.choice([0, 5, 2000])) as tail:
        if dice.random() < 0.5:  # histories that are long, by pages that are short
            tail.reader.page_size, tail.reader.long_page = 2, 5
        authors = [await Author.of(bus) for _ in range(3)]
        viewers: list[tuple[Author, int, Seen]] = []
        receive = tail._receive

        def lossy(*args: Any) -> None:
            if dice.random() > 0.03:
                receive(*args)

        assert tail._follow is not None
        tail._follow._on_message = lossy
        for author in authors:
            await author.start()
        for _ in range(30):
            author = dice.choice(authors)
            match dice.randrange(6):
                case 0 | 1 | 2:
                    await author.tokens(dice.randrange(1, 12))
                case 3:
                    index = dice.randrange(len(author.seqs))
                    word, place = dice.choice([("first", 0), ("cursor", index + 1)])
                    cursor = Cursor(tail.incarnation, author.seqs[index]) if word == "cursor" else None
                    seen = Seen(tail, bus, author.sid, Start(word, cursor))
                    if dice.random() < 0.5:
                        seen.gate = lambda: asyncio.sleep(dice.random() * 0.01)
                    viewers.append((author, place, seen))
                case 4:
                    tail._evict()
                    if dice.random() < 0.3:
                        tail._forget(author.sid)
                        tail._wake(author.sid)
                case 5 if dice.random() < 0.3:
                    await bus.publish(f"$JS.API.CONSUMER.DELETE.TOK_00.{tail._follow._consumer}", b"")
            await asyncio.sleep(0)
        tail._follow._on_message = receive
        for author in authors:
            await author.tokens(1)  # shows what was lost before it
            await author.done()
        for author, place, seen in viewers:
            seen.gate = _at_once
            await seen.until(lambda seen=seen: "done" in seen.names, f"the end of {author.sid}")  # type: ignore[misc]
            assert seen.data == author.data[place:]
            assert "reset" not in seen.names
            await seen.leave()


# -- in memory ---------------------------------------------------------------------------------------------------------


def test_more_frames_than_may_wait_behind_a_hole_are_read_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last ones, which nothing follows."""
    monkeypatch.setattr(tail_module, "MAX_FILLING", 3)

    async def run() -> None:
        log = MemoryLog()
        tail = MemoryTail(log)
        viewer = Viewer(tail, MemoryHistory(log), Start("first"))
        viewer.free()
        for _ in range(5):
            log.write()
        tail.deliver(2)
        await settle(20)
        tail.drop()
        log.delays = iter([0, 100])
        tail.deliver(2)
        await settle(20)  # the page has been read, and its answer is on its way
        for _ in range(10):
            log.write()
        tail.deliver(10)
        await settle()
        assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        await end_viewers(tail, [viewer])

    asyncio.run(run())


def test_bytes_of_a_partition_are_bounded_by_pushing_readers_behind_their_rings() -> None:
    """Rings that nobody reads go first; then those that are read are cut, and their readers read the log."""

    async def run() -> None:
        log = MemoryLog()
        tail = MemoryTail(log, ring_frames=512, partition_bytes=65536)
        viewer = Viewer(tail, MemoryHistory(log), Start("first"))
        for _ in range(400):
            log.write()
        tail.deliver(400)
        assert tail.held_bytes <= 65536
        assert tail.held_bytes == tail.ring_bytes
        viewer.free()
        await settle()
        assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        tail.leave(SID, viewer.subscriber)
        await end_viewers(tail, [viewer])

    asyncio.run(run())


def test_a_log_that_cannot_be_asked_leaves_readers_with_the_log_not_with_a_hole() -> None:
    async def run() -> None:
        log = MemoryLog()
        tail = MemoryTail(log)
        viewer = Viewer(tail, MemoryHistory(log), Start("first"))
        viewer.free()
        for _ in range(6):
            log.write()
        tail.deliver(3)
        await settle()
        log.down = True
        tail.drop()
        tail.deliver(2)
        await settle()
        assert viewer.task.done(), "its stream ends with `closed`, and it comes back"
        assert "BusUnavailable" in repr(viewer.task.exception())
        seen = [event.data for event in viewer.frames]
        assert seen == [frame.data for frame in log.frames[: len(seen)]]
        await end_viewers(tail, [viewer])

    asyncio.run(run())
