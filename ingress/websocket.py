"""One WebSocket of one client, over as many legs as it takes. Messages are relayed whole.

As `stream.py`, plus what only a WebSocket has: requests of the client. Those that were not answered when a leg ended
are sent again on the next one; nodes know them by their `request_id`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Upgrade
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from broker.bus import mux
from broker.bus.errors import Refusal
from ingress.client import ClientConnection
from ingress.headers import ADMISSION, REQUEST_ID, Field, to_client, to_node, tokens, value
from ingress.judgement import Health
from ingress.leg import PAUSE, NoNode
from ingress.membership import Member, Nodes
from ingress.metrics import Metrics
from ingress.node_socket import ABNORMAL, Socket
from ingress.request import Request, with_query
from ingress.settings import IngressSettings
from ingress.socket_leg import MAX_UNANSWERED, Dialogue, TooManyUnanswered, put_off, served_by
from ingress.sse_leg import Turn
from ingress.stream import ELSEWHERE, RETRY, End
from ingress.trust import Trust
from ingress.upstream import Head, NodeLost

log = structlog.get_logger("ingress.websocket")

SUBPROTOCOL = "okome.v1"
VERSION = b"13"
UPGRADE: list[Field] = [(b"sec-websocket-version", VERSION), (b"upgrade", b"websocket"), (b"connection", b"upgrade")]
"""With 426: to what is to be changed over (RFC 6455 §4.4)."""
NORMAL, RESTART, INTERNAL, OVERLOADED, TOO_FAST = 1000, 1012, 1011, 1013, 4429
_LEAVE = frozenset({ABNORMAL, 1001, 1005, RESTART})  # the node is gone or going: another leg
_ELSEWHERE = frozenset({INTERNAL, OVERLOADED})  # this node cannot: another node first
_HANDSHAKE = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol"}
)
_UPGRADE = _HANDSHAKE | {b"connection", b"upgrade"}
_OWN = frozenset({b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-protocol", b"date"})
CLOSE_TIMEOUT = 5.0


class SocketStream:
    """`run` serves the connection until either side ends it. Takes the client's bytes after the upgrade."""

    def __init__(
        self,
        request: Request,
        client: ClientConnection,
        *,
        ingress: str,
        nodes: Nodes,
        trust: Trust,
        settings: IngressSettings,
        metrics: Metrics,
    ) -> None:
        self._request = request
        self._client = client
        self._ingress = ingress
        self._nodes = nodes
        self._trust = trust
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._protocol = ServerProtocol(
            subprotocols=[Subprotocol(SUBPROTOCOL)], select_subprotocol=_select, max_size=settings.body_limit
        )
        self._offered = [t.decode("latin-1") for t in tokens(request.headers, b"sec-websocket-protocol")]
        self._dialogue = Dialogue(after=request.start, until_done=request.until_done)
        self._node: Socket | None = None
        self._admission = b""
        self._ended: asyncio.Future[tuple[End, int, str]] = self._loop.create_future()
        self._waiting: list[tuple[bytes, bool]] = []  # messages that came while there was no leg
        self._partial = bytearray()
        self._text = True
        self._heard_at = 0.0
        self._lost_at = 0.0
        self._lost_why = ""
        self._closed = b""
        self._said_closed = False  # by a node, for good
        self._is_full = False  # the node does not read
        self._leaving = False
        self._stop = ""  # why the client must go, 4429
        self.node = ""
        self.legs = 0
        self.bytes = 0

    # -- from first to last ------------------------------------------------------------------------------------------

    async def run(self, refusal: Refusal | None = None) -> tuple[End, int]:
        """(why it ended, close code). `refusal`: accept, close.

        Raises Refusal `malformed` where this is no upgrade, with status 426 where it is one of another version.
        """
        response = self._handshake()
        if response.status_code != 101:
            raise Refusal("malformed", "this is not a WebSocket upgrade (RFC 6455)")
        if refusal is not None:
            self._accept(response, [])
            return await self._close(End.CLOSED, TOO_FAST, refusal.message)
        tried: set[str] = set()
        deadline = self._loop.time() + self._settings.leg_timeout
        accepted = False
        end, code, reason = End.GONE, 1001, ""
        try:
            while True:
                before = self.bytes
                try:
                    member, socket, head = await self._open(deadline, tried)
                except NoNode:
                    if not accepted:
                        accepted = True
                        self._accept(response, [])
                    self._say(self._closed or put_off("no stream node can be reached", RETRY))
                    end, code, reason = End.UNAVAILABLE, OVERLOADED, "no stream node can be reached"
                    break
                try:
                    if not accepted:
                        accepted = True
                        self._accept(response, [field for field in to_client(head.fields) if field[0] not in _OWN])
                    end, code, reason = await self._follow(member, socket, head)
                except BaseException:  # whatever it is, the node must not serve a leg that nobody follows
                    socket.abort()
                    raise
                if end is End.REFUSED and self._nodes.choose(self._request.partition, tried | {member.id}) is None:
                    if self._closed:
                        self._say(self._closed)
                    end = End.CLOSED
                if end in (End.CLOSED, End.FINISHED, End.LEAVING, End.GONE):
                    break
                if self.bytes != before:
                    deadline = self._loop.time() + self._settings.leg_timeout
                tried = {member.id} if end is not End.REFUSED else tried | {member.id}
                if not self._lost_why:
                    self._lost_at, self._lost_why = self._loop.time(), end.value
                log.info(
                    "stream.spliced",
                    sid=self._request.sid,
                    node=member.id,
                    reason=end.value,
                    request_id=self._request.id,
                )
            return await self._close(end, code, reason)
        finally:
            self._client.on_pause = self._client.on_resume = None
            if self._node is not None:
                self._node.abort()
                self._node = None
            if accepted:
                self._metrics.streams.labels("ws").dec()
                self._metrics.stream_ends.labels("ws", end.value).inc()
                self._metrics.relayed.inc(self.bytes)

    def leave(self) -> None:
        """This ingress drains."""
        self._leaving = True
        self._over(End.LEAVING, RESTART, "this ingress is leaving")

    def _handshake(self) -> Response:
        """The protocol's answer to the upgrade; anything but 101 where it is none. Raises Refusal: another version."""
        if value(self._request.headers, b"sec-websocket-version") != VERSION:
            why = "the version of WebSocket that is spoken here is 13 (RFC 6455)"
            raise Refusal("malformed", why, param="sec-websocket-version", status=426)
        headers = Headers()
        for name, text in self._request.headers:
            if name in _UPGRADE:
                headers[name.decode("latin-1")] = text.decode("latin-1")
        # As bytes: the protocol's parser begins with the request, and only then goes on to frames.
        self._protocol.receive_data(Upgrade("/", headers).serialize())
        for event in self._protocol.events_received():
            if isinstance(event, Upgrade):
                return self._protocol.accept(event)
        raise Refusal("malformed", "this is not a WebSocket upgrade (RFC 6455)")

    def _accept(self, response: Response, fields: list[Field]) -> None:
        for name, text in [*fields, (REQUEST_ID, self._request.id.encode())]:
            response.headers[name.decode("latin-1")] = text.decode("latin-1")
        self._metrics.streams.labels("ws").inc()
        self._client.upgrade(self)
        self._client.on_pause, self._client.on_resume = self._pause, self._resume
        self._protocol.send_response(response)
        self._flush()
        if self._request.rest:
            self.data_received(self._request.rest)

    async def _close(self, end: End, code: int, reason: str) -> tuple[End, int]:
        """Close the client's side and wait for its good-bye, briefly."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code if code not in (1005, ABNORMAL) else INTERNAL, mux.reason(reason))
            self._flush()
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._client.gone.wait()
            except TimeoutError:
                self._client.abort()
        self._client.close()
        return end, code

    # -- one leg -----------------------------------------------------------------------------------------------------

    async def _open(self, deadline: float, tried: set[str]) -> tuple[Member, Socket, Head]:
        """The next leg, upgraded; raises NoNode at the deadline."""
        while True:
            member = self._nodes.choose(self._request.partition, tried)
            left = deadline - self._loop.time()
            if left <= 0:
                raise NoNode
            if member is None:
                await self._nodes.changed(min(left, PAUSE) if tried else left)
                tried.clear()
                continue
            try:
                socket = await self._connect(member)
                head = await socket.greet(self._fields(member), left)
            except (NodeLost, TimeoutError):
                tried.add(member.id)
                continue
            if head.status == 101:
                return member, socket, head
            socket.abort()  # a node accepts and then closes; a status is trouble of its own
            tried.add(member.id)

    async def _connect(self, member: Member) -> Socket:
        target = self._request.target
        offered = self._offered
        if self.legs:
            changes: dict[str, str | None] = {"after": self._dialogue.cursor or None}
            if self._is_known:
                changes["ticket"] = None
                offered = [name for name in offered if not name.startswith("bearer.")]
            target = with_query(self._request.path, self._request.query, **changes)
        self._dialogue.opening()
        return await self._nodes.socket(member, target, offered)

    @property
    def _is_known(self) -> bool:
        """Who asks: a node has said so, or the client's own `auth`, which counts from then on. What the upgrade brought
        may have expired since, or been spent.
        """
        return bool(self._admission or self._dialogue.auth)

    def _fields(self, member: Member) -> list[Field]:
        left_out = set(_HANDSHAKE)
        if self.legs:
            left_out.add(b"last-event-id")
            if self._is_known:
                left_out.add(b"authorization")
            if self._dialogue.auth:
                left_out.add(b"cookie")
        fields = [field for field in to_node(self._request.headers) if field[0] not in left_out]
        word = self._trust.word(self._request, member.clock_ahead)
        fields += [(REQUEST_ID, self._request.id.encode()), *word]
        if self._admission and not self._dialogue.auth:
            fields.append((ADMISSION, self._admission))
        return fields

    async def _follow(self, member: Member, socket: Socket, head: Head) -> tuple[End, int, str]:
        self._admission = value(head.fields, ADMISSION) or self._admission
        self._node = socket
        self._ended = self._loop.create_future()
        if self._leaving:
            self.leave()
        if self._stop:
            self._over(End.CLOSED, TOO_FAST, self._stop)
        if self._client.gone.is_set():
            self._over(End.GONE, 1001, "")
        self.node = member.id
        self._metrics.legs.labels("ws").inc()
        self._heard_at = self._loop.time()
        socket.on_pause, socket.on_resume = self._fill, self._drain
        if self._client.congested:
            socket.pause()
        for message in self._dialogue.repeated():
            socket.send(message)
        self.legs += 1
        waiting, self._waiting = self._waiting, []
        for data, text in waiting:
            socket.send(data, text)
        socket.listen(self._from_node, self._node_closed, self._tokens)
        member.streams.add(self._move)
        if member.health is Health.CUT_OFF:  # meanwhile
            self._move()
        try:
            end, code, reason = await self._until_ended()
        finally:
            member.streams.discard(self._move)
            self._node = None
            socket.on_pause = socket.on_resume = None
            self._drain()
            socket.close(NORMAL)
        return end, code, reason

    async def _until_ended(self) -> tuple[End, int, str]:
        silence = self._settings.silence_timeout
        while True:
            try:
                async with asyncio.timeout_at(self._heard_at + silence):
                    return await asyncio.shield(self._ended)  # the next round waits for the same future
            except TimeoutError:
                now = self._loop.time()
                if self._client.congested:
                    self._heard_at = now
                elif now - self._heard_at >= silence:
                    return End.SILENT, ABNORMAL, "silent"

    def _move(self) -> None:
        self._over(End.CUT_OFF, ABNORMAL, "cut off from NATS")

    def _pause(self) -> None:
        """The client does not read: nothing more is read for it, nor of what it says, which may want an answer."""
        if self._node is not None:
            self._node.pause()
        self._client.pause_reading()

    def _resume(self) -> None:
        self._heard_at = self._loop.time()
        if self._node is not None:
            self._node.resume()
        self._hear()

    def _fill(self) -> None:
        self._is_full = True
        self._client.pause_reading()

    def _drain(self) -> None:
        self._is_full = False
        self._hear()

    def _hear(self) -> None:
        if not (self._is_full or self._client.congested):
            self._client.resume_reading()

    def _over(self, end: End, code: int, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result((end, code, reason))

    # -- from the node -------------------------------------------------------------------------------------------------

    def _from_node(self, data: bytes, text: bool) -> None:
        """The hot path: once per message."""
        if self._ended.done():
            return
        self._heard_at = self._loop.time()
        forward, turn, code = self._dialogue.from_node(data) if text else (data, Turn.GO_ON, "")
        if turn is Turn.CLOSED and code in ELSEWHERE:
            self._closed = forward
            self._over(End.REFUSED, OVERLOADED, code)
            return
        self._said_closed |= turn is Turn.CLOSED
        if forward:
            self._say(forward, text)
        match turn:
            case Turn.JOINED if resume := self._dialogue.next_resume():
                if self._node is not None:
                    self._node.send(resume)
            case Turn.JOINED:
                self._closed = b""
                if self._lost_why:
                    self._metrics.splices.labels("ws", self._lost_why).inc()
                    self._metrics.gap.labels(self._lost_why).observe(self._loop.time() - self._lost_at)
                    self._lost_why = ""
                self._say(served_by(self.node, self._ingress))
            case Turn.LEAVE:
                self._over(End.DRAIN, RESTART, "")
            case Turn.FINISHED:
                self._over(End.FINISHED, NORMAL, "")

    def _tokens(self, frames: bytes, cursor: bytes) -> None:
        """The hot path where streams share a connection: events as they go to a client, which nobody looks at again."""
        if self._ended.done():
            return
        self._heard_at = self._loop.time()
        if self._protocol.state is OPEN and not self._dialogue.unwanted:
            if not self._dialogue.moving:
                self._dialogue.cursor = cursor.decode()
            self.bytes += len(frames)
            self._client.write(frames)

    def _node_closed(self, code: int, reason: str) -> None:
        if self._said_closed:
            self._over(End.CLOSED, code, reason)
        elif code in _LEAVE:
            self._over(End.DRAIN if code == RESTART else End.LOST, code, reason)
        elif code in _ELSEWHERE:
            self._over(End.REFUSED, code, reason)
        else:
            self._over(End.FINISHED if code == NORMAL else End.CLOSED, code, reason)

    def _say(self, data: bytes, text: bool = True) -> None:
        if self._protocol.state is OPEN:
            self.bytes += len(data)
            (self._protocol.send_text if text else self._protocol.send_binary)(data)
            self._flush()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._client.write(data)
            else:
                self._client.close()

    # -- from the client -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event)
        self._flush()
        if self._protocol.parser_exc is not None:  # garbage: the protocol has said 1002, 1007 or 1009 to the client
            self._over(End.GONE, 1001, "garbage")

    def connection_lost(self) -> None:
        self._over(End.GONE, 1001, "")

    def _frame(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.BINARY:
                self._text = frame.opcode is Opcode.TEXT
                if frame.fin:
                    self._from_client(bytes(frame.data))
                else:
                    self._partial = bytearray(frame.data)
            case Opcode.CONT:
                self._partial += frame.data
                if frame.fin:
                    whole, self._partial = bytes(self._partial), bytearray()
                    self._from_client(whole)
            case Opcode.CLOSE:
                self._over(End.GONE, 1001, "")

    def _from_client(self, data: bytes) -> None:
        try:
            if self._text and not self._dialogue.from_client(data, leg=self._node is not None):
                return
        except TooManyUnanswered:
            self._too_fast("too many requests without an answer")
            return
        if self._node is not None:
            self._node.send(data, self._text)
        elif len(self._waiting) < MAX_UNANSWERED:
            self._waiting.append((data, self._text))
        else:
            self._too_fast("too many messages while no node serves")

    def _too_fast(self, why: str) -> None:
        self._stop = why
        self._over(End.CLOSED, TOO_FAST, why)


def _select(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """`okome.v1` where it is offered; a client that offers nothing, or its token only, is served without one."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None
