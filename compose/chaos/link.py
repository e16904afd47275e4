"""A link: a TCP proxy in front of one address, whose connections can be cut, reset, silenced, delayed and slowed.

In user space, because a kernel with netem is not everywhere. Every fault counts what it did to sockets, so that it can
be proven.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from compose.chaos.endings import break_off, close_by_rst, cut_off
from compose.chaos.pair import Pair, Wire

LOOPBACK = "127.0.0.1"
DIAL_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0


@dataclass
class Counters:
    """What a link has done so far. Bytes unless said."""

    opened: int = 0  # connections
    cut: int = 0  # connections
    reset: int = 0  # connections
    refused: int = 0  # connections, also where nobody listened upstream
    up: int = 0  # to the server
    down: int = 0  # to the client
    held: int = 0  # waited for the end of a silence
    delayed: int = 0
    throttled: int = 0  # waited for their turn


class Link:
    """`wire` makes what understands the protocol. `refusing`, `delay` and `throttle` may be set at any time.

    With several servers behind it, a NATS client needs a wire, or it learns their own addresses (nats_wire.py).
    """

    def __init__(self, name: str, wire: Callable[[], Wire] | None = None) -> None:
        self.name = name
        self.wire = wire
        self.counters = Counters()
        self.host = LOOPBACK
        self.port = 0
        self.refusing = False
        """Who comes now gets RST; who is there stays."""
        self.silent = False
        """Set by `hush` and `speak`."""
        self.delay = 0.0
        """Seconds that everything takes longer, each way. What is under way keeps the delay that it began with."""
        self.throttle: float | None = None
        """Bytes per second to the client, on each connection."""
        self._pairs: set[Pair] = set()
        self._ending: set[Pair] = set()
        self._all_gone = asyncio.Event()
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
        return f"http://{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._pairs)

    @property
    def ending(self) -> int:
        """Connections that were ended and whose sockets are not closed yet."""
        return len(self._ending)

    @property
    def held(self) -> int:
        """Bytes that came in and are not handed on now: here, or in the kernel because nobody reads them."""
        return self.unread + sum(pair.client.size + pair.server.size for pair in self._pairs)

    @property
    def unread(self) -> int:
        """The part of `held` that is in the kernel."""
        return sum(pair.client.unread + pair.server.unread for pair in self._pairs)

    async def open(self, port: int = 0) -> None:
        """Listen, on a port of the kernel's choice unless told. Raises OSError where it is busy."""
        assert self._server is None, f"{self.name} is open"
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Pair(self).client, self.host, port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    def aim(self, host: str, port: int) -> None:
        """Where connections lead that come from now on; before, they are refused."""
        self._upstream = (host, port)

    async def close(self) -> None:
        """Listen no more, and break what is left, by RST. Idempotent; when it returns, nothing is left."""
        server, self._server = self._server, None
        self.silent = False
        if server is not None:
            server.close()
        for pair in self._pairs | self._ending:
            pair.end(break_off)
        async with asyncio.timeout(CLOSE_TIMEOUT):
            while self._ending:
                self._all_gone.clear()
                await self._all_gone.wait()
            if server is not None:
                await server.wait_closed()

    # -- faults ------------------------------------------------------------------------------------------------------

    def cut(self) -> int:
        """End every connection by FIN to both sides; says how many there were."""
        struck = list(self._pairs)
        self.counters.cut += len(struck)
        for pair in struck:
            pair.end(cut_off)
        return len(struck)

    def reset(self) -> int:
        """Break every connection by RST to both sides; says how many there were."""
        struck = list(self._pairs)
        self.counters.reset += len(struck)
        for pair in struck:
            pair.end(break_off)
        return len(struck)

    def hush(self) -> None:
        """From now on nothing passes and nobody is told: connections are half open, new ones are accepted.

        What had been handed to the other socket before is on the line, and arrives.
        """
        self.silent = True
        for pair in self._pairs:
            pair.client.regulate()
            pair.server.regulate()

    def speak(self) -> None:
        """What was held back passes; what lost a side meanwhile is told so."""
        if self.silent:
            self.counters.held += self.held
        self.silent = False
        for pair in list(self._pairs):
            if pair.bereaved:
                pair.end(break_off)
            elif pair.server.transport is None and pair.dialling is None:
                self._dial(pair)
            pair.client.pump()
            pair.server.pump()

    # -- connections -------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def accepted(self, pair: Pair) -> None:
        self._pairs.add(pair)
        if self.refusing or self._upstream is None or self._server is None:
            self._refuse(pair)
            return
        self.counters.opened += 1
        if not self.silent:  # a SYN would not pass either
            self._dial(pair)

    def left(self, pair: Pair) -> None:
        """It ends, or has ended."""
        self._pairs.discard(pair)
        self._ending.add(pair)
        if pair.gone:
            self._ending.discard(pair)
            self._all_gone.set()

    def _refuse(self, pair: Pair) -> None:
        self.counters.refused += 1
        pair.end(break_off)

    def _dial(self, pair: Pair) -> None:
        pair.dialling = asyncio.create_task(self._connect(pair), name=f"link-{self.name}")
        pair.dialling.add_done_callback(lambda _: self._dialled(pair))

    def _dialled(self, pair: Pair) -> None:
        pair.dialling = None
        if pair.ending:
            self.left(pair)

    async def _connect(self, pair: Pair) -> None:
        """Cancelled only before the upstream is reached: then a socket of ours is all that there is to close.

        Later, uvloop would close the transport and never call connection_lost.
        """
        assert self._upstream is not None
        loop = asyncio.get_running_loop()
        raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            raw.setblocking(False)
            async with asyncio.timeout(DIAL_TIMEOUT):
                await loop.sock_connect(raw, self._upstream)
            pair.reached = True
        except OSError:  # a TimeoutError is one
            if not self.silent:  # in silence nobody is told, and `speak` dials again
                self._refuse(pair)
        finally:
            if not pair.reached:
                if pair.broken:
                    close_by_rst(raw)
                raw.close()
        if pair.reached:
            await loop.create_connection(lambda: pair.server, sock=raw)
            if pair.server.transport is None:
                # Lost already. uvloop has closed the descriptor and does not know `raw` yet, which would close it
                # again when it is collected: by then it may be somebody else's.
                raw.detach()
