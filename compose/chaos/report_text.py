"""The report as plain text of at most 100 columns, for a terminal or a log."""

from __future__ import annotations

import textwrap

from compose.chaos.summary import Finding, Outcome, Strike, Summary
from compose.chaos.wording import bound, count, figure, remarks, seconds, verdict

COLUMNS = 100
LISTED = 20
"""Violations, or faults, that are listed at most; report.json has them all."""

_ROW = "{:<22.22} {:>9} {:>6} {:>6} {:>6} {:>7} {:>7} {:>7} {:>7} {}"


def text(summary: Summary) -> str:
    """Without a line end behind it."""
    lines: list[str] = []
    for sentence in (verdict(summary) + ".", *remarks(summary)):
        lines += textwrap.wrap(sentence, COLUMNS, break_on_hyphens=False)  # names stay whole
    if summary.scenarios:
        lines += [
            "",
            _ROW.format("SCENARIO", "FAULTS", "BROKEN", "RESETS", "TAKEN", "GAPS", "P50", "P99", "MAX", "BOUND"),
        ]
        lines += [_row(name, outcome) for name, outcome in summary.scenarios.items()]
    if len(summary.scenarios) > 1:
        lines.append(_row("total", summary.total))
    if summary.total.figures:
        lines += ["", f"{'FIGURE':<40} {'COUNT':>7} {'P50':>8} {'P90':>8} {'P99':>8} {'MAX':>8} BOUND"]
        lines += [
            f"{figure(name):<40.40} {count(one.count):>7} "
            + " ".join(f"{seconds(value):>8}" for value in (one.p50, one.p90, one.p99, one.max))
            + f" {_against(summary.total.figure_bounds.get(name), over=name in summary.late)}"
            for name, one in summary.total.figures.items()
        ]
    lines += _listed("VIOLATIONS", [_finding(one) for one in summary.violations])
    lines += _listed("NOT VERIFIED", [_strike(one) for one in summary.unverified])
    lines += _listed("SAID TO HAVE HAPPENED, IN A CONTROL RUN", [_strike(one) for one in summary.believed])
    if summary.left_out:
        lines += ["", "LEFT OUT"]
        for name, why in summary.left_out.items():
            lines += _wrapped(f"{name}: {why}")
    return "\n".join(lines)


def _row(name: str, outcome: Outcome) -> str:
    struck, proven = (outcome.faults, outcome.verified) if outcome.faults else (outcome.decoys, outcome.refused)
    gaps = outcome.gaps
    measured = [count(gaps.count), *(seconds(value) for value in (gaps.p50, gaps.p99, gaps.max))] if gaps else ["–"] * 4
    return _ROW.format(
        name,
        count(struck) if struck == proven else f"{count(proven)}/{count(struck)}",
        count(outcome.violations),
        count(outcome.resets),
        count(outcome.takeovers),
        *measured,
        _against(outcome.bound, over=outcome.within is False),
    )


def _against(limit: float | None, *, over: bool) -> str:
    return "–" if limit is None else bound(limit) + (" OVER" if over else "")


def _listed(heading: str, entries: list[list[str]]) -> list[str]:
    if not entries:
        return []
    lines = ["", heading]
    for entry in entries[:LISTED]:
        lines += entry
    if len(entries) > LISTED:
        lines.append(f"  and {count(len(entries) - LISTED)} more, in report.json")
    return lines


def _finding(one: Finding) -> list[str]:
    where = f" in session {one.session}" if one.session else ""
    return [*_wrapped(f"{one.rule}{where}, {one.scenario} round {one.round}: {one.detail}"), f"    {one.replay}"]


def _strike(one: Strike) -> list[str]:
    return [*_wrapped(f"{one.victim}, {one.scenario} round {one.round}: {one.proof}"), f"    {one.replay}"]


def _wrapped(entry: str) -> list[str]:
    """Printable, whatever was in it: a detail may quote what a client was sent."""
    clean = "".join(char if char.isprintable() else " " for char in entry)
    return textwrap.wrap(
        textwrap.shorten(clean, 600, placeholder=" …"),
        COLUMNS,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
