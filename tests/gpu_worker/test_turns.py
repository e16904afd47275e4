"""A few publish to a log at a time; who waits collects, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.bus.chain import Chain
from broker.bus.frames import START, TOKEN, USAGE
from gpu_worker.metrics import Measured
from gpu_worker.outbox import Outbox, State, Stop
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
from gpu_worker.reserve import Reserve
from gpu_worker.turns import Turns
from tests.gpu_worker.bed import DEADLINE, SID
from tests.gpu_worker.slow import STARTED, Slow


class Asking:
    """Those who ask for turns at one log or another, and in which order they got one."""

    def __init__(self, window: int) -> None:
        self.turns = Turns(window)
        self.went: list[str] = []

    def ask(self, name: str, *, first: bool = False) -> None:
        if self.turns.ask(name[0], lambda: self.went.append(name), first=first):
            self.went.append(name)


def test_a_few_go_at_a_time_and_each_that_is_done_lets_the_next_one_go() -> None:
    asking = Asking(window=2)
    for name in ("A1", "A2", "A3", "A4"):
        asking.ask(name)
    assert asking.went == ["A1", "A2"]
    asking.turns.over("A")
    assert asking.went == ["A1", "A2", "A3"]
    for _ in range(3):
        asking.turns.over("A")
    assert asking.went == ["A1", "A2", "A3", "A4"]
    asking.ask("A5")
    asking.ask("A6")
    asking.ask("A7")
    assert asking.went[4:] == ["A5", "A6"], "turns that were over are given again"


def test_one_log_does_not_wait_for_another() -> None:
    asking = Asking(window=1)
    for name in ("A1", "A2", "B1", "B2"):
        asking.ask(name)
    assert asking.went == ["A1", "B1"]
    asking.turns.over("B")
    assert asking.went == ["A1", "B1", "B2"]


def test_first_tokens_go_first_but_every_second_turn_is_the_others() -> None:
    asking = Asking(window=1)
    asking.ask("A0")
    for number in range(3):
        asking.ask(f"A-token{number}")
    for number in range(5):
        asking.ask(f"A-first{number}", first=True)
    for _ in range(8):
        asking.turns.over("A")
    assert asking.went[1:] == [
        *("A-first0", "A-token0", "A-first1", "A-token1", "A-first2", "A-token2"),
        *("A-first3", "A-first4"),
    ]


def test_those_whose_turn_is_over_at_once_are_as_many_as_they_like() -> None:
    """Nobody is connected, say: each fails within its turn. A chain of calls would end with RecursionError."""
    turns = Turns(window=1)
    went = 0

    def fail() -> None:
        nonlocal went
        went += 1
        turns.over("A")

    assert turns.ask("A", fail, first=False)
    for _ in range(100_000):
        assert not turns.ask("A", fail, first=False)
    turns.over("A")
    assert went == 100_000
    assert turns.ask("A", fail, first=False)


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.sampled_from(["ask", "first", "over"]), max_size=200))
def test_no_more_than_the_window_are_on_their_way_and_everybody_has_his_turn_once(
    window: int, steps: list[str]
) -> None:
    asking = Asking(window)
    asked = over = 0
    for step in steps:
        if step == "over":
            if over == len(asking.went):
                continue
            over += 1
            asking.turns.over("A")
        else:
            asking.ask(f"A{asked}", first=step == "first")
            asked += 1
        assert len(asking.went) == min(asked, over + window)
    assert len(set(asking.went)) == len(asking.went)


@asynccontextmanager
async def writing(slow: Slow, count: int, window: int) -> AsyncIterator[list[Publisher]]:
    """So many answers in one log, whose sids end with their numbers."""
    publishing, measured = Publishing(slow, turns=Turns(window)), Measured("test")
    publishers = [
        Publisher(publishing, f"{SID[:-1]}{number}", Outbox("g1", 1, "a", Chain()), measured) for number in range(count)
    ]
    try:
        yield publishers
    finally:
        for publisher in publishers:
            await publisher.close()


def start(slow: Slow, *publishers: Publisher) -> None:
    """One after another, each stored."""
    for seq, publisher in enumerate(publishers, start=1):
        publisher.say(STARTED)
        slow.answer(seq)


async def test_what_comes_while_one_waits_for_his_turn_is_one_frame(slow: Slow) -> None:
    async with writing(slow, 2, window=1) as (one, other):
        start(slow, one, other)
        one.offer(TOKEN, "a ", 1)
        for piece in ("b ", "c ", "d "):
            other.offer(TOKEN, piece, 1)
        assert [frame.n for _, frame in slow.sent[2:]] == [1]
        assert other._turns.waiting == 1, "once, whatever comes"
        slow.answer(3)
        assert [(frame.offset, frame.n) for _, frame in slow.sent[3:]] == [(0, 3)]
        slow.answer(4)


async def test_an_answer_that_begins_goes_before_those_that_run(slow: Slow) -> None:
    async with writing(slow, 3, window=1) as (one, other, new):
        start(slow, one, other)
        for seq, publisher in enumerate((one, other), start=3):
            publisher.offer(TOKEN, "a ", 1)
            slow.answer(seq)
        other.say((USAGE, {}))  # it runs all the same
        slow.answer(5)
        for publisher in (one, other):
            publisher.offer(TOKEN, "b ", 1)
        new.say(STARTED)
        new.offer(TOKEN, "a ", 1)
        for seq in range(6, 10):
            slow.answer(seq)
        assert [(subject[-1], frame.type) for subject, frame in slow.sent[5:]] == [
            *(("0", TOKEN), ("2", START), ("1", TOKEN), ("2", TOKEN)),
        ]


async def test_who_is_stopped_while_he_waits_holds_up_nobody(slow: Slow) -> None:
    async with writing(slow, 3, window=1) as (one, other, third):
        for publisher in (one, other, third):
            publisher.say(STARTED)
        await other.close()
        await one.close()
        assert slow.unanswered == 1
        slow.answer(1)  # of one that does not hear it any more: its turn is over all the same
        assert [subject[-1] for subject, _ in slow.sent] == ["0", "2"]
        slow.answer(2)
        assert third.outbox.state is State.IDLE
        assert one.outbox.stopped is Stop.LEFT


async def test_whoever_cannot_be_published_for_holds_up_nobody_else(slow: Slow) -> None:
    async with writing(slow, 3, window=1) as (one, broken, third):
        slow.unsendable = broken._subject
        for publisher in (one, broken, third):
            publisher.say(STARTED)
        slow.answer(1)
        assert one.outbox.state is State.IDLE
        assert broken.outbox.stopped is Stop.REFUSED
        assert broken.over.is_set()
        assert [subject[-1] for subject, _ in slow.sent] == ["0", "2"]


async def test_a_full_log_takes_nobodys_turn(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    async with writing(slow, 2, window=1) as (one, other):
        start(slow, one, other)
        monkeypatch.setattr(Reserve, "take", lambda *_: False)
        one.offer(TOKEN, "a ", 1)
        monkeypatch.undo()
        other.offer(TOKEN, "a ", 1)
        assert [(subject[-1], frame.type) for subject, frame in slow.sent[2:]] == [("1", TOKEN)]


async def test_a_connection_that_is_lost_lets_everybody_in_line_try_by_himself(slow: Slow) -> None:
    async with writing(slow, 9, window=2) as many:
        for publisher in many:
            publisher.say(STARTED)
        assert slow.unanswered == 2
        slow.gone = True
        slow.lose()
        assert {publisher.outbox.state for publisher in many} == {State.UNDECIDED}
        assert all(publisher._timer is not None for publisher in many)
        slow.gone = False
        for _ in many:
            slow.news.clear()
            async with asyncio.timeout(DEADLINE):
                while not slow.unanswered:
                    await slow.news.wait()
                    slow.news.clear()
            slow.answer(len(slow.sent))
        assert {subject for subject, _ in slow.sent} == {f"tok.00.{SID[:-1]}{number}" for number in range(9)}
