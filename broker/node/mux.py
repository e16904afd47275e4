"""An ingress's streams on one connection (`broker/bus/mux.py`), each served as if it had come on one of its own.

Every stream is a request to the node's own ASGI application. What the streams write in one turn of the loop leaves in
one piece, not one for each token. What that saves is in docs/decisions/multiplexing.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from urllib.parse import unquote

import structlog
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from broker.bus import mux
from broker.bus.health import App, Receive, Scope, Send
from broker.bus.mux import Kind, Malformed
from broker.node.mux_socket import MuxSocket
from broker.node.mux_stream import MuxStream
from broker.node.rfc6455 import BINARY, frame

log = structlog.get_logger("node.mux")

SEND_BUFFER = 1024 * 1024
"""The kernel's bytes for all of an ingress's streams together; each is held by its own credit, not by this."""
UNSENT = 1024 * 1024
"""Bytes unsent on the connection, or to be sent at the end of this turn, above which no stream begins to write: each
has its own credit, and thousands of them may be ready in one turn."""
PROTOCOL_ERROR = 1002


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
        await send({"type": "websocket.accept", "headers": [(mux.SERVES, mux.SOCKETS)]})
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
                    made = MuxSocket if scope["type"] == "websocket" else MuxStream
                    stream = self._streams[id] = made(self, id)
                    tasks.create_task(self._serve(stream, scope), name="mux-stream")
                case Kind.CREDIT:
                    if stream is not None:  # else it has ended meanwhile
                        stream.allow(mux.credit_of(rest))
                case Kind.CLOSE:
                    if stream is not None:
                        stream.leave()
                case Kind.PART | Kind.TEXT | Kind.BINARY:
                    if stream is not None:
                        stream.hear(kind, rest)
                case _:
                    raise Malformed(f"a record of kind {kind} is not for a node")

    def _scope_of(self, request: bytes) -> Scope:
        """The ASGI scope of an OPEN. Raises Malformed."""
        line, _, rest = request.partition(b"\r\n")
        parts = line.split(b" ")
        if len(parts) != 3 or parts[0] != b"GET" or not parts[1].startswith(b"/"):
            raise Malformed("a stream is opened with GET")
        path, _, query = parts[1].partition(b"?")
        fields = mux.read_fields(rest)
        ours = self._scope
        scope = {
            "asgi": ours["asgi"],
            "http_version": "1.1",
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": fields,
            "client": ours["client"],
            "server": ours["server"],
        }
        if any(name == b"upgrade" for name, _ in fields):
            offered = b",".join(text for name, text in fields if name == b"sec-websocket-protocol")
            names = [name.strip() for name in offered.decode("latin-1").split(",")]
            return scope | {"type": "websocket", "scheme": ours["scheme"], "subprotocols": [n for n in names if n]}
        scheme = "https" if ours["scheme"] == "wss" else "http"
        return scope | {"type": "http", "scheme": scheme, "method": "GET"}

    async def _serve(self, stream: MuxStream, scope: Scope) -> None:
        try:
            await self._app(scope, stream.receive, stream.send)
        except ConnectionResetError as error:  # whoever was served has gone
            log.debug("node.mux_stream_left", path=scope["path"], error=str(error))
        except Exception as error:  # one stream's mistake is not the others' end
            log.error("node.mux_stream_failed", path=scope["path"], exc_info=error)
        finally:
            del self._streams[stream.id]
            if not stream.gone:
                self.put(Kind.END if stream.whole else Kind.BROKEN, stream.id, stream.farewell)
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
