"""A stream node over real sockets, with a log in memory and faults on demand. Several nodes share one log.

Also a program: `python -m tests.ingress.fake_node ID` prints its port and serves tokens at a steady rate, to be stopped
and killed from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Upgrade
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from broker.bus import mux
from broker.bus.records import Node, encode
from tests.ingress.mux_door import MuxDoor

INCARNATION = "inc0"
SID = "00sessionsession"


class Log:
    """One session's events, (name, data), at sequences 1, 2, …"""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.grown = asyncio.Event()

    def add(self, name: str, **data: object) -> None:
        self.events.append((name, json.dumps(data)))
        self.wake()

    def wake(self) -> None:
        self.grown.set()
        self.grown = asyncio.Event()

    def tokens(self, first: int, count: int) -> None:
        for index in range(first, first + count):
            self.add("token", offset=index, text=f"7.{index} ", n=1)


@dataclass
class Seen:
    """A request as the node got it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}


Answer = Callable[[Seen, asyncio.StreamWriter], "bytes | None"]


@dataclass
class FakeNode:
    """`cut_after`: of the next leg, that many events, then `half` of one, then the connection is reset."""

    id: str
    log: Log
    ready: bool = True
    deaf: bool = False  # not ready, because it does not hear NATS
    silent: bool = False  # takes requests and answers nothing, as a frozen process
    cut_after: int = -1
    half: bool = False
    multiplex: bool = False  # serves many streams on one connection
    shares_sockets: bool = True  # and says that WebSockets may be among them
    breaks: bool = False  # breaks each of those off before it begins
    refuse_with: str = ""  # `closed` code instead of a stream
    admission: str = "sealed-by-the-node"
    answers: dict[str, Answer] = field(default_factory=dict)  # path -> answer; None: reset the connection
    clock: Callable[[], int] | None = None  # what it says of its time (ms) when its health is asked
    ws_close: int = 0  # close code after `cut_after` messages instead of a reset
    seen: list[Seen] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    legs: int = 0
    sockets: int = 0  # WebSocket legs that are open
    port: int = 0

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.leaving = asyncio.Event()
        self.thawed = asyncio.Event()
        self.upgrades = asyncio.Event()  # a request to upgrade is answered when this is set
        self.upgrades.set()
        self.begins = asyncio.Event()  # a WebSocket's stream begins when this is set
        self.begins.set()
        self.doors: list[MuxDoor] = []  # every connection for many streams that it was ever asked for

    async def start(self) -> FakeNode:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """As a kill: every connection is reset, nothing listens."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def record(self, state: str = "ready") -> bytes:
        return encode(Node(self.id, f"http://127.0.0.1:{self.port}", state, 0, 0))

    def drain(self) -> None:
        self.leaving.set()

    def freeze(self) -> None:
        self.silent = True
        for door in self.doors:
            door.frozen.set()

    # -- HTTP ------------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.lower(): text.strip() for name, _, text in (field.partition(":") for field in rest if field)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if self.silent:
            await self.thawed.wait()
        path = urlsplit(target).path
        if path == "/readyz":
            status = b"200 OK" if self.ready and not self.deaf else b"503 Not Ready"
            said = b"nats: NATS does not answer\n" if self.deaf else b"ok\n"
            clock = b"" if self.clock is None else b"x-okome-clock: %d\r\n" % self.clock()
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + clock + b"content-length: %d\r\n\r\n" % len(said) + said)
            return True
        if path == mux.PATH and self.multiplex:
            await self.upgrades.wait()
            self.doors.append(
                door := MuxDoor(self.port, reader, writer, breaks=self.breaks, sockets=self.shares_sockets)
            )
            await door.serve(target, headers)
            return False
        if path == mux.PATH:
            writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            return True
        request = Seen(method, target, headers, body)
        self.seen.append(request)
        if path in self.answers:
            answer = self.answers[path](request, writer)
            if answer is None:
                writer.transport.abort()
                return False
            writer.write(answer)
            return True
        if path.endswith("/events"):
            await self._stream(request, writer)
            return False
        if path.endswith("/ws"):
            await self.upgrades.wait()
            self.sockets += 1
            try:
                await self._socket(request, reader, writer)
            finally:
                self.sockets -= 1
            return False
        text = json.dumps({"node": self.id, "path": path, "body": body.decode()}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nserver: fake\r\nx-okome-session: s\r\nx-okome-admission: secret\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)
        )
        return True

    def _after(self, request: Seen) -> int | None:
        text = request.headers.get("last-event-id") or request.query.get("after", "")
        if text == "0":
            return 0
        return int(text.split("-")[1]) if "-" in text else None

    async def _stream(self, request: Seen, writer: asyncio.StreamWriter) -> None:
        until_done = request.query.get("until") == "done"
        after = self._after(request)
        if until_done and after is not None and after >= len(self.log.events) > 0:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        self.legs += 1
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"cache-control: no-cache, no-transform\r\n"
            b"x-okome-admission: %b\r\ntransfer-encoding: chunked\r\n\r\n" % self.admission.encode()
        )

        async def put(data: bytes) -> None:
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()

        if self.refuse_with:
            data = json.dumps({"code": self.refuse_with, "message": "no", "retry_after_ms": 700})
            await put(f"retry: 700\nevent: closed\ndata: {data}\n\n".encode())
            writer.write(b"0\r\n\r\n")
            return
        position = after if after is not None else 0
        hello = json.dumps({"session_id": SID, "cursor": f"{INCARNATION}-{position}", "node": self.id})
        await put(b"retry: 1000\n" + sse("hello", hello, f"{INCARNATION}-{position}"))
        sent = 0
        caught_up = False
        while True:
            while position < len(self.log.events):
                name, text = self.log.events[position]
                event = sse(name, text, f"{INCARNATION}-{position + 1}")
                if sent == self.cut_after:
                    self.cut_after = -1
                    if self.half:
                        await put(event[: len(event) // 2])
                        await asyncio.sleep(0)
                    writer.transport.abort()
                    return
                await put(event)
                if self.silent:
                    await self.thawed.wait()
                position += 1
                sent += 1
                if until_done and caught_up and name in ("done", "failed"):
                    writer.write(b"0\r\n\r\n")
                    return
            if not caught_up:
                caught_up = True
                await put(sse("caught_up", json.dumps({"cursor": f"{INCARNATION}-{position}"}), ""))
                running = any(name == "start" for name, _ in self.log.events) and self.log.events[-1][0] != "done"
                if until_done and not running:
                    writer.write(b"0\r\n\r\n")
                    return
            grown = asyncio.ensure_future(self.log.grown.wait())
            leaving = asyncio.ensure_future(self.leaving.wait())
            try:
                await asyncio.wait((grown, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                grown.cancel()
                leaving.cancel()
            if self.leaving.is_set():
                await put(sse("reconnect", json.dumps({"cursor": f"{INCARNATION}-{position}", "after_ms": 50}), ""))
                writer.write(b"0\r\n\r\n")
                return

    # -- WebSocket -------------------------------------------------------------------------------------------------

    async def _socket(self, request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.legs += 1
        protocol = ServerProtocol(
            subprotocols=[Subprotocol("okome.v1")],
            select_subprotocol=lambda _, offered: Subprotocol("okome.v1") if "okome.v1" in offered else None,
        )
        protocol.receive_data(Upgrade(request.target, Headers(request.headers)).serialize())
        (upgrade,) = protocol.events_received()
        assert isinstance(upgrade, Upgrade)
        response = protocol.accept(upgrade)
        response.headers["x-okome-admission"] = self.admission
        response.headers["set-cookie"] = "okome_s=1"
        protocol.send_response(response)

        def flush() -> None:
            for data in protocol.data_to_send():
                if data:
                    writer.write(data)
                else:
                    writer.close()

        def say(event: str, data: str, id_: str = "") -> None:
            cursor = f'"id":"{id_}",' if id_ else ""
            if protocol.state is not OPEN:
                return  # the client has said good-bye
            protocol.send_text(f'{{"event":"{event}",{cursor}"data":{data}}}'.encode())
            flush()

        flush()
        position, caught_up = 0, False

        def begin(after: int) -> None:
            nonlocal position, caught_up
            position, caught_up = after, False
            say("hello", json.dumps({"node": self.id}), f"{INCARNATION}-{position}")

        async def read() -> None:
            while data := await reader.read(65536):
                protocol.receive_data(data)
                for frame in protocol.events_received():
                    if isinstance(frame, Frame) and frame.opcode is Opcode.TEXT:
                        text = bytes(frame.data).decode()
                        self.messages.append(text)
                        self.on_message(text, say)
                        if text.startswith('{"event":"resume"'):
                            begin(int(json.loads(text)["data"]["after"].rpartition("-")[2]))
                            self.log.wake()
                flush()

        reading = asyncio.create_task(read())
        try:
            await self.begins.wait()
            begin(self._after(request) or 0)
            sent = 0
            while not reading.done():
                while position < len(self.log.events):
                    if sent == self.cut_after:
                        self.cut_after = -1
                        if self.ws_close:
                            protocol.send_close(self.ws_close)
                            flush()
                            writer.close()
                        else:
                            writer.transport.abort()
                        return
                    name, text = self.log.events[position]
                    say(name, text, f"{INCARNATION}-{position + 1}")
                    await writer.drain()
                    position += 1
                    sent += 1
                if not caught_up:
                    caught_up = True
                    say("caught_up", "{}")
                grown = asyncio.ensure_future(self.log.grown.wait())
                leaving = asyncio.ensure_future(self.leaving.wait())
                try:
                    await asyncio.wait((grown, leaving, reading), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    grown.cancel()
                    leaving.cancel()
                if self.leaving.is_set():
                    say("reconnect", "{}")
                    protocol.send_close(1012)
                    flush()
                    return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def on_message(self, text: str, say: Callable[[str, str], None]) -> None:
        """Answers `generate`; `deaf` nodes take it and answer nothing."""
        try:
            message = json.loads(text)
        except RecursionError:  # nested without end: no message
            return
        if message["event"] == "generate" and not self.refuse_with:
            say("accepted", json.dumps({"request_id": message["data"]["request_id"], "generation_id": "g1"}))


def sse(name: str, data: str, id_: str) -> bytes:
    cursor = f"id: {id_}\n" if id_ else ""
    return f"{cursor}event: {name}\ndata: {data}\n\n".encode()


async def _program(name: str) -> None:
    log = Log()
    node = await FakeNode(name, log).start()
    sys.stdout.write(f"{node.port}\n")
    sys.stdout.flush()
    log.add("start", generation_id="g1")
    count = 0
    while True:
        log.tokens(count, 1)
        count += 1
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_program(sys.argv[1]))
