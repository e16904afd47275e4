"""▸ A tail that heartbeats proves nothing: the leader is asked. Nobody is served what may be old, and nobody waits for
the slow, the silent or the leaving."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
import pytest

from broker.bus.clock import now_ms
from broker.bus.health import reasons_in
from broker.bus.kv import Bucket
from broker.bus.nats import Bus, Msg
from broker.bus.records import Revocation, encode
from broker.bus.subjects import random_id
from broker.node import role, tail, viewers
from broker.node.cache import HotCache, Kind
from tests.broker.node.faults import Leaderless, Minority
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import RunningNode, running_node

DEADLINE = 15.0
Faulty = TypeVar("Faulty", bound=Bus)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules at a fifth of the time."""
    for module, name in ((tail, "CHECK_INTERVAL"), (tail, "LAG_TIMEOUT"), (viewers, "DEMAND_INTERVAL")):
        monkeypatch.setattr(module, name, getattr(module, name) / 5)


@asynccontextmanager
async def node_on(
    server: NatsServer, kind: type[Faulty], patch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[tuple[RunningNode, Faulty]]:
    """A node whose connection to NATS is of that kind; the test's own is not."""
    made: list[Faulty] = []

    class Kept(kind):  # type: ignore[valid-type, misc]
        @classmethod
        async def connect(cls, *arguments: Any, **options: Any) -> Any:
            bus = await super().connect(*arguments, **options)
            made.append(bus)
            return bus

    patch.setattr(role, "Bus", Kept)
    async with running_node(server, f"node-{random_id(6)}", **settings) as node:
        yield node, made[0]


async def ready(node: RunningNode, wanted: bool) -> None:
    async with asyncio.timeout(DEADLINE):
        while ((await node.http.get("/readyz")).status_code == 200) is not wanted:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.05)


async def put_off(node: RunningNode, sid: str) -> dict[str, Any]:
    """The `closed` that a new stream gets instead of a `hello`: temporary, so a 200 (EventSource)."""
    async with asyncio.timeout(DEADLINE):
        while True:
            async with node.events(sid, after="now") as events:
                assert events.response.status_code == 200
                event = await events.next()
                if event["event"] == "closed":
                    said: dict[str, Any] = json.loads(event["data"])
                    assert said["retry_after_ms"] > 0
                    return said
                assert event["event"] == "hello"
            await asyncio.sleep(0.1)


async def test_a_tail_that_only_heartbeats_is_not_believed(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """▸ The minority side of a cut cluster: the node is not ready and takes nobody until it has caught up. Who watches
    gets every frame."""
    async with node_on(fresh_nats, Minority, monkeypatch) as (node, bus):
        author = await node.session()
        await author.start()
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            bus.deaf = "TOK_00"
            await author.tokens(5)
            await ready(node, False)
            assert (await put_off(node, author.sid))["code"] == "unavailable"
            assert bus.swallowed >= 5, "the fault happened"
            assert bus.kicked, "it did not look for another NATS server"
            bus.deaf = ""
            await ready(node, True)
            await author.done()
            seen = await events.until("done")
        assert [event["data"] for event in seen] == author.data[1:]


async def test_a_partition_without_a_leader_is_not_served_to_newcomers(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    async with node_on(fresh_nats, Leaderless, monkeypatch) as (node, bus):
        author = await node.session()
        await author.start()
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            bus.lost = True
            await ready(node, False)
            assert (await put_off(node, author.sid))["code"] == "unavailable"
            assert bus.refused
            bus.lost = False
            await ready(node, True)
            await author.done()
            assert (await events.until("done"))[-1]["data"] == author.data[-1]


async def test_a_node_that_does_not_hear_nats_says_so_to_whoever_asks(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, so that nodes which are cut off together say so together: ingresses compare."""
    async with node_on(fresh_nats, Bus, monkeypatch) as (node, bus):
        assert reasons_in((await node.http.get("/readyz")).content) == set()
        fresh_nats.freeze()
        async with asyncio.timeout(DEADLINE):
            while bus.round_trip_ok:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        answer = await node.http.get("/readyz")
        assert answer.status_code == 503
        assert "nats" in reasons_in(answer.content)
        fresh_nats.thaw()
        await ready(node, True)


async def test_a_node_that_may_have_missed_a_revocation_takes_nobody_new(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node_on(fresh_nats, Minority, monkeypatch) as (node, bus):
        author = await node.session()
        await author.start()
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            bus.deaf = "KV_revoked"
            await Bucket(node.bus, "revoked").put("sid.00someoneelse", encode(Revocation(now_ms(), "test")))
            assert (await put_off(node, author.sid))["code"] == "unavailable"
            assert bus.swallowed, "the fault happened"
            await author.done()
            await events.until("done")  # what runs goes on
            bus.deaf = ""
            await ready(node, True)


async def test_a_node_that_cannot_know_of_revocations_for_long_lets_its_viewers_go(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 s in truth; they are told to come back, and find a node that knows."""
    monkeypatch.setattr(role, "STALE_TIMEOUT", 0.2)
    monkeypatch.setattr(role, "STALE_LIMIT", 1.0)
    async with node_on(fresh_nats, Minority, monkeypatch) as (node, bus):
        author = await node.session()
        await author.start()
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            bus.deaf = "KV_revoked"
            await Bucket(node.bus, "revoked").put("sid.00someoneelse", encode(Revocation(now_ms(), "test")))
            last = (await events.rest())[-1]
        assert bus.swallowed, "the fault happened"
        assert last["event"] == "closed"
        assert json.loads(last["data"])["code"] == "unavailable"
        assert json.loads(last["data"])["retry_after_ms"] > 0


async def test_a_revoked_session_ends_its_open_streams_within_a_second(node: RunningNode) -> None:
    other, took = await node.session(), []
    async with node.events(other.sid, after="0") as untouched:
        await untouched.until("caught_up")
        for _ in range(3):  # the machine may be busy elsewhere, but not every time
            author = await node.session()
            async with node.events(author.sid, after="0") as events:
                await events.until("caught_up")
                await Bucket(node.bus, "revoked").put(f"sid.{author.sid}", encode(Revocation(now_ms(), "test")))
                began = time.monotonic()
                seen = await events.rest()
                took.append(time.monotonic() - began)
            assert json.loads(seen[-1]["data"])["code"] == "token_revoked"
        assert min(took) < 1
        await other.start()
        assert (await untouched.next())["event"] == "start"


class Stopped:
    """A viewer that has read `hello` and then reads nothing: its socket stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, node: RunningNode, sid: str) -> Stopped:
        url = httpx.URL(node.url)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=4096)
        path = f"/v1/sessions/{sid}/events?after=0"
        bearer = node.bearer(sid)["authorization"]
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {url.host}\r\nauthorization: {bearer}\r\n\r\n".encode())
        stopped = cls(reader, writer)
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"caught_up")
        return stopped

    async def data_until(self, last: str) -> list[str]:
        """Goes on reading: the data of every stored frame, up to `last`."""
        found: list[str] = []
        async with asyncio.timeout(DEADLINE):
            await self._reader.readuntil(b"\r\n")  # the rest of the chunk that was read last
            while not found or found[-1] != last:
                size = int(await self._reader.readline(), 16)
                assert size, "the stream ended"
                chunk = (await self._reader.readexactly(size + 2)).decode()
                found += [line[6:] for line in chunk.split("\n") if line.startswith('data: {"generation')]
        return found

    def close(self) -> None:
        self._writer.close()


async def test_a_reader_that_stops_altogether_disturbs_nobody_and_goes_on_where_it_was(
    fresh_nats: NatsServer,
) -> None:
    """It falls out of its ring and is served from the log; its worker is told when all lag, and when one flows."""
    async with running_node(fresh_nats, ring_frames=16, partition_bytes=65536) as node:
        author = await node.session()
        states: asyncio.Queue[str] = asyncio.Queue()

        async def on_demand(msg: Msg) -> None:
            states.put_nowait(json.loads(msg.data)["state"])

        async def state(wanted: str) -> None:
            async with asyncio.timeout(DEADLINE):
                while await states.get() != wanted:
                    continue

        await node.bus.subscribe("worker.w1.demand", on_demand)
        stopped = await Stopped.open(node, author.sid)
        try:
            await author.start()
            async with node.events(author.sid, after="0") as events:
                # The node may hear of the start only after it has said that it caught up.
                seen = [event for event in await events.until("caught_up") if event["event"] == "start"]
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(author.tokens(700, "z" * 20_000))
                    while len(seen) < 701:
                        seen.append(await events.next())
                assert [event["data"] for event in seen] == author.data
                await state("flowing")
            await state("lagging")  # the quick one has gone
            await author.done()
            assert await stopped.data_until(author.data[-1]) == author.data
        finally:
            stopped.close()


async def test_when_every_viewer_has_gone_nobody_speaks_for_the_session(quick: None, node: RunningNode) -> None:
    """Silence is what a worker's grace counts from."""
    author, other = await node.session(), await node.session()
    told: list[str] = []
    news = asyncio.Event()

    async def on_demand(msg: Msg) -> None:
        told.extend(json.loads(msg.data)["sids"])
        news.set()

    async def hear(sid: str, times: int) -> None:
        told.clear()
        async with asyncio.timeout(DEADLINE):
            while told.count(sid) < times:
                news.clear()
                await news.wait()

    await node.bus.subscribe("worker.w1.demand", on_demand)
    async with node.events(other.sid, after="0"):
        await other.start()
        async with node.events(author.sid, after="0") as events:
            await author.start()
            await events.until("start")
            await hear(author.sid, 1)
        await hear(other.sid, 1)  # a round later
        await hear(other.sid, 1)
        assert author.sid not in told


async def test_a_leaving_node_tells_everybody_where_to_go_on(nats: NatsServer) -> None:
    async with running_node(nats, f"node-{random_id(6)}") as node:
        author = await node.session()
        await author.answer(3)
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            node.stop.set()
            last = (await events.rest())[-1]
        assert last["event"] == "reconnect"
        assert json.loads(last["data"])["cursor"] == f"{await node.incarnation()}-{author.seqs[-1]}"


async def test_a_cache_that_does_not_answer_is_a_cache_that_misses() -> None:
    """50 ms a call, and after a few failures not even that."""
    accepted = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    cache = HotCache(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    began = time.monotonic()
    for _ in range(100):
        assert await cache.get(Kind.PREFIX, "k") is None
        assert await cache.put(Kind.PREFIX, "k", b"v") is False
    assert time.monotonic() - began < 5, "half of what 50 ms a call would take"
    assert accepted, "the fault happened"
    await cache.close()
    server.close()
    await server.wait_closed()
    dead = HotCache("redis://127.0.0.1:1")
    assert await dead.get(Kind.PREFIX, "k") is None
    await dead.close()
