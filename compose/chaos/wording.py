"""How a fault run is said in words: its verdict, its numbers. Pure; the page and the terminal say the same."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Literal

from compose.chaos.summary import Summary

NARROW = "\N{NARROW NO-BREAK SPACE}"
_CONTROLS = dict.fromkeys((code for code in (*range(32), 127) if chr(code) not in "\n\t"), "\N{REPLACEMENT CHARACTER}")
NAMED = 8
"""Scenarios that a sentence names at most."""
Tone = Literal["good", "warn", "bad"]


def count(number: int) -> str:
    """2 143, on one line wherever it stands."""
    return f"{number:,}".replace(",", NARROW)


def counted(number: int, noun: str) -> str:
    """1 fault, 2 faults."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def seconds(value: float) -> str:
    """Three digits at most: 4.2 ms, 31 ms, 1.24 s, 12.4 s."""
    if value < 0.00995:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s" if value < 99.95 else f"{value:.0f} s"


def bound(value: float | None) -> str:
    """As it was given, not rounded."""
    if value is None:
        return "no bound"
    return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"


def clock(value: float) -> str:
    """How long a run took: 42 s, 12 min 07 s, 1 h 02 min."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def figure(name: str) -> str:
    """`cancel_to_stopped` as people say it."""
    return name.replace("_", " ")


def markup(words: str) -> str:
    """As text in a page or an attribute. Control characters, which would be swallowed, are shown as such."""
    return html.escape(words.translate(_CONTROLS))


def verdict(summary: Summary) -> str:
    """One sentence without its full stop."""
    total = summary.total
    violations = counted(total.violations, "violation")
    if summary.control:
        if not total.decoys:
            return f"Control run: nothing was struck, {violations}"
        struck = "Control run: every fault struck a wrong target"
        return f"{struck}; {_refused(summary)}{f'; {violations}' if total.violations else ''}"
    if not total.faults:
        return f"No fault was injected, {violations}"
    where = counted(sum(outcome.faults > 0 for outcome in summary.scenarios.values()), "scenario")
    if total.verified == total.faults:
        return f"{counted(total.faults, 'fault')} injected and verified in {where}, {violations}"
    return f"{count(total.verified)} of {counted(total.faults, 'injected fault')} verified in {where}, {violations}"


def tone(summary: Summary) -> Tone:
    """Bad: something is broken. Warn: nothing is, yet not all was reached."""
    if not summary.held:
        return "bad"
    short = summary.cut_off or summary.unplayed or not summary.total.faults + summary.total.decoys
    return "warn" if summary.over or summary.late or short else "good"


def remarks(summary: Summary) -> list[str]:
    """What belongs to the verdict, a sentence each: bounds, control runs, what was cut off or left out."""
    said: list[str] = []
    bounded = [name for name, outcome in summary.scenarios.items() if outcome.within is not None]
    if summary.over:
        said.append(
            f"The p99 of the gaps is over its bound in {len(summary.over)} of {len(bounded)} scenarios: "
            f"{_named(summary.over)}."
        )
    elif bounded:
        every = (
            f"every one of the {len(bounded)} scenarios that have" if len(bounded) > 1 else "the one scenario that has"
        )
        said.append(f"The p99 of the gaps is within its bound in {every} one.")
    if late := [figure(name) for name in summary.late]:
        said.append(f"The p99 of {counted(len(late), 'figure')} is over its bound: {_named(late)}.")
    if summary.total.decoys and not summary.control:
        said.append(f"In control runs, where every fault struck a wrong target, {_refused(summary)}.")
    if cut := len(summary.cut_off):
        runs = f"{cut} of {len(summary.systems)} runs {'was' if cut == 1 else 'were'}"
        said.append(
            f"{runs if len(summary.systems) > 1 else 'The run was'} cut off: this is what was recorded until then."
        )
    if unplayed := summary.unplayed:
        said.append(f"{counted(len(unplayed), 'scenario')} that belonged to it never came: {_named(unplayed)}.")
    if left_out := list(summary.left_out):
        were = "was" if len(left_out) == 1 else "were"
        said.append(f"{counted(len(left_out), 'scenario')} {were} left out, with reasons below: {_named(left_out)}.")
    return said


def _named(scenarios: Sequence[str]) -> str:
    more = f" and {len(scenarios) - NAMED} more" if len(scenarios) > NAMED else ""
    return ", ".join(scenarios[:NAMED]) + more


def _refused(summary: Summary) -> str:
    total = summary.total
    believed = f", {count(total.decoys - total.refused)} were not" if total.refused < total.decoys else ""
    return f"{count(total.refused)} of {count(total.decoys)} were reported as not having happened{believed}"
