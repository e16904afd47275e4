"""A subscriber: one client connection as a cursor over ring and log. Transports turn its batches into bytes.

It goes through `attach` (is this place one to go on from?), history, `caught_up`, live; and back to the log whenever it
falls behind its ring: a slow reader is paced by its own socket, not killed, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from broker.bus.chain import Chain
from broker.bus.clock import now_ms
from broker.bus.errors import BusError, ChainBroken
from broker.bus.frames import TERMINAL
from broker.node import metrics
from broker.node.events import Event, closed, gid_of, hello, make, of_frame
from broker.node.history import History
from broker.node.log_reader import Page
from broker.node.pacer import Pacer
from broker.node.ring import Ring
from broker.node.sink import Sink
from broker.node.start import Start
from broker.node.tail import Tail

BATCH = 128  # events in one write
HELLO_WITHIN = 1.0  # seconds that hello waits for what it begins; an ingress that hears nothing tries another node
LOW_WATER = 4  # who lagged keeps up again when no more than the fourth part of its ring is before it
QUICK = 0.005  # seconds from one page to the next: the reader takes what he is given, and nobody else is busy
LONG_AFTER = 4  # quick pages in a row: a long one begins with a consumer of its own, which few pages are not worth
MAX_NOTICES = 32  # events about the session that wait for a slow reader; the oldest are dropped: they have no id


class Demand(StrEnum):
    """What a reader asks of whoever writes."""

    FLOWING = "flowing"
    LAGGING = "lagging"


class _Ahead(NamedTuple):
    """A page that was asked for before it is wanted."""

    incarnation: str
    after: int
    page: asyncio.Task[Page]


class Subscriber:
    """One connection's reader. `wake` may be called from anywhere in the loop; all else from its own task."""

    def __init__(
        self,
        tail: Tail,
        history: History,
        tenant: str,
        sid: str,
        start: Start,
        node: str,
        *,
        until_done: bool = False,
        gid: str = "",
        pacer: Pacer | None = None,
        on_flowing: Callable[[Ring], None] = lambda ring: None,
    ) -> None:
        self.tenant = tenant
        self.sid = sid
        self.seq = 0  # of the last frame given out, or to the pacer
        self.demand: Demand | None = None  # nobody knows while it attaches
        self.end_reason = "client_gone"
        self.sent_at = 0.0
        self._tail = tail
        self._history = history
        self._start = start
        self._node = node
        self._until_done = until_done
        self._gid = gid  # the generation whose end ends this stream; "": whichever ends next
        self._pacer = pacer
        self._on_flowing = on_flowing  # it lagged, or had just come, and keeps up
        self._waiter: asyncio.Future[None] | None = None
        self._notices: deque[Event] = deque(maxlen=MAX_NOTICES)
        self._last_words: list[Event] | None = None
        self._leave_after = -1  # milliseconds after which the client should come back, elsewhere
        self._incarnation = tail.incarnation
        self._lost_at = ("", -1)  # incarnation and place of the last `reset`
        self._heartbeat_due = False
        self._chain = Chain()  # of what was read from the log
        self.sink: Sink | None = None
        self._turning = False
        self._live = False  # it waits for the next event at the ring's end, and has nothing else to say
        self._ahead: _Ahead | None = None  # the page behind the one that is being given out
        self._paged_at = 0.0  # when the page before was given out
        self._quick = 0  # pages in a row that were taken soon after the one before
        self._dry = 0  # pages in a row that said that this is the log's end, while the ring is further

    # -- from outside ----------------------------------------------------------------------------------------------

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    @property
    def cursor(self) -> str:
        return f"{self._incarnation}-{self.seq}"

    def wake(self) -> None:
        if self._pacer is None or not self._live:
            self._push_or_wake()
        elif not self._turning:
            self._turning = True  # what comes in one turn of the loop is one burst to the pacer
            self._loop.call_soon(self._push_or_wake)

    def _push_or_wake(self) -> None:
        self._turning = False
        waiter = self._waiter
        if waiter is not None and not waiter.done() and not (self._live and self._push()):
            waiter.set_result(None)

    def _push(self) -> bool:
        """Give the usual next events to the sink from here: a task that need not wake saves half of a token's cost.

        False where there is anything else to do, or more than this did.
        """
        sink, tail, pacer = self.sink, self._tail, self._pacer
        if sink is None or self._last_words is not None or self._notices or self._heartbeat_due:
            return False
        ring = tail.ring(self.sid)
        if self._incarnation != tail.incarnation or not sink.ready:
            return False
        if (newest := ring.newest(self.seq)) is not None:
            batch, seq = [newest], ring.last
        else:
            batch, seq = ring.read(self.seq, BATCH) if ring.holds(self.seq) else ([], 0)
            if not batch or len(batch) == BATCH:
                return False
        self.seq = seq
        if pacer is not None:
            now = self._loop.time()
            pacer.offer(batch, now)
            batch = pacer.take(now)
        if batch:
            sink.write(batch)
        return pacer is None or pacer.due is None

    def heartbeat(self) -> None:
        """It has been quiet for long enough: give out an empty batch, which the transport turns into its heartbeat."""
        self._heartbeat_due = True
        self.wake()

    def notice(self, event: Event, gid: str) -> None:
        """An event without id about a generation that waits: given out at once, unless that has begun here."""
        if self._tail.ring(self.sid).chain.gid != gid:
            self._notices.append(event)
            self.wake()

    def end(self, reason: str, *last_words: Event) -> None:
        """Say these last events and end. What is still in the ring is not waited for."""
        if self._last_words is None:
            self.end_reason = reason
            self._last_words = list(last_words)
            self.wake()

    def leave(self, after_ms: int) -> None:
        """This node is going away: tell the client where to go on."""
        self._leave_after = after_ms  # the cursor is that of the moment when this is said
        self.end("node_leaving")

    def measure(self, ring: Ring) -> Demand | None:
        """It lags once its ring has lost its place (the high-water mark), and until it is near the ring's end again
        (the low one). Between the two it stays what it was, so that a worker is not told something else at every look;
        who has just attached there has not lost its place.

        A reader that is stuck in a write cannot look itself: this is called from outside as well.
        """
        backlog = ring.backlog(self.seq)
        if backlog is None:
            self.demand = Demand.LAGGING
        elif self.demand is None or backlog <= len(ring) // LOW_WATER:
            self.demand = Demand.FLOWING
        return self.demand

    async def nothing_left(self) -> bool:
        """For a reconnect that only waits for an answer: nothing behind its cursor, nothing running, nothing queued."""
        cursor = self._start.cursor
        if cursor is None or cursor.incarnation != self._tail.incarnation:
            return False
        end = await self._tail.reader.end(self.sid)  # the ring may not have the newest frame yet
        return (
            cursor.sequence == end.seq
            and (end.frame is None or end.frame.terminal)
            and await self._history.queued(self.tenant, self.sid, end.seq) is None
        )

    # -- the stream ------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[list[Event], None]:
        """Batches of events in order; an empty one asks for a heartbeat. Ends when there is nothing more to come.

        Raises BusError where the log does not answer; nothing that was given out is lost by that.
        """
        self._tail.join(self.sid, self)
        try:
            for steps in (self._attach, self._follow):
                async with aclosing(steps()) as batches:
                    async for batch in batches:
                        yield batch
        finally:
            self._tail.leave(self.sid, self)

    async def _attach(self) -> AsyncGenerator[list[Event], None]:
        """Find the place to go on from, say hello, and give out what stands before that place in one piece."""
        ring = await self._tail.locate(self.sid)
        self._incarnation = self._tail.incarnation
        cursor = self._start.cursor
        earliest = ring.floor or 0
        match self._start.word:
            case "now":
                self.seq = ring.last
                yield [self._hello(earliest)]
            case "first":
                self.seq = 0
                yield [self._hello(await self._earliest())]
            case "cursor":
                assert cursor is not None
                self.seq = cursor.sequence
                if cursor.incarnation == self._incarnation and await self._stands(cursor.sequence):
                    yield [self._hello(earliest)]
                else:
                    reason = "other_incarnation" if cursor.incarnation != self._incarnation else "unknown_cursor"
                    self.seq = await self._earliest()
                    yield [self._hello(self.seq), self._reset(reason)]
            case _:
                # Hello's cursor stands before the messages: who loses the connection between them must not skip these.
                # Where some have no place, it has none either: who comes back before the last of them begins anew.
                last = ring.last
                self.seq = earliest = await self._earliest()
                telling = asyncio.ensure_future(self._history.finished(self.sid, self._tail, earliest, last))
                try:
                    await asyncio.wait((telling,), timeout=HELLO_WITHIN)
                    placed = telling.done() and (await telling).placed  # else it is not known, and none is never wrong
                    yield [self._hello(earliest, placed=placed)]
                    finished = await telling
                finally:
                    telling.cancel()
                    await asyncio.gather(telling, return_exceptions=True)
                if finished.events:
                    yield finished.events
                self.seq = finished.after

    async def _stands(self, seq: int) -> bool:
        """Whether `seq` is one of this session's sequences, as far as can be told before reading on from it."""
        ring = self._tail.ring(self.sid)
        if ring.holds(seq) or seq == 0:
            return True
        if seq > ring.last:
            # Another node may have been ahead of this one: the leader knows.
            return seq <= (await self._tail.reader.end(self.sid)).seq
        return True  # behind the ring: the first page shows whether it follows

    async def _follow(self) -> AsyncGenerator[list[Event], None]:
        """From the place that `_attach` found to the end of the connection.

        Whoever changes anything that concerns this subscriber calls `wake`; that is heard only in `_wait`. So after
        everything that waits (a yield waits too) the loop begins again, and nothing waits between its checks and
        `_wait`.
        """
        caught_up = False
        target = (await self._tail.locate(self.sid)).last  # what stood there when this began is history
        while True:
            if self._paced and not self._flows():
                # What the pacer still holds comes before whatever ends this piece of the stream.
                yield self._cut(self._flush(), caught_up)
                if self.end_reason == "done":
                    return
                continue
            if self._last_words is not None:
                yield self._farewell()
                return
            if self._incarnation != self._tail.incarnation:
                yield [await self._start_over("other_incarnation")]
                target, caught_up = (await self._tail.locate(self.sid)).last, False
                continue
            ring = self._tail.ring(self.sid)
            if self.demand is not Demand.FLOWING and self.measure(ring) is Demand.FLOWING:
                self._on_flowing(ring)
            ahead = ring.floor is not None and self.seq > ring.last
            if not caught_up and not ahead and self.seq >= target:
                caught_up = True
                if self._start.word == "fresh" and (event := await self._queued()) is not None:
                    yield [event]
                yield [make("caught_up", {"cursor": self.cursor})]
                if self._until_done and await self._nothing_runs():
                    self.end_reason = "done"
                    return
                continue
            if ahead:
                pass  # another node was quicker than this one's tail: wait for it
            elif ring.holds(self.seq):
                if batch := self._read_ring(ring, live=caught_up):
                    yield self._cut(batch, caught_up)
                    if self.end_reason == "done":
                        return
                    continue
            else:
                if batch := await self._read_log():
                    yield self._cut(batch, caught_up)
                    if self.end_reason == "done":
                        return
                    if batch[0].name == "reset":  # history begins anew: it ends anew, and an end within it is no news
                        target, caught_up = (await self._tail.locate(self.sid)).last, False
                continue
            if self._notices:
                notices = list(self._notices)
                self._notices.clear()
                yield notices
                continue
            if self._heartbeat_due:
                self._heartbeat_due = False
                yield []
                continue
            self._live = caught_up and not ahead and self.demand is Demand.FLOWING and not self._until_done
            await self._wait()
            self._live = False

    def _read_ring(self, ring: Ring, *, live: bool) -> list[Event]:
        """What is to go out now: all that is new, or of live events what the pacer lets through."""
        batch, self.seq = ring.read(self.seq, BATCH)
        if self._pacer is None or not live:
            return batch
        now = self._loop.time()
        if batch:
            self._pacer.offer(batch, now)
        if len(batch) == BATCH:
            return self._pacer.flush()  # so far behind the ring it is history, and history is not typewritten
        return self._pacer.take(now)

    @property
    def _paced(self) -> bool:
        return self._pacer is not None and self._pacer.due is not None

    def _flows(self) -> bool:
        """The stream goes on from the ring, so what the pacer holds may wait for its time."""
        return (
            self._last_words is None
            and self._incarnation == self._tail.incarnation
            and self._tail.ring(self.sid).holds(self.seq)
        )

    def _flush(self) -> list[Event]:
        assert self._pacer is not None
        return self._pacer.flush()

    async def _read_log(self) -> list[Event]:
        """The next page of the log; or a `reset`, where no frame of it follows; or nothing yet: try again.

        Afterwards either the place has moved, or the ring holds it, or this is the end.
        """
        after = self.seq
        if self._chain.last != after:
            # What may follow is told by the frame at this place. Where that has aged out the next one is believed.
            self._chain = Chain(after)
            if after and (here := await self._tail.reader.at(self.sid, after)) is not None:
                self._chain = Chain(here.prev)
                self._chain.known = False
                self._chain.advance(here)
        page = await self._page(after)
        if self._incarnation != self._tail.incarnation:
            self._chain = Chain(-1)
            return []  # nobody knows of which of the two logs the page is
        batch: list[Event] = []
        for frame in page.frames:
            try:
                self._chain.advance(frame)
            except ChainBroken:
                page = page._replace(broken=True)
                break
            batch.append(of_frame(frame, self._incarnation))
            self.seq = frame.seq
        if batch:
            self._dry = 0
            reader = self._tail.reader
            if len(page.frames) >= reader.page_size and not self._tail.ring(self.sid).holds(self.seq):
                # NATS reads the next one while this one is written. Who comes back soon again and again gets more at
                # once: he does not keep it, and it came soon because no live token was before it.
                now = self._loop.time()
                self._quick = self._quick + 1 if now - self._paged_at < QUICK else 0
                self._paged_at = now
                size = reader.long_page if self._quick >= LONG_AFTER else reader.page_size
                self._ahead = _Ahead(self._incarnation, self.seq, reader.begin(self.sid, self.seq, size))
            return batch
        if not page.broken:
            ring = await self._tail.locate(self.sid)
            if ring.last <= after:
                return []  # the ring had been forgotten; it is known now that this place is the log's end
            self._dry += 1
            if self._dry < 2:
                return []  # a frame may have come since; the leader has it then
        # The log has no frame that follows this place: it was purged, has aged out, or never held the place.
        self._dry = 0
        place = (self._incarnation, after)
        if self._lost_at == place:
            self.end("log_broken", closed("internal", "this session's log cannot be read further"))
            return []
        self._lost_at = place
        return [await self._start_over("expired_or_foreign")]

    async def _page(self, after: int) -> Page:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (ahead.incarnation, ahead.after) == (self._incarnation, after):
            try:
                page = await asyncio.shield(ahead.page)
            except BusError:
                pass  # asked again below
            else:
                if page.frames:
                    return page  # that there are none is believed only when it is asked now
        return await self._tail.reader.page(self.sid, after)

    def _farewell(self) -> list[Event]:
        assert self._last_words is not None
        if self._leave_after < 0:
            return self._last_words
        return [make("reconnect", {"cursor": self.cursor, "after_ms": self._leave_after})]

    def _cut(self, batch: list[Event], caught_up: bool) -> list[Event]:
        """The batch, to where this stream ends: at its generation's terminal, or at the first one behind `caught_up`;
        `end_reason` says then that it has ended.
        """
        if self._until_done and (caught_up or self._gid):
            for index, event in enumerate(batch):
                if event.name in TERMINAL and (caught_up or gid_of(event) == self._gid):
                    self.end_reason = "done"
                    return batch[: index + 1]
        return batch

    async def _nothing_runs(self) -> bool:
        ring = await self._tail.locate(self.sid)
        if ring.last != self.seq or (ring.chain.open and self._gid in ("", ring.chain.gid)):
            return False  # what is behind this place will end
        waiting = await self._history.queued(self.tenant, self.sid, self.seq)
        if waiting is not None and self._gid in ("", waiting.id):
            return False
        return self._tail.ring(self.sid).last == self.seq

    async def _queued(self) -> Event | None:
        """For a viewer who was not there when it was accepted: the generation that waits for a worker."""
        if self._tail.ring(self.sid).chain.open:
            return None
        generation = await self._history.queued(self.tenant, self.sid, self.seq)
        if generation is None:
            return None
        event = await self._history.queued_event(generation)
        begun = self._tail.ring(self.sid).last > generation.after  # meanwhile
        return None if begun else event

    async def _wait(self) -> None:
        # Nothing can have changed since the checks above: there was no await in between.
        loop = self._loop
        self._waiter = loop.create_future()
        due = self._pacer.due if self._pacer is not None else None
        timer = loop.call_at(due, self.wake) if due is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    async def _start_over(self, reason: str) -> Event:
        """The place is lost: go on from the earliest frame there is, and say so."""
        self._incarnation = self._tail.incarnation
        self.seq = await self._earliest()
        return self._reset(reason)

    async def _earliest(self) -> int:
        """The place before the earliest frame there is; where everything has aged out, the end of what there was."""
        ring = await self._tail.locate(self.sid)
        if ring.floor == 0:
            return 0
        earliest = await self._tail.reader.earliest(self.sid)
        return ring.last if earliest is None else earliest

    def _hello(self, earliest: int, *, placed: bool = True) -> Event:
        cursor = self.cursor if placed else ""
        return hello(self.sid, cursor, f"{self._incarnation}-{earliest}", self._node, now_ms())

    def _reset(self, reason: str) -> Event:
        metrics.resets.labels(reason).inc()
        return make("reset", {"earliest": self.cursor, "reason": reason})
