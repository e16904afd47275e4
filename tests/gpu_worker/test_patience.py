"""How often and how soon an engine that failed is asked again."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from broker.bus.frames import ATTEMPT, DONE, FAILED
from gpu_worker import patience
from gpu_worker.engines import EngineFailed, Finish, ModelCard, Piece, Prefix, Prompt, Say
from gpu_worker.engines.engine import unsaid
from gpu_worker.patience import MOST_FAILURES, PROGRESS, Patience, busy_pause
from tests.gpu_worker.bed import Bed


class BreaksOff:
    """Says `gives` tokens more each time it is asked, and breaks; ends with its `tokens`-th."""

    cards = (ModelCard("breaks", 10_000, 4, 4, "breaks", None),)

    def __init__(self, gives: list[int], tokens: int) -> None:
        self.asked = 0
        self._gives = gives
        self._tokens = tokens

    async def start(self, say: Say = unsaid) -> None: ...

    async def close(self) -> None: ...

    def children(self) -> list[tuple[str, int]]:
        return []

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        gives = self._gives[min(self.asked, len(self._gives) - 1)]
        self.asked += 1
        for offset in range(prefix.tokens, min(prefix.tokens + gives, self._tokens)):
            yield Piece(f"{offset} ", 1)
        if prefix.tokens + gives < self._tokens:
            raise EngineFailed("engine_failed", "it breaks", retryable=True)
        yield Finish("stop", 1, self._tokens)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE", (0.001, 0.005))


@pytest.mark.usefixtures("quick")
async def test_an_engine_that_breaks_off_after_each_token_is_not_asked_without_end(bed: Bed) -> None:
    """A token each time is no progress: it would hold its slot for as long as the answer may be long."""
    engine = BreaksOff([1], 1_000)
    async with bed.worker("w1", engine):
        await bed.enqueue(await bed.ask("g1", [], model="breaks", after=0, enqueue=False))
        end = await bed.ended("g1")
        assert (end.type, end.fields()["code"], end.fields()["retryable"]) == (FAILED, "attempts_exhausted", True)
        assert engine.asked == MOST_FAILURES
        assert bed.tokens("g1") == MOST_FAILURES, "what it said stays"
        await bed.no_jobs_left()


@pytest.mark.usefixtures("quick")
async def test_an_attempt_that_gave_much_is_progress(bed: Bed) -> None:
    engine = BreaksOff([1] * (MOST_FAILURES - 1) + [PROGRESS] + [1] * (MOST_FAILURES - 1) + [PROGRESS], 200)
    async with bed.worker("w1", engine):
        await bed.enqueue(await bed.ask("g1", [], model="breaks", after=0, enqueue=False))
        assert (await bed.ended("g1")).type == DONE
        assert bed.types("g1").count(ATTEMPT) == engine.asked - 1 > MOST_FAILURES


def test_pauses_double_up_to_five_seconds_and_begin_anew_after_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE", (0.5, 0.5))
    mine, after = Patience(), []
    for tokens in [PROGRESS - 1] * MOST_FAILURES + [PROGRESS, 0]:
        mine.failed(tokens)
        after.append((mine.is_over, mine.pause()))
    growing = [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert after == [*((False, pause) for pause in growing), (True, 5.0), (False, 0.5), (False, 0.5)]
    assert [busy_pause(refusals) for refusals in range(1, 6)] == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_who_says_when_to_come_back_is_not_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE", (0.5, 0.5))
    mine = Patience()
    mine.failed(0)
    assert (mine.pause(7.0), busy_pause(1, 7.0), busy_pause(1, 1e9)) == (7.5, 7.5, patience.MOST_AFTER + 0.5)


def test_pauses_are_drawn_so_that_answers_that_broke_together_do_not_come_back_together() -> None:
    mine = Patience()
    mine.failed(0)
    pauses = {mine.pause() for _ in range(100)}
    assert len(pauses) > 50
    assert all(0.1 <= pause <= 0.5 for pause in pauses)


class Busy(BreaksOff):
    """Has no room the first `refusals` times."""

    def __init__(self, refusals: int) -> None:
        super().__init__([10], 3)
        self._refusals = refusals

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        if self.asked < self._refusals:
            self.asked += 1
            raise EngineFailed("overloaded", "not now", retryable=True)
        async for item in super().generate(model, prompt, prefix):
            yield item


async def test_an_engine_that_is_busy_is_asked_less_and_less_often(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def no_pause(refusals: int, retry_after: float) -> float:
        asked.append(refusals)
        return 0.0

    monkeypatch.setattr("gpu_worker.answer.busy_pause", no_pause)
    async with bed.worker("w1", Busy(5)):
        await bed.enqueue(await bed.ask("g1", [], model="breaks", after=0, enqueue=False))
        assert (await bed.ended("g1")).type == DONE
        assert asked == [1, 2, 3, 4, 5]
        assert bed.types("g1").count(ATTEMPT) == 0, "a refusal costs no epoch"
