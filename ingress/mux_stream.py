"""One stream of many (`ingress/mux.py`), used as a connection of its own is (`Connection` in `ingress/upstream.py`).

It is asked, its body is taken, it is paused by giving it no more credit, and it is lost when the connection is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.bus import mux
from broker.bus.mux import WINDOW, Kind, Malformed
from ingress.upstream import Head, NodeLost, Response

if TYPE_CHECKING:
    from ingress.mux import NodeMux

MORE = WINDOW // 2
"""Bytes taken after which as many more are allowed."""


class MuxedStream(Response):
    """`on_pause` and `on_resume`: of whoever has more for the node."""

    __slots__ = ("_mux", "_paused", "_taken", "id", "on_pause", "on_resume", "used")

    def __init__(self, mux: NodeMux, id: int, *, used: bool) -> None:
        super().__init__()
        self.id = id
        self.used = used
        self._mux = mux
        self._paused = False
        self._taken = 0  # bytes since credit was last given
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    async def ask(self, payload: bytes, timeout: float, *, bodiless: bool = False) -> Head:
        if self.lost or self._mux.lost:
            raise NodeLost("connection lost", unsent=True)
        self._head = asyncio.get_running_loop().create_future()
        self._mux.open(self, payload)
        try:
            async with asyncio.timeout(timeout):
                return await self._head
        except BaseException:
            self.abort()
            raise
        finally:
            self._head = None

    def _taken_up(self) -> None:
        self._allow()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._allow()

    def abort(self) -> None:
        self._let_go()
        self._held = []
        if not (self._ended or self.lost):
            self.lost = True
            self._mux.put(mux.record(Kind.CLOSE, self.id))
            self._mux.forget(self)

    def fail(self) -> None:
        on_end = self._on_end
        self.abort()
        self._on_end = on_end
        self._lose(NodeLost("node is down"))

    # -- for the connection ------------------------------------------------------------------------------------------

    def data(self, data: bytes) -> None:
        self._taken += len(data)
        if self._on_body is not None:
            self._on_body(data)
            if self._taken >= MORE:
                self._allow()
        else:
            self._held.append(data)

    def tokens(self, data: bytes) -> None:
        """Raises Malformed."""
        cursor, events = mux.read_tokens(data)
        if self._on_tokens is None:
            self.data(events)
            return
        self._taken += len(events)
        self._on_tokens(events, cursor)
        if self._taken >= MORE:
            self._allow()

    def told(self, kind: int, data: bytes) -> None:
        """Anything but data. Raises Malformed."""
        match kind:
            case Kind.HEAD:
                if self._head is None or self._head.done():
                    raise Malformed("a response that nobody asked for")
                self._head.set_result(Head(*mux.read_head(data)))
            case Kind.END:
                if self._head is not None and not self._head.done():
                    raise Malformed("an end without a beginning")
                self._ended = True
                self._mux.forget(self)
                self._end(None)
            case Kind.BROKEN:
                self._mux.forget(self)
                self._lose(NodeLost("the node broke off"))
            case _:
                raise Malformed(f"a record of kind {kind} is not for an ingress")

    def cut_off(self, error: NodeLost) -> None:
        """The connection is lost."""
        self._lose(error)

    def _allow(self) -> None:
        if self._taken >= MORE and not (self._paused or self._ended or self.lost):
            self._mux.put(mux.credit(self.id, self._taken))
            self._taken = 0
