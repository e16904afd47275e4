"""Demand: a worker is told whether anybody keeps up, by two marks; at once when somebody does again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus.frames import START, TOKEN, Frame
from broker.bus.nats import Bus, Msg
from broker.bus.records import Beat, Load, encode
from broker.bus.subjects import beat_subject, worker_subject
from broker.node import viewers
from broker.node.access import Access
from broker.node.beats import Beats
from broker.node.ring import Ring
from broker.node.settings import NodeSettings
from broker.node.start import Start
from broker.node.subscriber import LOW_WATER, Demand, Subscriber
from broker.node.tails import Tails
from broker.node.viewers import Viewers
from tests.broker.node.memory_log import SID, MemoryHistory, MemoryLog, MemoryTail, Viewer, end, settle
from tests.broker.node.slow_history import held_back
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import Author, RunningNode, running_node

DEADLINE = 15.0
FRAMES = 16


def ring_of(frames: int) -> Ring:
    """Every second sequence is this session's; the first one is not in the ring any more."""
    ring = Ring(SID, "inc", frames)
    for number in range(1, frames + 1):
        ring.add(Frame(2 * number + 2, TOKEN, "g", 1, "a", 2 * number, number, 1, b"{}"))
    return ring


@given(st.lists(st.integers(0, FRAMES + 3), max_size=30))
def test_between_the_two_marks_a_reader_stays_what_it_was(backlogs: list[int]) -> None:
    """It lags when its place has left the ring, and until a quarter of the ring or less is before it. Who comes
    between the two keeps up: stuck there, it would else have no say for as long as it is."""
    ring = ring_of(FRAMES)
    log = MemoryLog()
    subscriber = Subscriber(MemoryTail(log), MemoryHistory(log), "t", SID, Start("first"), "node")
    expected: Demand | None = None
    for backlog in backlogs:
        subscriber.seq = ring.last - 2 * backlog
        if backlog > FRAMES:
            expected = Demand.LAGGING
        elif expected is None or backlog <= FRAMES // LOW_WATER:
            expected = Demand.FLOWING
        assert subscriber.measure(ring) is expected


def test_who_was_served_by_a_quicker_node_does_not_lag() -> None:
    ring = ring_of(FRAMES)
    assert ring.backlog(ring.last + 1) == 0
    assert ring.backlog(ring.last) == 0
    assert ring.backlog(ring.last - 1) is None, "no frame of this session has that place"
    assert ring.backlog(ring.floor or 0) == FRAMES
    assert Ring(SID, "inc", FRAMES).backlog(0) is None


async def test_a_reader_that_comes_back_says_so_itself_and_once() -> None:
    """Whoever waits for it does not wait for the next look."""
    log = MemoryLog()
    tail = MemoryTail(log, ring_frames=FRAMES)
    viewer = Viewer(tail, MemoryHistory(log), Start("first"))
    told: list[Ring] = []
    viewer.subscriber._on_flowing = told.append
    try:
        viewer.allow()
        await settle()
        for _ in range(10 * FRAMES):
            log.write()
        tail.deliver(len(log.undelivered))
        told.clear()
        assert viewer.subscriber.measure(tail.ring(SID)) is Demand.LAGGING
        assert not told
        viewer.free()
        await settle()
        assert viewer.subscriber.demand is Demand.FLOWING
        assert len(told) == 1
        log.write()
        tail.deliver(1)
        await settle()
        assert len(told) == 1
    finally:
        await end(tail, [viewer])


async def nothing(self: Viewers) -> None: ...


class Heard:
    """What a worker is told."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self._news = asyncio.Event()

    async def take(self, msg: Msg) -> None:
        self.said.append(json.loads(msg.data))
        self._news.set()

    async def until(self, holds: Callable[[list[str]], bool], sid: str) -> None:
        """Wait until something holds of the states that were said of a session."""
        async with asyncio.timeout(DEADLINE):
            while not holds([said["state"] for said in self.said if sid in said["sids"]]):
                self._news.clear()
                await self._news.wait()

    async def together(self, *sids: str) -> None:
        """Wait until one message says `flowing` of all of these."""
        async with asyncio.timeout(DEADLINE):
            while not any(set(sids) <= set(said["sids"]) and said["state"] == "flowing" for said in self.said):
                self._news.clear()
                await self._news.wait()


async def hear(node: RunningNode, worker: str = "w1") -> Heard:
    heard = Heard()
    await node.bus.subscribe(worker_subject(worker, "demand"), heard.take)
    return heard


async def test_a_worker_is_told_at_once_when_somebody_keeps_up(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next look, a second later: it may be what an engine waits for."""
    monkeypatch.setattr(Viewers, "_demand", nothing)
    async with running_node(fresh_nats) as node:
        heard, author = await hear(node), await node.session()
        await author.start()
        await author.tokens(40)
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            await heard.until(lambda said: said == ["flowing"], author.sid)


async def test_the_worker_of_an_answer_whose_start_nobody_here_saw_is_known_by_its_beat(
    fresh_nats: NatsServer,
) -> None:
    """Or nobody would speak for viewers who were moved here, and an answer that they watch would be cancelled."""
    async with running_node(fresh_nats, warm_frames=0) as node:
        author = await node.session()
        await author.start()
        await author.tokens(3)
        heard = await hear(node, "w7")
        async with node.events(author.sid, after="now") as events, asyncio.TaskGroup() as tasks:
            await events.until("caught_up")
            beating = tasks.create_task(beats(node, author))
            await heard.until(lambda said: "flowing" in said, author.sid)
            beating.cancel()


async def beats(node: RunningNode, author: Author) -> None:
    beat = Beat("w7", "one", 1, {"m": Load(4, 1, 0, 4)}, {author.gid: "reply"})
    while True:
        await node.bus.publish(beat_subject("w7"), encode(beat))
        await asyncio.sleep(0.1)


async def test_a_viewer_that_attaches_neither_lags_nor_keeps_up(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads what has ended first: an engine does not stop for that, nor go on."""
    monkeypatch.setattr(viewers, "DEMAND_INTERVAL", 0.2)
    async with running_node(fresh_nats) as node:
        heard, author, other = await hear(node), await node.session(), await node.session()
        await author.start()
        await author.tokens(3)
        await other.start()
        async with node.events(other.sid, after="0"):
            goes_on = held_back(monkeypatch)
            async with node.events(author.sid) as events:
                await heard.until(lambda said: len(said) > 2, other.sid)
                assert not any(author.sid in said["sids"] for said in heard.said)
                goes_on.set()
                await events.until("caught_up")
                await heard.until(lambda said: said[:1] == ["flowing"], author.sid)


async def test_what_was_to_be_repeated_is_not_said_over_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is collected with pauses, in which a reader may have begun to keep up."""
    monkeypatch.setattr(viewers, "PIECE", 1)
    monkeypatch.setattr(viewers, "DEMAND_INTERVAL", 0.0)
    log, said = MemoryLog(), list[dict[str, Any]]()
    rings = []
    for sid in ("one", "other"):
        ring = Ring(sid, "inc", FRAMES)
        ring.add(Frame(1, START, "g", 1, "a", 0, 0, 0, b"{}"))
        ring.worker = "w"
        reader = Subscriber(MemoryTail(log), MemoryHistory(log), "t", sid, Start("first"), "node")
        reader.demand, reader.seq = Demand.LAGGING, -1
        rings.append((ring, [reader]))
    tails = SimpleNamespace(running=lambda: [SimpleNamespace(sessions=lambda: iter(rings))])
    bus = SimpleNamespace(publish_now=lambda subject, payload: said.append(json.loads(payload)))
    access, beats = cast(Access, None), cast(Beats, None)
    made = Viewers(cast(Bus, bus), cast(Tails, tails), MemoryHistory(log), access, beats, cast(NodeSettings, None), "n")
    monkeypatch.setattr(Subscriber, "measure", lambda self, ring: self.demand)
    await made._demand()  # first said, each at once
    repeating = asyncio.create_task(made._demand())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    made._tell(rings[0][0], Demand.FLOWING)
    await repeating
    states = [(sid, message["state"]) for message in said[2:] for sid in message["sids"]]
    assert states == [("one", "flowing"), ("other", "lagging")]


async def test_what_is_only_repeated_is_said_of_all_sessions_together(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewers, "DEMAND_INTERVAL", 0.2)
    async with running_node(fresh_nats) as node:
        heard, one, other = await hear(node), await node.session(), await node.session()
        for author in (one, other):
            await author.start()
        async with node.events(one.sid, after="0") as first, node.events(other.sid, after="0") as second:
            for events in (first, second):
                await events.until("caught_up")
            await heard.together(one.sid, other.sid)
