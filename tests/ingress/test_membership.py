"""Who is live: judged by silence, and never all at once for a reason of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.bus.clock import SKEW, now_ms
from ingress.membership import Health, clock_ahead, judge
from tests.ingress.fake_node import SID

Make = Callable[..., Any]


def at(silence: float, *, ready: bool = True, refused: bool = False, others_up: bool = True) -> Health:
    return judge(silence, ready=ready, refused=refused, suspect_after=0.5, down_after=1.0, others_up=others_up)


def test_silence_is_suspect_and_then_down() -> None:
    assert at(0.1) is Health.UP
    assert at(0.1, ready=False) is Health.UNREADY
    assert at(0.6) is Health.SUSPECT
    assert at(1.1) is Health.DOWN


def test_when_nobody_else_is_up_silence_proves_nothing() -> None:
    assert at(60.0, others_up=False) is Health.SUSPECT


def test_a_refused_connection_is_down_at_once() -> None:
    assert at(0.0, refused=True, others_up=False) is Health.DOWN


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
    await a.stop()
    await relay.until(lambda: relay.nodes.live == {"node-b"})
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
    await relay.until(lambda: member.health is Health.DOWN)
    assert relay.nodes.live == {"node-b"}
    assert not member.idle
    a.silent = False
    a.thawed.set()
    await relay.until(lambda: member.health is Health.UP)
