"""What a fake node needs to serve many streams on one connection: each goes on to it over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httptools
from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Upgrade
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from broker.bus import mux
from broker.bus.mux import WINDOW, Kind
from broker.node.rfc6455 import TEXT, frame


class MuxDoor:
    """One connection of an ingress, from its upgrade on. `frozen`: nothing is read, as by a stopped process."""

    def __init__(
        self,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        breaks: bool = False,
        sockets: bool = True,
    ) -> None:
        self.opened = 0  # streams
        self._breaks = breaks  # each of them, at once
        self._sockets = sockets  # says that it serves WebSockets, too
        self._port = port
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol(max_size=None)
        self._through: dict[int, _Through | _ThroughSocket] = {}
        self.frozen = asyncio.Event()

    async def serve(self, target: str, headers: dict[str, str]) -> None:
        self._protocol.receive_data(Upgrade(target, Headers(headers)).serialize())
        (upgrade,) = self._protocol.events_received()
        assert isinstance(upgrade, Upgrade)
        response = self._protocol.accept(upgrade)
        if self._sockets:
            response.headers[mux.SERVES.decode()] = mux.SOCKETS.decode()
        self._protocol.send_response(response)
        self._flush()
        async with asyncio.TaskGroup() as tasks:
            while data := await self._reader.read(65536):
                if self.frozen.is_set():
                    continue
                self._protocol.receive_data(data)
                for frame in self._protocol.events_received():
                    if isinstance(frame, Frame) and frame.opcode is Opcode.BINARY:
                        for kind, id, rest in mux.records(bytes(frame.data)):
                            self._take(Kind(kind), id, rest, tasks)
                self._flush()
            for through in self._through.values():
                through.task.cancel()

    def say(self, kind: Kind, id: int, data: bytes = b"") -> None:
        self.write(mux.record(kind, id, data))

    def write(self, record: bytes) -> None:
        if not self.frozen.is_set():
            self._protocol.send_binary(record)
            self._flush()

    def _take(self, kind: Kind, id: int, data: bytes, tasks: asyncio.TaskGroup) -> None:
        match kind:
            case Kind.OPEN:
                self.opened += 1
                self.say(Kind.SEEN, id)
                if self._breaks:
                    self.say(Kind.BROKEN, id)
                    return
                through = self._through[id] = (_ThroughSocket if b"\r\nupgrade: " in data else _Through)(self, id)
                through.task = tasks.create_task(through.run(self._port, data))
            case Kind.CREDIT:
                self._through[id].allow(mux.credit_of(data))
            case Kind.CLOSE:
                self._through[id].task.cancel()
            case Kind.PART | Kind.TEXT | Kind.BINARY:
                through = self._through[id]
                assert isinstance(through, _ThroughSocket)
                through.hear(kind, data)
            case _:
                raise AssertionError(kind)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)


class _Through:
    """One stream: the fake node's response, taken apart."""

    def __init__(self, door: MuxDoor, id: int) -> None:
        self._door = door
        self._id = id
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._whole = False
        self._credit = WINDOW
        self._more = asyncio.Event()
        self.task: asyncio.Task[None]

    def allow(self, more: int) -> None:
        self._credit += more
        self._more.set()

    async def run(self, port: int, request: bytes) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            while data := await reader.read(4096):
                while self._credit <= 0:
                    self._more.clear()
                    await self._more.wait()
                self._parser.feed_data(data)
                if self._whole:
                    self._door.say(Kind.END, self._id)
                    return
            self._door.say(Kind.BROKEN, self._id)
        except OSError:
            self._door.say(Kind.BROKEN, self._id)
        finally:
            if writer is not None:
                with contextlib.suppress(OSError):
                    writer.transport.abort()

    def on_header(self, name: bytes, text: bytes) -> None:
        if name.lower() != b"transfer-encoding":
            self._fields.append((name.lower(), text))

    def on_headers_complete(self) -> None:
        self._door.say(Kind.HEAD, self._id, mux.head(self._parser.get_status_code(), self._fields))

    def on_body(self, data: bytes) -> None:
        self._credit -= len(data)
        self._door.say(Kind.DATA, self._id, data)

    def on_message_complete(self) -> None:
        self._whole = True


class _ThroughSocket:
    """One WebSocket: the fake node's messages, tokens framed for a client."""

    def __init__(self, door: MuxDoor, id: int) -> None:
        self._door = door
        self._id = id
        self._parts: list[bytes] = []
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.task: asyncio.Task[None]

    def allow(self, more: int) -> None:
        pass

    def hear(self, kind: Kind, data: bytes) -> None:
        self._parts.append(data)
        if kind is not Kind.PART:
            self._heard.put_nowait(b"".join(self._parts))
            self._parts = []

    async def run(self, port: int, request: bytes) -> None:
        target = request.split(b" ")[1].decode()
        fields = dict(mux.read_fields(request.partition(b"\r\n")[2]))
        offered = [Subprotocol(n.strip()) for n in fields.pop(b"sec-websocket-protocol", b"").decode().split(",") if n]
        del fields[b"upgrade"]
        headers = {name.decode(): text.decode() for name, text in fields.items()}
        url = f"ws://127.0.0.1:{port}{target}"
        try:
            async with connect(
                url, subprotocols=offered or None, additional_headers=headers, compression=None, proxy=None
            ) as socket:
                self._accepted(socket)
                async with asyncio.TaskGroup() as tasks:
                    saying = tasks.create_task(self._say(socket))
                    try:
                        async for message in socket:
                            self._give(message.encode() if isinstance(message, str) else message)
                        await socket.wait_closed()
                    except ConnectionClosed:
                        pass
                    saying.cancel()
                if socket.protocol.close_rcvd is None:
                    self._door.say(Kind.BROKEN, self._id)
                else:
                    self._door.say(Kind.END, self._id, mux.farewell(socket.protocol.close_rcvd.code, ""))
        except OSError:
            self._door.say(Kind.BROKEN, self._id)

    def _accepted(self, socket: ClientConnection) -> None:
        assert socket.response is not None
        fields = [(name.lower().encode(), text.encode()) for name, text in socket.response.headers.raw_items()]
        kept = [field for field in fields if not field[0].startswith((b"sec-websocket-a", b"connection", b"upgrade"))]
        self._door.say(Kind.HEAD, self._id, mux.head(101, kept))

    async def _say(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send(await self._heard.get(), text=True)

    def _give(self, message: bytes) -> None:
        if b'"event":"token"' in message:
            cursor = json.loads(message)["id"].encode()
            body = bytes([len(cursor)]) + cursor + frame(TEXT, message)
            self._door.say(Kind.TOKENS, self._id, body)
        else:
            for record in mux.message(self._id, message):
                self._door.write(record)
