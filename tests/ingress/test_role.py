"""The role as a process, on a real NATS server: what it learns, how it starts, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.bus.credentials import internal_key, new_internal_key, unseal
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from tests.fixtures.nats_server import NatsServer
from tests.ingress.conftest import DEADLINE, EventClient, Raw, expected
from tests.ingress.fake_node import FakeNode, Log

Make = Callable[..., Any]


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    """A connection to a server of its own, with the two buckets that an ingress watches."""
    server = NatsServer(tmp_path)
    try:
        bus = await Bus.connect(server.url, "test")
        for name in ("keys", "nodes"):
            config = {
                "name": f"KV_{name}",
                "subjects": [f"$KV.{name}.>"],
                "max_msgs_per_subject": 1,
                "allow_direct": True,
            }
            await bus.api(f"STREAM.CREATE.KV_{name}", config)
        bus.url = server.url  # type: ignore[attr-defined]
        yield bus
        await bus.close()
    finally:
        server.close()


@contextmanager
def kept_port() -> Iterator[int]:
    """A free port that nobody else gets meanwhile: bound to be shared, and not listened on."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind(("127.0.0.1", 0))
        port: int = keeper.getsockname()[1]
        yield port


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, nats_url: str, **settings: object) -> Process:
        env = {name: value for name, value in os.environ.items() if not name.startswith("OKOME_")}
        env |= {"OKOME_INGRESS_NATS_URL": nats_url, **{f"OKOME_INGRESS_{n}": str(v) for n, v in settings.items()}}
        command = "import sys; from ingress.role import run; sys.exit(run())"
        return cls(
            await asyncio.create_subprocess_exec(sys.executable, "-c", command, env=env, stderr=asyncio.subprocess.PIPE)
        )

    async def said(self, event: str) -> dict[str, Any]:
        """The next log line with this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE * 2):
            while line := await self.process.stderr.readline():
                if f'"event": "{event}"'.encode() in line:
                    said: dict[str, Any] = json.loads(line)
                    return said
        raise AssertionError(f"ended without {event}")

    async def ended(self) -> tuple[int, str]:
        async with asyncio.timeout(DEADLINE * 2):
            _, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


@pytest.fixture
async def role(bus: Bus) -> AsyncIterator[Make]:
    started: list[Process] = []

    async def start(**settings: object) -> Process:
        started.append(await Process.start(bus.url, **settings))  # type: ignore[attr-defined]
        return started[-1]

    yield start
    for process in started:
        await process.close()


async def test_it_learns_its_key_and_its_nodes_from_the_buckets(bus: Bus, role: Make, node: Make, log: Log) -> None:
    a: FakeNode = await node("node-a")
    key = json.dumps({"key": new_internal_key()}).encode()
    await Bucket(bus, "keys").put("internal", key)
    await Bucket(bus, "nodes").put("node-a", a.record())
    process = await role(ID="ingress-7", SHARED_PORT=0)
    ports = await process.said("ingress.listening")
    await process.said("node.judged")
    log.tokens(0, 5)
    for port in (ports["port"], ports["shared_port"]):
        client = await EventClient.open(port)
        await client.until("caught_up")
        assert client.events[1].data == {"node": "node-a", "ingress": "ingress-7"}
        assert client.transcript == expected(5)
        said = unseal(internal_key(key), a.seen[-1].headers["x-okome-relay"], 30, purpose="relay")
        assert said["ingress"] == "ingress-7"
    raw = await Raw.open(ports["port"])
    text = ""
    async with asyncio.timeout(DEADLINE):
        while 'okome_ingress_nodes{state="up"} 1.0' not in text:  # a node that stands still a moment is suspect
            raw.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            text = (await raw.answer()).body.decode()
    assert 'okome_ingress_streams_active{transport="sse"} 2.0' in text


async def test_two_ingresses_share_a_port_and_hear_each_other(bus: Bus, role: Make, node: Make) -> None:
    await Bucket(bus, "nodes").put("node-a", (await node("node-a")).record())
    with kept_port() as shared:
        processes = [await role(ID=f"ingress-{n}", SHARED_PORT=shared) for n in (1, 2)]
        ports = [(await process.said("ingress.listening"))["port"] for process in processes]
    for process in processes:
        await process.said("node.judged")
    answered: set[str] = set()
    async with asyncio.timeout(DEADLINE):
        while len(answered) < 2:
            raw = await Raw.open(shared)
            raw.send(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            answered.add((await raw.answer()).json["id"])
    assert answered == {"ingress-1", "ingress-2"}
    raw = await Raw.open(ports[0])
    async with asyncio.timeout(DEADLINE):
        while True:
            raw.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            if b"okome_ingress_live 2.0" in (await raw.answer()).body:
                break


async def test_sigterm_drains_and_ends_with_0(bus: Bus, role: Make, node: Make, log: Log) -> None:
    await Bucket(bus, "nodes").put("node-a", (await node("node-a")).record())
    process = await role()
    port = (await process.said("ingress.listening"))["port"]
    await process.said("node.judged")
    log.tokens(0, 1)
    client = await EventClient.open(port)
    await client.until("caught_up")
    process.process.send_signal(signal.SIGTERM)
    assert (await client.until("reconnect")).data["cursor"] == "inc0-1"
    assert await client.next() is None
    assert (await process.ended())[0] == 0
    with pytest.raises(ConnectionRefusedError):
        await Raw.open(port)


async def test_a_busy_port_is_said_and_ends_with_3(role: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for settings in ({"PORT": port}, {"SHARED_PORT": port}):
            code, said = await (await role(**settings)).ended()
            assert code == 3
            assert f"127.0.0.1:{port}" in said


async def test_wrong_settings_are_said_all_at_once_and_end_with_2(role: Make) -> None:
    code, said = await (await role(PORT="x", KEY_LIMIT="many", BODY_LIMIT="-1")).ended()
    assert code == 2
    assert all(f"OKOME_INGRESS_{name}" in said for name in ("PORT", "KEY_LIMIT", "BODY_LIMIT"))


async def test_without_its_buckets_it_lives_and_is_not_ready(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    process = None
    try:
        process = await Process.start(server.url)
        port = (await process.said("ingress.listening"))["port"]
        raw = await Raw.open(port)
        raw.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await raw.answer()).status == 200
        raw.send(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await raw.answer()).status == 503
    finally:
        if process is not None:
            await process.close()
        server.close()
