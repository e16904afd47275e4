"""What a fake node needs to serve many streams on one connection: each goes on to it over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib

import httptools
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Upgrade
from websockets.server import ServerProtocol

from broker.bus import mux
from broker.bus.mux import WINDOW, Kind


class MuxDoor:
    """One connection of an ingress, from its upgrade on. `frozen`: nothing is read, as by a stopped process."""

    def __init__(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, breaks: bool = False
    ) -> None:
        self.opened = 0  # streams
        self._breaks = breaks  # each of them, at once
        self._port = port
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol(max_size=None)
        self._through: dict[int, _Through] = {}
        self.frozen = asyncio.Event()

    async def serve(self, target: str, headers: dict[str, str]) -> None:
        self._protocol.receive_data(Upgrade(target, Headers(headers)).serialize())
        (upgrade,) = self._protocol.events_received()
        assert isinstance(upgrade, Upgrade)
        self._protocol.send_response(self._protocol.accept(upgrade))
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
        if not self.frozen.is_set():
            self._protocol.send_binary(mux.record(kind, id, data))
            self._flush()

    def _take(self, kind: Kind, id: int, data: bytes, tasks: asyncio.TaskGroup) -> None:
        match kind:
            case Kind.OPEN:
                self.opened += 1
                self.say(Kind.SEEN, id)
                if self._breaks:
                    self.say(Kind.BROKEN, id)
                    return
                through = self._through[id] = _Through(self, id)
                through.task = tasks.create_task(through.run(self._port, data))
            case Kind.CREDIT:
                self._through[id].allow(mux.credit_of(data))
            case Kind.CLOSE:
                self._through[id].task.cancel()
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
