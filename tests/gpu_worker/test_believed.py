"""An engine that says or raises what is no answer: it breaks this answer, retryably, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import pytest

from broker.bus.frames import ATTEMPT, DONE, FAILED
from gpu_worker import believed
from gpu_worker.believed import MESSAGE
from gpu_worker.bound import Bound
from gpu_worker.engines import (
    Engine,
    EngineFailed,
    Finish,
    Message,
    ModelCard,
    Piece,
    Pouring,
    Prefix,
    Prompt,
    Say,
    Tap,
)
from gpu_worker.engines.engine import PIECE_TEXT, unsaid
from tests.gpu_worker.bed import Bed
from tests.gpu_worker.pouring import poured
from tests.gpu_worker.test_worker import text

PROMPT = Prompt((Message("user", "x"),))
END = Finish("stop", 1, 1)
DEADLINE = 10.0


class Strange:
    """Says (or raises) these items; `after`: what its clean-up does."""

    def __init__(self, *items: Any, after: Callable[[], None] = lambda: None) -> None:
        self.items = items
        self.after = after
        self.closed = 0

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        return (ModelCard("strange", 1000, 4, 4, "strange", None),)

    async def start(self, say: Say = unsaid) -> None: ...

    async def close(self) -> None: ...

    def children(self) -> list[tuple[str, int]]:
        return []

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Any, None]:
        try:
            for item in self.items[prefix.tokens :]:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.closed += 1
            self.after()


@pytest.mark.parametrize(("said", "heard"), [(3, 3.0), (None, 0.0), ("5", 0.0), (-1.0, 0.0), (float("nan"), 0.0)])
async def test_when_to_come_back_is_a_number_of_seconds(said: Any, heard: float) -> None:
    strange = Strange(EngineFailed("overloaded", "not now", retryable=True, retry_after=said))
    with pytest.raises(EngineFailed) as caught:
        await hear(strange)
    assert caught.value.retry_after == heard


@pytest.fixture(params=["asked", "told"])
def way(request: pytest.FixtureRequest) -> Callable[[Any], Engine]:
    """An engine is asked for its pieces, or tells them."""
    return poured if request.param == "told" else lambda engine: cast(Engine, engine)


async def hear(engine: Any, heard: list[Piece | Finish] | None = None) -> list[Piece | Finish]:
    heard = [] if heard is None else heard
    bound = Bound(None, 1024 * 1024)
    async with asyncio.timeout(DEADLINE):
        if isinstance(engine, Pouring):
            heard.append(await believed.poured(engine, "strange", PROMPT, Prefix(), bound, heard.append, Tap()))
            return heard
        async for item in believed.believed(cast(Engine, engine), "strange", PROMPT, Prefix(), bound):
            heard.append(item)
    return heard


NO_ANSWERS = [
    Piece("\ud83d", 1),
    Piece("a\udfff", 1),
    Piece("x", 0),
    Piece("x", -1),
    Piece("x", 2**40),
    Piece("x", cast(int, True)),
    Piece("x", cast(int, 1.0)),
    Piece("x", 1, cast(Any, "draft")),
    Piece("x", 1, cast(Any, None)),
    Piece(cast(str, b"x"), 1),
    Piece(cast(str, None), 1),
    Piece("x" * (PIECE_TEXT + 1), 1),
    Piece("é" * (PIECE_TEXT // 2 + 1), 1),
    Finish(cast(Any, "\ud83d"), 1, 1),
    Finish("stop", -1, 1),
    Finish("stop", 1, cast(int, "1")),
    "x",
    None,
    ("x", 1),
    {"text": "x", "n": 1},
]


@pytest.mark.parametrize("item", NO_ANSWERS, ids=range(len(NO_ANSWERS)))
async def test_what_is_no_answer_breaks_the_answer_and_may_be_tried_again(
    way: Callable[[Any], Engine], item: Any
) -> None:
    engine = Strange(Piece("a", 1), item, END)
    heard: list[Piece | Finish] = []
    with pytest.raises(EngineFailed) as caught:
        await hear(way(engine), heard)
    assert (caught.value.code, caught.value.retryable) == ("engine_failed", True)
    assert heard == [Piece("a", 1)]
    assert engine.closed == 1, "it is closed before anything else is asked of it"


@pytest.mark.parametrize(
    "error", [ValueError("x"), ZeroDivisionError(), RecursionError(), asyncio.CancelledError(), TimeoutError()]
)
async def test_whatever_it_raises_is_a_failure_of_the_engine(
    way: Callable[[Any], Engine], error: BaseException
) -> None:
    """Also a cancellation that nobody asked for, which would be waited for as if it were our own."""
    with pytest.raises(EngineFailed) as caught:
        await hear(way(Strange(Piece("a", 1), error)))
    assert (caught.value.code, caught.value.retryable) == ("engine_failed", True)
    assert caught.value.__cause__ is error or isinstance(caught.value.__cause__, type(error))


async def test_an_engine_that_cannot_even_be_asked_has_failed() -> None:
    for generate in (lambda *_: 1 / 0, lambda *_: None):
        engine = Strange()
        engine.generate = generate  # type: ignore[method-assign,assignment]
        with pytest.raises(EngineFailed, match="raised"):
            await hear(engine)


async def test_an_answer_without_its_end_has_broken_off() -> None:
    with pytest.raises(EngineFailed, match="ended without saying so"):
        await hear(Strange(Piece("a", 1)))


async def test_what_is_an_answer_is_passed_on_as_it_is(way: Callable[[Any], Engine]) -> None:
    items = [Piece("a", 1), Piece("ü😀", 2), Piece("", 1), Piece("x" * PIECE_TEXT, 64, "reasoning"), END]
    assert await hear(way(Strange(*items, Piece("after the end", 1)))) == items


async def test_an_engine_that_tells_and_returns_no_end_has_said_what_is_no_answer() -> None:
    with pytest.raises(EngineFailed, match="NoneType"):
        await hear(poured(Strange(Piece("a", 1))))


async def test_an_answer_that_has_ended_is_not_taken_back_by_a_broken_clean_up() -> None:
    def breaks() -> None:
        raise ValueError("a defect")

    assert await hear(Strange(Piece("a", 1), END, after=breaks)) == [Piece("a", 1), END]


async def test_why_it_failed_is_text_and_short() -> None:
    said = EngineFailed(cast(Any, "burnt_down"), "\ud83d" + "x" * 10_000, retryable=False)
    with pytest.raises(EngineFailed) as caught:
        await hear(Strange(said))
    assert caught.value.code == "engine_failed"
    assert caught.value.retryable is False
    assert len(caught.value.message.encode()) == MESSAGE


async def test_a_cancellation_of_ours_passes_through(way: Callable[[Any], Engine]) -> None:
    begun = asyncio.Event()

    class Waits(Strange):
        async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Any, None]:
            begun.set()
            await asyncio.Event().wait()
            yield END

    task = asyncio.create_task(hear(way(Waits())))
    async with asyncio.timeout(DEADLINE):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# -- in the worker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [Piece("\ud83d", 1), Piece("x", 0), "x", ValueError("x"), asyncio.CancelledError()])
async def test_an_engine_that_keeps_saying_what_is_no_answer_ends_in_one_terminal(
    bed: Bed, way: Callable[[Any], Engine], what: Any
) -> None:
    """What was said before is in the log, nothing of the rest is, and after three barren epochs nobody tries again."""
    async with bed.worker("w1", way(Strange(Piece("a", 1), Piece("b", 1), what, END))):
        await bed.enqueue(await bed.ask("g1", [], model="strange", enqueue=False))
        end = await bed.ended("g1")
        assert (end.type, end.fields()["code"], end.fields()["retryable"]) == (FAILED, "attempts_exhausted", True)
        assert bed.text("g1") == "ab"
        assert bed.types("g1").count(ATTEMPT) == 3
        await bed.no_jobs_left()


async def test_an_engine_that_breaks_once_costs_an_epoch_and_no_token(bed: Bed, way: Callable[[Any], Engine]) -> None:
    class Once(Strange):
        async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Any, None]:
            for item in self.items[prefix.tokens :]:
                yield item if prefix.tokens or item is not self.items[2] else Piece("\ud83d", 1)

    items = [Piece("a", 1), Piece("b", 1), Piece("c", 1), Finish("stop", 1, 3)]
    async with bed.worker("w1", way(Once(*items))):
        await bed.enqueue(await bed.ask("g1", [], model="strange", enqueue=False))
        assert (await bed.ended("g1")).type == DONE
        assert bed.text("g1") == "abc"
        assert bed.types("g1").count(ATTEMPT) == 1


async def test_a_broken_answer_disturbs_no_other(bed: Bed) -> None:
    async with bed.worker("w1"):
        for number in range(5):
            await bed.ask(f"good{number}", {"tokens": 60, "rate": 60, "seed": number}, sid=f"00good{number}xxx")
        await bed.until(lambda: all(bed.tokens(f"good{number}") for number in range(5)))
        await bed.ask("bad", {"tokens": 60, "rate": 0, "seed": 9, "broken_at": 20})
        assert (await bed.ended("bad")).fields()["code"] == "attempts_exhausted"
        assert bed.text("bad") == text(9, 20)
        for number in range(5):
            assert (await bed.ended(f"good{number}")).type == DONE
            assert bed.text(f"good{number}") == text(number, 60)
            assert bed.types(f"good{number}").count(ATTEMPT) == 0
        await bed.no_jobs_left()
