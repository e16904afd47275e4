"""All streams of this ingress at one node, on one connection (`broker/bus/mux.py`).

One read has what the node had for many viewers, where a connection each costs a read each. What a stream is to whoever
has one is in `mux_stream.py` and `mux_socket.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from broker.bus import mux
from broker.bus.mux import MAX_STREAM, Kind, Malformed
from ingress.headers import Field, value
from ingress.mux_socket import MuxedSocket
from ingress.mux_stream import MuxedStream
from ingress.node_socket import ABNORMAL, NodeSocket
from ingress.upstream import NodeLost

if TYPE_CHECKING:
    from ingress.membership import Member

log = structlog.get_logger("ingress.mux")

_SEEN, _DATA, _TOKENS = int(Kind.SEEN), int(Kind.DATA), int(Kind.TOKENS)


class NoMux(Exception):
    """The node does not serve many streams on one connection, or not to this ingress, or not now."""


class NodeMux:
    """One such connection. `silence`: seconds after which one that does not answer is given up."""

    def __init__(self, member: Member, silence: float, on_lost: Callable[[MuxedStream], None]) -> None:
        self.lost = False
        self._member = member
        self._silence = silence
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._socket: NodeSocket | None = None
        self._streams: dict[int, MuxedStream] = {}
        self._last = 0
        self._opened = self._seen = 0  # the last of them that the node was told of, and has said to have seen
        self._told = 0  # as `_opened`, when something was written last
        self._heard_at = 0.0
        """When the node said something on this connection, or was told of a stream while it owed no word."""
        self._out: list[bytes] = []
        self.serves_sockets = False
        self._paused = False  # the node does not read

    async def connect(self, fields: list[Field], timeout: float) -> None:
        """Raises NodeLost, NoMux, TimeoutError, OSError."""
        member = self._member
        async with asyncio.timeout(timeout):
            _, self._socket = await self._loop.create_connection(
                lambda: NodeSocket(member, mux.PATH, []), member.host, member.port
            )
        head = await self._socket.greet(fields, timeout)
        if head.status != 101:
            self._socket.abort()
            raise NoMux(f"status {head.status}")
        self.serves_sockets = mux.SOCKETS in value(head.fields, mux.SERVES).split()
        self._socket.on_pause, self._socket.on_resume = self._pause, self._resume
        self._socket.listen(self._on_message, self._on_close)

    def stream(self) -> MuxedStream:
        """One more. Raises NodeLost."""
        number = self._next()
        stream = self._streams[number] = MuxedStream(self, number, used=number > 1)
        return stream

    def socket(self, target: str, offered: list[str]) -> MuxedSocket:
        """One more, where `serves_sockets`. Raises NodeLost."""
        number = self._next()
        socket = self._streams[number] = MuxedSocket(self, number, target, offered)
        return socket

    def _next(self) -> int:
        if self._last >= MAX_STREAM:
            self.fail("its numbers are used up")
        if self.lost:
            raise NodeLost("connection lost", unsent=True)
        self._last += 1
        return self._last

    def fail(self, why: str) -> None:
        """Give the connection up: every stream on it is lost."""
        if self._socket is not None:
            self._socket.abort()
        self._on_close(ABNORMAL, why)

    def close(self) -> None:
        """Nobody is told any more."""
        self.lost = True
        self._streams.clear()
        if self._socket is not None:
            self._socket.abort()

    # -- for its streams ---------------------------------------------------------------------------------------------

    def put(self, record: bytes) -> None:
        """To be written at the end of this turn."""
        self._out.append(record)
        if len(self._out) == 1:
            self._loop.call_soon(self._flush)

    def hear(self, stream: MuxedStream) -> None:
        """Of one that will have more for the node than what it asks: it is told when that does not read."""
        if self._paused and stream.on_pause is not None:
            stream.on_pause()

    def forget(self, stream: MuxedStream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._on_lost(stream)

    def open(self, stream: MuxedStream, request: bytes) -> None:
        self._opened = stream.id
        self.put(mux.record(Kind.OPEN, stream.id, request))

    def look(self, asked_at: float) -> None:
        """Several times a second. `asked_at`: when the node was asked for its health, for its newest answer.

        A node that answers what it is asked much later than a stream was opened, and says nothing here meanwhile, has
        this connection no more, whatever TCP believes. One that answers nothing is for others to judge.
        """
        if self._seen < self._opened and asked_at - self._heard_at > self._silence:
            self.fail("the node does not answer on this connection")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Nobody should have more for the node."""
        self._paused = True
        for stream in self._streams.values():
            if stream.on_pause is not None:
                stream.on_pause()

    def _resume(self) -> None:
        self._paused = False
        for stream in self._streams.values():
            if stream.on_resume is not None:
                stream.on_resume()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._seen >= self._told:
            self._heard_at = self._loop.time()
        self._told = self._opened
        if self._socket is not None and not self.lost:
            for message in mux.messages(out):
                self._socket.send(message, text=False)

    def _on_message(self, data: bytes, text: bool) -> None:
        """The hot path: once for what a node had for many viewers."""
        self._heard_at = self._loop.time()
        try:
            for kind, id, rest in mux.records(data):
                if kind == _SEEN:
                    self._seen = max(self._seen, id)
                elif (stream := self._streams.get(id)) is not None:  # else it was given up meanwhile
                    self._give(stream, kind, rest)
        except Malformed as error:
            self.fail(f"not the records of streams: {error}")

    def _give(self, stream: MuxedStream, kind: int, data: bytes) -> None:
        try:
            if kind == _TOKENS:
                stream.tokens(data)
            elif kind == _DATA:
                stream.data(data)
            else:
                stream.told(kind, data)
        except Malformed:
            raise
        except Exception as error:  # a mistake of ours with one viewer is not the others' end
            log.error("ingress.mux_stream_failed", exc_info=error)
            stream.fail()

    def _on_close(self, code: int, reason: str) -> None:
        if self.lost:
            return
        self.lost = True
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            self._on_lost(stream)
            stream.cut_off(NodeLost(reason or f"closed by the node ({code})"))
