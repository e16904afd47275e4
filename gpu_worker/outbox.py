"""The outbox of one attempt at a generation: what it has to say, and what the log is known to hold of it. Pure.

It answers for the fence: one publish in flight, every frame at the offset where the log ends, nothing after a terminal,
nothing forgotten before a stored frame covers it, and no word more once another writer was seen. It must not know NATS,
clocks or tasks: the shell is `publisher.py`, which does what the answers here say and reports what came of it.

    IDLE ──take()──► IN_FLIGHT ──stored()──► IDLE │ ENDED (the terminal is in the log)
                        │ ▲
             undecided  │ │ take()          full() on a token: what waits is dropped for the terminal `log_full`
                        ▼ │
                     UNDECIDED ──refused(last > fence)──► READING ──found()──► IDLE │ ENDED │ STOPPED
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Any

import msgspec

from broker.bus.chain import Chain
from broker.bus.frames import FAILED, REASONING, TERMINAL, TOKEN, Frame, encode_frame, encode_tokens

FRAME_TEXT = 16 * 1024  # bytes of text that coalesce into one frame; one piece is never cut
FULL_HIGH = 64 * 1024  # bytes of text waiting: the engine is paused ...
FULL_LOW = 32 * 1024  # ... until so few are left


class State(Enum):
    IDLE = auto()
    IN_FLIGHT = auto()  # one publish awaits its answer
    UNDECIDED = auto()  # it may have been stored; the same fence is tried again after a pause
    READING = auto()  # the fence was overtaken: by whom is being read at the leader
    ENDED = auto()  # my terminal frame is in the log
    STOPPED = auto()  # nothing more is written by this attempt; `stopped` says why


class Stop(Enum):
    """Why an attempt writes nothing more."""

    FENCED = "fenced"  # another writer's frame follows mine
    PURGED = "purged"  # the log no longer holds my frames
    REFUSED = "refused"  # the stream takes not even the terminal
    LOST = "lost"  # NATS did not answer for too long
    LEFT = "left"  # this worker is going away


class Publish(msgspec.Struct, frozen=True, gc=False):
    """Publish `payload` under the fence `expect_last`."""

    payload: bytes
    expect_last: int


class _Sent(msgspec.Struct, frozen=True, gc=False):
    """What the newest publish was made of; all else of its frame is the outbox's own."""

    kind: str
    offset: int
    n: int


class _Entry(msgspec.Struct, frozen=True):
    """A piece of text at its offset, or an event (`data` is not None, n = 0)."""

    kind: str
    offset: int
    n: int
    text: str
    size: int  # bytes of UTF-8
    data: dict[str, Any] | None


class Outbox:
    """`chain` is the end of the session's log as read; this attempt writes behind it as (gid, epoch, attempt)."""

    def __init__(self, gid: str, epoch: int, attempt: str, chain: Chain) -> None:
        self.gid = gid
        self.epoch = epoch
        self.attempt = attempt
        self.chain = chain
        self.state = State.IDLE
        self.stopped: Stop | None = None
        self.waiting = 0  # bytes of text that no stored frame covers
        self.events = 0  # that no stored frame is yet
        self.wrote = False  # something of this attempt is known to be in the log
        self._entries: deque[_Entry] = deque()
        self._next = chain.next_offset if chain.open else 0  # offset of the next piece
        self._sent = _Sent("", 0, 0)  # under this fence
        self._closed = False  # the terminal has been said

    # -- what the generation says ------------------------------------------------------------------------------------

    def piece(self, kind: str, text: str, n: int) -> None:
        """`n` more tokens. What is said after the terminal, or after a stop, is not heard."""
        if self._closed or self.stopped is not None:
            return
        size = len(text.encode())
        self._entries.append(_Entry(kind, self._next, n, text, size, None))
        self._next += n
        self.waiting += size

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Any frame without tokens, behind everything said before."""
        if self._closed or self.stopped is not None:
            return
        self._closed = kind in TERMINAL
        self._entries.append(_Entry(kind, self._next, 0, "", 0, data))
        self.events += 1

    def full(self, failed: dict[str, Any]) -> None:
        """The stream took no more: what waits is given up for the terminal `failed`, for which there may be room."""
        self._entries.clear()
        self.waiting = 0
        self._next = self.chain.next_offset if self.chain.open else 0
        self._entries.append(_Entry(FAILED, self._next, 0, "", 0, failed))
        self.events = 1
        self._closed = True
        self.state = State.UNDECIDED

    # -- what to do --------------------------------------------------------------------------------------------------

    def take(self) -> Publish | None:
        """The publish to make now, or None where one is in flight or there is nothing to say."""
        if self.state not in (State.IDLE, State.UNDECIDED) or not self._entries:
            return None
        self.state = State.IN_FLIGHT
        head, fence = self._entries[0], self.chain.last
        if head.data is not None:
            self._sent = _Sent(head.kind, head.offset, 0)
            payload = encode_frame(head.kind, self.gid, self.epoch, self.attempt, fence, head.offset, 0, head.data)
            return Publish(payload, fence)
        text, n = self._coalesced(head)
        self._sent = _Sent(head.kind, head.offset, n)
        payload = encode_tokens(head.kind, self.gid, self.epoch, self.attempt, fence, head.offset, n, text)
        return Publish(payload, fence)

    def _coalesced(self, head: _Entry) -> tuple[str, int]:
        if len(self._entries) == 1:
            return head.text, head.n
        parts: list[str] = []
        n = size = 0
        for entry in self._entries:
            if entry.kind != head.kind or (parts and size + entry.size > FRAME_TEXT):
                break
            parts.append(entry.text)
            n += entry.n
            size += entry.size
        return "".join(parts), n

    # -- what came of it ---------------------------------------------------------------------------------------------

    def stored(self, seq: int) -> None:
        """The publish was acknowledged: it is message `seq`. Raises ChainBroken where that cannot follow."""
        assert self.state is State.IN_FLIGHT, self.state
        sent, fence = self._sent, self.chain.last
        self._advance(Frame(seq, sent.kind, self.gid, self.epoch, self.attempt, fence, sent.offset, sent.n, b""))

    def undecided(self) -> None:
        """No answer, nobody to answer, or a fence that is being proposed: it may have been stored."""
        assert self.state in (State.IN_FLIGHT, State.READING), self.state
        self.state = State.UNDECIDED

    def refused(self, last: int | None) -> None:
        """The fence held: the subject's last sequence is `last` (None: the server did not say)."""
        assert self.state is State.IN_FLIGHT, self.state
        if last is None or last == self.chain.last:
            self.state = State.UNDECIDED
        elif last > self.chain.last:
            self.state = State.READING
        else:
            self.stop(Stop.PURGED)

    def found(self, frame: Frame | None) -> None:
        """The session's last frame, read at the leader after `refused` said that there is one beyond the fence."""
        assert self.state is State.READING, self.state
        if frame is None or frame.seq < self.chain.last:
            self.stop(Stop.PURGED)
        elif frame.seq == self.chain.last:
            self.state = State.UNDECIDED  # a new leader that has not yet what the old one stored
        elif frame.attempt == self.attempt and frame.gid == self.gid and frame.prev == self.chain.last:
            self._advance(frame)
        else:
            self.stop(Stop.FENCED)

    def stop(self, why: Stop) -> None:
        """Write nothing more. The first reason counts."""
        if self.state in (State.ENDED, State.STOPPED):
            return
        self.state = State.STOPPED
        self.stopped = why
        self._entries.clear()
        self.waiting = self.events = 0

    def _advance(self, frame: Frame) -> None:
        """`frame` is mine and in the log. After a lost ack it may cover less than what was sent last."""
        self.chain.advance(frame)
        self.wrote = True
        if frame.terminal:
            self.state = State.ENDED
            self._entries.clear()
            self.waiting = self.events = 0
            return
        end = frame.offset + frame.n
        entries = self._entries
        if frame.type in (TOKEN, REASONING):
            while entries and entries[0].data is None and entries[0].offset < end:
                self.waiting -= entries.popleft().size
        elif entries and entries[0].kind == frame.type:
            entries.popleft()
            self.events -= 1
        if self._closed and len(entries) == 1 and entries[0].offset != end:
            # Tokens given up for `log_full` had been stored after all: the terminal comes behind them.
            entries[0] = msgspec.structs.replace(entries[0], offset=end)
        self.state = State.IDLE

    @property
    def frame_type(self) -> str:
        """Type of the newest publish."""
        return self._sent.kind

    @property
    def frame_tokens(self) -> int:
        """Tokens in the newest publish."""
        return self._sent.n

    @property
    def next_type(self) -> str:
        """Type of the frame that is to be published next; "" where there is nothing to say."""
        return self._entries[0].kind if self._entries else ""

    @property
    def sends_tokens(self) -> bool:
        return self._sent.kind in (TOKEN, REASONING)

    @property
    def terminal_sent(self) -> bool:
        return self._sent.kind in TERMINAL

    @property
    def has_more(self) -> bool:
        """There is something to publish, in flight or not."""
        return bool(self._entries)

    @property
    def quiet(self) -> bool:
        """Everything said so far is in the log."""
        return not self._entries and self.state is State.IDLE


def next_epoch(chain: Chain) -> int:
    """The epoch of whoever writes next: the first of a generation, or one more than the last writer's."""
    return chain.epoch + 1 if chain.open else 1
