"""Frames of many answers that go together: who is told what, and what is in the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import msgspec
import pytest
from prometheus_client import REGISTRY

from broker.bus.chain import Chain
from broker.bus.errors import BusError, BusUnavailable, WrongLastSequence
from broker.bus.frames import DONE, TOKEN, decode_frame, encode_frame, encode_tokens
from broker.bus.log import NO_BATCHES, STREAM_FULL, WRONG_LAST_SEQUENCE, Fenced, last, read_all, store
from broker.bus.nats import Bus
from gpu_worker import batches as shell
from gpu_worker.batches import Batches
from gpu_worker.metrics import Measured
from gpu_worker.outbox import Outbox, State, Stop
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
from gpu_worker.reserve import Reserve
from tests.fixtures.nats_server import NatsServer
from tests.gpu_worker.bed import DEADLINE, SID, Bed
from tests.gpu_worker.slow import STARTED, Slow

STREAM = "TOK_00"


class Willing(Reserve):
    def takes_batches(self, stream: str) -> bool:
        return True


@asynccontextmanager
async def writing(publishing: Publishing, count: int) -> AsyncIterator[list[Publisher]]:
    measured = Measured("test")
    publishers = [
        Publisher(publishing, sid(number), Outbox("g1", 1, f"a{number}", Chain()), measured) for number in range(count)
    ]
    try:
        yield publishers
    finally:
        for publisher in publishers:
            await publisher.close()


def sid(number: int) -> str:
    return f"{SID[:-3]}{number:03}"


@pytest.fixture
async def many(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Publisher]]:
    """Five answers whose first tokens are on their way: one alone, and four together."""
    monkeypatch.setattr(Reserve, "takes_batches", Willing.takes_batches)
    async with writing(Publishing(slow, window=1, batch_from=3), 5) as publishers:
        for publisher in publishers[:2]:
            publisher.say(STARTED)
        slow.answer(1)
        slow.answer(2)
        for publisher in publishers[2:]:
            publisher.say(STARTED)
        for publisher in publishers[:2]:
            publisher.offer(TOKEN, "a ", 1)
        assert (len(slow.sent), slow.unanswered) == (3, 1)
        slow.answer(3)
        assert (len(slow.sent), slow.unanswered) == (7, 1), "four, of which one answer is for all"
        yield publishers


async def test_each_is_told_his_own_sequence(slow: Slow, many: list[Publisher]) -> None:
    slow.answer(7)
    by_number = [publisher.outbox.chain.last for publisher in many]
    assert sorted(by_number) == [3, 4, 5, 6, 7]
    assert [slow.sent[seq - 1][0] for seq in by_number] == [publisher._subject for publisher in many]
    assert {publisher.outbox.state for publisher in many} == {State.IDLE}


async def test_whoever_has_more_meanwhile_says_it_afterwards(slow: Slow, many: list[Publisher]) -> None:
    for publisher in many:
        publisher.offer(TOKEN, "b ", 1)
    assert len(slow.sent) == 7
    slow.answer(7)
    assert len(slow.sent) == 12, "all together"
    slow.answer(12)
    assert {publisher.outbox.chain.next_offset for publisher in many} == {1, 2}


@pytest.mark.parametrize("err_code", [WRONG_LAST_SEQUENCE, STREAM_FULL, NO_BATCHES, 10176])
async def test_where_they_are_refused_each_goes_by_himself_at_once(
    slow: Slow, many: list[Publisher], err_code: int
) -> None:
    slow.refuse(err_code)
    assert (len(slow.sent), slow.unanswered) == (11, 4)
    for publisher in many:
        publisher.offer(TOKEN, "b ", 1)
    for seq in (8, 9, 10):
        slow.answer(seq)
        assert len(slow.sent) == 11, "the turn of all goes on until each was told"
    slow.answer(11)
    assert (len(slow.sent), slow.unanswered) == (16, 1), "the next batch"
    slow.answer(16)
    assert {publisher.outbox.chain.next_offset for publisher in many} == {1, 2}


async def test_a_batch_that_is_refused_for_one_goes_again_in_halves_until_he_is_found(slow: Slow) -> None:
    line, over = [Stub(number) for number in range(40)], list[str]()
    stolen, waiting, stored = line[13], line.copy(), dict[str, int]()
    Batches(slow, Willing(slow)).go(STREAM, lambda: waiting.pop(0) if waiting else None, lambda: over.append(STREAM))
    asked = 0
    while slow.unanswered:
        assert over == []
        subjects = [subject for subject, _ in slow.next_asked()]
        asked += 1
        if stolen.subject in subjects:
            slow.refuse(WRONG_LAST_SEQUENCE, "wrong last sequence: 7")
        else:
            stored |= {subject: seq for seq, subject in enumerate(subjects, len(stored) + 1)}
            slow.answer(len(stored))
    assert over == [STREAM]
    assert [type(answer) for answer in stolen.told] == [WrongLastSequence]
    assert all(one.told == [stored[one.subject]] for one in line if one is not stolen)
    assert asked < 16


async def test_a_turn_is_over_also_where_the_halves_cannot_be_sent(slow: Slow) -> None:
    line, over = [Stub(number) for number in range(40)], list[str]()
    waiting = line.copy()
    Batches(slow, Willing(slow)).go(STREAM, lambda: waiting.pop(0) if waiting else None, lambda: over.append(STREAM))
    slow.gone = True
    slow.refuse(WRONG_LAST_SEQUENCE)
    assert over == [STREAM]
    assert {type(answer) for one in line for answer in one.told} == {BusUnavailable}
    assert {len(one.told) for one in line} == {1}


async def test_an_answer_that_is_not_for_all_of_them_is_none(slow: Slow, many: list[Publisher]) -> None:
    slow.answer(7, lacking=1)
    assert sum(publisher.outbox.state is State.UNDECIDED for publisher in many) == 4


async def test_one_who_fails_when_he_is_told_does_not_keep_it_from_the_others(
    slow: Slow, many: list[Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether he is told or asked, by whom the log would else be waited for for ever."""
    inflight = [publisher for publisher in many if publisher.outbox.state is State.IN_FLIGHT]

    def fail(*answer: object) -> NoReturn:
        raise KeyError(answer)

    with monkeypatch.context() as patched:
        patched.setattr(inflight[0], "answered", fail)
        slow.answer(7)
    assert [publisher.outbox.state for publisher in inflight[1:]] == [State.IDLE] * 3
    inflight[0].stop(Stop.LEFT)
    with monkeypatch.context() as patched:
        patched.setattr(inflight[1], "_load", fail)
        for publisher in many:
            publisher.offer(TOKEN, "b ", 1)
        while slow.unanswered:
            slow.answer(len(slow.sent))
    assert many[0]._turns.waiting == 0
    assert many[0]._turns.ask(STREAM, many[0], first=False)


async def test_no_answer_is_none_for_each(slow: Slow, many: list[Publisher]) -> None:
    slow.lose()
    assert sum(publisher.outbox.state is State.UNDECIDED for publisher in many) == 4


async def test_whoever_was_stopped_meanwhile_does_not_go(slow: Slow, many: list[Publisher]) -> None:
    for publisher in many:
        publisher.offer(TOKEN, "b ", 1)
    many[0].stop(Stop.LEFT)
    slow.answer(7)
    assert len(slow.sent) == 11
    slow.answer(11)
    assert sorted(p.outbox.chain.last for p in many[1:]) == [8, 9, 10, 11]


async def test_where_nobody_is_connected_nobody_waits(slow: Slow, many: list[Publisher]) -> None:
    for publisher in many:
        publisher.offer(TOKEN, "b ", 1)
    slow.gone = True
    slow.answer(7)
    assert {publisher.outbox.state for publisher in many} == {State.UNDECIDED}
    assert many[0]._turns.waiting == 0


# -- on a server -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def made(url: str) -> AsyncIterator[Bus]:
    bus = await Bus.connect(url, "batches")
    try:
        await make(bus)
        yield bus
    finally:
        await bus.close()


async def make(bus: Bus) -> None:
    config = {"name": STREAM, "subjects": ["tok.00.*"], "storage": "file", "allow_direct": True, "allow_atomic": True}
    await bus.api(f"STREAM.CREATE.{STREAM}", config, timeout=DEADLINE)


async def said(bus: Bus, number: int) -> list[int]:
    """What the log holds of an answer, as numbers."""
    stored = await read_all(bus, STREAM, f"tok.00.{sid(number)}")
    frames = [decode_frame(one.data, one.seq) for one in stored]
    texts = [msgspec.json.decode(frame.data)["text"] for frame in frames if frame.type == TOKEN]
    return [int(word) for text in texts for word in text.split()]


async def telling(publishers: Sequence[Publisher], tokens: int) -> AsyncIterator[int]:
    """Whole answers of so many tokens, side by side; yields behind each token of all, and ends when all are over."""
    for publisher in publishers:
        publisher.say(STARTED)
    for index in range(tokens):
        for publisher in publishers:
            publisher.offer(TOKEN, f"{index} ", 1)
        yield index
    for publisher in publishers:
        publisher.say((DONE, {"finish_reason": "stop", "t": 0}))
    for publisher in publishers:
        await publisher.over.wait()


def batched() -> float:
    return REGISTRY.get_sample_value("okome_worker_batched_frames_total") or 0.0


@pytest.mark.parametrize("thieves", [0, 5])
async def test_every_token_once_in_order_and_whoever_was_overtaken_stops(fresh_nats: NatsServer, thieves: int) -> None:
    async with made(fresh_nats.url) as bus:
        publishing = Publishing(bus, window=1)
        await publishing.reserve.learn(STREAM)
        before = batched()
        count, tokens = 120, 60
        async with writing(publishing, count) as publishers, asyncio.timeout(60):
            async for index in telling(publishers, tokens):
                await asyncio.sleep(random.choice([0, 0.002]))
                if index == tokens // 2:
                    for number in range(thieves):
                        await steal(bus, number)
        assert {publisher.outbox.stopped for publisher in publishers[:thieves]} <= {Stop.FENCED}
        assert {publisher.outbox.state for publisher in publishers[thieves:]} == {State.ENDED}
        for number in range(thieves, count):
            assert await said(bus, number) == list(range(tokens))
        for number in range(thieves):
            assert await said(bus, number) == list(range(len(await said(bus, number))))
        assert batched() > before


async def steal(bus: Bus, number: int) -> None:
    """Another attempt writes behind what is there."""
    subject = f"tok.00.{sid(number)}"
    async with asyncio.timeout(DEADLINE):
        while True:
            end = await last(bus, STREAM, subject)
            seq = end.seq if end is not None else 0
            frame = encode_frame("attempt", "g1", 2, "thief", seq, 0, 0, {"epoch": 2, "worker": "w2", "t": 0})
            try:
                await store(bus, subject, frame, expect_last=seq)
                return
            except Exception:  # noqa: BLE001,S112  # he was quicker
                continue


async def test_a_server_that_dies_in_the_middle_loses_nothing_and_doubles_nothing(fresh_nats: NatsServer) -> None:
    async with made(fresh_nats.url) as bus:
        publishing = Publishing(bus, window=1)
        await publishing.reserve.learn(STREAM)
        before = batched()
        count, tokens = 100, 120
        async with writing(publishing, count) as publishers, asyncio.timeout(60):
            async for index in telling(publishers, tokens):
                await asyncio.sleep(0.003)
                if index in (30, 70):
                    await asyncio.to_thread(fresh_nats.kill)
                    await asyncio.to_thread(fresh_nats.start)
            assert {publisher.outbox.state for publisher in publishers} == {State.ENDED}
        assert batched() > before
        for number in range(count):
            assert await said(bus, number) == list(range(tokens))


class Stub:
    """A writer who does as he is told to."""

    def __init__(self, number: int = 0, *, fails: bool = False) -> None:
        self.subject = f"tok.00.{sid(number)}"
        self.told: list[int | BusError] = []
        self._fails = fails

    def go(self) -> None: ...

    def load(self) -> Fenced:
        if self._fails:
            raise KeyError("load")
        return Fenced(self.subject, encode_tokens(TOKEN, "g1", 1, "a", 0, 0, 1, "x"), 0)

    def answered(self, answer: int | BusError) -> None:
        self.told.append(answer)


async def test_a_writer_who_cannot_even_be_asked_does_not_keep_it_from_the_others(slow: Slow) -> None:
    """Or the log would be waited for for ever."""
    batches, over = Batches(slow, Willing(slow)), list[str]()
    line = [Stub(0), Stub(1, fails=True), Stub(2)]
    waiting = line.copy()
    batches.go(STREAM, lambda: waiting.pop(0) if waiting else None, lambda: over.append(STREAM))
    slow.answer(2)
    assert [one.told for one in line] == [[1], [], [2]]
    assert over == [STREAM]


async def test_a_turn_for_many_of_whom_nobody_has_anything_is_over(slow: Slow) -> None:
    over: list[str] = []
    line = [Stub(0, fails=True)]
    Batches(slow, Willing(slow)).go(STREAM, lambda: line.pop(0) if line else None, lambda: over.append(STREAM))
    assert (over, slow.sent) == ([STREAM], [])


async def test_no_more_go_together_than_fit(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "BYTES", 300)
    batches, line = Batches(slow, Willing(slow)), [Stub() for _ in range(10)]
    batches.go(STREAM, lambda: line.pop(0) if line else None, lambda: None)
    assert 0 < len(line) < 9
    assert len(slow.sent) == 10 - len(line)
    slow.answer(len(slow.sent))


@pytest.mark.parametrize(
    ("err_code", "again"), [(10176, False), (NO_BATCHES, False), (STREAM_FULL, True), (WRONG_LAST_SEQUENCE, True)]
)
async def test_a_log_that_takes_no_batch_is_asked_for_none_until_it_is_learnt_anew(
    bed: Bed, err_code: int, again: bool
) -> None:
    reserve = Reserve(bed.bus)
    config = (await bed.bus.api(f"STREAM.INFO.{STREAM}"))["config"]
    await bed.bus.api(f"STREAM.UPDATE.{STREAM}", config | {"allow_atomic": True})
    await reserve.learn(STREAM)
    slow = await Slow.connect(bed.url, "slow")
    assert isinstance(slow, Slow)
    batches, line = Batches(slow, reserve), [Stub(), Stub()]
    assert batches.can(STREAM)
    batches.go(STREAM, lambda: line.pop(0) if line else None, lambda: None)
    slow.refuse(err_code)
    assert batches.can(STREAM) is again
    await slow.close()
