"""A door to a node's WebSockets as an ingress opens them: all on one connection to the node (`ingress/mux.py`).

What it adds is nothing: who comes in by it meets the node itself, and tests of one are tests of the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from broker.bus import mux
from broker.bus.records import Node
from ingress.headers import Field, value
from ingress.membership import Member
from ingress.mux import NodeMux
from ingress.mux_socket import MuxedSocket
from ingress.node_socket import NodeSocket
from ingress.trust import Trust
from ingress.upstream import Head
from tests.fixtures.node import RunningNode

DEADLINE = 10.0
_HANDSHAKE = ("sec-websocket", "connection", "upgrade")


class _Door:
    def __init__(self, shared: NodeMux, host: str) -> None:
        self._shared = shared
        self._host = host  # the node's, which those who come in by this door mean
        self._opened: dict[ServerConnection, tuple[MuxedSocket, Head]] = {}

    async def greet(self, connection: ServerConnection, request: Request) -> Response | None:
        offered = [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",") if name]
        fields: list[Field] = [
            (name.lower().encode(), text.encode())
            for name, text in request.headers.raw_items()
            if not name.lower().startswith((*_HANDSHAKE, "host"))
        ]
        fields.append((b"host", self._host.encode()))
        socket = self._shared.socket(request.path, offered)
        head = await socket.greet(fields, DEADLINE)
        if head.status != 101:
            socket.abort()
            return connection.respond(HTTPStatus(head.status), "")
        self._opened[connection] = socket, head
        return None

    def chosen(self, connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        _, head = self._opened[connection]
        name = value(head.fields, b"sec-websocket-protocol").decode()
        return Subprotocol(name) if name else None

    def answer(self, connection: ServerConnection, _: Request, response: Response) -> None:
        opened = self._opened.get(connection)
        for name, text in opened[1].fields if opened is not None else []:
            if not name.startswith(b"sec-websocket"):
                response.headers[name.decode()] = text.decode()

    async def serve(self, connection: ServerConnection) -> None:
        socket, _ = self._opened.pop(connection)
        said: asyncio.Queue[bytes | tuple[int, str]] = asyncio.Queue()

        def tokens(frames: bytes, cursor: bytes) -> None:
            """Framed for a client: taken apart again here, where they must not go past `websockets`."""
            while frames:
                size = frames[1]
                begin = 2
                if size == 126:
                    size, begin = int.from_bytes(frames[2:4], "big"), 4
                elif size == 127:
                    size, begin = int.from_bytes(frames[2:10], "big"), 10
                assert frames[0] == 0x81, "a whole text, not masked"
                said.put_nowait(frames[begin : begin + size])
                frames = frames[begin + size :]
            assert cursor

        socket.listen(lambda data, text: said.put_nowait(data), lambda *closed: said.put_nowait(closed), tokens)
        async with asyncio.TaskGroup() as tasks:
            hearing = tasks.create_task(self._hear(connection, socket))
            hearing.add_done_callback(lambda _: said.put_nowait((1000, "")))
            try:
                while not isinstance(message := await said.get(), tuple):
                    await connection.send(message, text=True)
                await connection.close(*message)
            except ConnectionClosed:
                pass
            finally:
                socket.close(1000)
                hearing.cancel()

    @staticmethod
    async def _hear(connection: ServerConnection, socket: MuxedSocket) -> None:
        try:
            async for message in connection:
                socket.send(message.encode() if isinstance(message, str) else message, isinstance(message, str))
        except ConnectionClosed:
            pass
        socket.abort()


def greeting(node: RunningNode) -> list[Field]:
    trust = Trust("ingress-t")
    trust._key = node.internal
    return trust.greeting(0)


def member(node: RunningNode) -> Member:
    return Member(Node(node.id, node.url, "ready", 0, 0), asyncio.get_running_loop().time())


@asynccontextmanager
async def joined(node: RunningNode) -> AsyncIterator[NodeMux]:
    """One connection to the node, as an ingress has it."""
    connection = NodeMux(member(node), 0.8, lambda stream: None)
    await connection.connect(greeting(node), DEADLINE)
    try:
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def shared_door(node: RunningNode) -> AsyncIterator[str]:
    """Its address: `ws://host:port`."""
    async with joined(node) as shared, _listening(_Door(shared, urlsplit(node.url).netloc)) as address:
        yield address


@asynccontextmanager
async def _listening(door: _Door) -> AsyncIterator[str]:
    async with serve(
        door.serve,
        "127.0.0.1",
        0,
        process_request=door.greet,
        select_subprotocol=door.chosen,
        process_response=door.answer,
        compression=None,
        max_size=None,
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"


class Rude:
    """An ingress that says what it likes."""

    def __init__(self) -> None:
        self.records: list[tuple[int, int, bytes]] = []
        self.closed = 0
        self.socket: NodeSocket

    @classmethod
    async def at(cls, node: RunningNode) -> Rude:
        rude = cls()
        its = member(node)
        _, rude.socket = await asyncio.get_running_loop().create_connection(
            lambda: NodeSocket(its, mux.PATH, []), its.host, its.port
        )
        await rude.socket.greet(greeting(node), DEADLINE)
        rude.socket.listen(lambda data, text: rude.records.extend(mux.records(data)), rude._close)
        return rude

    def _close(self, code: int, reason: str) -> None:
        self.closed = code
