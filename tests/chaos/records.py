"""Records of fault runs that never were, as short as they can be: what a test is about stands in the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from compose.chaos import record
from compose.chaos.record import Ended, Injection, Line, Round, Run, Stall, Violation


def run(id: str = "a", *, control: bool = False, began: str = "2026-03-01T10:00:00+00:00") -> Run:
    return Run(id, 7, "single", "okome chaos --seed 7", began, "Linux x86_64, 2 cores", "1.2.3", control)


def fault(
    scenario: str = "node-kill",
    *gaps: float,
    verified: bool = True,
    at: float = 5.0,
    run: str = "a",
    round: int = 1,
    proof: str = "it lives",
) -> Injection:
    """A fault with a gap, in seconds, for each viewer."""
    stalls = tuple(Stall(at + index, seconds) for index, seconds in enumerate(gaps))
    return Injection(run, scenario, round, "node-1", at, at + 0.5, verified, proof, stalls)


def played(
    scenario: str = "node-kill",
    *violations: Violation,
    run: str = "a",
    round: int = 1,
    ended: float = 9.0,
    figures: Mapping[str, Sequence[float]] | None = None,
) -> Round:
    """Two sessions with three answers of a hundred tokens together, over four connections."""
    replay = f"okome chaos --seed 7 --scenario {scenario} --round {round}"
    times = {name: tuple(seconds) for name, seconds in (figures or {}).items()}
    return Round(run, scenario, round, 4.0, ended, 2, 3, 100, 4, 1, 0, violations, times, replay)


def ended(
    run: str = "a",
    *,
    interrupted: bool = False,
    left_out: dict[str, str] | None = None,
    unplayed: tuple[str, ...] = (),
) -> Ended:
    return Ended(run, 12.0, interrupted, left_out or {}, 1, 1, 0, 0, unplayed)


def write(path: Path, *lines: Line) -> Path:
    """A run file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for line in lines:
            record.write(out, line)
    return path
