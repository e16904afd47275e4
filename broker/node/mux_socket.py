"""One WebSocket of many on an ingress's connection: messages both ways instead of a body."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from broker.bus import mux
from broker.bus.mux import HEARD, WINDOW, Kind
from broker.node.events import Event
from broker.node.mux_stream import Message, MuxStream, are_tokens
from broker.node.rfc6455 import TEXT, frame

if TYPE_CHECKING:
    from broker.node.mux import Mux

MAX_HEARD = 4 * 1024 * 1024
"""Bytes of a client's messages that may wait, as HEARD bounds their number."""
NOT_ACCEPTED = 403
GOING_AWAY, NO_TEXT, TOO_BIG, TOO_FAST = 1001, 1007, 1009, 4429


class MuxSocket(MuxStream):
    """`receive` and `send` as ASGI has them for a WebSocket. Whoever says more than is looked at is closed, 4429."""

    __slots__ = ("_heard", "_heard_size", "_parts", "_sending")

    def __init__(self, mux: Mux, id: int) -> None:
        super().__init__(mux, id)
        self._heard: deque[tuple[Message, int]] = deque()  # and how long each is
        self._heard_size = 0
        self._parts: list[bytes] = []
        self._sending = asyncio.Lock()  # several tasks send, and a long message is several records

    def hear(self, kind: int, data: bytes) -> None:
        if self.gone or self.whole:
            return
        self._parts.append(data)
        self._heard_size += len(data)
        if len(self._heard) >= HEARD or self._heard_size > MAX_HEARD:
            self._break_off(*((TOO_FAST, "too many messages at once") if self._heard else (TOO_BIG, "too long")))
        elif kind != Kind.PART:
            whole, self._parts = b"".join(self._parts), []
            try:
                said = {"text": whole.decode()} if kind == Kind.TEXT else {"bytes": whole}
            except UnicodeDecodeError:
                self._break_off(NO_TEXT, "a text is UTF-8")
                return
            self._heard.append(({"type": "websocket.receive", **said}, len(whole)))
            self._move()

    def _break_off(self, code: int, reason: str) -> None:
        """Closed by the connection, not by who serves it, and who is not listening perhaps."""
        self._mux.put(Kind.END, self.id, mux.farewell(code, reason))
        self.leave()

    def leave(self) -> None:
        super().leave()
        self._heard.clear()
        self._parts.clear()

    def _end(self, code: int, reason: str) -> None:
        self.whole = True
        self.farewell = mux.farewell(code, reason)
        self._move()

    # -- ASGI --------------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "websocket.connect"}
        await self._until(lambda: bool(self._heard) or self.gone or self.whole)
        if self.gone or self.whole:
            return {"type": "websocket.disconnect", "code": GOING_AWAY}
        message, size = self._heard.popleft()
        self._heard_size -= size
        return message

    async def send(self, message: Message) -> None:
        """Waits for room. Raises ConnectionResetError once nobody wants it, RuntimeError out of order."""
        kind = message["type"]
        if self.gone or self.whole:
            raise ConnectionResetError("it is closed")
        if kind == "websocket.accept" and not self._begun:
            self._begun = True
            fields = list(message.get("headers", ()))
            if chosen := message.get("subprotocol"):
                fields.append((b"sec-websocket-protocol", chosen.encode()))
            self._mux.put(Kind.HEAD, self.id, mux.head(101, fields))
        elif kind == "websocket.close" and not self._begun:
            self._begun = True
            self._mux.put(Kind.HEAD, self.id, mux.head(NOT_ACCEPTED, []))
            self._end(message.get("code", 1000), "")
        elif kind == "websocket.close":
            self._end(message.get("code", 1000), message.get("reason", ""))
        elif kind == "websocket.send" and self._begun:
            await self._say(message["text"].encode())
        else:
            raise RuntimeError(f"{kind} does not follow")

    async def _say(self, text: bytes) -> None:
        async with self._sending:
            records = deque(mux.message(self.id, text))
            begun = False
            try:
                while records:
                    if not await self._room():
                        raise ConnectionResetError("it is closed")
                    self._send(records.popleft())
                    begun = True
            except asyncio.CancelledError:
                if begun and not self.gone:  # else the next message would be taken for the rest of this one
                    for record in records:
                        self._send(record)
                raise

    def _send(self, record: bytes) -> None:
        self._credit -= len(record) - mux.HEADER_SIZE
        self._mux.write(record)

    # -- Pipe --------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self._begun and not (self.whole or self._sending.locked()) and super().ready

    def write(self, batch: list[Event]) -> None:
        texts = [event.ws.encode() for event in batch]
        if are_tokens(batch):
            frames = b"".join([frame(TEXT, text) for text in texts])
            if len(frames) <= WINDOW:
                self._credit -= len(frames)
                self._mux.write(mux.tokens(self.id, batch[-1].cursor.encode(), frames))
                return
        for text in texts:
            for record in mux.message(self.id, text):
                self._send(record)
