"""A link between two ends that a test holds in its hands: real sockets, on either kind of loop."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop

from compose.chaos.link import LOOPBACK, Link

DEADLINE = 20.0
Loop = Callable[[], asyncio.AbstractEventLoop]
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def play(loop: Loop, scene: Callable[[], object]) -> None:
    """Run a coroutine function on such a loop, all of it before one deadline."""

    async def timed() -> None:
        async with asyncio.timeout(DEADLINE):
            await scene()  # type: ignore[misc]

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(timed())


async def eventually(holds: Callable[[], object]) -> None:
    """For what announces itself by no event; the deadline is the scene's."""
    while not holds():  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(0.002)


class Stream:
    """One end of a TCP connection over a bare socket, so that nothing is read before the test reads it."""

    def __init__(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        self._raw = raw
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def to(cls, port: int) -> Stream:
        stream = cls(socket.socket())
        try:
            await stream._loop.sock_connect(stream._raw, (LOOPBACK, port))
        except OSError:
            stream.close()
            raise
        return stream

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._raw, data)

    async def read(self, size: int = 1 << 16) -> bytes:
        """b"" at FIN; raises ConnectionResetError at RST."""
        return await self._loop.sock_recv(self._raw, size)

    async def exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = await self.read(min(1 << 16, size - len(data)))
            assert part, "it ended early"
            data += part
        return bytes(data)

    async def to_end(self) -> bytes:
        data = bytearray()
        while part := await self.read():
            data += part
        return bytes(data)

    def push(self, data: bytes) -> None:
        """Send without giving the loop a turn."""
        assert self._raw.send(data) == len(data)

    def silent(self) -> bool:
        """Nothing has come: no byte, no end."""
        try:
            self._raw.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def stuff(self) -> int:
        """Write until the kernel takes no more; how many bytes it took."""
        taken = 0
        try:
            while True:
                taken += self._raw.send(b"x" * 65536)
        except BlockingIOError:
            return taken

    async def fill(self) -> int:
        """Write until nothing between here and the reader takes any more; how many bytes it took."""
        sent = quiet = 0
        while quiet < 20:  # stuck for twenty rounds of the loop in which others could move
            taken = self.stuff()
            sent += taken
            quiet = 0 if taken else quiet + 1
            assert sent < 64 << 20, "something buffers without bound"
            await asyncio.sleep(0.005)
        return sent

    def finish(self) -> None:
        self._raw.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._raw.close()


class Place:
    """A link, and the upstream behind it that hands every connection to the test."""

    def __init__(self, link: Link, listener: socket.socket) -> None:
        self.link = link
        self._listener = listener
        self._streams: list[Stream] = []

    @property
    def upstream_port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    async def client(self) -> Stream:
        stream = await Stream.to(self.link.port)
        self._streams.append(stream)
        return stream

    async def server(self) -> Stream:
        raw, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        stream = Stream(raw)
        self._streams.append(stream)
        return stream

    def reached(self) -> bool:
        """Somebody waits at the upstream to be accepted."""
        return bool(select.select([self._listener], [], [], 0)[0])

    async def both(self) -> tuple[Stream, Stream]:
        client = await self.client()
        return client, await self.server()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._listener.close()


@asynccontextmanager
async def place(**options: object) -> AsyncIterator[Place]:
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.setblocking(False)
        async with Link("test", **options) as link:  # type: ignore[arg-type]
            found = Place(link, listener)
            link.aim(LOOPBACK, found.upstream_port)
            try:
                yield found
            finally:
                found.close()
