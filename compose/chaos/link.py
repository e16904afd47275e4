"""A link: a TCP proxy in front of one address, whose connections can be cut, reset, silenced, delayed and slowed.

In user space, because a kernel with netem is not everywhere. It buffers next to nothing: what one side does not read,
the other side is not read for. Every fault counts what it did to sockets, so that it can be proven.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, cast

LOOPBACK = "127.0.0.1"
HIGH_WATER = 64 * 1024
SLICE = 0.05
"""Seconds between two portions of a throttled direction."""


class Wire(Protocol):
    """What understands the protocol on a link, made once for each connection. Bytes in, bytes out."""

    def to_client(self, data: bytes) -> bytes: ...

    def to_server(self, data: bytes) -> bytes: ...


@dataclass
class Counters:
    """What a link has done so far. Bytes unless said."""

    opened: int = 0  # connections
    cut: int = 0  # connections
    reset: int = 0  # connections
    refused: int = 0  # connections
    up: int = 0  # to the server
    down: int = 0  # to the client
    delayed: int = 0
    throttled: int = 0


class _Side(asyncio.Protocol):
    """One end of a connection: what comes in here goes out at `other`."""

    def __init__(self, pair: _Pair, *, client: bool) -> None:
        self.client = client
        self.transport: asyncio.Transport | None = None
        self.ended = False  # it has said FIN
        self.waiting: deque[tuple[float, bytes]] = deque()  # when due, what: to go out at the other side
        self.size = 0
        self.full = False  # the other side does not take more now
        self._pair = pair
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        transport.set_write_buffer_limits(high=HIGH_WATER)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pair.made(self)

    def data_received(self, data: bytes) -> None:
        self._pair.received(self, data)

    def eof_received(self) -> bool:
        self.ended = True
        self._pair.pump(self)
        return True  # the other direction may go on

    def connection_lost(self, error: Exception | None) -> None:
        self._pair.lost(self, error)

    def pause_writing(self) -> None:
        self._pair.other(self).full = True
        self._pair.other(self).regulate()

    def resume_writing(self) -> None:
        self._pair.other(self).full = False
        self._pair.other(self).regulate()

    def regulate(self) -> None:
        """Read from the socket only while what was read can go on."""
        if self.transport is None or self.transport.is_closing():
            return
        wanted = not self.full and self.size < HIGH_WATER and not self._pair.link.silent
        if wanted != self._reading:
            self._reading = wanted
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()


class _Pair:
    """Two sides of one connection."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.client = _Side(self, client=True)
        self.server = _Side(self, client=False)
        self.dialling: asyncio.Task[None] | None = None
        self._wire = link.wire() if link.wire else None
        self._timers: dict[bool, asyncio.TimerHandle] = {}
        self._closing = False

    def other(self, side: _Side) -> _Side:
        return self.server if side is self.client else self.client

    def made(self, side: _Side) -> None:
        if side is self.client:
            self.link.accepted(self)
        else:
            self.pump(self.client)
        side.regulate()

    def received(self, side: _Side, data: bytes) -> None:
        if self._wire is not None:
            data = self._wire.to_server(data) if side.client else self._wire.to_client(data)
        if not data:
            return
        link = self.link
        due = 0.0
        if link.delay:
            link.counters.delayed += len(data)
            due = link.now() + link.delay
        if link.throttle and not side.client:
            link.counters.throttled += len(data)
        side.waiting.append((due, data))
        side.size += len(data)
        self.pump(side)

    def pump(self, side: _Side) -> None:
        """Hand on what is due."""
        out = self.other(side)
        link = self.link
        if out.transport is None or out.transport.is_closing() or link.silent or side.client in self._timers:
            side.regulate()
            return
        throttle = None if side.client else link.throttle
        budget = max(1, int(throttle * SLICE)) if throttle else -1
        now = link.now()
        while side.waiting and side.waiting[0][0] <= now and budget:
            due, data = side.waiting.popleft()
            if 0 < budget < len(data):
                side.waiting.appendleft((due, data[budget:]))
                data = data[:budget]
            side.size -= len(data)
            if budget > 0:
                budget -= len(data)
            out.transport.write(data)
            if side.client:
                link.counters.up += len(data)
            else:
                link.counters.down += len(data)
        if side.waiting:
            wait = SLICE if budget == 0 else max(0.0, side.waiting[0][0] - now)
            self._timers[side.client] = asyncio.get_running_loop().call_later(wait, self._again, side)
        elif side.ended:
            with contextlib.suppress(OSError, RuntimeError):  # it is closing already
                out.transport.write_eof()
        side.regulate()

    def _again(self, side: _Side) -> None:
        self._timers.pop(side.client, None)
        self.pump(side)

    def lost(self, side: _Side, error: Exception | None) -> None:
        """One side is gone: the other one follows, in the same way."""
        side.transport = None
        self.link.pairs.discard(self)
        if self.link.silent and not self._closing:
            if self.other(side).transport is not None:
                self.link.half.add(self)  # the other side is not told before `speak`
            return
        self.link.half.discard(self)
        self.end(broken=error is not None)

    def end(self, *, broken: bool) -> None:
        self._closing = True
        if self.dialling is not None:
            self.dialling.cancel()
        for timer in self._timers.values():
            timer.cancel()
        for side in (self.client, self.server):
            if side.transport is None:
                continue
            if broken:
                break_off(side.transport)
            else:
                side.transport.close()


def break_off(transport: asyncio.Transport) -> None:
    """By RST."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _unread(transport: asyncio.Transport) -> int:
    raw = transport.get_extra_info("socket")
    if raw is None or raw.fileno() < 0:
        return 0
    size = array.array("i", [0])
    fcntl.ioctl(raw.fileno(), termios.FIONREAD, size)
    return size[0]


class Link:
    """`wire` makes what understands the protocol. `delay` and `throttle` may be set at any time."""

    def __init__(self, name: str, wire: Callable[[], Wire] | None = None) -> None:
        self.name = name
        self.wire = wire
        self.counters = Counters()
        self.pairs: set[_Pair] = set()
        self.refusing = False
        self.silent = False
        self.delay = 0.0
        """Seconds that everything takes longer, each way."""
        self.throttle: float | None = None
        """Bytes per second to the client."""
        self.port = 0
        self.half: set[_Pair] = set()
        """Connections that lost a side in silence."""
        self._upstream: tuple[str, int] | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Link:
        if self._server is None:
            await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def open(self, port: int = 0) -> None:
        """Listen. Raises OSError where the port is busy."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Pair(self).client, LOOPBACK, port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    def aim(self, host: str, port: int) -> None:
        """Where connections lead from now on."""
        self._upstream = (host, port)

    async def close(self) -> None:
        """End everything. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.silent = False
        for pair in list(self.pairs | self.half):
            pair.end(broken=True)
        self.half.clear()
        await asyncio.sleep(0)  # the loop closes what was aborted

    @property
    def held(self) -> int:
        """Bytes that came in and are not handed on now: here, or in the kernel because nobody reads them."""
        held = 0
        for pair in self.pairs | self.half:
            for side in (pair.client, pair.server):
                held += side.size + (_unread(side.transport) if side.transport is not None else 0)
        return held

    # -- faults ------------------------------------------------------------------------------------------------------

    def cut(self) -> int:
        """End every connection by FIN; says how many there were."""
        struck = list(self.pairs)
        self.counters.cut += len(struck)
        for pair in struck:
            pair.end(broken=False)
        return len(struck)

    def reset(self) -> int:
        """Break every connection by RST; says how many there were."""
        struck = list(self.pairs)
        self.counters.reset += len(struck)
        for pair in struck:
            pair.end(broken=True)
        return len(struck)

    def hush(self) -> None:
        """From now on nothing passes and nobody is told: connections are half open, new ones are accepted."""
        self.silent = True
        for pair in self.pairs:
            pair.client.regulate()
            pair.server.regulate()

    def speak(self) -> None:
        """What was held back passes; what lost a side meanwhile is told so."""
        self.silent = False
        for pair in list(self.half):
            pair.end(broken=True)
        self.half.clear()
        for pair in list(self.pairs):
            for side in (pair.client, pair.server):
                pair.pump(side)

    # -- connections -------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def accepted(self, pair: _Pair) -> None:
        self.counters.opened += 1
        if self.refusing or self._upstream is None:
            self.counters.refused += 1
            pair.end(broken=True)
            return
        self.pairs.add(pair)
        pair.dialling = asyncio.create_task(self._dial(pair), name=f"link-{self.name}")

    async def _dial(self, pair: _Pair) -> None:
        assert self._upstream is not None
        try:
            await asyncio.get_running_loop().create_connection(lambda: pair.server, *self._upstream)
        except OSError:
            self.pairs.discard(pair)
            pair.dialling = None
            pair.end(broken=True)
