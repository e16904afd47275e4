"""What `okome chaos` says in the end, over runs that never were."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compose.chaos import fleet
from compose.chaos.record import Line
from compose.chaos.run import Order
from compose.cli.chaos import chaos
from compose.cli.outcome import OK, USAGE, CommandFailed
from tests.chaos import records

WHY = "a small disk needs Linux and root"


def played(monkeypatch: pytest.MonkeyPatch, directory: Path, *names: str, lines: Sequence[Line]) -> int:
    async def play(orders: Sequence[Order], at_once: int, heard: Callable[[Order, Line], None], enough: object) -> None:
        for line in lines:
            heard(orders[0], line)

    monkeypatch.setattr(fleet, "play", play)
    return chaos(
        seed=7,
        scenarios=names,
        faults=1,
        sessions=1,
        duration=0,
        targets=1,
        running=[],
        number=0,
        control=False,
        directory=directory,
    )


def test_a_run_in_which_nothing_could_be_played_is_not_one_that_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines: list[Line] = [records.run(), records.ended(left_out={"disk-full": WHY})]
    with pytest.raises(CommandFailed, match=f"disk-full is left out: {WHY}") as failed:
        played(monkeypatch, tmp_path, "disk-full", lines=lines)
    assert failed.value.code == USAGE


def test_what_was_left_out_beside_what_was_played_is_said_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = records.ended(left_out={"disk-full": WHY})
    lines: list[Line] = [records.run(), records.fault(), records.played(), left]
    assert played(monkeypatch, tmp_path, "disk-full", "node-kill", lines=lines) == OK
