"""The connection under a stream, for what must not cost a task: writing live events past ASGI.

An ASGI application that waits for its next event is a task, and waking it for a token costs more than the token
(docs/decisions/hotpath.md). uvicorn's `send` is a method of the object that holds the connection, so whoever has the
event can write it there at once, framed as `send` would frame it. Where `send` is somebody else's there is no pipe, and
everything goes through it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from broker.bus.health import Send
from broker.bus.tally import Count
from broker.node.events import Event, body_of
from broker.node.mux_stream import MuxStream
from broker.node.rfc6455 import TEXT, frame
from broker.node.subscriber import Subscriber


class Pipe(Protocol):
    """Of one stream that has begun. It may be written to only while nobody waits in `send` for this stream."""

    @property
    def ready(self) -> bool:
        """Whether the client is there and takes what is written; else `send` has to wait for it."""

    def write(self, batch: list[Event]) -> None: ...


class _Http:
    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def ready(self) -> bool:
        cycle = self._cycle
        return not (cycle.flow.write_paused or cycle.disconnected) and cycle.chunked_encoding is True

    def write(self, batch: list[Event]) -> None:
        body = body_of(batch)
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))


class _Socket:
    __slots__ = ("_protocol",)

    def __init__(self, protocol: WebSocketsSansIOProtocol) -> None:
        self._protocol = protocol

    @property
    def ready(self) -> bool:
        it = self._protocol
        return it.handshake_complete and it.writable.is_set() and not (it.close_sent or it.transport.is_closing())

    def write(self, batch: list[Event]) -> None:
        self._protocol.transport.write(b"".join([frame(TEXT, event.ws.encode()) for event in batch]))


def pipe_under(send: Send) -> Pipe | None:
    """None where `send` is neither uvicorn's own nor that of one stream of many."""
    match getattr(send, "__self__", None):
        case RequestResponseCycle() as cycle:
            return _Http(cycle)
        case WebSocketsSansIOProtocol() as protocol:
            return _Socket(protocol)
        case MuxStream() as stream:
            return stream
        case _:
            return None


class LiveSink:
    """A pipe that its subscriber may write to, and what is counted of it."""

    __slots__ = ("_count", "_pipe", "_subscriber", "_time")

    def __init__(self, subscriber: Subscriber, pipe: Pipe, count: Count) -> None:
        self._subscriber = subscriber
        self._pipe = pipe
        self._count = count
        self._time = asyncio.get_running_loop().time

    @property
    def ready(self) -> bool:
        return self._pipe.ready

    def write(self, batch: list[Event]) -> None:
        self._pipe.write(batch)
        self._subscriber.sent_at = self._time()
        self._count.inc(len(batch))
