"""One connection to a stream node: a request goes out, a response comes back, its body into whoever took it.

What is not taken yet is held and the node is not read meanwhile. A connection is used for one request at a time and
kept for the next one where the response allows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from ingress.headers import Field

RECEIVE_BUFFER = 128 * 1024
"""Kernel's bytes per connection: what a slow reader holds must show at the node, not vanish in buffers on the way."""
MAX_HEAD = 64 * 1024


class NodeLost(Exception):
    """The node cannot be reached, broke the connection, or spoke something that is not HTTP."""

    def __init__(self, why: str, *, refused: bool = False, unsent: bool = False) -> None:
        super().__init__(why)
        self.refused = refused  # nobody listens there
        self.unsent = unsent  # the node has certainly not seen the request


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    fields: list[Field]  # names in lower case


class Connection(Protocol):
    """What a request goes out on and its response comes back on: `ask`, then `take`. As `NodeConnection` says."""

    lost: bool
    used: bool

    @property
    def waiting(self) -> bool: ...
    async def ask(self, payload: bytes, timeout: float, *, bodiless: bool = False) -> Head: ...
    def take(
        self,
        on_body: Callable[[bytes], None],
        on_end: Callable[[NodeLost | None], None],
        on_tokens: Callable[[bytes, bytes], None] | None = None,
    ) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None: ...
    def fail(self) -> None: ...


class Response(ABC):
    """One response on its way: its head is for who asked, its body and its end for who takes them, and are kept until
    somebody does. What `NodeConnection` and `MuxedStream` have in common, however the bytes come."""

    __slots__ = ("_ended", "_head", "_held", "_on_body", "_on_end", "_on_tokens", "lost")

    def __init__(self) -> None:
        self.lost = False
        self._ended = False
        self._head: asyncio.Future[Head] | None = None
        self._held: list[bytes] = []
        self._on_body: Callable[[bytes], None] | None = None
        self._on_end: Callable[[NodeLost | None], None] | None = None
        self._on_tokens: Callable[[bytes, bytes], None] | None = None

    @property
    def waiting(self) -> bool:
        """It was asked, and its answer has not begun."""
        return self._head is not None

    def take(
        self,
        on_body: Callable[[bytes], None],
        on_end: Callable[[NodeLost | None], None],
        on_tokens: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        """From now on the body goes to `on_body`; what has come already, at once.

        `on_tokens` gets what is known to be whole token events, with the last one's cursor.
        """
        self._on_body, self._on_end, self._on_tokens = on_body, on_end, on_tokens
        held, self._held = self._held, []
        for data in held:
            on_body(data)
        if self._on_end is not on_end:
            return  # given up by what it was given
        if self._ended:
            on_end(None)
        elif self.lost:
            on_end(NodeLost("connection lost"))
        else:
            self._taken_up()

    @abstractmethod
    def _taken_up(self) -> None:
        """Somebody takes what comes: let it come."""

    def _let_go(self) -> None:
        """Nobody takes it any more."""
        self._on_body = self._on_end = self._on_tokens = None

    def _end(self, error: NodeLost | None) -> None:
        """Tell who takes it, once: whole, or lost."""
        if (on_end := self._on_end) is not None:
            self._let_go()
            on_end(error)

    def _lose(self, error: NodeLost) -> None:
        self.lost = True
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
        if not self._ended:
            self._end(error)


class Owner(Protocol):
    """Whose connection it is: a member of the node table."""

    heard_at: float


_SPENT = httptools.HttpResponseParser(object())


class NodeConnection(Response, asyncio.Protocol):
    """`ask`, then `take` the body; `on_end(None)` is a whole response, `on_end(NodeLost)` a broken one."""

    def __init__(self, owner: Owner, on_lost: Callable[[NodeConnection], None]) -> None:
        super().__init__()
        self._owner = owner
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[Field] = []
        self._head_size = 0
        self._bodiless = False
        self._to_close = False  # no length and no chunks: the body ends with the connection
        self._paused = False
        self.used = False  # has carried a response before: the node may have closed it meanwhile
        self.reusable = False

    # -- asking ----------------------------------------------------------------------------------------------------

    async def ask(self, payload: bytes, timeout: float, *, bodiless: bool = False) -> Head:
        """Send a request and wait for the response's head; raises NodeLost, TimeoutError. Cancelling closes it."""
        if self._transport is None or self.lost:
            raise NodeLost("connection lost", unsent=True)
        self._head = self._loop.create_future()
        self._bodiless = bodiless
        self._ended = self.reusable = self._to_close = False
        self._paused = False  # whoever had it before did not read the last of its answer at once
        self._let_go()
        self._held = []
        try:
            self._transport.write(payload)
            async with asyncio.timeout(timeout):
                return await self._head
        except BaseException:
            self.abort()
            raise
        finally:
            self._head = None

    def _taken_up(self) -> None:
        if not self._paused:
            self._read(True)

    def pause(self) -> None:
        self._paused = True
        self._read(False)

    def resume(self) -> None:
        self._paused = False
        self._read(True)

    def abort(self) -> None:
        """Break it off; nobody is told any more. Idempotent."""
        self._let_go()
        if self._transport is not None:
            self._transport.abort()

    def fail(self) -> None:
        """Break it off and tell who waits for it (the node was found to be down)."""
        if self._transport is not None:
            self._transport.abort()
        self._lose(NodeLost("node is down"))

    def _read(self, on: bool) -> None:
        if self._transport is not None and not self.lost and self._transport.is_reading() != on:
            (self._transport.resume_reading if on else self._transport.pause_reading)()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # a wish, not a condition
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)

    def data_received(self, data: bytes) -> None:
        self._owner.heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self.abort()
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            self._broken(f"not HTTP: {error}")
            return
        if self._head is not None and not self._head.done():
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._broken("response head too long")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._on_lost(self)
        if self._to_close and not self._ended and exc is None:
            self.on_message_complete()
        self._lose(NodeLost(str(exc) if exc else "closed by the node"))
        self._parser = _SPENT  # it holds this connection, and would keep it until the garbage collector looks

    def _broken(self, why: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._lose(NodeLost(why))

    # -- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._head_size = 0
        if self._head is None or self._head.done():
            self._broken("a response that nobody asked for")
            return
        names = {name for name, _ in self._fields}
        self._to_close = (
            not self._bodiless and status not in (204, 304) and not names & {b"content-length", b"transfer-encoding"}
        )
        self._head.set_result(Head(status, self._fields))
        if self._bodiless:
            self._ended = True  # the parser would wait for the body that the length promises
        else:
            self._read(False)  # until somebody takes it

    def on_body(self, data: bytes) -> None:
        if self._on_body is not None:
            self._on_body(data)
        elif not self._ended and not self.lost:
            self._held.append(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200 or self._ended:
            return
        self._ended = self.used = True
        self.reusable = self._parser.should_keep_alive() and not self.lost and not self._to_close
        if self.reusable:
            self._read(True)
        self._end(None)
