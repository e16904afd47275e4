"""The ring: the bounded in-memory end of one session's log. Pure.

What is in a ring is a whole piece of the chain: from `floor` (the sequence before its first frame) to `last`. A frame
that does not follow is not shown: the hole before it is filled from the log first.

A node has thousands of rings, and nearly all of a ring is read by nobody: the events of the newest frames are there as
they are, made once for all who read them; of the others there is their data alone, one behind another, from which they
are made again. That is 24 bytes around a frame's data instead of 400.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from enum import Enum

from broker.bus.chain import Chain
from broker.bus.errors import ChainBroken
from broker.bus.frames import ATTEMPT, START, Frame
from broker.node.events import Event, of_frame

OVERHEAD = 24  # bytes around one frame's data: sequence, place, kind
EMPTY = 600
"""Bytes of a ring without frames: viewers of sessions in which nothing was asked make as many as they like."""
FRESH = 8  # newest events that are kept whole, or half as many
FRESH_BYTES = FRESH * 500  # of them, in both encodings


class Added(Enum):
    """What became of a frame offered to a ring."""

    TAKEN = "taken"
    OLD = "old"  # it is here already
    HOLE = "hole"  # frames before it are missing
    FORKED = "forked"  # it follows a place before this ring's end: the log was purged, or aged out, under it
    BROKEN = "broken"  # it follows by sequence, yet may not follow: never to be shown


TAKEN = Added.TAKEN  # at hand: for each token an enumeration's member would be looked for


class Ring:
    """One session's ring. `floor` is None while nothing is known of the session."""

    __slots__ = (
        *("sid", "floor", "last", "chain", "model", "worker", "size"),
        *("_seqs", "_ends", "_kinds", "_text", "_cut", "_fresh", "_before", "_limit", "_incarnation"),
    )

    def __init__(self, sid: str, incarnation: str, limit: int) -> None:
        self.sid = sid
        self.floor: int | None = None
        self.last = 0  # the last sequence known of the session: of its newest frame here, or the floor
        self.chain = Chain()
        self.model = ""  # of the last generation whose start this ring saw
        self.worker = ""  # who runs the open generation, as far as this ring saw
        self.size = EMPTY  # bytes
        self._seqs = array("Q")  # of the frames
        self._ends = array("Q")  # where each one's data ends, counted from the first that ever was here
        self._kinds: list[str] = []  # shared names
        self._text = bytearray()  # the data of all
        self._cut = 0  # bytes of data that have been forgotten
        self._fresh: list[Event] = []  # of the newest frames
        self._before = 0  # the place before the newest
        self._limit = limit
        self._incarnation = incarnation

    def __len__(self) -> int:
        return len(self._seqs)

    def begin(self, seq: int, last: Frame | None) -> None:
        """The leader says where the session's log ends (0: it is empty), and with which frame (None: with something
        that is no frame). Only if nothing was known."""
        if self.floor is None:
            self.floor = self.last = seq
            self.chain = Chain(last.prev if last else seq)
            if last is not None:
                self.chain.known = False  # adopt whatever it belongs to
                self.chain.advance(last)

    def add(self, frame: Frame) -> Added:
        if self.floor is None:
            self.floor = self.last = frame.prev
            self.chain = Chain(frame.prev)
        seq, last = frame.seq, self.last
        if seq <= last:
            return Added.OLD
        if frame.prev != last:
            return Added.HOLE if frame.prev > last else Added.FORKED
        try:
            self.chain.advance(frame)
        except ChainBroken:
            return Added.BROKEN
        if frame.type == START or frame.type == ATTEMPT:
            said = frame.fields()
            self.worker = said.get("worker", "")
            self.model = said.get("model", self.model)
        if not self._seqs:
            self.size += FRESH_BYTES
        self._text += frame.data
        self._seqs.append(seq)
        self._ends.append(self._cut + len(self._text))
        self._kinds.append(frame.type)
        self.last, self._before = seq, last
        fresh = self._fresh
        fresh.append(of_frame(frame, self._incarnation))
        if len(fresh) > FRESH:
            del fresh[: FRESH // 2]
        self.size += len(frame.data) + OVERHEAD
        if len(self._seqs) > self._limit + self._limit // 8:
            self.trim(self._limit)  # in eighths, so that cutting the head is rare
        return TAKEN

    def trim(self, keep: int) -> int:
        """Forget all but the newest `keep` frames; returns the bytes given back."""
        drop = len(self._seqs) - keep
        if drop <= 0:
            return 0
        self.floor = self._seqs[drop - 1]
        cut = self._ends[drop - 1] - self._cut
        del self._seqs[:drop], self._ends[:drop], self._kinds[:drop], self._text[:cut]
        if keep < len(self._fresh):
            del self._fresh[: len(self._fresh) - keep]
        self._cut += cut
        freed = cut + drop * OVERHEAD + (0 if self._seqs else FRESH_BYTES)
        self.size -= freed
        return freed

    def holds(self, after: int) -> bool:
        """Whether a reader that has everything up to `after` can go on from here: `after` is a place in this piece."""
        if self.floor is None or after < self.floor:
            return False
        if after == self.floor or after == self.last:
            return True
        seqs = self._seqs
        if len(seqs) > 1 and seqs[-2] == after:
            return True  # the usual reader is one frame behind
        index = bisect_right(seqs, after)
        return index > 0 and seqs[index - 1] == after

    def backlog(self, after: int) -> int | None:
        """How many frames a reader that has everything up to `after` has not read; None where they are not all here.

        A reader that was served by a quicker node may be ahead of this ring: it has read all that there is.
        """
        if self.floor is None:
            return None
        if after >= self.last:
            return 0
        return len(self._seqs) - bisect_right(self._seqs, after) if self.holds(after) else None

    def newest(self, after: int) -> Event | None:
        """The newest event for a reader that lacks nothing else, as usual: a fifth of what `holds` and `read` take."""
        fresh = self._fresh
        return fresh[-1] if after == self._before and fresh else None

    def read(self, after: int, limit: int) -> tuple[list[Event], int]:
        """At most `limit` events behind `after`, and the sequence of the last one. Only where `holds(after)`."""
        if after >= self.last:
            return [], after
        # The usual reader is at the end or a few frames behind it: look there before searching.
        seqs = self._seqs
        count = len(seqs)
        start = count - 1
        if start > 0 and seqs[start - 1] > after:
            start = bisect_right(seqs, after)
        stop = min(start + limit, count)
        fresh = count - len(self._fresh)  # the place of the first of them
        if start >= fresh:
            return self._fresh[start - fresh : stop - fresh], seqs[stop - 1]
        made = [self._make(index) for index in range(start, min(stop, fresh))]
        return made + self._fresh[: max(0, stop - fresh)], seqs[stop - 1]

    def _make(self, index: int) -> Event:
        begin = self._ends[index - 1] - self._cut if index else 0
        data = bytes(self._text[begin : self._ends[index] - self._cut])
        return Event(self._kinds[index], data, f"{self._incarnation}-{self._seqs[index]}")
