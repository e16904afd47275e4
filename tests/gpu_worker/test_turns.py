"""A few publish to a log at a time; who waits collects, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.bus.chain import Chain
from broker.bus.errors import BusError
from broker.bus.frames import START, TOKEN, USAGE
from gpu_worker.metrics import Measured
from gpu_worker.outbox import Outbox, State, Stop
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
from gpu_worker.reserve import Reserve
from gpu_worker.turns import FEWEST, WINDOW, WINDOW_BATCHED, Turns, Writer
from tests.gpu_worker.bed import DEADLINE, SID
from tests.gpu_worker.slow import STARTED, Slow


class Waits:
    """`go` tells `went` its name."""

    def __init__(self, name: str, went: Callable[[str], object]) -> None:
        self.name = name
        self._went = went

    def go(self) -> None:
        self._went(self.name)

    def load(self) -> None:
        self._went(self.name)

    def answered(self, answer: int | BusError) -> None:
        raise AssertionError("whose turn it is, is told nothing of what becomes of it")


class Asking:
    """Those who ask for turns at one log or another, and in which order they got one."""

    def __init__(self, window: int) -> None:
        self.turns = Turns(window)
        self.went: list[str] = []

    def ask(self, name: str, *, first: bool = False, alone: bool = False) -> None:
        if self.turns.ask(name[0], Waits(name, self.went.append), first=first, alone=alone):
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

    def failed(name: str) -> None:
        nonlocal went
        went += 1
        turns.over("A")

    fail = Waits("", failed)
    assert turns.ask("A", fail, first=False)
    for _ in range(100_000):
        assert not turns.ask("A", fail, first=False)
    turns.over("A")
    assert went == 100_000
    assert turns.ask("A", fail, first=False)


# -- in batches --------------------------------------------------------------------------------------------------------


class Many(Asking):
    """`batches`: those who went together, where the log takes them so."""

    def __init__(self, window: int = 1) -> None:
        super().__init__(window)
        self.batches: list[list[str]] = []
        self.most = 1000
        self.logs = {"A"}
        self.turns.batches = self
        self.over: Callable[[], None] = lambda: None

    def can(self, stream: str) -> bool:
        return stream in self.logs

    def go(self, stream: str, next_one: Callable[[], Writer | None], over: Callable[[], None]) -> None:
        self.over = over
        before = len(self.went)
        while len(self.went) - before < self.most and (one := next_one()) is not None:
            one.load()
        self.batches.append(self.went[before:])
        del self.went[before:]


def names(log: str, first: int, last: int) -> list[str]:
    return [f"{log}{number}" for number in range(first, last)]


def test_many_who_wait_go_together_and_whoever_comes_meanwhile_waits() -> None:
    many = Many()
    for name in names("A", 0, 40):
        many.ask(name)
    assert (many.went, many.batches) == (["A0"], [])
    many.turns.over("A")
    assert many.batches == [names("A", 1, 40)]
    many.ask("A40")
    assert many.went == ["A0"]
    many.over()
    assert many.went == ["A0", "A40"]


def test_few_who_wait_or_for_a_log_that_takes_none_go_one_by_one() -> None:
    many = Many()
    for name in names("A", 0, FEWEST):  # one of whom goes at once
        many.ask(name)
    many.turns.over("A")
    assert (many.went, many.batches) == (["A0", "A1"], [])
    for name in names("B", 0, 40):
        many.ask(name)
    for _ in range(40):
        many.turns.over("B")
    assert (many.went[2:], many.batches) == (names("B", 0, 40), [])


def test_fewer_are_on_their_way_alone_to_a_log_that_takes_batches() -> None:
    many = Many()
    many.turns._window = None
    for name in [*names("A", 0, 30), *names("B", 0, 30)]:
        many.ask(name)
    assert many.went == [*names("A", 0, WINDOW_BATCHED), *names("B", 0, WINDOW)]


def test_the_first_go_first_among_many_and_no_more_than_may() -> None:
    many = Many()
    many.most = 30
    for name in names("A", 0, 40):
        many.ask(name)
    for name in names("A-first", 0, 20):
        many.ask(name, first=True)
    many.turns.over("A")
    assert many.batches == [[*names("A-first", 0, 20), *names("A", 1, 11)]]
    many.over()
    assert many.batches[1:] == [names("A", 11, 40)]


def test_whoever_is_to_go_alone_goes_before_the_next_many() -> None:
    """There may always be enough of them."""
    many = Many()
    for name in names("A", 0, 40):
        many.ask(name)
    many.turns.over("A")
    assert many.batches == [names("A", 1, 40)]
    for name in names("A-again", 0, 3):
        many.ask(name, alone=True)
    for name in names("A", 40, 80):
        many.ask(name)
    many.over()
    went = 0
    while len(many.batches) == 1:
        many.turns.over("A")
        went += 1
    assert set(names("A-again", 0, 3)) < set(many.went)
    assert went <= 6, "every second turn at least is for them"
    assert many.batches[1] == [name for name in names("A", 40, 80) if name not in many.went]


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
    publishing, measured = Publishing(slow, window=window), Measured("test")
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
