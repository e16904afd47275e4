"""Connections that are left unread, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from gpu_worker.engines.edge import READ, Edges, EdgeTransport

DEADLINE = 20.0

pytestmark = pytest.mark.skipif(not Edges.available, reason="epoll is Linux's")


class Heard(asyncio.Protocol):
    """What a connection gave, read by read, and how it ended."""

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.news = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.told = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(EdgeTransport, transport)

    def data_received(self, data: bytes) -> None:
        self.reads.append(data)
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    def tell(self) -> None:
        self.told += 1
        self.news.set()

    async def anything(self) -> None:
        await self.news.wait()
        self.news.clear()

    async def until(self, size: int) -> None:
        while len(b"".join(self.reads)) < size:
            await self.anything()


class Pair:
    """A connection of `edges`, and the other end of it, which blocks."""

    def __init__(self, edges: Edges, heard: Heard, other: socket.socket) -> None:
        self.edges, self.heard, self.other = edges, heard, other
        self.transport = heard.transport


@asynccontextmanager
async def connected(pairs: int = 1) -> AsyncIterator[list[Pair]]:
    made: list[Pair] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(DEADLINE):
            edges = Edges()
            try:
                for _ in range(pairs):
                    heard = Heard()
                    await edges.connect(heard, "127.0.0.1", listener.getsockname()[1])
                    made.append(Pair(edges, heard, listener.accept()[0]))
                yield made
            finally:
                edges.close()
                for pair in made:
                    pair.other.close()


async def test_what_comes_is_read_at_once_by_default() -> None:
    async with connected() as [pair]:
        text = os.urandom(5 * READ + 7)
        await asyncio.to_thread(pair.other.sendall, text)
        await pair.heard.until(len(text))
        assert b"".join(pair.heard.reads) == text
        assert max(map(len, pair.heard.reads)) <= READ


async def test_what_is_left_is_told_of_once_and_comes_in_one_read_when_it_is_drawn() -> None:
    async with connected() as [pair]:
        heard, transport = pair.heard, pair.transport
        transport.leave_to(heard.tell)
        assert not transport.unread
        for word in (b"one ", b"two ", b"three "):
            pair.other.sendall(word)
            await asyncio.sleep(0.02)
        assert (heard.told, heard.reads, transport.unread) == (1, [], True)
        assert transport.draw() is False, "no more is there"
        assert (heard.reads, transport.unread) == ([b"one two three "], False)
        heard.news.clear()
        pair.other.sendall(b"four")
        await heard.anything()
        assert (heard.told, transport.unread) == (2, True)
        transport.draw()
        assert heard.reads[1:] == [b"four"]
        assert transport.draw() is False, "nothing at all is there"


async def test_more_than_one_read_of_what_was_left_is_told_of_again() -> None:
    async with connected() as [pair]:
        heard, transport = pair.heard, pair.transport
        transport.leave_to(heard.tell)
        text = os.urandom(READ + READ // 2)
        pair.other.sendall(text)
        await heard.anything()
        await asyncio.sleep(0.05)
        assert transport.draw() is True
        assert heard.reads == [text[:READ]]
        heard.told = 0
        await asyncio.sleep(0.01)
        assert heard.told == 1
        transport.draw()
        assert b"".join(heard.reads) == text


async def test_what_was_there_before_it_was_left_is_told_of() -> None:
    async with connected() as [pair]:
        pair.transport.pause_reading()
        pair.other.sendall(b"one")
        await asyncio.sleep(0.02)
        pair.transport.leave_to(pair.heard.tell)
        pair.transport.resume_reading()
        await pair.heard.anything()
        assert (pair.heard.told, pair.heard.reads) == (1, [])


async def test_a_side_that_hangs_up_is_read_to_its_end_without_being_asked() -> None:
    async with connected() as [pair]:
        heard = pair.heard
        pair.transport.leave_to(heard.tell)
        text = os.urandom(3 * READ)
        pair.other.sendall(text)
        await heard.anything()
        assert heard.reads == []
        pair.other.shutdown(socket.SHUT_WR)
        assert await heard.lost is None
        assert b"".join(heard.reads) == text


async def test_paused_nothing_is_told_nor_given_not_even_that_the_other_side_hung_up() -> None:
    async with connected() as [pair]:
        heard, transport = pair.heard, pair.transport
        transport.leave_to(heard.tell)
        transport.pause_reading()
        pair.other.sendall(b"one")
        pair.other.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.05)
        assert transport.draw() is False
        assert (heard.told, heard.reads, heard.lost.done()) == (0, [], False)
        transport.resume_reading()
        assert await heard.lost is None
        assert heard.reads == [b"one"]


async def test_what_does_not_fit_into_the_socket_is_sent_when_there_is_room() -> None:
    async with connected() as [pair]:
        text = os.urandom(8 * 1024 * 1024)
        pair.transport.write(text[:-9])
        pair.transport.write(text[-9:])
        pair.other.settimeout(DEADLINE)

        def read() -> bytes:
            got = bytearray()
            while len(got) < len(text):
                got += pair.other.recv(1 << 20)
            return bytes(got)

        assert await asyncio.to_thread(read) == text
        pair.other.sendall(b"thanks")
        await pair.heard.until(6)


async def test_a_connection_that_is_reset_says_why() -> None:
    async with connected() as [pair]:
        pair.transport.leave_to(pair.heard.tell)
        pair.other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.other.close()
        error = await pair.heard.lost
        assert isinstance(error, ConnectionResetError)
        pair.transport.write(b"nobody")  # is not heard, and no error
        assert pair.transport.is_closing()


async def test_what_was_said_before_a_reset_is_read_although_something_was_still_to_be_sent() -> None:
    async with connected() as [pair]:
        heard, transport = pair.heard, pair.transport
        transport.leave_to(heard.tell)
        transport.write(os.urandom(16 * 1024 * 1024))
        pair.other.sendall(b"said")
        await heard.anything()
        pair.other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.other.close()
        assert isinstance(await heard.lost, ConnectionResetError)
        assert (heard.reads, transport.unread) == ([b"said"], False)


async def test_whoever_fails_when_he_is_told_does_not_silence_the_others() -> None:
    async with connected(pairs=2) as [first, second]:
        failed = KeyError("his")

        def fail() -> None:
            raise failed

        first.transport.leave_to(fail)
        second.transport.leave_to(second.heard.tell)
        first.other.sendall(b"one")
        second.other.sendall(b"two")
        assert await first.heard.lost is failed
        while not second.heard.told:
            await second.heard.anything()


async def test_a_connection_leaves_no_garbage_nor_does_a_refused_one() -> None:
    async with connected() as [pair]:
        pair.transport.leave_to(pair.heard.tell)
        edges = pair.edges
        pair.transport.abort()
        await pair.heard.lost
        closed, refused = weakref.ref(pair.transport), Heard()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        gc.disable()
        try:
            with suppress(ConnectionRefusedError):
                await edges.connect(refused, "127.0.0.1", port)
            gone = weakref.ref(refused)
            del refused, pair.transport, pair.heard.transport
            await asyncio.sleep(0)
            assert (closed(), gone()) == (None, None)
        finally:
            gc.enable()


async def test_one_that_is_given_up_by_another_in_the_same_moment_is_not_told() -> None:
    async with connected(pairs=2) as [first, second]:
        first.transport.leave_to(second.transport.abort)
        second.transport.leave_to(first.transport.abort)
        first.other.sendall(b"one")
        second.other.sendall(b"two")
        await asyncio.wait([first.heard.lost, second.heard.lost], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.02)
        assert first.transport.is_closing() is not second.transport.is_closing()


async def test_nobody_there_and_nowhere_to_be_are_errors_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = Edges()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await edges.connect(Heard(), "127.0.0.1", port)

    async def nobody(host: str, port: int) -> list[object]:
        return []

    monkeypatch.setattr(edges, "_addresses", nobody)
    with pytest.raises(OSError, match="no address: nowhere"):
        await edges.connect(Heard(), "nowhere", 80)
    edges.close()


async def test_a_name_is_looked_up_and_its_addresses_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        edges = Edges()
        first = socket.getaddrinfo("127.0.0.2", port, type=socket.SOCK_STREAM)  # where nobody listens
        second = socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)

        async def addresses(host: str, port: int) -> list[object]:
            return [*first, *second]

        monkeypatch.setattr(edges, "_addresses", addresses)
        transport = await edges.connect(Heard(), "engine", port)
        assert transport.get_extra_info("socket").getpeername() == ("127.0.0.1", port)
        monkeypatch.undo()
        await edges.connect(Heard(), "localhost", port)
        edges.close()


async def test_closing_ends_every_connection_and_gives_back_what_it_had() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    async with connected(pairs=3) as pairs:
        edges = pairs[0].edges
        edges.close()
        edges.close()
        for pair in pairs:
            assert await pair.heard.lost is None
            with suppress(ConnectionResetError):
                assert pair.other.recv(1) == b""
    assert len(os.listdir("/proc/self/fd")) == before
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConnectionAbortedError):
        await edges.connect(Heard(), "127.0.0.1", listener.getsockname()[1])
    assert len(os.listdir("/proc/self/fd")) == before
