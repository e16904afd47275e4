"""What is asked again, and until when, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from broker.bus.errors import BusError, BusUnavailable, Refusal, StoreRejected
from broker.bus.log import STREAM_FULL, STREAM_NOT_FOUND
from broker.bus.retry import PAUSE, retry
from tests.models.virtual_loop import Clock

NOT_NOW: list[BusError | Refusal] = [
    BusUnavailable("no leader"),
    StoreRejected(STREAM_NOT_FOUND, "being made"),
    Refusal("unavailable", "starting", retry_after=1),
]
NEVER: list[BusError | Refusal] = [StoreRejected(STREAM_FULL, "full"), Refusal("forbidden", "not yours")]


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


class Step:
    """Raises `errors`, one a time, and then answers."""

    def __init__(self, *errors: BusError | Refusal) -> None:
        self._errors = list(errors)
        self.asked = 0

    async def __call__(self) -> str:
        self.asked += 1
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


def test_what_is_not_answered_yet_is_asked_again_and_told(clock: Clock) -> None:
    step, told = Step(*NOT_NOW), list[Exception]()
    assert clock.run(clock.loop(), retry(step, unanswered=told.append)) == "answer"
    assert step.asked == len(NOT_NOW) + 1
    assert told == NOT_NOW


@pytest.mark.parametrize("error", NEVER, ids=str)
def test_what_a_repeat_would_not_change_is_raised_at_once(clock: Clock, error: BusError | Refusal) -> None:
    step = Step(error)
    with pytest.raises(type(error)):
        clock.run(clock.loop(), retry(step))
    assert step.asked == 1


def test_behind_the_deadline_the_last_reason_is_raised(clock: Clock) -> None:
    step = Step(*[BusUnavailable("first")] * 3, *[BusUnavailable("last")] * 97)

    async def play() -> None:
        await retry(step, asyncio.get_running_loop().time() + 20 * PAUSE)

    with pytest.raises(BusUnavailable, match="last"):
        clock.run(clock.loop(), play())
    assert step.asked == 21
