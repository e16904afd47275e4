"""What becomes of an open generation that no live worker holds. Pure; times are seconds.

Most are simply waiting for their turn: while no worker of their model has a slot free, time does not count against
them. Nothing here needs to be right about a worker's death: every deed that follows is fenced, and a late worker loses.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from broker.bus.attempts import MAX_BARREN_EPOCHS
from broker.bus.records import Generation

SETTLED = 2.0  # not held for so long: its worker has not merely ended it a moment ago
RETURNED_BY_NOW = 2.0  # a job whose holder died while nobody watched is given back; otherwise observers have done it
QUEUED_BY_NOW = 5.0  # an accepted generation has its job by then, or whoever accepted it is dead
TAKEN_BY_NOW = 10.0  # a begun one has been taken over by then, if anybody can


class Verdict(StrEnum):
    WAIT = "wait"
    CLOSE = "close"  # the log tells its end; the record does not yet
    FORGET = "forget"  # it never got the session's place
    QUEUE = "queue"  # it has no job
    RETURN = "return"  # its job is held by nobody who lives
    CANCEL = "cancel"
    EXPIRE = "expire"
    FAIL = "fail"  # attempts exhausted


class Case(NamedTuple):
    """What is known of one generation. `begun`, `ended`: what the log's last frame says of it."""

    record: Generation
    unheld: float  # since when nobody is seen to hold it
    age: float  # since it was accepted
    lost: float  # all in all, since it was first seen held or waiting for its turn; infinite: it was neither
    begun: bool
    ended: bool
    placed: bool  # the session names it as its open one
    queued: bool  # it has a job
    delivered: bool  # to somebody
    barren: int  # epochs without a token at its end
    job_wait: float


def judge(case: Case) -> Verdict:
    if case.ended:
        return Verdict.CLOSE
    if not case.placed and not case.begun:
        return Verdict.FORGET if case.unheld >= QUEUED_BY_NOW else Verdict.WAIT
    if case.record.cancel:
        # One that runs is its worker's to cancel, and may be on its way to another one.
        return Verdict.CANCEL if not case.begun or case.unheld >= SETTLED else Verdict.WAIT
    if case.begun:
        if case.barren >= MAX_BARREN_EPOCHS and case.unheld >= TAKEN_BY_NOW:
            return Verdict.FAIL
        waited = min(case.unheld, case.lost)
    else:
        waited = min(case.age, case.lost)
    if waited >= case.job_wait:
        return Verdict.EXPIRE
    if not case.queued and case.unheld >= QUEUED_BY_NOW:
        return Verdict.QUEUE
    if case.delivered and case.unheld >= RETURNED_BY_NOW:
        return Verdict.RETURN
    return Verdict.WAIT
