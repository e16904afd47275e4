"""The viewers of a node: who is let in, and what concerns all who are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from broker.bus.errors import Refusal
from broker.bus.nats import Bus
from broker.bus.settings import load
from broker.node.access import Access, Principal
from broker.node.beats import Beats
from broker.node.settings import NodeSettings
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from broker.node.tail import Tail
from broker.node.tails import Tails
from broker.node.viewers import Viewers
from tests.broker.node.memory_log import SID, MemoryHistory, MemoryLog, MemoryTail

WHO = Principal("acme", "key1", SID, "write")


class SlowTails:
    """Tails that start when the test says so."""

    def __init__(self, tail: MemoryTail) -> None:
        self.tail = tail
        self.asked = asyncio.Semaphore(0)
        self.started = asyncio.Event()

    async def get(self, partition: str) -> Tail:
        self.asked.release()
        await self.started.wait()
        return self.tail


def viewers_over(tails: SlowTails, access: Access | None = None) -> Viewers:
    bus, settings = cast(Bus, None), load(NodeSettings, max_subscribers=2)
    access = access or Access((), trust_loopback=False)
    return Viewers(bus, cast(Tails, tails), MemoryHistory(tails.tail.log), access, cast(Beats, None), settings, "node")


async def open_one(viewers: Viewers) -> Subscriber:
    return await viewers.open(WHO, SID, Start("fresh"), "sse")


@pytest.mark.parametrize(
    "meanwhile",
    [Viewers.drain, lambda viewers: setattr(viewers, "stale", "revocations cannot be read")],
    ids=["it leaves", "it may miss revocations"],
)
async def test_who_waits_for_a_tail_is_not_let_in_where_nobody_is_any_more(
    meanwhile: Callable[[Viewers], None],
) -> None:
    """Nobody would tell it to go, and a node that leaves would wait for it to the last moment."""
    tails = SlowTails(MemoryTail(MemoryLog()))
    viewers = viewers_over(tails)
    opening = asyncio.create_task(open_one(viewers))
    await tails.asked.acquire()
    meanwhile(viewers)
    tails.started.set()
    with pytest.raises(Refusal) as refused:
        await opening
    assert (refused.value.code, len(viewers)) == ("unavailable", 0)
    assert viewers.empty.is_set()


@pytest.mark.parametrize("key", ["key.key1", f"sid.{SID}"])
async def test_who_waits_for_a_tail_while_his_credential_is_revoked_is_not_let_in(key: str) -> None:
    """He is not among the viewers whom that ends."""
    tails = SlowTails(MemoryTail(MemoryLog()))
    access = Access((), trust_loopback=False)
    viewers = viewers_over(tails, access)
    opening = asyncio.create_task(open_one(viewers))
    await tails.asked.acquire()
    access.revocations.take(key, b"{}")
    viewers.revoke(key)
    tails.started.set()
    with pytest.raises(Refusal) as refused:
        await opening
    assert (refused.value.code, len(viewers)) == ("token_revoked", 0)


async def test_a_token_that_was_revoked_before_it_counts_ends_its_stream() -> None:
    tails = SlowTails(MemoryTail(MemoryLog()))
    tails.started.set()
    access = Access((), trust_loopback=False)
    viewers = viewers_over(tails, access)
    subscriber = await viewers.open(WHO, SID, Start("fresh"), "ws")
    access.revocations.take("key.key2", b"{}")
    viewers.renew(subscriber, WHO._replace(subject="key2"))
    assert subscriber.end_reason == "token_revoked"
    viewers.closed(subscriber)


async def test_no_more_are_let_in_than_a_node_may_hold_however_many_wait_at_once() -> None:
    tails = SlowTails(MemoryTail(MemoryLog()))
    viewers = viewers_over(tails)
    opening = [asyncio.create_task(open_one(viewers)) for _ in range(5)]
    for _ in opening:
        await tails.asked.acquire()
    tails.started.set()
    opened = await asyncio.gather(*opening, return_exceptions=True)
    assert ([getattr(one, "code", "") for one in opened], len(viewers)) == (["", "", *["overloaded"] * 3], 2)
    for one in opened:
        if isinstance(one, Subscriber):
            viewers.closed(one)
