"""Event streams over legs: whole events, each once, whatever happens to the node."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from broker.bus.clock import now_ms
from broker.bus.credentials import internal_key, unseal
from broker.bus.errors import CredentialInvalid
from tests.fixtures.clock import clock_off
from tests.ingress.conftest import DEADLINE, EventClient, expected
from tests.ingress.fake_node import SID, FakeNode, Log, Seen

Make = Callable[..., Any]


@pytest.fixture(params=[False, True], ids=["own-connections", "shared-connection"])
def multiplex(request: pytest.FixtureRequest) -> bool:
    """Everything here holds over both."""
    return bool(request.param)


def serving(*nodes: FakeNode) -> FakeNode:
    return next(node for node in nodes if node.legs)


async def test_what_the_node_sends_arrives_as_it_is_with_who_serves(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    log.tokens(0, 3)
    client = await EventClient.open(
        relay.port, authorization="Bearer t", x_okome_relay="forged", x_okome_admission="forged"
    )
    await client.until("caught_up")
    assert client.status == 200
    assert client.headers["content-type"].startswith("text/event-stream")
    assert client.names == ["hello", "served_by", "token", "token", "token", "caught_up"]
    assert client.events[1].data == {"node": "node-a", "ingress": "ingress-1"}
    assert client.events[1].id == ""
    assert client.transcript == expected(3)
    assert "x-okome-admission" not in client.headers
    said = unseal(
        internal_key(json.dumps({"key": relay.key}).encode()), a.seen[0].headers["x-okome-relay"], 30, purpose="relay"
    )
    assert (said["ingress"], said["proto"], said["loopback"]) == ("ingress-1", "http", True)
    assert "x-okome-admission" not in a.seen[0].headers


@pytest.mark.parametrize("offset", [-300, 480])
async def test_what_is_said_to_a_node_is_dated_by_the_nodes_clock(
    node: Make, ingress: Make, log: Log, offset: int
) -> None:
    """It believes nothing that is older than 30 s, by its own clock: of which ours may be minutes off."""
    a = await node("node-a", clock=lambda: now_ms() + offset * 1000)
    relay = await ingress(a)
    log.tokens(0, 1)
    client = await EventClient.open(relay.port, authorization="Bearer t")
    await client.until("caught_up")
    key = internal_key(json.dumps({"key": relay.key}).encode())
    with clock_off(offset):
        assert unseal(key, a.seen[0].headers["x-okome-relay"], 30, purpose="relay")["ingress"] == "ingress-1"
    with pytest.raises(CredentialInvalid):
        unseal(key, a.seen[0].headers["x-okome-relay"], 30, purpose="relay")


@pytest.mark.parametrize("half", [False, True])
async def test_a_killed_node_is_replaced_at_the_last_whole_event(
    node: Make, ingress: Make, log: Log, half: bool
) -> None:
    """The second leg begins at the last cursor, its hello and caught_up are not shown, no event is cut or doubled."""
    nodes = [await node(name, cut_after=5, half=half) for name in ("node-a", "node-b")]
    relay = await ingress(*nodes)
    log.tokens(0, 3)
    client = await EventClient.open(relay.port, "ticket=once", authorization="Bearer t")
    await client.until("caught_up")
    first = serving(*nodes)
    log.tokens(3, 7)
    await client.tokens(10)
    second = next(n for n in nodes if n is not first)
    assert client.transcript == expected(10)
    assert client.names.count("hello") == client.names.count("caught_up") == 1
    assert [e.data["node"] for e in client.events if e.name == "served_by"] == [first.id, second.id]
    assert [e.id for e in client.events if e.name == "token"] == [f"inc0-{i}" for i in range(1, 11)]
    later = second.seen[-1]
    assert later.headers["last-event-id"] == "inc0-5"
    assert later.headers["x-okome-admission"] == "sealed-by-the-node"
    assert "authorization" not in later.headers, "it may have expired: what was admitted counts"
    assert relay.count("okome_ingress_splices_total", transport="sse", reason="lost") == 1


async def test_a_process_that_is_gone_is_replaced(node: Make, ingress: Make, log: Log) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    log.tokens(0, 2)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    await serving(*nodes).stop()
    log.tokens(2, 20)
    await client.tokens(22)
    assert client.transcript == expected(22)
    assert client.names.count("served_by") == 2


async def test_a_leaving_node_is_left_without_the_client_seeing_it(node: Make, ingress: Make, log: Log) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    log.tokens(0, 2)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    first = serving(*nodes)
    await relay.know(first, state="draining")
    first.drain()
    await client.until("served_by")
    log.tokens(2, 5)
    await client.tokens(7)
    assert "reconnect" not in client.names
    assert client.transcript == expected(7)
    assert relay.count("okome_ingress_splices_total", transport="sse", reason="drain") == 1


async def test_a_node_that_does_not_hear_nats_is_left_at_the_last_cursor_and_for_good(
    node: Make, ingress: Make, log: Log
) -> None:
    """It answers its checks and heartbeats its streams. Once it hears again, nobody is moved back."""
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    log.tokens(0, 2)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    first = serving(*nodes)
    first.deaf = True
    await client.until("served_by")
    log.tokens(2, 5)
    await client.tokens(7)
    first.deaf = False
    await relay.until(lambda: relay.nodes.live == {"node-a", "node-b"})
    log.tokens(7, 5)
    await client.tokens(12)
    assert client.transcript == expected(12)
    assert [e.data["node"] for e in client.events if e.name == "served_by"] == [
        first.id,
        next(n.id for n in nodes if n is not first),
    ]
    assert relay.count("okome_ingress_splices_total", transport="sse", reason="cut_off") == 1


async def test_when_no_node_hears_nats_nobody_is_moved(node: Make, ingress: Make, log: Log) -> None:
    """The only server dies and comes back: the nodes notice both one after the other."""
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes, check_interval=0.02, cut_off_after=1.0)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    first = serving(*nodes)
    second = next(n for n in nodes if n is not first)
    member, other = relay.nodes.members[first.id], relay.nodes.members[second.id]
    first.deaf = True
    await relay.settled(lambda: member.deaf_since is not None)
    second.deaf = True
    await relay.settled(lambda: other.deaf_since is not None)
    now = asyncio.get_running_loop().time
    await relay.settled(lambda: now() > other.deaf_since + 1.2)
    second.deaf = False
    await relay.settled(lambda: other.live)
    first.deaf = False
    await relay.settled(lambda: member.live)
    log.tokens(0, 3)
    await client.tokens(3)
    assert client.names.count("served_by") == 1


async def test_a_stream_without_even_a_heartbeat_is_moved(node: Make, ingress: Make, log: Log) -> None:
    """The node answers its checks, but this stream is dead: the silence limit, not the health check, notices."""
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes, silence_timeout=0.3)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    await client.until("served_by")
    assert relay.count("okome_ingress_splices_total", transport="sse", reason="silent") >= 1


async def test_a_frozen_process_is_noticed_and_its_stream_goes_on_within_1500_ms(ingress: Make) -> None:
    """SIGSTOP: connections stay open and nothing comes. Both programs serve the same deterministic log."""
    import signal
    import time

    programs = []
    try:
        nodes = []
        for name in ("node-a", "node-b"):
            program = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.ingress.fake_node", name, stdout=asyncio.subprocess.PIPE
            )
            programs.append(program)
            assert program.stdout is not None
            async with asyncio.timeout(DEADLINE):
                port = int(await program.stdout.readline())
            nodes.append(FakeNode(name, Log(), port=port))
        relay = await ingress(*nodes)
        client = await EventClient.open(relay.port, "after=0")
        await client.tokens(10)
        serves, gaps = client.events[1].data["node"], list[float]()
        while not gaps or (min(gaps) >= 1.5 and len(gaps) < 4):  # once more where this machine stood still itself
            await relay.until(lambda: relay.nodes.live == {"node-a", "node-b"})
            frozen, program = serves, programs[0 if serves == "node-a" else 1]
            program.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            serves = (await client.until("served_by")).data["node"]
            gaps.append(time.monotonic() - started)
            assert serves != frozen
            await client.tokens(sum(e.name == "token" for e in client.events) + 50)
            assert client.transcript == expected(sum(e.name == "token" for e in client.events))
            program.send_signal(signal.SIGCONT)
        assert min(gaps) < 1.5, gaps
        client.close()
    finally:
        for program in programs:
            if program.returncode is None:
                program.send_signal(signal.SIGCONT)
                program.kill()
            await program.wait()
            program._transport.close()  # type: ignore[attr-defined]


async def test_nothing_is_opened_again_after_the_terminal_of_until_done(node: Make, ingress: Make, log: Log) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    log.add("start", generation_id="g1")
    client = await EventClient.open(relay.port, "until=done")
    await client.until("caught_up")
    log.tokens(0, 3)
    log.add("done", finish_reason="stop")
    await client.until("done")
    assert await client.next() is None
    assert client.ended
    assert sum(n.legs for n in nodes) == 1


async def test_a_terminal_stored_during_the_gap_ends_until_done(node: Make, ingress: Make, log: Log) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    log.add("start", generation_id="g1")
    log.tokens(0, 2)
    client = await EventClient.open(relay.port, "until=done")
    await client.until("caught_up")
    await serving(*nodes).stop()
    log.tokens(2, 2)
    log.add("done", finish_reason="stop")
    await client.until("done")
    assert await client.next() is None
    assert client.transcript == expected(4)


async def test_until_done_with_nothing_running_ends_at_caught_up(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    client = await EventClient.open(relay.port, "until=done")
    await client.until("caught_up")
    assert await client.next() is None
    assert a.legs == 1


async def test_204_says_no_length(node: Make, ingress: Make) -> None:
    """RFC 9110, 8.6; whatever the node says."""
    path = f"/v1/sessions/{SID}/events"
    a = await node("node-a", answers={path: lambda _, writer: b"HTTP/1.1 204 X\r\ncontent-length: 0\r\n\r\n"})
    relay = await ingress(a)
    client = await EventClient.open(relay.port, "until=done")
    assert client.status == 204
    assert not {"content-length", "transfer-encoding"} & set(client.headers)


async def test_204_on_the_first_leg_is_passed_on(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    log.add("done")
    relay = await ingress(a)
    client = await EventClient.open(relay.port, "until=done&after=inc0-1")
    assert client.status == 204


async def test_without_a_node_a_stream_is_put_off_with_200(ingress: Make) -> None:
    """EventSource gives up for good on any other status."""
    relay = await ingress(leg_timeout=0.2)
    client = await EventClient.open(relay.port)
    closed = await client.until("closed")
    assert client.status == 200
    assert closed.block.startswith(b"retry: 1000\n")
    assert closed.data["code"] == "unavailable"
    assert closed.data["retry_after_ms"] == 1000


async def test_when_the_last_node_dies_the_stream_is_put_off(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    relay = await ingress(a, leg_timeout=1.0)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    await a.stop()
    closed = await client.until("closed")
    assert closed.data["code"] == "unavailable"
    assert await client.next() is None


async def test_a_node_that_puts_off_is_passed_over(node: Make, ingress: Make, log: Log) -> None:
    """`closed {unavailable}` goes to the client only when every node says so."""
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    first = relay.nodes.choose(SID[:2])
    unwilling = next(n for n in nodes if n.id == first.id)
    unwilling.refuse_with = "unavailable"
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    assert client.events[1].data["node"] != unwilling.id
    for n in nodes:
        n.refuse_with = "overloaded"
    second = await EventClient.open(relay.port)
    closed = await second.until("closed")
    assert closed.data["retry_after_ms"] == 700
    assert await second.next() is None


async def test_a_permanent_refusal_is_a_status(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    body = b'{"error":{"code":"forbidden","message":"no","request_id":"r"}}'
    a.answers[f"/v1/sessions/{SID}/events"] = lambda request, writer: (
        b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    relay = await ingress(a)
    client = await EventClient.open(relay.port)
    assert client.status == 403


def failing(_: Seen, writer: asyncio.StreamWriter) -> bytes:
    body = b'{"error": {"code": "overloaded", "message": "no room"}}'
    return b"HTTP/1.1 503 X\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def test_a_refusal_of_a_post_that_wants_events_is_passed_on_at_once(node: Make, ingress: Make) -> None:
    """Asking everybody again would multiply what OKOME has no room for."""
    path = f"/v1/sessions/{SID}/generations"
    nodes = [await node(f"node-{name}", answers={path: failing}) for name in "ab"]
    relay = await ingress(*nodes)
    client = await EventClient.open(relay.port, method="POST", path=path, body=b"{}", accept="text/event-stream")
    assert (client.status, client.headers["retry-after"]) == (503, "7")
    assert sum(len(each.seen) for each in nodes) == 1


async def test_a_node_that_takes_its_time_to_refuse_such_a_post_is_heard_out(node: Make, ingress: Make) -> None:
    def late(request: Any, writer: asyncio.StreamWriter) -> bytes:
        asyncio.get_running_loop().call_later(0.5, writer.write, failing(request, writer))
        return b""

    path = f"/v1/sessions/{SID}/generations"
    relay = await ingress(await node("node-a", answers={path: late}), leg_timeout=0.2)
    client = await EventClient.open(relay.port, method="POST", path=path, accept="text/event-stream")
    assert (client.status, client.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize("well", [False, True])
async def test_a_stream_that_a_node_fails_to_open_is_opened_by_another_if_that_can(
    node: Make, ingress: Make, log: Log, well: bool
) -> None:
    path = f"/v1/sessions/{SID}/events"
    nodes = [await node(f"node-{name}", answers={path: failing}) for name in "ab"]
    if well:
        nodes.append(await node("node-c"))
    relay = await ingress(*nodes)
    client = await EventClient.open(relay.port)
    assert client.status == 200, "else an EventSource gives up for good"
    event = await client.next()
    assert event is not None
    assert event.name == ("hello" if well else "closed")
    assert all(len(each.seen) <= 1 for each in nodes)
    assert well or all(len(each.seen) == 1 for each in nodes)


async def test_a_permanent_refusal_of_a_later_leg_is_closed(node: Make, ingress: Make, log: Log) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    first = serving(*nodes)
    body = b'{"error":{"code":"token_revoked","message":"revoked","request_id":"r"}}'
    for other in nodes:
        other.answers[f"/v1/sessions/{SID}/events"] = lambda request, writer: (
            b"HTTP/1.1 401 Unauthorized\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
    await first.stop()
    closed = await client.until("closed")
    assert closed.data == {"code": "token_revoked", "message": "revoked"}
    assert "retry_after_ms" not in closed.data
    assert await client.next() is None


async def test_the_answer_to_a_post_goes_on_as_events(node: Make, ingress: Make, log: Log) -> None:
    """POST …/generations with Accept: text/event-stream, its node killed in the middle."""
    nodes = [await node("node-a"), await node("node-b")]
    path = f"/v1/sessions/{SID}/generations"

    def half_an_answer(request: Any, writer: asyncio.StreamWriter) -> None:
        assert request.headers["idempotency-key"]
        part = b'id: inc0-1\nevent: start\ndata: {}\n\nid: inc0-2\nevent: token\ndata: {"offset":0,"text":"7.0 "}\n\n'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        writer.close()

    for n in nodes:
        n.answers[path] = half_an_answer
    log.add("start")
    log.tokens(0, 4)
    log.add("done", finish_reason="stop")
    relay = await ingress(*nodes)
    client = await EventClient.open(
        relay.port, method="POST", path=path, body=b'{"prompt":"x"}', accept="text/event-stream"
    )
    await client.until("done")
    assert await client.next() is None
    assert client.transcript == expected(4)
    assert sum(s.method == "POST" for n in nodes for s in n.seen) == 1
    assert "caught_up" not in client.names


async def test_a_reader_that_stops_holds_kilobytes_and_loses_nothing(node: Make, ingress: Make, log: Log) -> None:
    """The node is not read while the client does not read; what it missed follows when it reads on."""
    a = await node("node-a")
    relay = await ingress(a)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    text = "x" * 2000
    for index in range(4000):
        log.add("token", offset=index, text=text)
    stream = next(iter(relay.relay._streams))
    await relay.settled(lambda: stream._client.congested)
    taken = -1
    while stream.bytes != taken:  # until what is on the way is full
        taken = stream.bytes
        await asyncio.sleep(0.2)
    assert taken < 2_000_000, "nothing is taken from the node meanwhile"
    await client.tokens(4000)
    assert [e.data["offset"] for e in client.events if e.name == "token"] == list(range(4000))


async def test_a_draining_ingress_says_where_to_go_on(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    log.tokens(0, 2)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    relay.listener.stop_accepting()
    relay.relay.drain()
    event = await client.until("reconnect")
    assert event.id == ""
    assert event.data["cursor"] == "inc0-2"
    assert await client.next() is None
    assert await relay.listener.finish(asyncio.get_running_loop().time() + 5) == 0
    assert not relay.health.ready


async def test_a_stream_that_is_asked_for_during_a_drain_is_told_too(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    relay.relay.drain()
    client = await EventClient.open(relay.port)
    assert (await client.next(), client.names) == (client.events[0], ["reconnect"])
    assert await client.next() is None


async def test_a_slow_client_still_gets_the_last_words_of_a_drain(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    for index in range(4000):
        log.add("token", offset=index, text="x" * 2000)
    stream = next(iter(relay.relay._streams))
    await relay.settled(lambda: stream._client.congested)
    relay.listener.stop_accepting()
    relay.relay.drain()
    finished = asyncio.create_task(relay.listener.finish(asyncio.get_running_loop().time() + DEADLINE))
    event = await client.until("reconnect")
    assert await client.next() is None
    assert await finished == 0
    shown = [e for e in client.events if e.name == "token"]
    assert event.data["cursor"] == shown[-1].id


async def test_a_client_that_goes_away_frees_its_leg(node: Make, ingress: Make, log: Log) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    client = await EventClient.open(relay.port)
    await client.until("caught_up")
    client.close()
    await relay.settled(lambda: relay.count("okome_ingress_streams_active", transport="sse") == 0)
    await relay.settled(lambda: not relay.relay._streams)
