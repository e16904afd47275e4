"""WebSockets over legs: messages whole and each once, requests answered whatever happens to the node."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from tests.ingress.conftest import DEADLINE, Raw, expected
from tests.ingress.fake_node import SID, FakeNode, Log
from tests.ingress.socket_viewer import Viewer, viewer

Make = Callable[..., Any]

UPGRADE = (
    b"GET /v1/sessions/%b/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n" % SID.encode()
)


@pytest.fixture(params=[False, True], ids=["own", "shared"])
def multiplex(request: pytest.FixtureRequest) -> bool:
    """Whether a leg is a connection of its own, or one stream of many."""
    return bool(request.param)


def serving(*nodes: FakeNode) -> FakeNode:
    return next(node for node in nodes if node.legs)


async def test_messages_pass_whole_with_who_serves(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    log.tokens(0, 3)
    async with viewer(relay) as client:
        await client.until("caught_up")
        assert client.socket.subprotocol == "okome.v1"
        assert client.names == ["hello", "served_by", "token", "token", "token", "caught_up"]
        assert client.messages[1]["data"] == {"node": "node-a", "ingress": "ingress-1"}
        assert client.transcript == expected(3)
        response = client.socket.response
        assert response is not None
        assert "x-okome-admission" not in response.headers
        assert response.headers["set-cookie"] == "okome_s=1"
    assert a.seen[0].headers["x-okome-relay"]
    assert "sec-websocket-extensions" not in a.seen[0].headers, "no compression upstream"


@pytest.mark.parametrize(("multiplex", "shares", "own"), [(True, True, 0), (True, False, 1)])
async def test_a_node_that_shares_no_socket_gets_one_of_its_own(
    node: Make, ingress: Make, log: Log, shares: bool, own: int
) -> None:
    """One that is older than the ingress serves event streams on the shared connection, and would break it."""
    a = await node("node-a", shares_sockets=shares)
    relay = await ingress(a)
    log.tokens(0, 3)
    async with viewer(relay) as client:
        await client.until("caught_up")
        assert client.transcript == expected(3)
        assert [door.opened for door in a.doors] == [1 - own]


@pytest.mark.parametrize("ws_close", [0, 1012])
async def test_a_lost_or_leaving_node_is_replaced_at_the_last_cursor(
    node: Make, ingress: Make, log: Log, ws_close: int
) -> None:
    nodes = [await node(name, cut_after=5, ws_close=ws_close) for name in ("node-a", "node-b")]
    relay = await ingress(*nodes)
    async with viewer(relay) as client:
        await client.until("caught_up")
        first = serving(*nodes)
        second = next(n for n in nodes if n is not first)
        second.cut_after = -1
        log.tokens(0, 12)
        await client.tokens(12)
        assert client.transcript == expected(12)
        assert client.names.count("hello") == client.names.count("caught_up") == 1
        assert [m["data"]["node"] for m in client.messages if m["event"] == "served_by"] == [first.id, second.id]
        later = second.seen[-1]
        assert later.query["after"] == "inc0-5"
        assert later.headers["x-okome-admission"] == "sealed-by-the-node"
        assert "bearer" not in later.headers["sec-websocket-protocol"]


async def test_a_drain_is_not_shown(node: Make, ingress: Make, log: Log) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    async with viewer(relay) as client:
        await client.until("caught_up")
        first = serving(*nodes)
        await relay.know(first, state="draining")
        first.drain()
        await client.until("served_by")
        log.tokens(0, 3)
        await client.tokens(3)
        assert "reconnect" not in client.names


async def test_a_node_that_does_not_hear_nats_is_left_at_the_last_cursor(node: Make, ingress: Make, log: Log) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    log.tokens(0, 2)
    async with viewer(relay) as client:
        await client.until("caught_up")
        serving(*nodes).deaf = True
        await client.until("served_by")
        log.tokens(2, 3)
        await client.tokens(5)
        assert client.transcript == expected(5)
        assert relay.count("okome_ingress_splices_total", transport="ws", reason="cut_off") == 1


async def test_an_unanswered_request_is_sent_again_on_the_next_leg(node: Make, ingress: Make, log: Log) -> None:
    """By its request_id, and an answered one is not."""
    nodes = [await node("node-a", admission=""), await node("node-b", admission="")]
    relay = await ingress(*nodes)
    async with viewer(relay) as client:
        await client.socket.send(json.dumps({"event": "auth", "data": {"token": "t"}}))
        await client.until("caught_up")
        first = serving(*nodes)
        second = next(n for n in nodes if n is not first)
        await client.socket.send(json.dumps({"event": "generate", "data": {"request_id": "r1", "prompt": "a"}}))
        assert (await client.until("accepted"))["data"]["request_id"] == "r1"
        first.refuse_with = "deaf"
        await client.socket.send(json.dumps({"event": "generate", "data": {"request_id": "r2", "prompt": "b"}}))
        await relay.settled(lambda: any('"r2"' in text for text in first.messages))
        await first.stop()
        assert (await client.until("accepted"))["data"]["request_id"] == "r2"
        assert [json.loads(text)["event"] for text in second.messages] == ["auth", "generate"]


async def test_close_codes_pass(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a", cut_after=0, ws_close=4401)
    relay = await ingress(a)
    log.tokens(0, 1)
    async with viewer(relay) as client:
        assert await client.closed() == 4401


async def test_an_overloaded_node_is_passed_over_and_the_last_one_is_believed(
    node: Make, ingress: Make, log: Log
) -> None:
    nodes = [await node(name, cut_after=0, ws_close=1013) for name in ("node-a", "node-b")]
    relay = await ingress(*nodes)
    log.tokens(0, 1)
    async with viewer(relay) as client:
        assert await client.closed() == 1013
    assert [n.legs for n in nodes] == [1, 1]


async def test_without_a_node_it_is_accepted_put_off_and_closed(ingress: Make) -> None:
    relay = await ingress(leg_timeout=0.2)
    async with viewer(relay) as client:
        closed = await client.until("closed")
        assert closed["data"]["code"] == "unavailable"
        assert await client.closed() == 1013


async def test_a_draining_ingress_closes_1012(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    async with viewer(relay) as client:
        await client.until("caught_up")
        relay.relay.drain()
        assert await client.closed() == 1012


async def test_garbage_frames_end_that_connection_only(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    async with viewer(relay) as client:
        await client.until("caught_up")
        raw = await Raw.open(relay.port)
        raw.send(UPGRADE)
        async with asyncio.timeout(DEADLINE):
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            raw.send(b"\xff" * 64)
            rest = await raw.reader.read()
        assert b"\x88" in rest, "a close frame"
        log.tokens(0, 3)
        await client.tokens(3)


async def test_a_client_that_is_gone_before_its_first_leg_leaves_none_behind(
    node: Make, ingress: Make, multiplex: bool
) -> None:
    """A leg that nobody follows would be served for ever: heartbeats keep it alive, and nobody would close it."""
    a = await node("node-a")
    relay = await ingress(a)
    await relay.settled(lambda: not multiplex or relay.nodes.members["node-a"].mux is not None)
    a.upgrades.clear()
    with socket.create_connection(("127.0.0.1", relay.port)) as client:  # gone before the ingress has even looked
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(UPGRADE)
    await relay.settled(lambda: len(a.seen) == 1 and relay.count("okome_ingress_connections") == 0)
    a.upgrades.set()
    await relay.settled(lambda: a.legs == 1 and a.sockets == 0)


@pytest.mark.parametrize(
    "fields",
    [
        b"sec-websocket-version: 13\r\n",
        b"sec-websocket-key: short\r\nsec-websocket-version: 13\r\n",
    ],
)
async def test_a_bad_upgrade_is_malformed(node: Make, ingress: Make, fields: bytes) -> None:
    """The second time there have been too many as well."""
    a = await node("node-a")
    relay = await ingress(a, session_limit="1/day")
    for _ in range(2):
        raw = await Raw.open(relay.port)
        raw.send(
            b"GET /v1/sessions/%b/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n%b\r\n"
            % (SID.encode(), fields)
        )
        answer = await raw.answer()
        assert (answer.status, answer.error["code"]) == (400, "malformed")
    assert a.seen == []


@pytest.mark.parametrize("version", [b"", b"sec-websocket-version: 8\r\n"])
async def test_another_version_of_the_protocol_is_told_which_is_spoken(
    node: Make, ingress: Make, version: bytes
) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(UPGRADE.replace(b"sec-websocket-version: 13\r\n", version))
    answer = await raw.answer()
    assert (answer.status, answer.error["code"], answer.error["param"]) == (426, "malformed", "sec-websocket-version")
    assert (answer.headers["sec-websocket-version"], answer.headers["upgrade"]) == ("13", "websocket")
    assert await raw.closed()
    assert a.seen == []


async def test_an_upgrade_to_something_else_is_ignored(node: Make, ingress: Make) -> None:
    """As curl --http2 asks."""
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
        b"http2-settings: A\r\n\r\n"
    )
    assert (await raw.answer()).status == 200


async def test_what_is_nested_without_end_is_the_nodes_to_refuse(node: Make, ingress: Make) -> None:
    """It breaks nothing here: it is passed on like every message that is none, and the connection goes on."""
    a = await node("node-a")
    relay = await ingress(a)
    async with viewer(relay) as client:
        await client.until("caught_up")
        await client.socket.send('{"event":"ping","data":' + "[" * 100_000 + "]" * 100_000 + "}")
        await client.socket.send(json.dumps({"event": "generate", "data": {"request_id": "r", "prompt": "x"}}))
        await client.until("accepted")
        assert [len(a.messages), client.names.count("served_by")] == [2, 1]


async def test_an_illegal_id_is_refused_where_a_browser_can_read_it(node: Make, ingress: Make, log: Log) -> None:
    """Accept, then close with the node's code: the status of a refused upgrade is hidden from pages."""
    a = await node("node-a", cut_after=0, ws_close=4400)
    relay = await ingress(a)
    log.tokens(0, 1)
    async with connect(f"ws://127.0.0.1:{relay.port}/v1/sessions/x.y/ws", proxy=None) as socket:
        assert await Viewer(socket).closed() == 4400


async def test_who_pings_and_reads_nothing_is_read_no_further(node: Make, ingress: Make) -> None:
    """A pong for each would wait in memory. What he said before he reads again is heard then."""
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(UPGRADE)
    async with asyncio.timeout(DEADLINE):
        await raw.reader.readuntil(b"\r\n\r\n")
    ping = Frame(Opcode.PING, b"x" * 125).serialize(mask=True)
    for _ in range(1000):
        raw.send(ping * 500)
        try:
            async with asyncio.timeout(0.5):
                await raw.writer.drain()
        except TimeoutError:
            break
    else:
        raise AssertionError("everything that was said is read")
    (connection,) = relay.listener._connections
    assert connection._transport.get_write_buffer_size() < 4 * connection._settings.write_high
    raw.send(Frame(Opcode.TEXT, b'{"event":"ping","data":{}}').serialize(mask=True))
    async with asyncio.timeout(DEADLINE):
        while not a.messages:
            await raw.reader.read(1 << 16)


@pytest.mark.parametrize(("why", "code"), [("internal", 1011), ("malformed", 4400), ("rate_limited", 4429)])
async def test_what_a_node_has_closed_for_good_is_closed(
    node: Make, ingress: Make, log: Log, why: str, code: int
) -> None:
    """Whatever the code says: another node would tell everything again, and close it, too."""
    nodes = [await node(name, cut_after=1, ws_close=code) for name in ("node-a", "node-b")]
    relay = await ingress(*nodes)
    log.add("closed", code=why, message="no more of it here")
    log.tokens(0, 3)
    async with viewer(relay) as client:
        assert await client.closed() == code
        assert client.names == ["hello", "served_by", "closed"]
    assert sum(n.legs for n in nodes) == 1


async def test_a_message_beyond_the_limit_is_1009(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a, body_limit=2048)
    async with viewer(relay) as client:
        await client.until("caught_up")
        await client.socket.send("x" * 4096)
        assert await client.closed() == 1009


async def test_a_client_that_never_waits_for_answers_is_too_fast(node: Make, ingress: Make) -> None:
    a = await node("node-a", refuse_with="deaf")
    relay = await ingress(a)
    async with viewer(relay) as client:
        await client.until("caught_up")
        for index in range(80):
            await client.socket.send(json.dumps({"event": "cancel", "data": {"request_id": f"r{index}"}}))
        assert await client.closed() == 4429
