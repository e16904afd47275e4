"""TCP connections whose bytes stay where they are until somebody can use them.

asyncio reads whatever comes, a token at a time. Whoever can only use the next token when he is done with the last one
reads several at once, if the kernel keeps them until then; but to stop a transport of asyncio's and to let it go on
are two system calls. Here one edge-triggered epoll has all connections, and says of each once that something came:
leaving that there costs nothing.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import structlog

READ = 16 * 1024  # bytes at once
EVENTS = 256  # looked at before the loop has its turn

log = structlog.get_logger("worker")

_Address = tuple[int, int, int, str, tuple[Any, ...]]


class Edges:
    """The connections of one loop, from `Edges()` to `close`. Linux only: elsewhere `available` is False."""

    available = hasattr(select, "epoll")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._there: dict[int, EdgeTransport] = {}
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def close(self) -> None:
        """Ends every connection. Idempotent."""
        if self._epoll.closed:
            return
        for transport in list(self._there.values()):
            transport.abort()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    async def connect(self, protocol: asyncio.Protocol, host: str, port: int) -> EdgeTransport:
        """As `create_connection`. Raises OSError."""
        failed: OSError | None = None
        for family, kind, proto, _, address in await self._addresses(host, port):
            sock = socket.socket(family, kind, proto)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(sock, address)
                return self._enter(sock, protocol)
            except OSError as error:
                failed = error
                sock.close()
            except BaseException:
                sock.close()
                raise
        try:
            raise failed or OSError(f"no address: {host}")
        finally:
            del failed  # whose traceback knows this frame

    async def _addresses(self, host: str, port: int) -> Sequence[_Address]:
        try:  # a number needs nobody who knows
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            return await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    def _enter(self, sock: socket.socket, protocol: asyncio.Protocol) -> EdgeTransport:
        if self._epoll.closed:
            raise ConnectionAbortedError("closed meanwhile")
        fd = sock.fileno()
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        transport = self._there[fd] = EdgeTransport(self, sock, protocol)
        protocol.connection_made(transport)
        return transport

    def also_writes(self, fd: int) -> None:
        """From now on it is told, too, when more can be sent."""
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)

    def leave(self, fd: int) -> None:
        """Before its socket is closed."""
        del self._there[fd]
        self._epoll.unregister(fd)

    def _look(self) -> None:
        there, bytes_only = self._there, select.EPOLLIN
        for fd, mask in self._epoll.poll(0, EVENTS):
            transport = there.get(fd)
            if transport is None:  # closed by one of those before it
                continue
            try:
                if mask != bytes_only:
                    transport.came(mask)
                elif not transport.unread:  # else that was said already
                    transport.unread = True
                    transport.tell()
            except Exception as error:  # whoever has been told; the others would not be told again
                log.error("engine.reader_failed", exc_info=error)
                transport.give_up(error)


class EdgeTransport(asyncio.Transport):
    """One connection. What comes is read at once, until it is left to somebody, who is told of it: then by `draw`.

    Once the other side has ended the connection, all that it said is read: there is nothing to wait for.
    """

    def __init__(self, edges: Edges, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": sock})
        self.unread = False  # something may be there
        self.tell: Callable[[], object] = self.draw  # what is done then
        self._on_unread: Callable[[], None] | None = None
        self._edges = edges
        self._sock = sock
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._failed: OSError | None = None  # at sending
        self._paused = self._ended = self._closed = False

    def leave_to(self, on_unread: Callable[[], None] | None) -> None:
        """Leave what comes to whoever this is: told of it once, and again when what was there has been drawn."""
        self._on_unread = on_unread
        self._choose()

    def draw(self) -> bool:
        """Give the protocol what is there now, READ bytes at most. True: more may be there already."""
        if self._paused or self._closed:
            return False
        self.unread = False
        try:
            data = self._sock.recv(READ)
        except BlockingIOError:
            return False
        except OSError as error:
            self.give_up(error)
            return False
        if not data:
            self.give_up(self._failed)
            return False
        if len(data) == READ or self._ended:
            self.unread = True
            self._loop.call_soon(self._again)
        self._protocol.data_received(data)
        return self.unread

    def came(self, mask: int) -> None:
        """What epoll says of it, where that is more than bytes."""
        if mask & ~(select.EPOLLIN | select.EPOLLOUT):  # it was hung up, or is broken: reading says which
            self._end()
        elif mask & select.EPOLLIN:
            self.unread = True
            self.tell()
        if mask & select.EPOLLOUT and self._unsent and not mask & (select.EPOLLHUP | select.EPOLLERR):
            self._send()

    def _again(self) -> None:
        if self.unread:
            self.tell()

    def _choose(self) -> None:
        if self._paused or self._closed:
            self.tell = _nothing
        elif self._on_unread is not None and not self._ended:
            self.tell = self._on_unread
        else:
            self.tell = self.draw

    def _send(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            self._unsent.clear()
            self._failed = error
            self._end()

    def _end(self) -> None:
        """The other side has gone. What it said before is still there."""
        self._ended = self.unread = True
        self._choose()
        self.tell()

    def give_up(self, error: Exception | None) -> None:
        """Close it without reading on. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.unread = False
        self._unsent.clear()
        self.leave_to(None)
        self._edges.leave(self._sock.fileno())
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, error)

    # -- as asyncio has it -------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            return
        waits = bool(self._unsent)
        self._unsent += data
        if waits:
            return
        self._send()
        if self._unsent and not self._closed:
            self._edges.also_writes(self._sock.fileno())

    def pause_reading(self) -> None:
        self._paused = True
        self._choose()

    def resume_reading(self) -> None:
        self._paused = False
        self._choose()
        if self.unread:
            self._loop.call_soon(self._again)

    def is_closing(self) -> bool:
        return self._closed

    def abort(self) -> None:
        self.give_up(None)


def _nothing() -> None:
    pass
