"""What the relay knows of an event stream: whole events, the last cursor, what a viewer has been shown. Pure.

A leg is one response of one node. `Splitter` cuts a leg's bytes into whole events, holding at most one partial one;
`Splice` outlives the legs and decides what of each event is forwarded. Bytes are forwarded as they came, never
written anew. Lines end in LF, as every stream node writes them.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

import msgspec

from broker.bus.frames import TERMINAL

MAX_EVENT = 8 * 1024 * 1024
"""Bytes of one event; the largest is a `start` or `message` with a body of 1 MiB, JSON-escaped."""

_TERMINAL = frozenset(name.encode() for name in TERMINAL)


class _Reset(msgspec.Struct):
    earliest: str = ""


_reset = msgspec.json.Decoder(_Reset)


class EventTooLarge(Exception):
    """A leg sent more than MAX_EVENT bytes without the end of an event."""


class Event(NamedTuple):
    """One event, comment line or empty line, with its bytes as they came (private cursor lines taken out)."""

    raw: bytes
    name: bytes  # b"" where there is no `event:` line
    id: bytes | None  # None where there is no `id:` line
    cursor: bytes | None = None  # of a private line `: c <cursor>` inside this event
    data: bytes = b""  # of those in `_READ` only: the others are nobody's business here


_READ = frozenset({b"hello", b"closed", b"reconnect", b"reset", b"served_by"})


class Splitter:
    """Bytes in any cut to whole events. One per leg: what it holds at the leg's end was not forwarded and is lost."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    @property
    def held(self) -> int:
        """Bytes of the partial event."""
        return len(self._held)

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that are whole now, in order. Raises EventTooLarge."""
        data = self._held + chunk if self._held else chunk
        events: list[Event] = []
        start = 0
        size = len(data)
        while start < size:
            first = data[start]
            if first == 10:  # an empty line where an event could begin
                events.append(Event(b"\n", b"", None))
                start += 1
                continue
            if first == 58:  # a comment: a line of its own, unless it is a private cursor, which belongs to its event
                if size - start < 4 and b": c ".startswith(data[start:]):
                    break
                if not data.startswith(b": c ", start):
                    end = data.find(b"\n", start)
                    if end < 0:
                        break
                    events.append(Event(data[start : end + 1], b"", None))
                    start = end + 1
                    continue
            end = data.find(b"\n\n", start)
            if end < 0:
                break
            events.append(_read(data[start : end + 2]))
            start = end + 2
        self._held = data[start:] if start else data
        if len(self._held) > MAX_EVENT:
            raise EventTooLarge(f"{len(self._held)} bytes without the end of an event")
        return events


_PLAIN = re.compile(rb"id: ([^\n]+)\nevent: token\ndata: [^\n]*\n\n")
"""Nearly every event, exactly so, told at a third of the cost."""


def _read(raw: bytes) -> Event:
    if plain := _PLAIN.fullmatch(raw):
        return Event(raw, b"token", plain[1])
    name = data = b""
    id_: bytes | None = None
    cursor: bytes | None = None
    for line in raw.split(b"\n"):
        if line.startswith(b"id:"):
            id_ = line[4:] if line[3:4] == b" " else line[3:]
        elif line.startswith(b"event:"):
            name = line[7:] if line[6:7] == b" " else line[6:]
        elif line.startswith(b": c "):
            cursor = line[4:]
        elif line.startswith(b"data:"):
            data = line
    if cursor is not None:
        raw = b"\n".join(line for line in raw.split(b"\n") if not line.startswith(b": c "))
    data = data[5:].strip() if name in _READ else b""
    return Event(raw, name, id_, cursor, data)


def _earliest(data: bytes) -> bytes:
    """Where a stream goes on after `reset`; b"" where that is not told."""
    try:
        return _reset.decode(data).earliest.encode()
    except (msgspec.DecodeError, RecursionError):
        return b""


class Turn(Enum):
    """What an event means for the leg it came on."""

    GO_ON = auto()
    JOINED = auto()  # `hello`: the node has taken the viewer; say who serves
    LEAVE = auto()  # `reconnect`: the node is leaving, go to another one
    CLOSED = auto()  # `closed`: the node says that this connection is over, and why
    FINISHED = auto()  # the terminal event of a stream that was asked for until=done


class Splice:
    """What one viewer has been shown, over all legs."""

    __slots__ = ("_again", "_unplaced", "caught_up", "cursor", "finished", "hello", "until_done")

    def __init__(self, *, until_done: bool = False, after: bytes = b"") -> None:
        self.until_done = until_done
        self.cursor = after  # the last one that was forwarded; empty: none yet
        self.hello = False
        self.caught_up = False
        self._unplaced = 0  # messages that were forwarded before any cursor: a later leg begins with them again
        self._again = 0  # of which so many are still to come
        self.finished = False  # the viewer has its terminal event: nothing is opened again

    def take(self, event: Event) -> tuple[bytes, Turn]:
        """What to forward of `event`, and what follows. The cursor moves with what is forwarded, not before."""
        turn = Turn.GO_ON
        name = event.name
        if name != b"token":
            if name == b"hello":
                if self.hello:
                    self._again = 0 if self.cursor else self._unplaced
                    return b"", Turn.JOINED
                self.hello = True
                turn = Turn.JOINED
            elif name == b"message" and self._again:
                self._again -= 1
                return b"", turn
            elif name == b"message" and not event.id and not self.cursor:
                self._unplaced += 1
            elif name == b"caught_up":
                if self.caught_up:
                    return b"", turn
                self.caught_up = True
            elif name == b"served_by":
                return b"", turn  # the ingress says it, with its own name
            elif name == b"reconnect":
                return b"", Turn.LEAVE
            elif name == b"closed":
                return event.raw, Turn.CLOSED
            elif name == b"reset":
                self.caught_up = False  # history begins anew, and ends anew
                self.cursor = _earliest(event.data) or self.cursor  # the old one is lost: it would be reset once more
            elif name in _TERMINAL and self.until_done and self.caught_up:
                self.finished = True
                turn = Turn.FINISHED
        if event.cursor is not None:
            self.cursor = event.cursor
        elif event.id is not None:
            self.cursor = event.id
        return event.raw, turn
