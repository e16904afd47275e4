"""The node as a process: who may stay and who may come while it cannot know, and how it leaves."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from broker.bus.clock import now_ms
from broker.bus.credentials import CLOCK_HEADER
from broker.bus.errors import BusUnavailable
from broker.bus.follow import Follow
from broker.bus.health import serve
from broker.bus.kv import Bucket, Watch
from broker.bus.log import stream_info
from broker.bus.nats import Bus, Heard, Msg
from broker.bus.records import Node, Revocation, decode, encode
from broker.bus.retry import PAUSE
from broker.bus.settings import load
from broker.bus.subjects import log_stream, worker_subject
from broker.node import role, viewers
from broker.node import tail as tail_module
from broker.node.settings import NodeSettings
from tests.broker.node.test_sse import Wire
from tests.control.okome import until
from tests.fixtures.clock import clock_off
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import RunningNode, running_node


async def ready(node: RunningNode) -> bool:
    return (await node.http.get("/readyz")).status_code == 200


async def not_ready(node: RunningNode, why: str = "") -> bool:
    answer = await node.http.get("/readyz")
    return answer.status_code != 200 and why in answer.text


async def state(node: RunningNode) -> str:
    entry = await Bucket(node.bus, "nodes").get(node.id)
    return decode(entry.value, Node).state if entry else "gone"


async def test_a_revocation_ends_open_streams_within_a_second(node: RunningNode) -> None:
    other, took = await node.session(), []
    async with node.events(other.sid) as beside:
        await beside.until("caught_up")
        for _ in range(3):  # the machine may be busy elsewhere, but not every time
            author = await node.session()
            async with node.events(author.sid) as events:
                await events.until("caught_up")
                await Bucket(node.bus, "revoked").put(f"sid.{author.sid}", encode(Revocation(now_ms(), "test")))
                began = asyncio.get_running_loop().time()
                (closed,) = await events.rest()
                took.append(asyncio.get_running_loop().time() - began)
            assert json.loads(closed["data"])["code"] == "token_revoked"
        assert min(took) < 1
        await other.answer(1)
        await beside.until("done")


async def test_a_node_tells_its_time_to_whoever_asks_how_it_is(node: RunningNode) -> None:
    """By it an ingress dates what it says to this node, which believes nothing old."""
    for offset in (0, 300, -240):
        with clock_off(offset):
            answer = await node.http.get("/readyz")
            assert abs(int(answer.headers[CLOCK_HEADER]) - now_ms()) < 30_000


async def test_a_token_that_runs_out_ends_its_stream(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "LEEWAY", 0)
    author = await node.session()
    async with node.events(author.sid, headers=node.bearer(author.sid, life=2)) as events:  # whole seconds: one is none
        await events.until("caught_up")
        (closed,) = await events.rest()
    assert json.loads(closed["data"])["code"] == "token_expired"


@pytest.fixture
async def deaf(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RunningNode, asyncio.Event]]:
    """A node whose watch of revocations hears nothing once the event is set, in a quicker time."""
    monkeypatch.setattr(role, "STALE_TIMEOUT", 0.1)
    monkeypatch.setattr(role, "STALE_LIMIT", 4.0)
    cut = asyncio.Event()
    receive = Follow._receive

    def lossy(self: Follow, msg: Heard) -> None:
        if cut.is_set() and self.stream == "KV_revoked":
            self._silence.hear(asyncio.get_running_loop().time())  # as if by heartbeats from a minority
        else:
            receive(self, msg)

    monkeypatch.setattr(Follow, "_receive", lossy)
    async with running_node(fresh_nats, "node-deaf") as node:
        yield node, cut


async def test_while_revocations_may_be_missing_nobody_new_comes_and_soon_nobody_stays(
    deaf: tuple[RunningNode, asyncio.Event],
) -> None:
    node, cut = deaf
    author = await node.session()
    async with node.events(author.sid) as events:
        await events.until("caught_up")
        cut.set()
        await Bucket(node.bus, "revoked").put("sid.somebodyelse", encode(Revocation(now_ms(), "test")))
        began = asyncio.get_running_loop().time()
        await until(lambda: put_off(node, author.sid), "a new stream is put off")
        assert asyncio.get_running_loop().time() - began < 3, "long before the others must go"
        await author.answer(1)
        await events.until("done")  # who is here goes on for a while
        await until(lambda: not_ready(node), "it says so")
        (closed,) = await events.rest()
        assert json.loads(closed["data"])["code"] == "unavailable"
        assert json.loads(closed["data"])["retry_after_ms"] > 0
    cut.clear()
    await until(lambda: admitted(node, author.sid), "it hears again")


async def put_off(node: RunningNode, sid: str) -> bool:
    return not await admitted(node, sid)


async def admitted(node: RunningNode, sid: str) -> bool:
    """Whether a new stream begins; otherwise it is 200, `retry:` and `closed`."""
    async with node.events(sid, after="now") as events:
        assert events.response.status_code == 200
        return (await events.next())["event"] == "hello"


async def test_revocations_that_have_aged_out_are_not_missing(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that starts after the newest entries are gone never sees their sequences, and needs none."""
    monkeypatch.setattr(role, "STALE_TIMEOUT", 0.02)
    async with running_node(fresh_nats, "node-first") as node:
        await Bucket(node.bus, "revoked").put("sid.longago", encode(Revocation(now_ms(), "test")))
        await node.bus.api("STREAM.PURGE.KV_revoked")
    judged: list[bool | None] = []
    missed = role._missed

    async def counted(bus: Bus, revoked: Watch) -> bool:
        judged.append(await missed(bus, revoked))
        return bool(judged[-1])

    monkeypatch.setattr(role, "_missed", counted)
    async with running_node(fresh_nats, "node-second") as node:
        author = await node.session()
        await until(lambda: len(judged) > 5, "it has looked more often than it may miss")
        assert not any(judged)
        assert await admitted(node, author.sid)


async def test_a_tail_that_is_lost_makes_the_node_unready_and_puts_new_viewers_off(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(tail_module, "LAG_TIMEOUT", 0.2)
    silent = False
    info = stream_info

    async def leader(*args: object, **options: object) -> object:
        if silent:
            raise BusUnavailable("the leader is on the other side")
        return await info(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tail_module, "stream_info", leader)
    async with running_node(fresh_nats, "node-lost") as node:
        author = await node.session()
        assert await admitted(node, author.sid)
        silent = True
        await until(lambda: put_off(node, author.sid), "new viewers are put off")
        # It may be unready before for another reason, and for a moment only: it looks for another server meanwhile.
        await until(lambda: not_ready(node, "partitions cannot be followed"), "it is not ready, and says why")
        assert (await node.http.get("/livez")).status_code == 200
        silent = False
        await until(lambda: ready(node), "it is ready again")
        assert await admitted(node, author.sid)


async def test_before_keys_are_known_the_answer_is_come_back(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 401 would be believed for ever by an EventSource."""
    hold = asyncio.Event()
    watch = role._watch

    async def slowly(*args: object) -> object:
        await hold.wait()
        return await watch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(role, "_watch", slowly)
    ports: list[int] = []

    def served(*args: object, **options: object) -> object:
        context = serve(*args, **options)  # type: ignore[arg-type]
        enter = context.__aenter__

        class Told:
            async def __aenter__(self) -> int:
                ports.append(await enter())
                return ports[0]

            async def __aexit__(self, *error: object) -> object:
                return await context.__aexit__(*error)  # type: ignore[arg-type]

        return Told()

    monkeypatch.setattr(role, "serve", served)
    stop = asyncio.Event()
    running = asyncio.create_task(role.main(load(NodeSettings, id="node-s", nats_url=fresh_nats.url), stop))
    try:
        await until(lambda: ports, "it listens")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}") as http:
            stream = await http.get("/v1/sessions/00aaaaaaaaaa/events", headers={"authorization": "Bearer x"})
            assert (stream.status_code, stream.text.splitlines()[0]) == (200, "retry: 1000")
            assert '"code":"unavailable"' in stream.text
            answer = await http.get("/v1/models", headers={"authorization": "Bearer x"})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert (await http.get("/readyz")).status_code == 503
            assert (await http.get("/")).status_code == 200
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_node_without_okome_waits_for_it_and_ends_when_it_is_told(fresh_nats: NatsServer) -> None:
    """Buckets that are not there are no reason to end, however long they take; and waiting is none not to."""
    stop = asyncio.Event()
    running = asyncio.create_task(role.main(load(NodeSettings, id="node-s", nats_url=fresh_nats.url), stop))
    await asyncio.sleep(2 * PAUSE)
    assert not running.done()
    stop.set()
    async with asyncio.timeout(5):
        await running


async def test_a_node_that_is_told_to_stop_says_so_first_then_sends_everybody_on(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not ready, `draining` in its entry, nobody new; then `reconnect` with a place to go on from; then it is gone."""
    monkeypatch.setattr(role, "DRAIN_NOTICE", 2.0)
    async with running_node(fresh_nats, "node-d") as node:
        author = await node.session()
        await author.answer(3)
        async with node.events(author.sid, after="0") as events, node.events(author.sid) as second:
            await events.until("caught_up")
            await second.until("caught_up")
            asked = asyncio.get_running_loop().time()
            node.stop.set()
            await until(lambda: not_ready(node), "it is not ready", 1.9)
            assert await put_off(node, author.sid), "nobody new"
            await until(lambda: draining(node), "its entry says so", 1.9)
            (reconnect,) = await events.rest()
            said = json.loads(reconnect["data"])
            assert reconnect["event"] == "reconnect"
            assert "id" not in reconnect
            assert said["cursor"] == f"{await node.incarnation()}-{author.seqs[-1]}"
            assert 0 <= said["after_ms"] < 1000
            assert (await second.rest())[-1]["event"] == "reconnect"
        await until(lambda: gone(node), "its entry is gone")
        assert asyncio.get_running_loop().time() - asked < 3.8, "well before drain_timeout"


async def test_other_nodes_follow_what_a_leaving_nodes_viewers_read_before_these_come(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer that changes nodes waits for no tail to start: nobody has read this partition at the other node."""
    monkeypatch.setattr(role, "DRAIN_NOTICE", 3.0)
    async with running_node(fresh_nats, "node-d") as leaving, running_node(fresh_nats, "node-e") as other:
        author = await leaving.session("01")
        await author.answer(3)

        async def followed(times: int) -> bool:
            info = await other.bus.api(f"STREAM.INFO.{log_stream('01')}")
            return bool(info["state"]["consumer_count"] == times)

        async with leaving.events(author.sid, after="0") as events:
            await events.until("caught_up")
            await until(lambda: followed(1), "the node with the viewer follows")
            leaving.stop.set()
            await until(lambda: followed(2), "the other one follows too", 2.8)


async def draining(node: RunningNode) -> bool:
    return await state(node) == "draining"


async def gone(node: RunningNode) -> bool:
    return await state(node) == "gone"


async def test_a_node_ends_within_its_deadline_also_with_a_reader_that_never_reads(fresh_nats: NatsServer) -> None:
    async with running_node(fresh_nats, "node-late") as node:
        author = await node.session()
        stuck = Wire(node, f"/v1/sessions/{author.sid}/events?after=0", node.bearer(author.sid), receive_buffer=4096)
        try:
            await stuck.until(b"caught_up")
            await author.start()
            await author.tokens(400, "x" * 16_000)
            asked = asyncio.get_running_loop().time()
            node.stop.set()
            await until(lambda: gone(node), "its entry is gone")
            assert 1.5 < asyncio.get_running_loop().time() - asked < 4, "drain_timeout is 2 s here"
        finally:
            stuck.close()


async def test_workers_are_told_whether_anybody_keeps_up(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewers, "DEMAND_INTERVAL", 0.1)
    async with running_node(fresh_nats, "node-dem") as node:
        heard: asyncio.Queue[dict[str, str]] = asyncio.Queue()

        async def hear(msg: Msg) -> None:
            heard.put_nowait(json.loads(msg.data))

        await node.bus.subscribe(worker_subject("w1", "demand"), hear)
        author = await node.session()
        async with node.events(author.sid, after="0") as events:
            await author.start()
            await events.until("start")
            said = await asyncio.wait_for(heard.get(), 5)
            assert said == {"sids": [author.sid], "node": "node-dem", "state": "flowing"}


async def test_what_okome_says_of_a_queued_generation_reaches_its_viewers(node: RunningNode) -> None:
    author = await node.session()
    said = {"sid": author.sid, "generation_id": "g1", "input": [{"role": "user", "content": "x"}], "position": 2}
    async with node.events(author.sid) as events:
        await events.until("caught_up")
        await node.bus.publish("node.all.queued", json.dumps(said).encode())
        event = await events.next()
    assert event["event"] == "queued"
    assert "id" not in event
    assert json.loads(event["data"]) == {name: value for name, value in said.items() if name != "sid"}


async def test_what_has_begun_is_not_queued_whichever_word_was_quicker(node: RunningNode) -> None:
    author = await node.session()
    async with node.events(author.sid) as events:
        await events.until("caught_up")
        gid = await author.start()
        await events.until("start")
        said = {"sid": author.sid, "generation_id": gid, "input": [], "position": 0}
        await node.bus.publish("node.all.queued", json.dumps(said).encode())
        await node.bus.publish("node.all.queued", json.dumps({**said, "generation_id": "another"}).encode())
        event = await events.next()
    assert json.loads(event["data"])["generation_id"] == "another"


async def test_nodes_of_one_machine_share_a_port_and_whoever_is_left_serves_it(nats: NatsServer) -> None:
    """For clients that no ingress leads: the kernel deals their connections to the processes behind the port."""
    with socket.socket() as taken:  # which keeps the port from others, and does not listen
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        shared = taken.getsockname()[1]
        async with running_node(nats, "node-s1", shared_port=shared) as first:
            async with running_node(nats, "node-s2", shared_port=shared):
                served = {await _served_by(first, shared) for _ in range(40)}
                assert served == {"node-s1", "node-s2"}
            assert {await _served_by(first, shared) for _ in range(5)} == {"node-s1"}


async def _served_by(node: RunningNode, port: int) -> str:
    async with httpx.AsyncClient() as client:
        return str((await client.get(f"http://127.0.0.1:{port}/version")).json()["id"])
