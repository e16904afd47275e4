"""Follow: every message once, in order, without a gap, whatever happens to its consumer, its server or the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog.testing
from nats.aio.subscription import Subscription

from broker.bus import log, pull
from broker.bus.errors import BusError, BusUnavailable, StoreRejected, WrongLastSequence
from broker.bus.follow import FIRST_ANSWER, Follow
from broker.bus.nats import Bus, Heard
from broker.bus.silence import LONGEST
from tests.broker.bus.conftest import DEADLINE, consumers_left, eventually, make_stream, restarted
from tests.fixtures.nats_server import NatsServer

HEALED = 10.0  # seconds, of which 2 heartbeats of silence, a look every heartbeat and the making take some 2


class Reader:
    """What a follow delivered."""

    def __init__(self) -> None:
        self.got: list[tuple[int, bytes]] = []

    def __call__(self, seq: int, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        self.got.append((seq, data))

    @property
    def sequences(self) -> list[int]:
        return [seq for seq, _ in self.got]


class LossyFollow(Follow):
    """The wire loses the deliveries of the stream sequences in `lose`, once each."""

    lose: set[int]
    lost: list[int]

    def _receive(self, msg: Heard) -> None:
        delivered = pull.parse_reply(msg.reply)
        if delivered is not None and delivered.seq in self.lose:
            self.lose.remove(delivered.seq)
            self.lost.append(delivered.seq)
            return
        super()._receive(msg)


@asynccontextmanager
async def following(
    bus: Bus, stream: str, reader: Reader, *, after: int | None = 0, credit: int = 512
) -> AsyncIterator[Follow]:
    follow = Follow(bus, stream, [f"{stream}.*"], "test", reader, after=after, credit=credit)
    await follow.start()
    try:
        yield follow
    finally:
        await follow.close()


async def fill(bus: Bus, stream: str, count: int, subject: str = "a") -> list[int]:
    return [await log.store(bus, f"{stream}.{subject}", b"%d" % index, timeout=DEADLINE) for index in range(count)]


async def fill_through(bus: Bus, stream: str, count: int) -> None:
    """`count` numbered messages behind their fence, through whatever happens, as a worker does it."""
    last = index = 0
    while index < count:
        try:
            last = await log.store(bus, f"{stream}.a", b"%d" % index, expect_last=last, timeout=0.5)
            index += 1
        except WrongLastSequence as fence:
            if fence.last is None or fence.last <= last:
                continue
            last, index = fence.last, index + 1  # the ack was lost
        except (BusUnavailable, StoreRejected):
            await asyncio.sleep(0.02)


def numbered(count: int) -> list[bytes]:
    return [b"%d" % index for index in range(count)]


async def test_everything_comes_once_in_order(bus: Bus) -> None:
    """More than the credit, before and after the start; `caught_up` when what was there has come."""
    stream, reader = await make_stream(bus), Reader()
    before = await fill(bus, stream, 40)
    async with following(bus, stream, reader, credit=16) as follow:
        await asyncio.wait_for(follow.caught_up.wait(), 5)
        assert reader.sequences[:40] == before
        after = await fill(bus, stream, 40, "b")
        await eventually(lambda: len(reader.got) == 80)
        assert reader.sequences == before + after
        assert follow.restarts == 0
        assert follow.seq == after[-1]


async def test_it_starts_behind_a_sequence_or_now(bus: Bus) -> None:
    stream = await make_stream(bus)
    before = await fill(bus, stream, 5)
    behind, now = Reader(), Reader()
    async with following(bus, stream, behind, after=before[2]), following(bus, stream, now, after=None) as follow:
        assert follow.caught_up.is_set()
        assert follow.seq == before[-1]
        after = await fill(bus, stream, 2)
        await eventually(lambda: len(now.got) == 2 and len(behind.got) == 4)
        assert (behind.sequences, now.sequences) == (before[3:] + after, after)


async def test_a_follow_from_now_that_is_replaced_at_once_misses_nothing(local_bus: Bus) -> None:
    """Its successor starts where "now" was, not where it is by then."""
    stream, reader = await make_stream(local_bus), Reader()
    await fill(local_bus, stream, 3)
    async with following(local_bus, stream, reader, after=None) as follow:
        follow.restart()
        after = await fill(local_bus, stream, 3)
        await eventually(lambda: len(reader.got) == 3)
        assert reader.sequences == after
        assert follow.restarts == 1


async def test_the_last_of_every_subject_then_what_comes(bus: Bus) -> None:
    stream, reader = await make_stream(bus), Reader()
    for subject in ("a", "b", "a", "c"):
        await fill(bus, stream, 1, subject)
    follow = Follow(bus, stream, [f"{stream}.a", f"{stream}.b"], "test", reader, last_per_subject=True)
    await follow.start()
    await asyncio.wait_for(follow.caught_up.wait(), 5)
    assert reader.sequences == [2, 3]
    follow.restart()
    await eventually(lambda: follow.restarts == 1)
    await fill(bus, stream, 1, "b")
    await eventually(lambda: len(reader.got) == 3)
    assert reader.sequences == [2, 3, 5]
    await follow.close()


async def test_caught_up_does_not_wait_for_the_end_of_a_busy_stream(local_bus: Bus) -> None:
    """Two new messages for every one delivered: the end is never reached, what was there at the start has come."""
    stream = await make_stream(local_bus, storage="memory")
    await fill(local_bus, stream, 30)
    growing = True

    class Feeding(Reader):
        def __call__(self, seq: int, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
            super().__call__(seq, subject, data, headers)
            for _ in range(2 if growing else 0):
                local_bus.publish_now(f"{stream}.b", b"")

    reader = Feeding()
    async with following(local_bus, stream, reader, credit=8) as follow:
        await asyncio.wait_for(follow.caught_up.wait(), 5)
        assert len(reader.got) >= 30
        async with asyncio.timeout(DEADLINE):  # what is published is read before it is stored
            while (await log.stream_info(local_bus, stream)).last_seq <= len(reader.got):
                continue
        growing = False


async def test_a_deleted_consumer_is_replaced(bus: Bus) -> None:
    stream, reader = await make_stream(bus), Reader()
    async with following(bus, stream, reader) as follow:
        before = await fill(bus, stream, 5)
        await eventually(lambda: len(reader.got) == 5)
        first = follow._consumer
        await bus.api(f"CONSUMER.DELETE.{stream}.{first}")
        after = await fill(bus, stream, 5)
        await eventually(lambda: len(reader.got) == 10, HEALED)
        assert reader.sequences == before + after
        assert follow.restarts == 1
        assert follow._consumer != first


@pytest.mark.parametrize("lose", [{3}, {1}, {6}, {3, 6}], ids=["inside", "first", "last", "two"])
async def test_a_message_lost_on_the_wire_is_fetched(local_bus: Bus, lose: set[int]) -> None:
    """A jump in the consumer's own count tells; behind the last one nothing comes but a heartbeat, which counts too."""
    stream, reader = await make_stream(local_bus), Reader()
    await fill(local_bus, stream, 6)
    follow = LossyFollow(local_bus, stream, [f"{stream}.*"], "test", reader, after=0)
    follow.lose, follow.lost = set(lose), []
    await follow.start()
    await eventually(lambda: len(reader.got) == 6, HEALED)
    assert reader.sequences == [1, 2, 3, 4, 5, 6]
    assert sorted(follow.lost) == sorted(lose)
    assert 1 <= follow.restarts <= len(lose)
    await follow.close()


async def test_a_killed_server_leaves_no_gap(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    """Its memory consumers are gone without a word; frames are being written all the while."""
    stream, reader = await make_stream(fresh_bus), Reader()
    async with following(fresh_bus, stream, reader) as follow:
        writing = asyncio.create_task(fill_through(fresh_bus, stream, 300))
        await eventually(lambda: len(reader.got) >= 50)
        await restarted(fresh_nats, fresh_bus)
        await writing
        await eventually(lambda: len(reader.got) >= 300, HEALED)
        assert [data for _, data in reader.got] == numbered(300)
        assert follow.restarts >= 1


async def test_a_paused_server_leaves_no_gap(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    stream, reader = await make_stream(fresh_bus), Reader()
    async with following(fresh_bus, stream, reader):
        writing = asyncio.create_task(fill_through(fresh_bus, stream, 200))
        await eventually(lambda: len(reader.got) >= 50)
        fresh_nats.freeze()
        await eventually(lambda: not fresh_bus.connected)
        fresh_nats.thaw()
        await writing
        await eventually(lambda: len(reader.got) >= 200, HEALED)
        assert [data for _, data in reader.got] == numbered(200)


async def test_a_pull_that_expires_is_renewed(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 gives the credit back; without that the follow would starve, or be replaced again and again."""
    requests: list[int] = []
    plain = pull.request

    def short(batch: int, *, heartbeat: float) -> bytes:
        requests.append(batch)
        return plain(batch, expires=1.1, heartbeat=heartbeat)  # longer than two heartbeats, or the server refuses it

    monkeypatch.setattr(pull, "request", short)
    stream, reader = await make_stream(local_bus), Reader()
    async with following(local_bus, stream, reader, credit=8) as follow:
        await eventually(lambda: len(requests) >= 2)
        sequences = await fill(local_bus, stream, 20)
        await eventually(lambda: len(reader.got) == 20)
        assert reader.sequences == sequences
        assert follow.restarts == 0
        assert requests[:2] == [8, 8]


async def test_statuses_end_a_pull_or_a_consumer(local_bus: Bus) -> None:
    """As the server words them; those that a test cannot provoke are said to it."""
    stream, reader = await make_stream(local_bus), Reader()
    async with following(local_bus, stream, reader, credit=8) as follow:
        for description in ("Leadership Change", "Batch Completed"):
            follow._receive_status({"Status": "409", "Description": description, "Nats-Pending-Messages": "8"})
            assert (follow._outstanding, follow._broken.is_set()) == (8, False)
        follow._receive_status({"Status": "409", "Description": "Server Shutdown"})
        await eventually(lambda: follow.restarts == 1)
        sequences = await fill(local_bus, stream, 3)
        await eventually(lambda: reader.sequences == sequences)


@pytest.mark.parametrize("domain", ["", "_.X9.", "hub.X9."], ids=["v1", "v2", "v2 domain"])
async def test_both_forms_of_the_acknowledgement_subject_are_followed(local_bus: Bus, domain: str) -> None:
    class NewForm(Follow):
        def _receive(self, msg: Heard) -> None:
            if domain and msg.reply.startswith("$JS.ACK."):
                msg.reply = f"$JS.ACK.{domain}{msg.reply.removeprefix('$JS.ACK.')}.token"
            super()._receive(msg)

    stream, reader = await make_stream(local_bus), Reader()
    follow = NewForm(local_bus, stream, [f"{stream}.*"], "test", reader, after=0)
    await follow.start()
    sequences = await fill(local_bus, stream, 3)
    await eventually(lambda: reader.sequences == sequences)
    assert follow.restarts == 0
    await follow.close()


async def test_a_consumer_put_on_a_server_that_is_not_there_is_put_on_another(
    local_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster puts it on any server, also on one that just starts: soon given up, then less soon."""
    waited: list[float] = []
    api = local_bus.api

    async def absent(verb: str, body: Mapping[str, Any] | None = None, *, timeout: float = 2.0) -> dict[str, Any]:
        if verb.startswith("CONSUMER.CREATE.") and len(waited) < 2:
            waited.append(timeout)
            raise BusUnavailable("no answer")
        return await api(verb, body, timeout=timeout)

    stream, reader = await make_stream(local_bus), Reader()
    async with following(local_bus, stream, reader) as follow:
        monkeypatch.setattr(local_bus, "api", absent)
        follow.restart()
        sequences = await fill(local_bus, stream, 3)
        await eventually(lambda: reader.sequences == sequences)
        assert waited == [FIRST_ANSWER, 2 * FIRST_ANSWER]


async def test_a_transport_that_is_gone_ends_no_follow(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop raises RuntimeError, and nats-py lets it through where its flusher has ended."""
    failed = 0
    unsubscribe = Subscription.unsubscribe

    async def failing(self: Subscription, limit: int = 0) -> None:
        nonlocal failed
        failed += 1
        if failed <= 2:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
        await unsubscribe(self, limit)

    stream, reader = await make_stream(local_bus), Reader()
    async with following(local_bus, stream, reader) as follow:
        monkeypatch.setattr(Subscription, "unsubscribe", failing)
        for restarts in (1, 2):
            follow.restart()
            await eventually(lambda: follow.restarts == restarts)  # noqa: B023  # awaited here
            sequences = await fill(local_bus, stream, 1)
            await eventually(lambda: reader.sequences[-1:] == sequences)  # noqa: B023
    assert failed >= 3


async def test_hold_stops_asking_and_goes_on(local_bus: Bus) -> None:
    """Overload: what is on its way still arrives, no more is asked for, and the silence is not taken for a death."""
    stream, reader = await make_stream(local_bus), Reader()
    async with following(local_bus, stream, reader, credit=8) as follow:
        follow.hold(True)
        sequences = await fill(local_bus, stream, 30)
        await eventually(lambda: len(reader.got) == 8)
        began = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() - began > LONGEST + 2 * pull.HEARTBEAT)
        assert len(reader.got) == 8
        assert follow.restarts == 0
        follow.hold(False)
        await eventually(lambda: len(reader.got) == 30)
        assert reader.sequences == sequences


async def test_a_held_follow_whose_consumer_was_forgotten_goes_on(local_bus: Bus) -> None:
    """Nobody pulled for INACTIVE: the next pull meets 503, and a new consumer."""
    stream, reader = await make_stream(local_bus), Reader()
    async with following(local_bus, stream, reader, credit=4) as follow:
        follow.hold(True)
        sequences = await fill(local_bus, stream, 10)
        await eventually(lambda: len(reader.got) == 4)
        await local_bus.api(f"CONSUMER.DELETE.{stream}.{follow._consumer}")
        follow.hold(False)
        await eventually(lambda: len(reader.got) == 10, HEALED)
        assert reader.sequences == sequences


async def test_a_reader_that_fails_does_not_stop_what_is_behind(local_bus: Bus) -> None:
    class Fragile(Reader):
        def __call__(self, seq: int, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
            super().__call__(seq, subject, data, headers)
            if seq == 2:
                raise ZeroDivisionError

    stream, reader = await make_stream(local_bus), Fragile()
    with structlog.testing.capture_logs() as logs:
        async with following(local_bus, stream, reader) as follow:
            sequences = await fill(local_bus, stream, 4)
            await eventually(lambda: len(reader.got) == 4)
            assert reader.sequences == sequences
            assert follow.restarts == 0
    assert [each["seq"] for each in logs if each["event"] == "bus.message_failed"] == [2]


async def test_a_stream_that_cannot_be_followed_is_said_so_and_nothing_is_left(local_bus: Bus) -> None:
    subscriptions = len(local_bus._client._subs)
    follow = Follow(local_bus, "NONE", ["x"], "test", Reader(), after=0)
    with pytest.raises(BusError):
        await follow.start()
    assert len(local_bus._client._subs) == subscriptions


async def test_close_leaves_no_consumer_and_no_subscription(bus: Bus) -> None:
    stream = await make_stream(bus)
    subscriptions = len(bus._client._subs)
    async with following(bus, stream, Reader()) as follow:
        assert len(bus._client._subs) == subscriptions + 1
    await follow.close()
    assert len(bus._client._subs) == subscriptions
    await consumers_left(bus, stream)


async def test_an_error_that_nobody_foresaw_does_not_end_the_following(local_bus: Bus) -> None:
    """Whoever follows would wait for ever for what a dead keeper does not fetch."""

    class Strange(Follow):
        failures = 0

        async def _open(self, timeout: float = 2.0) -> None:
            if self.failures and not self._consumer:
                self.failures -= 1
                raise KeyError("a defect")
            await super()._open(timeout)

    stream, reader = await make_stream(local_bus), Reader()
    follow = Strange(local_bus, stream, [f"{stream}.*"], "test", reader, after=0)
    await follow.start()
    try:
        follow.failures = 2
        follow.restart()
        seq = await log.store(local_bus, f"{stream}.a", b"1")
        await eventually(lambda: reader.sequences == [seq], HEALED)
        assert follow.failures == 0, "the fault happened"
    finally:
        await follow.close()
