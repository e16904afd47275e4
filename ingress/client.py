"""One connection of a client: bytes to requests, one at a time, and what is written back. Raw asyncio and httptools.

Knows the limits of a request (head, count of fields, body, time) and nothing of where it goes. One request is handled
at a time; what a client sends ahead is parsed and waits, and beyond a few it is neither parsed nor read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from broker.bus.errors import Refusal
from ingress import answer
from ingress.headers import Field, client_of, is_forwarded, is_loopback, tokens, value
from ingress.request import METHODS, Request, allowed, path_and_query

if TYPE_CHECKING:
    from ingress.listener import Listener

SEND_BUFFER = 128 * 1024
"""Kernel's bytes per client: what a client does not read must show here, not in megabytes of kernel memory."""
AHEAD = 8
"""Requests that a client may send before the answer to the first one; what comes behind them is parsed later."""
PIECE = 2048
"""Bytes that are parsed at once: what they hold of requests may wait besides."""
TO_SKIP = 256 * 1024
"""Bytes that are read and thrown away besides a body that is refused, so that the client sees the answer, no reset."""
LINGER = 5.0
"""Seconds that a connection whose last answer is written is kept, and as many more as its client goes on reading it."""
PROGRESS = 4 * 1024
"""Bytes that are to be read meanwhile."""
_ONCE = frozenset(
    {b"host", b"authorization", b"origin", b"content-type", b"last-event-id", b"idempotency-key", b"cookie"}
)


class Phase(Enum):
    IDLE = auto()  # between requests
    HEAD = auto()
    BODY = auto()
    BUSY = auto()  # a request is being answered
    RAW = auto()  # a WebSocket: bytes go to whoever took them
    CLOSING = auto()  # the last answer is written; what still comes is thrown away


class RawSink(Protocol):
    """Who takes the bytes of a connection after its upgrade."""

    def data_received(self, data: bytes) -> None: ...
    def connection_lost(self) -> None: ...


_SPENT = httptools.HttpRequestParser(object())


class ClientConnection(asyncio.Protocol):
    def __init__(self, listener: Listener, *, tls: bool, loopback: bool) -> None:
        self._listener = listener
        self._settings = listener.settings
        self._tls = tls
        self._loopback = loopback
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._peer = ""
        self.phase = Phase.HEAD
        self.deadline = 0.0  # loop time; the listener looks once a second
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._raw: RawSink | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()  # the client is away: nothing that is written arrives
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None
        self.on_gone: Callable[[], object] | None = None
        self._streaming = False
        # the request being read:
        self._url = b""
        self._head_size = 0
        self._fields: list[Field] = []
        self._body = bytearray()
        self._held = 0  # bytes of bodies that are being read or wait; what is in hand is counted by its request
        self._waits = False  # the client says its body when it is told to go on
        self._parsing = Phase.IDLE  # IDLE, HEAD or BODY, of the request being read
        self._read = 0  # bytes of the head, then of the body, chunk framing included
        self._skipped = 0
        self._unsent = 0  # bytes, once it is closing
        self._half_closed = False
        self._unparsed = b""  # sent ahead, beyond enough; while there is any, nothing is read
        self._deaf = False  # what still comes is not for us: this connection ends with the present answer

    # -- what handlers use -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    @property
    def congested(self) -> bool:
        """More than `write_high` bytes are waiting for the client to read."""
        return not self._writable.is_set()

    async def drain(self) -> None:
        """Wait until the client has read on, or is gone."""
        await self._writable.wait()

    async def flushed(self) -> None:
        """Wait until everything that was written is in the kernel's hands, or the client is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.set_write_buffer_limits(high=0)  # from now on "congested" means "anything at all"
            await self._writable.wait()

    def stream(self) -> None:
        """This request's answer has no end in sight: a client that half-closes is gone, and buffers are kept small."""
        self._streaming = True
        if self._transport is None or self._transport.is_closing():
            return  # gone already: uvloop's socket then has no file descriptor
        self.resume_reading()  # or its disappearance would not be noticed
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # a wish, not a condition
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def stream_over(self) -> None:
        """Its last byte is written. The client may have seen that before the handler is done: what comes now waits."""
        self._streaming = False
        self._pause_for_waiting()

    def upgrade(self, sink: RawSink) -> None:
        """From now on bytes go to `sink`."""
        self.phase = Phase.RAW
        self._raw = sink
        self.stream()

    def let_go(self, request: Request) -> None:
        """Its body is not needed any more."""
        self._listener.let_go(len(request.body))
        request.body = b""

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def close(self) -> None:
        """Send what is written, then close. What the client still sends is thrown away until it closes, briefly."""
        if self.phase is not Phase.CLOSING and self._transport is not None and not self._transport.is_closing():
            self.phase = Phase.CLOSING
            self._unsent = self._transport.get_write_buffer_size()
            self.deadline = self._loop.time() + LINGER
            self.resume_reading()
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:  # TLS: what it has yet to send is not to be seen; it is closed when that is sent
                self.deadline = self._loop.time() + max(LINGER, self._settings.idle_timeout)
                self._transport.close()

    def abort(self) -> None:
        """Break it off: the client sees an error, never a clean end."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        transport.set_write_buffer_limits(high=self._settings.write_high, low=self._settings.write_high // 4)
        self.deadline = self._loop.time() + self._settings.header_timeout
        if not self._listener.took(self):
            refusal = Refusal("overloaded", "too many connections", retry_after=1)
            self.write(answer.whole(*answer.refused(refusal, "-"), keep_alive=False))
            self.close()

    def data_received(self, data: bytes) -> None:
        match self.phase:
            case Phase.RAW:
                assert self._raw is not None
                self._raw.data_received(data)
                return
            case Phase.CLOSING:
                self._skipped += len(data)
                if self._skipped > TO_SKIP + self._settings.body_limit:
                    self.abort()
                return
            case Phase.IDLE:
                self.phase = Phase.HEAD
                self.deadline = self._loop.time() + self._settings.header_timeout
        if self._streaming or self._deaf:
            self._deaf = True
            return
        self._unparsed += data
        try:
            self._parse()
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, _Stop):
                self._refuse(cause.refusal, cause.allow)
                return
            raise
        except httptools.HttpParserError:
            self._refuse(Refusal("malformed", "this is not an HTTP/1.1 request"))
            return
        if self._parsing is Phase.HEAD and self._read > self._settings.header_limit:
            self._refuse(self._head_too_large())
        elif self._parsing is Phase.BODY and self._read > 4 * self._settings.body_limit:
            self._refuse(self._too_large())  # chunk framing that is mostly framing
        else:
            self._next()

    def _parse(self) -> None:
        """Until enough requests wait. Raises HttpParserError."""
        rest = memoryview(self._unparsed)
        self._unparsed = b""
        while rest and len(self._waiting) < AHEAD:
            piece, rest = rest[:PIECE], rest[PIECE:]
            self._read += len(piece)
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                behind = bytes(piece[upgrade.args[0] :]) + bytes(rest)
                request = self._waiting[-1]
                if request.upgrade:
                    self._deaf = True
                    request.rest = behind
                    return
                # To what is not spoken here, such as h2c. It is a request like any other then, and may have a body,
                # which the parser takes for the other protocol's.
                self._waiting.pop()
                self._parser = httptools.HttpRequestParser(self)
                rest = memoryview(request.without_upgrade() + behind)
        self._unparsed = bytes(rest)

    def eof_received(self) -> bool:
        if self.phase is Phase.BUSY and not self._streaming:
            self._half_closed = True
            for request in self._waiting:
                request.keep_alive = False
            return not self._tls  # a client may say "that was all" and still read
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._parser = _SPENT  # it holds this connection, and would keep it until the garbage collector looks
        self._listener.lost(self)
        self.phase = Phase.CLOSING
        self._forget()
        self._unparsed = b""
        self.gone.set()
        self._writable.set()
        if self._raw is not None:
            self._raw.connection_lost()
        if self.on_gone is not None:
            self.on_gone()

    def pause_writing(self) -> None:
        self._writable.clear()
        if self.on_pause is not None:
            self.on_pause()

    def resume_writing(self) -> None:
        self._writable.set()
        if self.on_resume is not None:
            self.on_resume()
        if self._task is None and self.phase in (Phase.IDLE, Phase.HEAD, Phase.BODY):
            self._go_on()

    # -- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._parsing = Phase.HEAD
        self._url = b""
        self._head_size = 0
        self._fields = []
        self._body = bytearray()
        self._waits = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        if self._parsing is not Phase.HEAD:
            return  # a trailer: nothing here has a use for one
        if len(self._fields) >= self._settings.header_count_limit:
            many = f"more than {self._settings.header_count_limit} header fields"
            raise _Stop(Refusal("too_large", many, status=431))
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._head_size + len(self._url) > self._settings.header_limit:
            raise _Stop(self._head_too_large())
        self._parsing = Phase.BODY
        self._read = 0
        length = value(self._fields, b"content-length")
        if length and int(length) > self._settings.body_limit:
            raise _Stop(self._too_large())
        expects = value(self._fields, b"expect").lower() == b"100-continue"
        self._waits = expects and self._parser.get_http_version() == "1.1"
        if self.phase is Phase.HEAD:
            self.phase = Phase.BODY
            self.deadline = self._loop.time() + self._settings.body_timeout
            self._tell_to_go_on()

    def _tell_to_go_on(self) -> None:
        if self._waits:
            self._waits = False
            self.write(answer.CONTINUE)

    def on_body(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._settings.body_limit:
            raise _Stop(self._too_large())
        if not self._listener.hold(len(data)):
            raise _Stop(Refusal("overloaded", "too much is being sent here just now", retry_after=1))
        self._held += len(data)
        self._body += data

    def on_message_complete(self) -> None:
        self._parsing = Phase.IDLE
        self._read = 0
        self._waiting.append(self._request())
        self._body = bytearray()  # not twice, and not until the next request

    def _head_too_large(self) -> Refusal:
        return Refusal("too_large", f"the head is limited to {self._settings.header_limit} bytes", status=431)

    def _too_large(self) -> Refusal:
        return Refusal("too_large", f"the body is limited to {self._settings.body_limit} bytes")

    def _request(self) -> Request:
        method = self._parser.get_method().decode("latin-1")
        try:
            target = self._url.decode("ascii")
            path, query = path_and_query(target)
        except ValueError as error:
            raise _Stop(Refusal("malformed", "the request target is not a URL", param="target")) from error
        if method not in METHODS:
            raise _Stop(Refusal("method_not_allowed", f"{method} is not known here"), allow=allowed(path))
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _Stop(Refusal("malformed", f"HTTP/{version} is not spoken here"))
        given = [name for name, _ in self._fields if name in _ONCE]
        if len(given) > len(set(given)):  # ingress and node must not each believe another one
            twice = max(given, key=given.count).decode()
            raise _Stop(Refusal("malformed", f"a request has one {twice}", param=twice))
        if version == "1.1" and b"host" not in given:
            raise _Stop(Refusal("malformed", "a request names its Host", param="host"))
        if not path.startswith("/") and target != "*":
            raise _Stop(Refusal("malformed", "the request target is not a path", param="target"))
        ip, proto = client_of(self._peer, self._fields, self._listener.trusted)
        return Request(
            method=method,
            target=f"{path}?{query}" if query else path,
            path=path,
            query=query,
            headers=self._fields,
            ip=ip,
            proto=proto or ("https" if self._tls else "http"),
            loopback=self._loopback and is_loopback(ip) and (ip != self._peer or not is_forwarded(self._fields)),
            body=bytes(self._body),
            keep_alive=self._parser.should_keep_alive() and not self._parser.should_upgrade(),
            chunked_ok=version == "1.1",
            upgrade=method == "GET"
            and b"websocket" in [t.lower() for t in tokens(self._fields, b"upgrade")]
            and self._parser.should_upgrade(),
        )

    # -- one after another -------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Begin the next request, if the one before is answered and the client takes the answer."""
        if self._task is None and self._waiting:
            if self.congested:
                self.phase = Phase.IDLE
                self.deadline = self._loop.time() + self._settings.idle_timeout
            else:
                self._begin(self._waiting.popleft())
        self._pause_for_waiting()

    def _pause_for_waiting(self) -> None:
        """Read no more while requests wait. That a client has said all is then heard behind their answers."""
        if self._waiting or self._unparsed:
            self.pause_reading()

    def _begin(self, request: Request) -> None:
        self.phase = Phase.BUSY
        self.deadline = float("inf")
        if self._listener.draining or self._half_closed or self._deaf:
            request.keep_alive = False
        self._held -= len(request.body)
        self._task = self._listener.handle(request, self)
        self._task.add_done_callback(lambda task: self._answered(task, request))

    def _answered(self, task: asyncio.Task[None], request: Request) -> None:
        self._task = None
        self.let_go(request)
        self._streaming = False
        self.on_pause = self.on_resume = self.on_gone = None
        if self.phase is not Phase.BUSY:
            return
        if task.cancelled() or task.exception() is not None:
            self.abort()
            return
        if not request.keep_alive or self._half_closed or self._deaf or self._listener.draining:
            self.close()
            return
        self.phase = self._parsing
        settings = self._settings
        timeouts = {
            Phase.IDLE: settings.idle_timeout,
            Phase.HEAD: settings.header_timeout,
            Phase.BODY: settings.body_timeout,
        }
        self.deadline = self._loop.time() + timeouts[self.phase]
        self._go_on()

    def _go_on(self) -> None:
        if self._unparsed and not self._waiting:
            self.data_received(b"")
        else:
            self._next()
        if not self._waiting and not self._unparsed:
            self.resume_reading()
            if self.phase is Phase.BODY:  # its head came before the answer to the one before was over
                self._tell_to_go_on()

    def expire(self) -> None:
        """The deadline of the present phase has passed."""
        match self.phase:
            case Phase.HEAD if self._parsing is Phase.HEAD:
                self._refuse(Refusal("malformed", "the request's head did not arrive in time", status=408))
            case Phase.BODY:
                self._refuse(Refusal("malformed", "the request's body did not arrive in time", status=408))
            case Phase.IDLE | Phase.HEAD if self.congested:
                self.abort()  # it does not take what was answered: a close would wait for that
            case Phase.IDLE | Phase.HEAD:
                if self._transport is not None:
                    self._transport.close()
            case Phase.CLOSING if self._takes_more():
                self.deadline = self._loop.time() + LINGER
            case Phase.CLOSING:
                self.abort()
            case _:
                return

    def _takes_more(self) -> bool:
        """The client has read on since the last look, and there is more."""
        before, self._unsent = self._unsent, self._transport.get_write_buffer_size() if self._transport else 0
        return 0 < self._unsent <= before - PROGRESS

    def _refuse(self, refusal: Refusal, allow: bytes = b"") -> None:
        """Answer what is not even a request, and close; an answer that is being written is broken off instead."""
        if self._task is not None and refusal.code == "overloaded":
            self._deaf = True  # which is no fault of the client's: it keeps the answer before
            self._forget()
            return
        if self._task is not None:
            self._task.cancel()
            self.abort()
            return
        self._forget()
        self._listener.refused(refusal, self._peer)
        status, fields, body = answer.refused(refusal, "-", allow=allow)
        fields += answer.readable(self._fields, self._settings.origins)
        self.write(answer.whole(status, fields, body, keep_alive=False))
        self.close()

    def _forget(self) -> None:
        """What was read and is not begun will not be."""
        self._waiting.clear()
        self._body = bytearray()
        self._listener.let_go(self._held)
        self._held = 0


class _Stop(Exception):
    """Raised inside a parser's callback: this request is refused."""

    def __init__(self, refusal: Refusal, allow: bytes = b"") -> None:
        super().__init__(refusal.code)
        self.refusal = refusal
        self.allow = allow
