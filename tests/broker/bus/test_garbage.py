"""When the garbage collector looks: by what has ended, not by what has come."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from broker.bus.garbage import FEW, Turnover


@pytest.mark.parametrize(("live", "looks"), [(0, [FEW, 2 * FEW]), (FEW, [2 * FEW, 4 * FEW]), (5 * FEW, [10 * FEW])])
def test_it_looks_when_twice_as_many_have_ended_as_live(
    live: int, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    turnover = Turnover()
    for number in range(1, looks[-1] + 2):
        monkeypatch.setattr(gc, "collect", lambda number=number: looked.append(number))
        turnover.ended(live)
    assert looked == looks


PROBE = """
import gc
from broker.bus.garbage import settle
settle(by_turnover={turnover})
looks = []
gc.callbacks.append(lambda phase, info: looks.append(info["generation"]) if phase == "stop" else None)
kept = [[] for _ in range(400_000)]
print(gc.get_freeze_count() > 10_000, looks.count(2))
"""


@pytest.mark.parametrize("turnover", [True, False])
def test_what_comes_is_not_looked_through_again_and_again(turnover: bool) -> None:
    """In a process of its own, as it is set for all of a process: 400 000 objects come, and all of them stay."""
    told = subprocess.run(
        [sys.executable, "-c", PROBE.format(turnover=turnover)], capture_output=True, text=True, timeout=60, check=True
    )
    frozen, oldest = told.stdout.split()
    assert frozen == "True"
    assert (int(oldest) == 0) is turnover
