"""A run over a system that never was: what it says of one that did not come back."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from compose.chaos.fault import Fault
from compose.chaos.record import Ended, Line, Round, Violation
from compose.chaos.round import Round as Playing
from compose.chaos.run import Order, Player
from compose.chaos.scenario import CATALOGUE, Scenario
from compose.chaos.system import System
from compose.chaos.whole import NotBack, Process


class Fake:
    """Whole, or not, as `answers` say one after the other; whole ever after."""

    api_key = ""
    url = "http://127.0.0.1:1"

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.restarts: dict[str, int] = {"node-1": 0}

    def processes(self, role: str = "") -> list[Process]:
        return [Process(id, "node", 1000 + restarts, restarts, "") for id, restarts in self.restarts.items()]

    def last_end(self, id: str) -> str:
        return "exit status 1"

    async def __aenter__(self) -> Fake:
        return self

    async def __aexit__(self, *raised: object) -> None:
        return

    async def whole(self) -> None:
        if self.answers and not self.answers.pop(0):
            raise NotBack("not whole after 75 s")


async def _one(round: Playing) -> None:
    async def strike() -> None:
        return

    async def proven() -> str:
        return "it happened"

    await round.hurt(Fault("somebody", strike, proven), [])


async def play(monkeypatch: pytest.MonkeyPatch, system: Fake, *, duration: float = 0) -> list[Line]:
    """One round of three scenarios each, each with one fault."""
    names = ("a", "b", "c")
    for name in names:
        monkeypatch.setitem(CATALOGUE, name, Scenario(name, "a scenario", _one))
    lines: list[Line] = []
    order = Order("r", 1, names, 0 if duration else 3, 1, duration, 0, False, "")
    player = Player(order, lines.append, asyncio.Event())
    monkeypatch.setattr(player, "_target", lambda world, directory: cast(System, system))
    await player.play()
    return lines


def violations(lines: list[Line]) -> list[Violation]:
    return [one for line in lines if isinstance(line, Round) for one in line.violations]


async def test_a_system_that_is_not_whole_when_all_was_undone_is_a_violation_and_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was whole when the round asked, and then the fault was undone."""
    lines = await play(monkeypatch, Fake(True, False))
    assert [(one.rule, one.detail) for one in violations(lines)] == [
        ("stuck", "when the faults were undone: not whole after 75 s")
    ]
    played = {line.scenario for line in lines if isinstance(line, Round)}
    assert len(played) == 1
    end = lines[-1]
    assert isinstance(end, Ended)
    assert (set(end.unplayed), end.violations) == ({"a", "b", "c"} - played, 1)


async def test_a_run_that_played_everything_or_had_no_time_to_left_nothing_unplayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for duration in (0, 0.000001):
        lines = await play(monkeypatch, Fake(), duration=duration)
        end = lines[-1]
        assert isinstance(end, Ended)
        assert end.unplayed == ()
        assert violations(lines) == []


async def test_a_part_that_ends_by_itself_is_a_violation_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next rounds are played, and the part that stays is not named again."""
    system = Fake()

    async def whole() -> None:
        system.restarts["node-1"] = 1

    monkeypatch.setattr(system, "whole", whole)
    lines = await play(monkeypatch, system)
    assert [(one.rule, one.detail) for one in violations(lines)] == [
        ("fell", "node-1 ended by itself: exit status 1; restarts by now: 1")
    ]
    assert len([line for line in lines if isinstance(line, Round)]) == 3
