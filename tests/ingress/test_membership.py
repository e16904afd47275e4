"""Who is live, and what becomes of what a node holds that is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from broker.bus.clock import SKEW, now_ms
from broker.bus.mux import MESSAGE, records
from broker.bus.records import Node
from ingress.judgement import Health
from ingress.membership import Member, clock_ahead
from ingress.upstream import NodeLost
from tests.ingress.conftest import EventClient, Ingress, Raw, expected
from tests.ingress.fake_node import SID, FakeNode, Log

Make = Callable[..., Any]


async def test_a_node_that_is_not_ready_gets_nothing_new(node: Make, ingress: Make) -> None:
    a, b = await node("node-a"), await node("node-b")
    relay = await ingress(a, b)
    a.ready = False
    await relay.until(lambda: relay.nodes.live == {"node-b"})
    assert relay.nodes.choose(SID[:2]).id == "node-b"
    a.ready = True
    await relay.until(lambda: relay.nodes.live == {"node-a", "node-b"})


def test_a_node_says_how_far_its_clock_is_ahead_and_is_believed_for_minutes_only() -> None:
    """Whoever plays a node must not be given a word that is good next year."""

    def ahead(said: bytes) -> int:
        return clock_ahead([(b"x-okome-clock", said)], 1_000_000_000)

    assert ahead(b"1000300000") == 300_000
    assert ahead(b"999760000") == -240_000
    assert ahead(b"9000000000") == -ahead(b"0") == SKEW * 1000
    assert ahead(b"") == ahead(b"noon") == ahead(b"-5") == ahead(b"9" * 4000) == clock_ahead([], 5) == 0


async def test_a_nodes_clock_is_learned_anew_with_every_check(node: Make, ingress: Make) -> None:
    """It may be set right, or wrong, while it serves."""
    a = await node("node-a", clock=lambda: now_ms() + 300_000)
    relay = await ingress(a)
    member = relay.nodes.members["node-a"]
    assert abs(member.clock_ahead - 300_000) < 10_000
    a.clock = lambda: now_ms() - 240_000
    await relay.settled(lambda: abs(member.clock_ahead + 240_000) < 10_000)


async def test_a_draining_node_gets_nothing_new(node: Make, ingress: Make) -> None:
    a, b = await node("node-a"), await node("node-b")
    relay = await ingress(a, b)
    await relay.know(a, state="draining")
    assert relay.nodes.live == {"node-b"}


async def test_a_node_that_comes_back_on_its_port_is_live_again(node: Make, ingress: Make) -> None:
    a, b = await node("node-a"), await node("node-b")
    relay = await ingress(a, b)
    member = relay.nodes.members["node-a"]
    await a.stop()
    await relay.until(lambda: member.health is Health.DOWN and relay.nodes.live == {"node-b"})
    assert member.well is None, "it has to be well for a while again to prove anything"
    await a.start()
    await relay.until(lambda: relay.nodes.live == {"node-a", "node-b"})


async def test_a_node_under_a_new_address_replaces_the_old_one(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    again = await node("node-a")
    await relay.know(again)
    assert relay.nodes.members["node-a"].port == again.port


async def test_a_silent_node_is_down_and_what_it_held_is_let_go(node: Make, ingress: Make) -> None:
    a, b = await node("node-a"), await node("node-b")
    relay = await ingress(a, b)
    member = relay.nodes.members["node-a"]
    a.freeze()
    await relay.until(lambda: member.health is Health.DOWN and relay.nodes.live == {"node-b"})
    assert not member.idle
    a.silent = False
    a.thawed.set()
    await relay.until(lambda: member.health is Health.UP)


def test_how_long_a_node_is_well_or_deaf_is_told_by_its_answers_in_a_row() -> None:
    """Well at least from when the first came until the last was asked for; deaf since no sooner than it said so."""
    member = Member(Node("node-a", "http://127.0.0.1:1", "ready", 0, 0), 0.0)
    member.answered(1.0, 1.1, ready=True, deaf=False)
    member.answered(2.0, 2.1, ready=True, deaf=False)
    assert (member.well, member.deaf_since) == ((1.1, 2.0), None)
    member.answered(3.0, 3.1, ready=False, deaf=True)
    member.answered(4.0, 4.1, ready=False, deaf=True)
    assert (member.well, member.deaf_since) == (None, 3.1)
    member.answered(5.0, 5.1, ready=True, deaf=False)
    assert (member.well, member.deaf_since) == ((5.1, 5.0), None)


async def test_a_node_that_does_not_hear_nats_is_cut_off_until_it_does(node: Make, ingress: Make) -> None:
    a, b = await node("node-a"), await node("node-b")
    relay = await ingress(a, b)
    member = relay.nodes.members["node-a"]
    a.deaf = True
    await relay.until(lambda: member.health is Health.CUT_OFF and relay.nodes.live == {"node-b"})
    a.deaf = False
    await relay.until(lambda: member.health is Health.UP)


async def test_a_node_that_is_not_ready_for_another_reason_is_not_cut_off(node: Make, ingress: Make) -> None:
    """A partition without a leader is nobody's own fault: elsewhere its viewers would find nothing either."""
    a, b = await node("node-a"), await node("node-b")
    relay = await ingress(a, b, cut_off_after=0.1, check_interval=0.02)
    member, other = relay.nodes.members["node-a"], relay.nodes.members["node-b"]
    a.ready = False
    await relay.until(lambda: member.health is Health.UNREADY)
    since = other.well[1]
    await relay.settled(lambda: other.well is not None and other.well[1] - since > 0.5)
    assert member.health is Health.UNREADY


async def test_a_request_that_waits_for_a_cut_off_node_is_answered_by_another(node: Make, ingress: Make) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    path = f"/v1/sessions/{SID}/generations"
    first = next(each for each in nodes if each.id == relay.nodes.choose(SID[:2]).id)
    first.answers[path] = lambda seen, writer: b""  # never
    raw = await Raw.open(relay.port)
    raw.send(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % path.encode())
    await relay.settled(lambda: first.seen)
    first.deaf = True
    answer = await raw.answer()
    assert answer.json["node"] != first.id


@pytest.mark.parametrize(("multiplex", "connections"), [(True, 1), (False, 0)])
async def test_streams_share_one_connection_or_have_one_each_where_the_node_has_none_such(
    node: Make, ingress: Make, log: Log, connections: int
) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    clients = [await EventClient.open(relay.port) for _ in range(5)]
    for client in clients:
        await client.until("caught_up")
    assert (len(a.doors), a.legs) == (connections, 5)
    await relay.settled(lambda: relay.count("okome_ingress_node_connections_shared") == connections)


async def test_a_shared_connection_that_answers_nothing_is_given_up_for_a_new_one(
    node: Make, ingress: Make, log: Log
) -> None:
    """Something on the way has forgotten it: the node is well, TCP has not noticed, and no stream may wait for it."""
    a = await node("node-a", multiplex=True)
    relay = await ingress(a)
    log.tokens(0, 3)
    first = await EventClient.open(relay.port)
    await first.until("caught_up")
    a.doors[0].frozen.set()
    second = await EventClient.open(relay.port)
    await second.until("caught_up")
    assert len(a.doors) == 2
    log.tokens(3, 3)
    for client in (first, second):  # the one that was on the old connection has moved, too
        await client.tokens(6)
        assert client.transcript == expected(6)


async def joined(node: Make, ingress: Make) -> tuple[FakeNode, Ingress, Any]:
    """A node, an ingress, and the connection that their streams share, on which one has come to the end of history."""
    a = await node("node-a", multiplex=True)
    relay = await ingress(a)
    await (await EventClient.open(relay.port)).until("caught_up")
    return a, relay, relay.nodes.members["node-a"].mux


async def test_a_node_that_answers_nothing_at_all_keeps_its_shared_connection(node: Make, ingress: Make) -> None:
    """It may be overloaded, or we stood still: what its silence means is judged for all of its connections together."""
    a, relay, mux = await joined(node, ingress)
    a.doors[0].frozen.set()
    mux.open(mux.stream(), b"")
    await relay.settled(lambda: mux._told == mux._opened)
    opened_at = asyncio.get_running_loop().time()
    mux.look(opened_at + 0.1)
    assert not mux.lost, "it was asked that a moment later, and may say both at once"
    mux.look(opened_at + 10)
    assert mux.lost


async def test_a_viewer_that_has_gone_before_its_node_knew_it_is_no_silence(node: Make, ingress: Make) -> None:
    _, relay, mux = await joined(node, ingress)
    gone = mux.stream()
    mux.open(gone, b"GET / HTTP/1.1\r\n\r\n")
    gone.abort()
    mux.stream()  # whoever asked for it gave up before it was opened
    await relay.settled(lambda: mux._seen == mux._opened == gone.id)


async def test_whoever_waits_for_a_node_that_is_forgotten_meanwhile_asks_another(node: Make, ingress: Make) -> None:
    a = await node("node-a", multiplex=True)
    a.upgrades.clear()
    relay = await ingress(a)
    member = relay.nodes.members["node-a"]
    asking = asyncio.create_task(relay.nodes.stream(member))
    await relay.settled(lambda: member.joining is not None)
    relay.nodes._forget(member)
    with pytest.raises(NodeLost):
        await asking


async def test_a_storm_of_viewers_is_told_to_the_node_in_messages_that_it_takes(node: Make, ingress: Make) -> None:
    _, relay, mux = await joined(node, ingress)
    sent: list[bytes] = []
    mux._socket.send = lambda data, text: sent.append(data)
    request = b"GET / HTTP/1.1\r\nx: " + b"y" * 1_000 + b"\r\n\r\n"
    streams = [mux.stream() for _ in range(500)]
    for stream in streams:
        mux.open(stream, request)
    await relay.settled(lambda: sum(map(len, sent)) > 500 * 1_000)
    assert max(map(len, sent)) <= MESSAGE
    told = [(id, data) for message in sent for _, id, data in records(message)]
    assert told == [(stream.id, request) for stream in streams]


async def test_a_node_that_breaks_every_stream_off_is_not_asked_for_ever(node: Make, ingress: Make) -> None:
    """Each viewer is told to come again, and asks each node twice at most: a kept connection may have been closed."""
    a, b = [await node(name, multiplex=True, breaks=True) for name in ("node-a", "node-b")]
    relay = await ingress(a, b, leg_timeout=0.3)
    client = await EventClient.open(relay.port)
    await client.until("closed")
    assert 2 <= sum(door.opened for each in (a, b) for door in each.doors) <= 40
    assert relay.nodes.live == {"node-a", "node-b"}
