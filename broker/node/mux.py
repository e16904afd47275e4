"""An ingress's streams on one connection (`broker/bus/mux.py`), each served as if it had come on one of its own.

Every stream is a request to the node's own ASGI application. What the streams write in one turn of the loop leaves in
one piece, not one for each token. What that saves is in docs/decisions/multiplexing.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import structlog
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from broker.bus import mux
from broker.bus.health import App, Receive, Scope, Send
from broker.bus.mux import WINDOW, Kind, Malformed
from broker.node.events import Event, body_of
from broker.node.rfc6455 import BINARY, frame

log = structlog.get_logger("node.mux")

SEND_BUFFER = 1024 * 1024
"""The kernel's bytes for all of an ingress's streams together; each is held by its own credit, not by this."""
UNSENT = 1024 * 1024
"""Bytes unsent on the connection, or to be sent at the end of this turn, above which no stream begins to write: each
has its own credit, and thousands of them may be ready in one turn."""
PROTOCOL_ERROR = 1002

Message = MutableMapping[str, Any]


def protocol_under(send: Send) -> WebSocketsSansIOProtocol | None:
    """The connection, if it is uvicorn's: only there many streams can write in one piece."""
    found = getattr(send, "__self__", None)
    return found if isinstance(found, WebSocketsSansIOProtocol) else None


class Mux:
    """One connection and its streams."""

    def __init__(self, app: App, scope: Scope, protocol: WebSocketsSansIOProtocol) -> None:
        self._app = app
        self._scope = scope
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, MuxStream] = {}
        self._out: list[bytes] = []
        self._waiting = 0  # bytes of it
        self._flushing = False
        self._over = False

    async def run(self, receive: Receive, send: Send) -> None:
        """Serve streams until the ingress goes. `websocket.connect` has been received."""
        await send({"type": "websocket.accept"})
        transport = self._protocol.transport
        transport.set_write_buffer_limits(high=UNSENT)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # a wish, not a condition
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        malformed = ""
        async with asyncio.TaskGroup() as tasks:
            try:
                while (message := await receive())["type"] == "websocket.receive":
                    data = message.get("bytes")
                    if data is None:
                        raise Malformed("a text, where records are bytes")
                    self._take(data, tasks)
            except Malformed as error:
                malformed = str(error)
            finally:
                self._over = True
                for stream in list(self._streams.values()):
                    stream.leave()
        if malformed:
            log.warning("node.mux_malformed", error=malformed)
            await send({"type": "websocket.close", "code": PROTOCOL_ERROR, "reason": malformed})

    def _take(self, data: bytes, tasks: asyncio.TaskGroup) -> None:
        for kind, id, rest in mux.records(data):
            stream = self._streams.get(id)
            match kind:
                case Kind.OPEN:
                    if stream is not None:
                        raise Malformed(f"stream {id} is open already")
                    self.put(Kind.SEEN, id)
                    try:
                        scope = self._scope_of(rest)
                    except Malformed as error:  # of one client's making: the others have no part in it
                        log.warning("node.mux_request_malformed", error=str(error))
                        self.put(Kind.HEAD, id, mux.head(400, []))
                        self.put(Kind.END, id)
                        continue
                    stream = self._streams[id] = MuxStream(self, id)
                    tasks.create_task(self._serve(stream, scope), name="mux-stream")
                case Kind.CREDIT:
                    if stream is not None:  # else it has ended meanwhile
                        stream.allow(mux.credit_of(rest))
                case Kind.CLOSE:
                    if stream is not None:
                        stream.leave()
                case _:
                    raise Malformed(f"a record of kind {kind} is not for a node")

    def _scope_of(self, request: bytes) -> Scope:
        """The ASGI scope of an OPEN. Raises Malformed."""
        line, _, rest = request.partition(b"\r\n")
        parts = line.split(b" ")
        if len(parts) != 3 or parts[0] != b"GET" or not parts[1].startswith(b"/"):
            raise Malformed("a stream is opened with GET")
        path, _, query = parts[1].partition(b"?")
        ours = self._scope
        return {
            "type": "http",
            "asgi": ours["asgi"],
            "http_version": "1.1",
            "method": "GET",
            "scheme": "https" if ours["scheme"] == "wss" else "http",
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": mux.read_fields(rest),
            "client": ours["client"],
            "server": ours["server"],
        }

    async def _serve(self, stream: MuxStream, scope: Scope) -> None:
        try:
            await self._app(scope, stream.receive, stream.send)
        except Exception as error:  # one stream's mistake is not the others' end
            log.error("node.mux_stream_failed", path=scope["path"], exc_info=error)
        finally:
            del self._streams[stream.id]
            if not stream.gone:
                self.put(Kind.END if stream.whole else Kind.BROKEN, stream.id)
            stream.leave()

    # -- writing -----------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self._waiting <= UNSENT and self._protocol.writable.is_set()

    async def drained(self) -> None:
        """Wait until the connection takes more, or is gone."""
        await asyncio.sleep(0)  # what this turn has to write is on its way then
        await self._protocol.writable.wait()

    def put(self, kind: int, stream: int, data: bytes = b"") -> None:
        """A record of these, to be written at the end of this turn."""
        self.write(mux.record(kind, stream, data))

    def write(self, record: bytes) -> None:
        """To be written at the end of this turn."""
        self._out.append(record)
        self._waiting += len(record)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._waiting = 0
        out, self._out = self._out, []
        protocol = self._protocol
        if self._over or protocol.close_sent or protocol.transport.is_closing():
            return
        protocol.transport.write(b"".join([frame(BINARY, message) for message in mux.messages(out)]))


class MuxStream:
    """One request's `receive` and `send`, and the pipe under it (`broker/node/pipe.py`)."""

    __slots__ = ("_asked", "_begun", "_credit", "_mux", "_moved", "gone", "id", "whole")

    def __init__(self, mux: Mux, id: int) -> None:
        self.id = id
        self.gone = False
        self.whole = False  # its answer has been sent to the end
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
        while data and not self.gone:
            if not self._mux.writable:
                await self._mux.drained()
            elif self._credit <= 0:
                await self._until(lambda: self._credit > 0 or self.gone)
            else:
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
        plain = batch[0].name == "token" if len(batch) == 1 else all(event.name == "token" for event in batch)
        if plain and len(body) <= WINDOW:
            self._mux.write(mux.tokens(self.id, batch[-1].cursor.encode(), body))
        else:
            for begin in range(0, len(body), WINDOW):
                self._mux.put(Kind.DATA, self.id, body[begin : begin + WINDOW])
