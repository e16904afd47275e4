"""One stream of many on an ingress's connection: a request's `receive` and `send`, and the pipe under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from broker.bus import mux
from broker.bus.mux import WINDOW, Kind, Malformed
from broker.node.events import Event, body_of

if TYPE_CHECKING:
    from broker.node.mux import Mux

Message = MutableMapping[str, Any]


class MuxStream:
    """`farewell`: what its END says, where it is whole."""

    __slots__ = ("_asked", "_begun", "_credit", "_moved", "_mux", "farewell", "gone", "id", "whole")

    def __init__(self, mux: Mux, id: int) -> None:
        self.id = id
        self.gone = False
        self.whole = False  # its answer has been sent to the end
        self.farewell = b""
        self._mux = mux
        self._credit = WINDOW
        self._asked = False
        self._begun = False
        self._moved: list[asyncio.Future[None]] = []  # of those who wait for credit, or for the end

    def allow(self, more: int) -> None:
        self._credit += more
        if self._credit > WINDOW:
            raise Malformed(f"stream {self.id} was given more than its window")
        self._move()

    def leave(self) -> None:
        """Nobody wants more of it."""
        self.gone = True
        self._move()

    def hear(self, kind: int, data: bytes) -> None:
        """A record of what the client sends. Raises Malformed: a request has said all that it says."""
        raise Malformed(f"a record of kind {kind} is for a WebSocket")

    def _move(self) -> None:
        moved, self._moved = self._moved, []
        for waiter in moved:
            if not waiter.done():
                waiter.set_result(None)

    async def _until(self, what: Callable[[], bool]) -> None:
        while not what():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._moved.append(waiter)
            await waiter

    async def _room(self) -> bool:
        """Wait until there is credit, and the connection takes more. False: nobody wants it."""
        while not self.gone:
            if not self._mux.writable:
                await self._mux.drained()
            elif self._credit <= 0:
                await self._until(lambda: self._credit > 0 or self.gone)
            else:
                return True
        return False

    # -- ASGI --------------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The request, which has no body; then, when nobody wants more of the answer, that."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._until(lambda: self.gone or self.whole)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """As uvicorn's: waits for room, and does nothing once nobody wants it. Raises RuntimeError out of order."""
        if (message["type"] == "http.response.start") == self._begun or self.whole:
            raise RuntimeError(f"{message['type']} does not follow")
        if not self._begun:
            self._begun = True
            self._mux.put(Kind.HEAD, self.id, mux.head(message["status"], list(message.get("headers", ()))))
            return
        data: bytes = message.get("body", b"")
        while data and await self._room():
            piece, data = data[: self._credit], data[self._credit :]
            self._credit -= len(piece)
            self._mux.put(Kind.DATA, self.id, piece)
        if not message.get("more_body", False):
            self.whole = True
            self._move()

    # -- Pipe --------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self._credit > 0 and not self.gone and self._mux.writable

    def write(self, batch: list[Event]) -> None:
        body = body_of(batch)
        self._credit -= len(body)
        if are_tokens(batch) and len(body) <= WINDOW:
            self._mux.write(mux.tokens(self.id, batch[-1].cursor.encode(), body))
        else:
            for begin in range(0, len(body), WINDOW):
                self._mux.put(Kind.DATA, self.id, body[begin : begin + WINDOW])


def are_tokens(batch: list[Event]) -> bool:
    return batch[0].name == "token" if len(batch) == 1 else all(event.name == "token" for event in batch)
