"""The ring: the bounded in-memory end of one session's log. Pure.

What is in a ring is a whole piece of the chain: from `floor` (the sequence before its first frame) to `last`. A frame
that does not follow is not shown: the hole before it is filled from the log first.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum

from broker.bus.chain import Chain
from broker.bus.errors import ChainBroken
from broker.bus.frames import ATTEMPT, START, Frame
from broker.node.events import Event, of_frame

# Bytes around one frame's data: an estimate, high for a frame nobody has read, low once both encodings exist.
OVERHEAD = 400
EMPTY = 600
"""Bytes of a ring without frames: viewers of sessions in which nothing was asked make as many as they like."""


class Added(Enum):
    """What became of a frame offered to a ring."""

    TAKEN = "taken"
    OLD = "old"  # it is here already
    HOLE = "hole"  # frames before it are missing
    FORKED = "forked"  # it follows a place before this ring's end: the log was purged, or aged out, under it
    BROKEN = "broken"  # it follows by sequence, yet may not follow: never to be shown


class Ring:
    """One session's ring. `floor` is None while nothing is known of the session."""

    __slots__ = ("sid", "floor", "chain", "model", "worker", "size", "_frames", "_events", "_limit", "_incarnation")

    def __init__(self, sid: str, incarnation: str, limit: int) -> None:
        self.sid = sid
        self.floor: int | None = None
        self.chain = Chain()
        self.model = ""  # of the last generation whose start this ring saw
        self.worker = ""  # who runs the open generation, as far as this ring saw
        self.size = EMPTY  # bytes
        self._frames: list[int] = []  # sequences, parallel to _events
        self._events: list[Event] = []
        self._limit = limit
        self._incarnation = incarnation

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def last(self) -> int:
        """The last sequence known of the session: of its newest frame here, or the floor."""
        return self._frames[-1] if self._frames else self.floor or 0

    def begin(self, seq: int, last: Frame | None) -> None:
        """The leader says where the session's log ends (0: it is empty), and with which frame (None: with something
        that is no frame). Only if nothing was known."""
        if self.floor is None:
            self.floor = seq
            self.chain = Chain(last.prev if last else seq)
            if last is not None:
                self.chain.known = False  # adopt whatever it belongs to
                self.chain.advance(last)

    def add(self, frame: Frame) -> Added:
        if self.floor is None:
            self.floor = frame.prev
            self.chain = Chain(frame.prev)
        if frame.seq <= self.last:
            return Added.OLD
        if frame.prev != self.last:
            return Added.HOLE if frame.prev > self.last else Added.FORKED
        try:
            self.chain.advance(frame)
        except ChainBroken:
            return Added.BROKEN
        if frame.type == START or frame.type == ATTEMPT:
            said = frame.fields()
            self.worker = said.get("worker", "")
            self.model = said.get("model", self.model)
        self._frames.append(frame.seq)
        self._events.append(of_frame(frame, self._incarnation))
        self.size += len(frame.data) + OVERHEAD
        if len(self._frames) > self._limit + self._limit // 4:
            self.trim(self._limit)  # in quarters, so that cutting the head is rare
        return Added.TAKEN

    def trim(self, keep: int) -> int:
        """Forget all but the newest `keep` frames; returns the bytes given back."""
        drop = len(self._frames) - keep
        if drop <= 0:
            return 0
        freed = sum(len(event.data) + OVERHEAD for event in self._events[:drop])
        self.floor = self._frames[drop - 1]
        del self._frames[:drop]
        del self._events[:drop]
        self.size -= freed
        return freed

    def holds(self, after: int) -> bool:
        """Whether a reader that has everything up to `after` can go on from here: `after` is a place in this piece."""
        if self.floor is None or after < self.floor:
            return False
        if after == self.floor or after == self.last:
            return True
        index = bisect_right(self._frames, after)
        return index > 0 and self._frames[index - 1] == after

    def backlog(self, after: int) -> int | None:
        """How many frames a reader that has everything up to `after` has not read; None where they are not all here.

        A reader that was served by a quicker node may be ahead of this ring: it has read all that there is.
        """
        if self.floor is None:
            return None
        if after >= self.last:
            return 0
        return len(self._frames) - bisect_right(self._frames, after) if self.holds(after) else None

    def read(self, after: int, limit: int) -> tuple[list[Event], int]:
        """At most `limit` events behind `after`, and the sequence of the last one. Only where `holds(after)`."""
        if after >= self.last:
            return [], after
        # The usual reader is at the end or a few frames behind it: look there before searching.
        start = len(self._frames) - 1
        if start > 0 and self._frames[start - 1] > after:
            start = bisect_right(self._frames, after)
        stop = min(start + limit, len(self._frames))
        return self._events[start:stop], self._frames[stop - 1]
