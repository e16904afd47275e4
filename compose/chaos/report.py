"""The report of a fault run: `report.json` for machines, `report.html` for people, a table for the terminal.

`report.json` is one object; times are seconds, percentiles nearest-rank. Fields are added, never renamed:

    format       1
    verdict      the sentence that heads the page
    held         no violation, and every fault told the truth about itself
    control      all runs are control runs
    systems      a list, one per run: id, target, seed, command, began (ISO 8601), machine, version, control, cut_off,
                 seconds, rounds, faults
    edges        31 bucket edges, 0.005 to 30, log-spaced: of every `histogram` below, which has 30 counts; what is
                 shorter or longer counts in the first or last
    total        an outcome: rounds, faults, verified, decoys (faults of control runs), refused (of those, reported as
                 not having happened), violations, resets, takeovers, sessions, generations, tokens, connections,
                 gaps (null, or count, p50, p90, p99, max, histogram), bound (null: no bound), within (null: not
                 compared), figures (by name, each like gaps), figure_bounds (name → seconds)
    scenarios    by name, each an outcome
    over         names of those whose p99 is over the bound
    late         names of figures, over all scenarios, whose p99 is over the bound
    violations   a list: run, scenario, round, rule, session, detail, replay
    unverified   faults that could not be shown to have happened: run, scenario, round, victim, at, proof, replay
    believed     faults of control runs that were said to have happened: likewise
    left_out     scenarios that no run could play: name → why
    unplayed     scenarios that a run was to play, and none did
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from compose.chaos.report_page import page
from compose.chaos.report_text import text
from compose.chaos.summary import EDGES, Strike, Summary
from compose.chaos.wording import verdict

__all__ = ["as_json", "text", "write"]

FORMAT = 1


def write(summary: Summary, directory: Path, sentences: Mapping[str, str]) -> None:
    """`report.json` and `report.html`, each whole or not at all. `sentences`: what a scenario does, by name.

    Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _replace(directory / "report.json", as_json(summary))
    _replace(directory / "report.html", page(summary, sentences).encode())


def as_json(summary: Summary) -> bytes:
    """As described above."""
    report = {
        "format": FORMAT,
        "verdict": verdict(summary),
        "held": summary.held,
        "control": summary.control,
        "systems": summary.systems,
        "edges": EDGES,
        "total": summary.total,
        "scenarios": summary.scenarios,
        "over": summary.over,
        "late": summary.late,
        "violations": summary.violations,
        "unverified": [_fault(strike) for strike in summary.unverified],
        "believed": [_fault(strike) for strike in summary.believed],
        "left_out": summary.left_out,
        "unplayed": summary.unplayed,
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def _fault(strike: Strike) -> dict[str, Any]:
    return {name: getattr(strike, name) for name in ("run", "scenario", "round", "victim", "at", "proof", "replay")}


def _replace(path: Path, content: bytes) -> None:
    """Nobody finds half a report."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
