"""A WebSocket to a node, on a transport that the test plays."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from ingress.node_socket import TURN, NodeSocket

MESSAGES = [b"%d " % number * 500 for number in range(100)]
SENT = b"".join(Frame(Opcode.BINARY, message).serialize(mask=False) for message in MESSAGES)
assert len(SENT) > 4 * TURN


class Wire:
    """What a transport is to its protocol: whether it reads, and what was written."""

    def __init__(self) -> None:
        self.reading = True
        self.aborted = False
        self.written = b""

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str) -> None:
        return None


class Open:
    """A connection after its upgrade, and what it has given."""

    def __init__(self) -> None:
        member = SimpleNamespace(host="node", port=1, heard_at=0.0, closers=set())
        self.socket = NodeSocket(cast(Any, member), "/", [])
        self.wire = Wire()
        self.socket.connection_made(cast(asyncio.Transport, self.wire))
        self.messages: list[bytes] = []
        self.closed: list[tuple[int, int]] = []

    async def greet(self) -> None:
        greeting = asyncio.create_task(self.socket.greet([], 1.0))
        await asyncio.sleep(0)
        key = self.wire.written.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
        self.socket.data_received(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_key(key).encode()
        )
        assert (await greeting).status == 101
        self.socket.listen(
            lambda data, text: self.messages.append(data),
            lambda code, reason: self.closed.append((code, len(self.messages))),
        )


async def turns() -> None:
    """More turns of the loop than all of it needs."""
    for _ in range(2 * len(SENT) // TURN):
        await asyncio.sleep(0)


@pytest.fixture
async def opened() -> Open:
    made = Open()
    await made.greet()
    return made


async def test_of_what_a_node_sends_at_once_a_turn_takes_its_share(opened: Open) -> None:
    """Others have their turn between, nothing more is read meanwhile, and all of it comes in its order."""
    loop = asyncio.get_running_loop()
    shares: list[int] = []

    def look() -> None:
        shares.append(len(opened.messages) - sum(shares))
        if len(opened.messages) < len(MESSAGES):
            loop.call_soon(look)

    opened.socket.data_received(SENT)
    assert not opened.wire.is_reading()
    loop.call_soon(look)
    await turns()
    assert opened.wire.is_reading()
    assert opened.messages == MESSAGES
    assert max(shares) <= TURN // min(map(len, MESSAGES)) + 1
    assert len(shares) >= len(SENT) // TURN


async def test_what_comes_behind_waits_its_turn(opened: Open) -> None:
    half = len(SENT) // 2
    opened.socket.data_received(SENT[:half])
    opened.socket.data_received(SENT[half:-7])
    opened.socket.data_received(SENT[-7:])
    await turns()
    assert opened.messages == MESSAGES


async def test_a_connection_that_ends_meanwhile_has_given_all_before(opened: Open) -> None:
    opened.socket.data_received(SENT)
    opened.socket.connection_lost(None)
    assert opened.messages == MESSAGES
    assert opened.closed == [(1006, len(MESSAGES))]
    await asyncio.sleep(0)
    assert opened.messages == MESSAGES


async def test_who_asked_for_a_pause_gets_it_whatever_is_left(opened: Open) -> None:
    opened.socket.data_received(SENT)
    opened.socket.pause()
    await turns()
    assert opened.messages == MESSAGES
    assert not opened.wire.is_reading()
    opened.socket.resume()
    assert opened.wire.is_reading()


async def test_a_mistake_in_a_later_turn_ends_the_connection_as_one_at_once_does(opened: Open) -> None:
    """Else nothing more would be read from it, and nobody told."""

    def taken(data: bytes, text: bool) -> None:
        opened.messages.append(data)
        if len(opened.messages) == 60:
            raise ValueError("a mistake of ours")

    opened.socket.listen(taken, lambda code, reason: opened.closed.append((code, len(opened.messages))))
    opened.socket.data_received(SENT)
    await turns()
    assert opened.closed == [(1006, 60)]
    assert opened.wire.aborted


async def test_what_is_left_is_for_nobody_once_it_was_given_up(opened: Open) -> None:
    opened.socket.data_received(SENT)
    opened.socket.abort()
    await turns()
    opened.socket.connection_lost(None)
    assert opened.messages == []
