"""A WebSocket to a stream node as one stream of many (`ingress/mux.py`), used as one on a connection of its own is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.bus import mux
from broker.bus.mux import Kind, Malformed
from ingress.headers import Field
from ingress.mux_stream import MORE, MuxedStream
from ingress.node_socket import ABNORMAL, OnClose, OnMessage, OnTokens
from ingress.sse_leg import MAX_EVENT
from ingress.upstream import Head, NodeLost

if TYPE_CHECKING:
    from ingress.mux import NodeMux


class MuxedSocket(MuxedStream):
    """As `Socket` says. What comes before somebody listens is kept: no more than a stream's window.

    `target` is what is asked for, `offered` are the subprotocols.
    """

    __slots__ = ("_before", "_farewell", "_offered", "_parts", "_parts_size", "_target")

    def __init__(self, mux: NodeMux, id: int, target: str, offered: list[str]) -> None:
        super().__init__(mux, id, used=id > 1)
        self._target = target
        self._offered = offered
        self._before: list[tuple[bytes, bytes | None]] = []  # messages; or token events, and their cursor
        self._farewell = (ABNORMAL, "")
        self._parts: list[bytes] = []
        self._parts_size = 0

    async def greet(self, fields: list[Field], timeout: float) -> Head:
        lines = [f"GET {self._target} HTTP/1.1".encode(), b"upgrade: websocket"]
        if self._offered:
            lines.append(f"sec-websocket-protocol: {', '.join(self._offered)}".encode("latin-1"))
        lines += [b"%b: %b" % field for field in fields]
        return await self.ask(b"\r\n".join([*lines, b"", b""]), timeout)

    def listen(self, on_message: OnMessage, on_close: OnClose, on_tokens: OnTokens) -> None:
        def end(lost: NodeLost | None) -> None:
            on_close(*(self._farewell if lost is None else (ABNORMAL, str(lost))))

        def message(data: bytes) -> None:
            on_message(data, True)

        self._on_body, self._on_end, self._on_tokens = message, end, on_tokens
        before, self._before = self._before, []
        for data, cursor in before:
            if self._on_end is not end:
                return  # given up by what it was given
            if cursor is None:
                message(data)
            else:
                on_tokens(data, cursor)
        self.take(message, end, on_tokens)
        self._mux.hear(self)

    def send(self, data: bytes, text: bool = True) -> None:
        if not (self._ended or self.lost):
            for record in mux.message(self.id, data, text=text):
                self._mux.put(record)

    def close(self, code: int) -> None:
        """Go: the node closes its end in its own way."""
        self.abort()

    def abort(self) -> None:
        super().abort()
        self._before = []
        self._parts = []

    # -- for the connection ------------------------------------------------------------------------------------------

    def data(self, data: bytes) -> None:
        raise Malformed("data, where messages are")

    def tokens(self, data: bytes) -> None:
        cursor, frames = mux.read_tokens(data)
        if self._on_tokens is None:
            self._before.append((frames, cursor))
        else:
            self._on_tokens(frames, cursor)
        self._took(len(frames))

    def told(self, kind: int, data: bytes) -> None:
        match kind:
            case Kind.PART:
                self._parts.append(data)
                self._parts_size += len(data)
                if self._parts_size > MAX_EVENT:
                    self.fail()
                else:
                    self._took(len(data))
            case Kind.TEXT:
                whole, self._parts, self._parts_size = b"".join([*self._parts, data]), [], 0
                if self._on_body is None:
                    self._before.append((whole, None))
                else:
                    self._on_body(whole)
                self._took(len(data))
            case Kind.END:
                if data:  # else it was not accepted
                    self._farewell = mux.read_farewell(data)
                super().told(kind, data)
            case _:
                super().told(kind, data)

    def _took(self, size: int) -> None:
        self._taken += size
        if self._taken >= MORE and self._on_body is not None:
            self._allow()
