"""The connection under a response, for what must not cost a task: writing live events past ASGI.

An ASGI application that waits for its next event is a task, and waking it for a token costs more than the token: on two
shared cores a node spent 44 µs a token that way (300 streams × 20/s). uvicorn's `send` is a method of the object that
holds the connection, so whoever has the event can write it there at once, framed as `send` would frame it.
"""

from __future__ import annotations

from typing import Self

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from broker.bus.health import Send


class Pipe:
    """Of one response whose start was sent through ASGI and whose end will be."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @classmethod
    def under(cls, send: Send) -> Self | None:
        """None where `send` is not uvicorn's own: then everything goes through it."""
        cycle = getattr(send, "__self__", None)
        return cls(cycle) if isinstance(cycle, RequestResponseCycle) else None

    @property
    def ready(self) -> bool:
        """Whether the client is there and takes what is written; else `send` has to wait for it."""
        cycle = self._cycle
        return not (cycle.flow.write_paused or cycle.disconnected) and cycle.chunked_encoding is True

    def write(self, body: bytes) -> None:
        """A part of the body. Only where it is ready, and while nobody waits in `send`."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
