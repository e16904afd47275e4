"""Proofs that are asked for, and questions that stay without an answer: no sign, and no sign of the contrary."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from broker.bus.errors import BusUnavailable, StoreRejected
from compose.chaos import answers, fault
from compose.chaos.answers import Unanswered, answered
from compose.chaos.fault import DidNotHappen, comes_true

SILENT = BusUnavailable("no answer")
Sign = str | None | Exception


def says(*told: Sign) -> Callable[[], Awaitable[str | None]]:
    """One after the other, the last one for ever."""
    left: Iterator[Sign] = iter(told)
    last = told[-1]

    async def say() -> str | None:
        said = next(left, last)
        if isinstance(said, Exception):
            raise said
        return said

    return say


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(answers, "RETRY_PAUSE", 0.01)


@pytest.mark.parametrize("error", [SILENT, ConnectionResetError(), EOFError(), TimeoutError(), StoreRejected(1, "no")])
async def test_a_question_without_an_answer_is_no_sign(error: Exception) -> None:
    assert await comes_true(says(error, None, error, "a proof"), "a sign", 5) == "a proof"


async def test_what_is_answered_and_never_shown_did_not_happen() -> None:
    with pytest.raises(DidNotHappen, match="a sign was not seen within"):
        await comes_true(says(None), "a sign", 0.05)


async def test_silence_is_waited_out_beyond_the_time_of_the_proof() -> None:
    """A proof fails where it was looked for and not found, however slow the answers are."""
    began = asyncio.get_running_loop().time()

    async def slow() -> str | None:
        if asyncio.get_running_loop().time() < began + 0.1:
            raise SILENT
        return None

    with pytest.raises(DidNotHappen):
        await comes_true(slow, "a sign", 0.02)
    assert asyncio.get_running_loop().time() >= began + 0.1


async def test_what_nobody_ever_answers_is_not_a_proof_that_failed() -> None:
    with pytest.raises(Unanswered, match="nobody answered: BusUnavailable"):
        await comes_true(says(SILENT), "a sign", 0.05)


async def test_a_question_is_asked_again_until_it_is_answered() -> None:
    assert await answered(says(SILENT, ConnectionResetError(), EOFError(), "an answer")) == "an answer"


async def test_a_refusal_is_an_answer() -> None:
    with pytest.raises(StoreRejected):
        await answered(says(SILENT, StoreRejected(10059, "stream not found")))


async def test_who_is_asked_in_vain_for_long_is_stuck() -> None:
    with pytest.raises(Unanswered, match=r"within 0\.05 s: BusUnavailable"):
        await answered(says(SILENT), timeout=0.05)
