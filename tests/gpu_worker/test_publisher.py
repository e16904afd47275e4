"""The writer's way to a real log: lost acks, another writer, a full buffer, a silent NATS."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from nats.aio.client import Client

from broker.bus import log
from broker.bus.chain import Chain
from broker.bus.errors import BusUnavailable
from broker.bus.frames import ATTEMPT, DONE, START, TOKEN, encode_frame
from broker.bus.nats import Bus, Heard, Msg
from broker.bus.subjects import log_subject
from gpu_worker.metrics import Measured
from gpu_worker.outbox import FULL_HIGH, Outbox, State, Stop
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
from tests.fixtures.nats_server import NatsServer
from tests.gpu_worker.bed import SID, Bed

STARTED = (START, {"epoch": 1, "model": "m", "worker": "w1", "input": [], "t": 0})
DONE_EVENT = (DONE, {"finish_reason": "stop", "t": 0})
PROPOSED = b'{"error":{"code":400,"err_code":10164,"description":"a message is being proposed"},"stream":"","seq":0}'


class Lossy(Bus):
    """A connection on which the next `losing` answers to publishes are lost behind the server's back."""

    losing = 0
    lost = 0

    def call(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
    ) -> None:
        if self.losing == 0:
            super().call(subject, payload, headers, on_reply)
            return
        self.losing -= 1

        def lose(msg: Msg | None) -> None:
            self.lost += msg is not None  # it was answered, so it was stored
            on_reply(None)

        super().call(subject, payload, headers, lose)


class Deciding(Bus):
    """A connection to a leader that has lost its quorum: whatever is published is still being proposed."""

    def __init__(self, client: Client, name: str) -> None:
        super().__init__(client, name)
        self.asked = Counter[str]()
        self.enough = 12
        self.often = asyncio.Event()

    def call(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
    ) -> None:
        self.asked[subject] += 1
        if self.asked.total() == self.enough:
            self.often.set()
        asyncio.get_running_loop().call_soon(on_reply, Heard(subject, "", PROPOSED))


def publisher_on(
    bus: Bus, *, sid: str = SID, publishing: Publishing | None = None, lost_timeout: float = 60.0
) -> Publisher:
    outbox = Outbox("g1", 1, "attempt1", Chain())
    return Publisher(publishing or Publishing(bus), sid, outbox, Measured("test"), lost_timeout=lost_timeout)


async def answers(bus: Bus) -> None:
    """Wait until NATS answers again."""
    async with asyncio.timeout(10):
        while True:
            try:
                await bus.request("$JS.API.INFO", timeout=1)
            except BusUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.usefixtures("patient")
async def test_a_lost_ack_costs_no_token_and_doubles_none(bed: Bed) -> None:
    """▸ The retry carries what came meanwhile, is refused by the fence, and goes on from the stored frame's end."""
    bus = await Lossy.connect(bed.url, "lossy")
    assert isinstance(bus, Lossy)
    publisher = publisher_on(bus)
    assert await publisher.write(STARTED)
    said = ""
    for number in range(30):
        if number % 3 == 0:
            bus.losing = 1
        for piece in (f"{number}a ", f"{number}b "):
            publisher.offer(TOKEN, piece, 1)
            said += piece
        await publisher.write()
    bus.losing = 1
    assert await publisher.write(DONE_EVENT)
    assert bus.lost == 11, "the fault happened"
    await bed.ended("g1")
    assert bed.text("g1") == said
    await publisher.close()
    await bus.close()


async def test_a_writer_that_was_overtaken_stops_and_writes_nothing_more(bed: Bed) -> None:
    publisher = publisher_on(bed.bus)
    assert await publisher.write(STARTED)
    chain = publisher.outbox.chain
    intruder = encode_frame(ATTEMPT, "g1", 2, "other", chain.last, 0, 0, {"epoch": 2, "worker": "w2", "t": 0})
    await log.store(bed.bus, f"tok.00.{SID}", intruder, expect_last=chain.last)
    publisher.offer(TOKEN, "a ", 1)
    await asyncio.wait_for(publisher.over.wait(), 5)
    assert publisher.outbox.stopped is Stop.FENCED
    publisher.offer(TOKEN, "b ", 1)
    assert not await publisher.write(DONE_EVENT)
    end = await log.last(bed.bus, "TOK_00", f"tok.00.{SID}")
    assert end is not None
    assert end.data == intruder
    await publisher.close()


async def test_a_full_buffer_pauses_whoever_offers_until_it_is_half_empty(bed: Bed, fresh_nats: NatsServer) -> None:
    publisher = publisher_on(bed.bus)
    assert await publisher.write(STARTED)
    fresh_nats.freeze()
    piece, pieces = "x" * 1024, 0
    while publisher.has_room:
        publisher.offer(TOKEN, piece, 1)
        pieces += 1
    assert pieces == FULL_HIGH // 1024
    fresh_nats.thaw()
    await asyncio.wait_for(publisher.room(), 10)
    assert publisher.outbox.waiting < FULL_HIGH
    assert await publisher.write(DONE_EVENT)
    await bed.ended("g1")
    assert bed.tokens("g1") == pieces
    await publisher.close()


async def test_without_an_answer_for_too_long_an_attempt_is_given_up(bed: Bed, fresh_nats: NatsServer) -> None:
    publisher = publisher_on(bed.bus, lost_timeout=0.5)
    assert await publisher.write(STARTED)
    fresh_nats.freeze()
    publisher.offer(TOKEN, "a ", 1)
    await asyncio.wait_for(publisher.over.wait(), 10)
    assert publisher.outbox.stopped is Stop.LOST
    fresh_nats.thaw()
    await answers(bed.bus)
    await publisher.close()


@pytest.mark.parametrize("before", [True, False])
async def test_leaving_stops_it_at_once_and_late_answers_are_not_heard(bed: Bed, before: bool) -> None:
    publisher = publisher_on(bed.bus)
    if before:
        publisher.stop(Stop.LEFT)
        assert not await publisher.write(STARTED)
    else:
        writing = asyncio.ensure_future(publisher.write(STARTED))
        await asyncio.sleep(0)
        publisher.stop(Stop.LEFT)
        assert not await writing
    await bed.bus.request("$JS.API.INFO")  # behind the answer to the publish
    assert publisher.outbox.state is State.STOPPED
    await publisher.close()


async def test_an_answer_that_decides_nothing_lets_nobody_go_but_the_one_who_tries(fresh_nats: NatsServer) -> None:
    bus = await Deciding.connect(fresh_nats.url, "deciding")
    assert isinstance(bus, Deciding)
    publishing = Publishing(bus)
    first, second = (publisher_on(bus, sid=SID[:-1] + last, publishing=publishing) for last in "xy")
    try:
        for publisher in (first, second):
            publisher.say(STARTED)
        async with asyncio.timeout(10):
            await bus.often.wait()
        assert bus.asked[log_subject(SID[:-1] + "y")] <= 1, "it waits for the first one"
    finally:
        await first.close()
        await second.close()
        await bus.close()
