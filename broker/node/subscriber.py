"""A subscriber: one client connection as a cursor over ring and log. Transports turn its batches into bytes.

It goes through `attach` (is this place one to go on from?), history, `caught_up`, live; and back to the log whenever it
falls behind its ring: a slow reader is paced by its own socket, not killed, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from broker.bus.chain import Chain
from broker.bus.errors import BusError, ChainBroken
from broker.bus.frames import TERMINAL
from broker.bus.records import now_ms
from broker.bus.subjects import Cursor
from broker.node import metrics
from broker.node.events import Event, closed, make, of_frame
from broker.node.history import History
from broker.node.tail import Tail

BATCH = 128  # events in one write
MAX_NOTICES = 32  # events about the session that wait for a slow reader; the oldest are dropped: they have no id


class Start(NamedTuple):
    """Where a client wants to begin: `cursor`, or one of the words."""

    word: str  # "fresh" | "first" | "now" | "cursor"
    cursor: Cursor | None = None


class Subscriber:
    """One connection's reader. `wake` may be called from anywhere in the loop; all else from its own task."""

    def __init__(
        self, tail: Tail, history: History, sid: str, start: Start, node: str, *, until_done: bool = False
    ) -> None:
        self.sid = sid
        self.seq = 0  # of the last frame given out
        self.behind = False  # it reads the log, not the ring
        self.end_reason = "client_gone"
        self.sent_at = 0.0
        self._tail = tail
        self._history = history
        self._start = start
        self._node = node
        self._until_done = until_done
        self._waiter: asyncio.Future[None] | None = None
        self._notices: deque[Event] = deque(maxlen=MAX_NOTICES)
        self._last_words: list[Event] | None = None
        self._incarnation = tail.incarnation
        self._resets = 0
        self._reset_at = -1
        self._heartbeat_due = False

    # -- from outside ----------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> str:
        return f"{self._incarnation}-{self.seq}"

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def heartbeat(self) -> None:
        """It has been quiet for long enough: give out an empty batch, which the transport turns into its heartbeat."""
        self._heartbeat_due = True
        self.wake()

    def notice(self, event: Event) -> None:
        """An event without id about this session, to be given out as soon as possible."""
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
        self.end("node_leaving", make("reconnect", {"cursor": self.cursor, "after_ms": after_ms}))

    async def nothing_left(self) -> bool:
        """For a reconnect that only waits for an answer: nothing behind its cursor, nothing running, nothing queued."""
        ring = await self._tail.locate(self.sid)
        cursor = self._start.cursor
        return (
            cursor is not None
            and cursor == Cursor(self._tail.incarnation, ring.last)
            and not ring.chain.open
            and not await self._history.pending(self.sid)
        )

    # -- the stream ------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[list[Event]]:
        """Batches of events in order; an empty one asks for a heartbeat. Ends when there is nothing more to come.

        Raises BusError where the log does not answer; nothing that was given out is lost by that.
        """
        self._tail.join(self.sid, self)
        try:
            async for batch in self._attach():
                yield batch
            async for batch in self._follow():
                yield batch
        finally:
            self._tail.leave(self.sid, self)

    async def _attach(self) -> AsyncIterator[list[Event]]:
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
                yield [self._hello(earliest)]
            case "cursor":
                assert cursor is not None
                self.seq = cursor.sequence
                if cursor.incarnation == self._incarnation and await self._stands(cursor.sequence):
                    yield [self._hello(earliest)]
                else:
                    reason = "other_incarnation" if cursor.incarnation != self._incarnation else "unknown_cursor"
                    earliest = await self._tail.reader.earliest(self.sid)
                    self.seq = earliest
                    yield [self._hello(earliest), self._reset(earliest, reason)]
            case _:
                # Hello's cursor stands before the messages: who loses the connection between them must not skip these.
                hello = self._hello(earliest)
                finished, self.seq = await self._history.finished(self.sid, self._tail)
                yield [hello, *finished]

    async def _stands(self, seq: int) -> bool:
        """Whether `seq` is one of this session's sequences, as far as can be told before reading on from it."""
        ring = self._tail.ring(self.sid)
        if ring.holds(seq) or seq == 0:
            return True
        if seq > ring.last:
            # Another node may have been ahead of this one: the leader knows.
            last = await self._tail.reader.last(self.sid)
            return last is not None and seq <= last.seq
        return True  # behind the ring: the first page shows whether it follows

    async def _follow(self) -> AsyncIterator[list[Event]]:
        caught_up = False
        target = self._tail.ring(self.sid).last
        ended = False  # the last frame given out was a terminal
        chain = Chain(self.seq)
        while True:
            if self._last_words is not None:
                yield self._last_words
                return
            if self._incarnation != self._tail.incarnation:
                yield [await self._start_over("other_incarnation")]
                chain, target, caught_up = Chain(self.seq), 0, False
                continue
            ring = self._tail.ring(self.sid)
            batch: list[Event] = []
            if self.seq > ring.last and ring.floor is not None:
                self.behind = False  # the client is ahead of this node's tail: wait for it
            elif ring.holds(self.seq):
                self.behind = False
                batch, self.seq = ring.read(self.seq, BATCH)
            else:
                self.behind = True
                page = await self._tail.reader.page(self.sid, self.seq)
                if chain.last != self.seq:
                    chain = Chain(self.seq)
                    chain.known = self.seq == 0
                for frame in page.frames:
                    try:
                        chain.advance(frame)
                    except ChainBroken:
                        page = page._replace(broken=True)
                        break
                    batch.append(of_frame(frame, self._incarnation))
                    self.seq = frame.seq
                if not batch:
                    if not page.broken:
                        ring = await self._tail.locate(self.sid)  # the ring was forgotten; this place was the log's end
                        if ring.last != self.seq:
                            continue
                    else:
                        yield [await self._start_over("expired_or_foreign")]
                        if self._last_words is None and self._resets > 1 and self._reset_at == self.seq:
                            self.end("log_broken", closed("internal", "this session's log cannot be read further"))
                        self._reset_at = self.seq
                        continue
            if batch:
                if self._until_done and caught_up:
                    terminal = next((i for i, event in enumerate(batch) if event.name in TERMINAL), None)
                    if terminal is not None:
                        yield batch[: terminal + 1]
                        self.end_reason = "done"
                        return
                ended = batch[-1].name in TERMINAL
                yield batch
                continue
            if not caught_up and self.seq >= target:
                caught_up = True
                yield [make("caught_up", {"cursor": self.cursor})]
                if self._until_done and (ended or not ring.chain.open) and not await self._history.pending(self.sid):
                    self.end_reason = "done"
                    return
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
            await self._wait()

    async def _wait(self) -> None:
        # Nothing can have changed since the checks above: there was no await in between.
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _start_over(self, reason: str) -> Event:
        """The place is lost: go on from the earliest frame there is, and say so."""
        self._incarnation = self._tail.incarnation
        earliest = await self._tail.reader.earliest(self.sid)
        ring = await self._tail.locate(self.sid)
        if earliest == 0 and ring.floor:
            earliest = ring.floor  # every frame has aged out; the log goes on from here
        self.seq = earliest
        return self._reset(earliest, reason)

    def _hello(self, earliest: int) -> Event:
        data = {
            "session_id": self.sid,
            "cursor": self.cursor,
            "earliest": f"{self._incarnation}-{earliest}",
            "node": self._node,
            "t": now_ms(),
        }
        return make("hello", data, self.cursor)

    def _reset(self, earliest: int, reason: str) -> Event:
        self._resets += 1
        metrics.resets.labels(reason).inc()
        return make("reset", {"earliest": f"{self._incarnation}-{earliest}", "reason": reason})


def log_unavailable(error: BusError) -> Event:
    """What a viewer is told when the log does not answer: come back."""
    return closed("unavailable", "the log does not answer; try again", retry_after=1.0)
