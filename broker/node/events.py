"""Events as viewers get them, for both transports. Pure.

A stored frame is one event with `id: <cursor>`; its data is the frame's second line, byte for byte. Events about the
connection (`hello`, `caught_up`, …) are made here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from broker.bus.frames import Frame, json_decode, json_encode

HEARTBEAT_SSE = b": hb\n"  # one line, no blank line after it: openai-py breaks on an empty event


class Event(msgspec.Struct, gc=False):
    """One event. Its encodings are made once and shared by all who read the same ring.

    Nothing that it holds can hold it, so the garbage collector need not look at it: rings have millions.
    """

    name: str
    data: bytes
    cursor: str = ""
    _sse: bytes | None = None
    _ws: str | None = None

    @property
    def sse(self) -> bytes:
        made = self._sse
        if made is None:
            head = f"id: {self.cursor}\nevent: {self.name}\ndata: " if self.cursor else f"event: {self.name}\ndata: "
            made = self._sse = b"%b%b\n\n" % (head.encode(), self.data)
        return made

    @property
    def ws(self) -> str:
        if self._ws is None:
            id = f'"id":"{self.cursor}",' if self.cursor else ""
            self._ws = f'{{"event":"{self.name}",{id}"data":{self.data.decode()}}}'
        return self._ws


def of_frame(frame: Frame, incarnation: str) -> Event:
    return Event(frame.type, frame.data, f"{incarnation}-{frame.seq}")


def make(name: str, data: dict[str, Any], cursor: str = "") -> Event:
    return Event(name, json_encode(data), cursor)


def hello(sid: str, cursor: str, earliest: str, node: str, t: int) -> Event:
    """The first event. `cursor`: the place that the stream begins behind; "" where it has none. `t` in milliseconds."""
    place = {"cursor": cursor} if cursor else {}
    data = {"session_id": sid, **place, "earliest": earliest, "node": node, "t": t}
    return make("hello", data, cursor)


def closed(code: str, message: str, retry_after: float | None = None) -> Event:
    """The last event of a connection that ends for a reason of the connection's; `retry_after` in seconds."""
    data: dict[str, Any] = {"code": code, "message": message}
    if retry_after is not None:
        data["retry_after_ms"] = int(retry_after * 1000)
    return make("closed", data)


def log_unavailable() -> Event:
    """What a viewer is told when the log does not answer: come back."""
    return closed("unavailable", "the log does not answer; try again", retry_after=1.0)


def gid_of(event: Event) -> str:
    """The generation that a stored event is of."""
    return str(json_decode(event.data)["generation_id"])


def body_of(batch: list[Event]) -> bytes:
    """A batch as server-sent events."""
    return batch[0].sse if len(batch) == 1 else b"".join([event.sse for event in batch])
