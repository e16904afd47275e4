"""An ingress without NATS, on free ports, over fake nodes; and a client that reads events off a raw socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from broker.bus.credentials import new_internal_key
from broker.bus.health import Health
from broker.bus.lifecycle import loop_factory
from ingress.limits import Limits
from ingress.listener import Listener
from ingress.membership import Nodes
from ingress.metrics import Metrics
from ingress.relay import Relay
from ingress.settings import IngressSettings
from ingress.trust import Trust
from tests.ingress.fake_node import SID, FakeNode, Log

DEADLINE = 10.0


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the role runs on: its transports are not asyncio's."""
    return {"role": loop_factory()}


class Ingress:
    """All of the role but the bus."""

    def __init__(self, **settings: Any) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.settings = IngressSettings(**{"silence_timeout": 5.0, **settings})
        self.trust = Trust("ingress-1")
        self.nodes = Nodes(self.settings, self.metrics, self.trust.greeting)
        self.key = new_internal_key()
        self.trust.learn("internal", json.dumps({"key": self.key}).encode())
        self.peers = 1
        self.limits = Limits(self.settings, self.metrics, lambda: self.peers)
        self.health = Health("ingress", "ingress-1")
        self.health.set("starting", None)
        self.relay = Relay(
            self.settings,
            ingress="ingress-1",
            nodes=self.nodes,
            trust=self.trust,
            limits=self.limits,
            metrics=self.metrics,
            health=self.health,
        )
        self.listener = Listener(self.settings, self.metrics, self.relay.handle)

    async def __aenter__(self) -> Ingress:
        await self.listener.open()
        self.nodes.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.listener.close()
        await self.nodes.close()
        await self.limits.close()

    @property
    def port(self) -> int:
        return self.listener.port

    async def know(self, *nodes: FakeNode, state: str = "ready") -> None:
        """Learn of nodes, and wait until those that are ready are live."""
        for node in nodes:
            self.nodes.update(node.id, node.record(state))
        wanted = {node.id for node in nodes if node.ready and not node.silent and state == "ready"}
        async with asyncio.timeout(DEADLINE):
            while not wanted <= self.nodes.live:
                await self.nodes.changed(1)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change of membership that makes `condition` true."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await self.nodes.changed(0.2)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def settled(self, condition: Callable[[], bool]) -> None:
        """Wait for what follows by itself within a few turns of the loop (a counter, a closed connection)."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await self.nodes.changed(0.005)


class Event:
    def __init__(self, block: bytes) -> None:
        self.block = block
        self.name = self.id = self.text = ""
        for line in block.decode().split("\n"):
            name, _, text = line.partition(": ")
            match name:
                case "event":
                    self.name = text
                case "id":
                    self.id = text
                case "data":
                    self.text = text

    @property
    def data(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.text)
        return parsed


class EventClient:
    """Reads one event stream byte by byte off a chunked response; `ended` tells a clean end from a broken one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.events: list[Event] = []
        self.ended = False
        self._rest = b""

    @classmethod
    async def open(
        cls, port: int, query: str = "", *, method: str = "GET", path: str = "", body: bytes = b"", **headers: str
    ) -> EventClient:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = cls(reader, writer)
        opened.append(writer)
        path = path or f"/v1/sessions/{SID}/events"
        target = f"{path}?{query}" if query else path
        fields = {"host": f"127.0.0.1:{port}", **{name.replace("_", "-"): text for name, text in headers.items()}}
        if body:
            fields["content-length"] = str(len(body))
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {text}\r\n" for name, text in fields.items())
        writer.write(head.encode() + b"\r\n" + body)
        async with asyncio.timeout(DEADLINE):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        client.status = int(lines[0].split(" ")[1])
        client.headers = {n.lower(): t.strip() for n, _, t in (line.partition(":") for line in lines[1:] if line)}
        return client

    async def next(self) -> Event | None:
        """The next event; None at the clean end. Raises IncompleteReadError where the connection breaks."""
        async with asyncio.timeout(DEADLINE):
            while b"\n\n" not in self._rest:
                data = await self._chunk()
                if not data:
                    self.ended = True
                    return None
                self._rest += data
        block, _, self._rest = self._rest.partition(b"\n\n")
        event = Event(block)
        self.events.append(event)
        return event

    async def _chunk(self) -> bytes:
        if "content-length" in self.headers:
            return await self._reader.read(65536) if not self.events else b""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = await self._reader.readexactly(size + 2)
        return data[:-2]

    async def until(self, name: str) -> Event:
        while (event := await self.next()) is not None:
            if event.name == name:
                return event
        raise AssertionError(f"no {name}; saw {self.names}")

    async def tokens(self, total: int) -> None:
        """Read until so many token events have come."""
        while sum(event.name == "token" for event in self.events) < total:
            assert await self.next() is not None, self.names

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def transcript(self) -> str:
        return "".join(event.data["text"] for event in self.events if event.name == "token")

    def close(self) -> None:
        self._writer.close()


def expected(count: int) -> str:
    return "".join(f"7.{index} " for index in range(count))


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


class Raw:
    """A socket: what is sent is exactly what is said."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Raw:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        opened.append(writer)
        return cls(reader, writer)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def flush(self) -> None:
        await self.writer.drain()
        await asyncio.sleep(0)

    async def answer(self, *, bodiless: bool = False) -> Answer:
        async with asyncio.timeout(DEADLINE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {n.lower(): t.strip() for n, _, t in (line.partition(":") for line in lines[1:] if line)}
            body = b""
            if bodiless:
                pass
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
        return Answer(int(lines[0].split(" ")[1]), headers, body)

    async def closed(self) -> bool:
        """Whether the other side closes, without another byte."""
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read(1) == b""


opened: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
async def close_clients() -> AsyncIterator[None]:
    """Every connection that a test opened is closed with it."""
    yield
    for writer in opened:
        writer.close()
    for writer in opened:
        with contextlib.suppress(OSError):  # reset by a test that wanted it so
            await writer.wait_closed()
    opened.clear()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def stack(close_clients: None) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def multiplex() -> bool:
    """Whether fake nodes serve many streams on one connection."""
    return False


@pytest.fixture
async def node(stack: AsyncExitStack, log: Log, multiplex: bool) -> Callable[..., Any]:
    """Starts fake nodes over the same log."""

    async def start(name: str, **options: Any) -> FakeNode:
        made = await FakeNode(name, log, **{"multiplex": multiplex, **options}).start()
        stack.push_async_callback(made.stop)
        return made

    return start


@pytest.fixture
async def ingress(stack: AsyncExitStack, node: Callable[..., Any]) -> Callable[..., Any]:
    """Starts an ingress (after the nodes, so that it ends before them)."""

    async def start(*nodes: FakeNode, **settings: Any) -> Ingress:
        made = await stack.enter_async_context(Ingress(**settings))
        await made.know(*nodes)
        return made

    return start
