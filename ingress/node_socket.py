"""A WebSocket to a stream node: `websockets`' sans-I/O protocol, without compression, on a raw asyncio transport."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import structlog
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from broker.bus.mux import MESSAGE
from ingress.headers import Field
from ingress.sse_leg import MAX_EVENT
from ingress.upstream import RECEIVE_BUFFER, Head, NodeLost

if TYPE_CHECKING:
    from ingress.membership import Member

log = structlog.get_logger("ingress")

ABNORMAL = 1006
OnMessage = Callable[[bytes, bool], None]
OnClose = Callable[[int, str], None]
OnTokens = Callable[[bytes, bytes], None]
TURN = MESSAGE
"""Bytes of a node's that one turn of the loop goes through: a step of a thousand streams is many times that."""


class Socket(Protocol):
    """A WebSocket to a node: `greet`, then `listen`. `on_close(code, reason)` comes once; 1006 where it broke.

    `on_pause`, `on_resume`: called when the node does not read, and does again.
    """

    on_pause: Callable[[], None] | None
    on_resume: Callable[[], None] | None

    async def greet(self, fields: list[Field], timeout: float) -> Head:
        """The upgrade; raises NodeLost, TimeoutError. A head that is not 101 is the node's refusal."""

    def listen(self, on_message: OnMessage, on_close: OnClose, on_tokens: OnTokens) -> None:
        """From now on whole messages go to `on_message(data, is_text)`; what has come already, at once.

        `on_tokens` may get what is known to be whole token events, framed for a client, with the last one's cursor.
        """

    def send(self, data: bytes, text: bool = True) -> None:
        """Does nothing once it is closed."""

    def close(self, code: int) -> None:
        """Say good-bye and go, without waiting for an answer."""

    def abort(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class NodeSocket(asyncio.Protocol):
    """One on a connection of its own."""

    def __init__(self, member: Member, target: str, subprotocols: list[str]) -> None:
        self._member = member
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        uri = parse_uri(f"ws://{member.host}:{member.port}{target}")
        offered = [Subprotocol(name) for name in subprotocols] or None
        self._protocol = ClientProtocol(uri, subprotocols=offered, max_size=MAX_EVENT)
        self._greeted: asyncio.Future[Head] | None = None
        self._on_message: OnMessage | None = None
        self._on_close: OnClose | None = None
        self._held: list[tuple[bytes, bool]] = []
        self._parts: list[bytes] = []
        self._text = True
        self._over: tuple[int, str] | None = None
        self._paused = False
        self._rest = bytearray()  # what has come and waits for the loop's next turn; nothing more is read meanwhile
        self.on_pause: Callable[[], None] | None = None  # the node does not read
        self.on_resume: Callable[[], None] | None = None

    async def greet(self, fields: list[Field], timeout: float) -> Head:
        request = self._protocol.connect()
        del request.headers["Host"]
        for name, text in fields:
            request.headers[name.decode("latin-1")] = text.decode("latin-1")
        self._greeted = self._loop.create_future()
        self._protocol.send_request(request)
        try:
            self._flush()
            async with asyncio.timeout(timeout):
                return await self._greeted
        except BaseException:
            self.abort()
            raise

    def listen(self, on_message: OnMessage, on_close: OnClose, on_tokens: OnTokens | None = None) -> None:
        self._on_message, self._on_close = on_message, on_close
        held, self._held = self._held, []
        for data, text in held:
            on_message(data, text)
        if self._over is not None and self._on_close is not None:
            on_close(*self._over)

    def send(self, data: bytes, text: bool = True) -> None:
        if self._protocol.state is OPEN:
            (self._protocol.send_text if text else self._protocol.send_binary)(data)
            self._flush()

    def close(self, code: int) -> None:
        self._on_message = self._on_close = None
        self._rest.clear()
        self._member.closers.discard(self._fail)
        if self._transport is not None and not self._transport.is_closing():
            if self._protocol.state is OPEN:
                self._protocol.send_close(code)
                self._flush()
            self._transport.close()

    def abort(self) -> None:
        self._on_message = self._on_close = None
        self._rest.clear()
        self._member.closers.discard(self._fail)
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        self._paused = True
        self._read_or_not()

    def resume(self) -> None:
        self._paused = False
        self._read_or_not()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes
        self._transport = transport
        self._member.closers.add(self._fail)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # a wish, not a condition
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)

    def data_received(self, data: bytes) -> None:
        self._member.heard_at = self._loop.time()
        if len(data) <= TURN and not self._rest:
            self._go_through(data)
            return
        if not self._rest:
            self._loop.call_soon(self._go_on)
        self._rest += data
        self._read_or_not()

    def eof_received(self) -> bool:
        self._go_through_rest()
        self._protocol.receive_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._member.closers.discard(self._fail)
        try:
            self._go_through_rest()
        finally:
            self._lose(ABNORMAL, str(exc) if exc else "closed by the node")

    def pause_writing(self) -> None:
        if self.on_pause is not None:
            self.on_pause()

    def resume_writing(self) -> None:
        if self.on_resume is not None:
            self.on_resume()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _read_or_not(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        wanted = not self._paused and not self._rest
        if wanted != self._transport.is_reading():
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def _go_on(self) -> None:
        if self._rest:
            data = bytes(self._rest[:TURN])
            del self._rest[:TURN]
            try:
                self._go_through(data)
            except Exception as error:  # as where a transport's own callback fails: the connection is lost
                log.error("ingress.node_socket_failed", exc_info=error)
                self._rest.clear()
                self._fail()
                return
        if self._rest:
            self._loop.call_soon(self._go_on)
        else:
            self._read_or_not()

    def _go_through_rest(self) -> None:
        if self._rest:
            data = bytes(self._rest)
            self._rest.clear()
            self._go_through(data)

    def _go_through(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._answered(event)
            elif isinstance(event, Frame):
                self._frame(event)
        self._flush()
        if self._protocol.parser_exc is not None:
            self._lose(ABNORMAL, "not a WebSocket")

    def _answered(self, response: Response) -> None:
        if self._greeted is None or self._greeted.done():
            return
        fields = [
            (name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in response.headers.raw_items()
        ]
        if response.status_code == 101 and self._protocol.handshake_exc is not None:
            self._greeted.set_exception(NodeLost(f"bad upgrade: {self._protocol.handshake_exc}"))
        else:
            self._greeted.set_result(Head(response.status_code, fields))

    def _frame(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.BINARY:
                self._text = frame.opcode is Opcode.TEXT
                if frame.fin:
                    self._give(bytes(frame.data))
                else:
                    self._parts = [bytes(frame.data)]
            case Opcode.CONT:
                self._parts.append(bytes(frame.data))
                if frame.fin:
                    self._give(b"".join(self._parts))
                    self._parts = []
            case Opcode.CLOSE:
                close = self._protocol.close_rcvd
                self._lose(close.code if close is not None else ABNORMAL, close.reason if close is not None else "")

    def _give(self, data: bytes) -> None:
        if self._on_message is not None:
            self._on_message(data, self._text)
        elif self._over is None:
            self._held.append((data, self._text))

    def _flush(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    def _fail(self) -> None:
        """The node was found to be down."""
        if self._transport is not None:
            self._transport.abort()
        self._lose(ABNORMAL, "node is down")

    def _lose(self, code: int, reason: str) -> None:
        if self._over is not None:
            return
        self._over = (code, reason)
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(NodeLost(reason))
        if self._on_close is not None:
            on_close, self._on_close, self._on_message = self._on_close, None, None
            on_close(code, reason)
