"""What the tests of the bus share: connections, streams of a test's own, and the server twice: bare, in a container."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
from nats.aio.client import Client

from broker.bus.nats import Bus
from broker.bus.subjects import random_id
from compose import nats_server
from compose.up.ports import Ports
from tests.fixtures.nats_server import NatsServer

DEADLINE = 10.0

Connect = Callable[..., Awaitable[Bus]]


async def eventually(condition: Callable[[], object], timeout: float = DEADLINE) -> float:
    """Returns the seconds it took until the condition held; for what announces itself by no event."""
    began = time.monotonic()
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def consumers(bus: Bus, stream: str) -> list[str]:
    """Their names."""
    return (await bus.api(f"CONSUMER.NAMES.{stream}"))["consumers"] or []


async def consumers_left(bus: Bus, stream: str, count: int = 0) -> None:
    """Wait until the stream has so many: whoever deletes one does not wait for it."""
    async with asyncio.timeout(DEADLINE):
        while len(await consumers(bus, stream)) != count:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.005)


async def make_stream(bus: Bus, *, name: str = "", subjects: list[str] | None = None, **config: Any) -> str:
    """A stream with subjects `<name>.>` unless told otherwise; returns its name."""
    name = name or f"T{random_id(10)}"
    config = {"name": name, "subjects": subjects or [f"{name}.>"], "storage": "file", "allow_direct": True} | config
    await bus.api(f"STREAM.CREATE.{name}", config, timeout=DEADLINE)
    return name


async def make_bucket(bus: Bus, **config: Any) -> str:
    """A bucket as docs/bus.md has it: an ordinary NATS KV bucket of one value per key."""
    bucket = f"b{random_id(10)}"
    kv = {"max_msgs_per_subject": 1, "discard": "new", "allow_rollup_hdrs": True, "deny_delete": True}
    await make_stream(bus, name=f"KV_{bucket}", subjects=[f"$KV.{bucket}.>"], **kv, **config)
    return bucket


@asynccontextmanager
async def connected(url: str, name: str = "test", **options: Any) -> AsyncIterator[Bus]:
    bus = await Bus.connect(url, name, **options)
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture(params=["process", "container"])
def nats_url(request: pytest.FixtureRequest) -> str:
    """The shared server as a process and in a container: whoever asks for it runs twice. Without Docker the second
    skips, which under CI is a failure (tests/conftest.py)."""
    if request.param == "container":
        return str(request.getfixturevalue("nats_container_url"))
    return str(request.getfixturevalue("nats").url)


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    """Connected to the shared server, both times."""
    async with connected(nats_url) as bus:
        yield bus


@pytest.fixture
async def local_bus(nats: NatsServer) -> AsyncIterator[Bus]:
    """Connected to the shared server that is a process."""
    async with connected(nats.url) as bus:
        yield bus


@pytest.fixture
async def fresh_bus(fresh_nats: NatsServer) -> AsyncIterator[Bus]:
    """Connected to a server of the test's own."""
    async with connected(fresh_nats.url) as bus:
        yield bus


@contextmanager
def server_with(store: Path, *, name: str = "test", **arguments: Any) -> Iterator[NatsServer]:
    """A server started with other arguments than a lone one's: a seat in a cluster, a configuration folder."""
    store.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nats_server, "arguments", functools.partial(nats_server.arguments, **arguments))
        server = NatsServer(store, name)
    with server:
        yield server


@pytest.fixture
def two_nats(tmp_path: Path) -> Iterator[list[NatsServer]]:
    """Two servers that know nothing of one another."""
    with ExitStack() as stack:
        yield [stack.enter_context(server_with(tmp_path / name, name=name)) for name in ("one", "two")]


@pytest.fixture
def clustered_nats(tmp_path: Path) -> Iterator[list[NatsServer]]:
    """Two servers of one cluster."""
    with Ports() as ports, ExitStack() as stack:
        routes = tuple(f"nats://127.0.0.1:{ports.free()}" for _ in range(2))
        yield [
            stack.enter_context(
                server_with(tmp_path / f"c{index}", name=f"c{index}", seat=nats_server.ClusterSeat(route, routes))
            )
            for index, route in enumerate(routes)
        ]


@pytest.fixture
def guarded_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that knows a worker, who may publish to `allowed.>` and ask JetStream for information."""
    config = tmp_path / "config"
    shutil.copytree(nats_server.CONFIG_DIR, config)
    with (config / "single.conf").open("a") as file:
        file.write(
            'authorization { users: [ { user: worker, password: "s3cret",'
            ' permissions: { publish: ["allowed.>", "$JS.API.INFO"], subscribe: ["_INBOX.>"] } } ] }\n'
        )
    with server_with(tmp_path / "guarded", config_dir=config) as server:
        yield server


async def plain(*servers: str, **options: object) -> Client:
    """nats-py as its documentation has it, only quicker to reconnect."""
    defaults: dict[str, object] = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.05, "error_cb": silent}
    return await nats.connect(list(servers), **(defaults | options))


async def silent(_: Exception) -> None:
    """nats-py would print it."""


async def restarted(server: NatsServer, bus: Bus) -> None:
    """Kill it and start it on its store; returns when the bus is back."""
    server.kill()
    await eventually(lambda: not bus.connected)
    assert not bus.round_trip_ok
    server.start()
    await eventually(lambda: bus.round_trip_ok)


def leave(server: NatsServer) -> None:
    """Put it into lame duck mode."""
    os.kill(server.pid, signal.SIGUSR2)


def at(server: NatsServer) -> str:
    """host:port, as `Bus.server` says it."""
    return urlsplit(server.url).netloc
