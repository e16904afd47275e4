"""Verdicts: nothing waits for ever, and nothing that may still move is ended."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus.records import Generation, Message, Request
from control.verdicts import QUEUED_BY_NOW, RETURNED_BY_NOW, SETTLED, TAKEN_BY_NOW, Case, Verdict, judge

WAIT = 300.0


def case(cancel: bool = False, **changes: Any) -> Case:
    request = Request("m", [Message("user", "x")])
    record = Generation("g", "00s", "t", request, created_at=0, after=0, cancel=cancel)
    usual = {
        "unheld": 1.0, "age": 1.0, "lost": math.inf, "begun": False, "ended": False, "placed": True, "queued": True,
        "delivered": False, "barren": 0, "job_wait": WAIT,
    }  # fmt: skip
    return Case(record=record, **{**usual, **changes})


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (case(), Verdict.WAIT),
        (case(age=WAIT - 1, unheld=WAIT - 1), Verdict.WAIT),
        (case(age=WAIT), Verdict.EXPIRE),
        (case(age=WAIT, lost=WAIT - 1), Verdict.WAIT),
        (case(age=WAIT, lost=WAIT), Verdict.EXPIRE),
        (case(age=WAIT, lost=RETURNED_BY_NOW, unheld=RETURNED_BY_NOW, delivered=True), Verdict.RETURN),
        (case(ended=True, begun=True), Verdict.CLOSE),
        (case(ended=True, begun=True, placed=False, cancel=True, age=WAIT), Verdict.CLOSE),
        (case(placed=False), Verdict.WAIT),
        (case(placed=False, unheld=QUEUED_BY_NOW), Verdict.FORGET),
        (case(queued=False), Verdict.WAIT),
        (case(queued=False, unheld=QUEUED_BY_NOW), Verdict.QUEUE),
        (case(cancel=True), Verdict.CANCEL),
        (case(cancel=True, begun=True), Verdict.WAIT),
        (case(cancel=True, begun=True, unheld=SETTLED), Verdict.CANCEL),
        (case(begun=True, age=10 * WAIT), Verdict.WAIT),
        (case(begun=True, unheld=WAIT), Verdict.EXPIRE),
        (case(begun=True, unheld=WAIT, lost=WAIT - 1), Verdict.WAIT),
        (case(begun=True, unheld=QUEUED_BY_NOW, queued=False), Verdict.QUEUE),
        (case(delivered=True), Verdict.WAIT),
        (case(delivered=True, unheld=RETURNED_BY_NOW), Verdict.RETURN),
        (case(begun=True, delivered=True, unheld=RETURNED_BY_NOW), Verdict.RETURN),
        (case(begun=True, unheld=RETURNED_BY_NOW), Verdict.WAIT),
        (case(begun=True, barren=3), Verdict.WAIT),
        (case(begun=True, barren=3, unheld=TAKEN_BY_NOW), Verdict.FAIL),
        (case(begun=True, barren=2, unheld=TAKEN_BY_NOW), Verdict.WAIT),
    ],
)
def test_a_generation_that_nobody_holds(found: Case, verdict: Verdict) -> None:
    assert judge(found) is verdict


@given(begun=st.booleans(), placed=st.booleans(), queued=st.booleans(), cancel=st.booleans(), barren=st.integers(0, 5))
def test_nothing_waits_longer_than_job_wait(begun: bool, placed: bool, queued: bool, cancel: bool, barren: int) -> None:
    found = case(cancel, begun=begun, placed=placed, queued=queued, barren=barren, unheld=WAIT, age=WAIT, lost=WAIT)
    assert judge(found) in (Verdict.EXPIRE, Verdict.CANCEL, Verdict.FORGET, Verdict.FAIL)
