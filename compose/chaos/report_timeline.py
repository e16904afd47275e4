"""Faults against gaps over time, a row for each system under test, as inline SVG that stretches with the page. Pure.

Thousands of faults stay small: gaps of one colour are one path, and what is left out is said, never the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compose.chaos.record import Stall
from compose.chaos.report_plots import GRID, along
from compose.chaos.summary import Strike, Summary, System
from compose.chaos.wording import bound, clock, count, counted, markup, seconds

HUES = 9
"""Kinds of fault with a colour of their own, the most frequent ones; others share one."""
ROWS = 16
"""Runs with a row of their own in the timeline; where there are more, runs against the same target share one."""
FAULTS_DRAWN = 4_000
GAPS_DRAWN = 20_000

_WIDE = 1000
_TOP, _LOW = 6, 112
"""In a timeline's row: where the longest and the shortest gap lie."""
_FAULTS, _PITCH = 122, 6
"""Where the faults begin, and how far apart the lines of two kinds are."""


def kind(scenario: str) -> str:
    """What is hurt: the word before the first dash."""
    return scenario.partition("-")[0]


def hues(strikes: Sequence[Strike]) -> dict[str, str]:
    """Kinds of fault in the order of their names, each with its CSS class."""
    often: dict[str, int] = {}
    for strike in strikes:
        often[kind(strike.scenario)] = often.get(kind(strike.scenario), 0) + 1
    chosen = sorted(sorted(often, key=lambda one: (-often[one], one))[:HUES])
    return {one: f"h{chosen.index(one)}" if one in chosen else "hx" for one in sorted(often)}


def rows(summary: Summary) -> tuple[list[str], str]:
    """The rows, and what was left out of them for size, "" if nothing was."""
    colours = hues(summary.strikes)
    drawn = _thinned(summary.strikes, FAULTS_DRAWN)
    every = sum(len(strike.stalls) for strike in drawn)
    nth = max(1, -(-every // GAPS_DRAWN))
    end = max((system.seconds for system in summary.systems), default=0.0) or 1.0
    systems = {system.id: system for system in summary.systems}
    lanes: dict[str, list[System]] = {}
    for system in summary.systems:
        lanes.setdefault(system.id if len(systems) <= ROWS else system.target, []).append(system)
    cells: list[str] = []
    for together in lanes.values():
        ids = {system.id for system in together}
        struck = [strike for strike in drawn if strike.run in ids]
        present = {colours[kind(strike.scenario)] for strike in struck}
        # One line for each kind, in the order of the legend.
        lines = {hue: _FAULTS + index * _PITCH for index, hue in enumerate(sorted(present))}
        high = _FAULTS + max(len(lines), 1) * _PITCH + 4
        faults = counted(sum(system.faults for system in together), "fault")
        many = f", {len(together)} runs" if len(together) > 1 else ""
        longest = max(system.seconds for system in together)
        ended = ", cut off" if any(system.cut_off for system in together) else ""
        target = markup(together[0].target)
        cells.append(
            f'<div class="lane"><p><b>{target}</b> <span>{faults}{many} in {clock(longest)}{ended}</span></p>'
            f"{_scale(high)}"
            f'<svg class="run" height="{high}" viewBox="0 0 {_WIDE} {high}" preserveAspectRatio="none" role="img" '
            f'aria-label="{target}: {faults}">{_ground(longest / end, high)}{_gaps(struck, colours, end, nth)}'
            f"{_faults(struck, colours, lines, end)}</svg></div>"
        )
    cells.append(f'<div class="lane">{_hours(end)}</div>')
    said = []
    if len(drawn) < len(summary.strikes):
        among = "with the longest gap of each scenario and run among them"
        said.append(f"{count(len(drawn))} of {counted(len(summary.strikes), 'fault')} are drawn, {among}")
    if nth > 1:
        said.append(f"of each fault’s gaps the longest and every {_ordinal(nth)} of the others are drawn")
    return cells, "; ".join(said)


def _gaps(strikes: Sequence[Strike], colours: Mapping[str, str], end: float, nth: int) -> str:
    """Dots, a path for each colour. The longest of a fault is always there, and larger."""
    small: dict[str, list[str]] = {}
    large: dict[str, list[str]] = {}
    seen = 0
    for strike in strikes:
        hue = colours[kind(strike.scenario)]
        longest = max(strike.stalls, key=lambda stall: stall.seconds, default=None)
        for stall in strike.stalls:
            seen += 1
            if stall is longest:
                large.setdefault(hue, []).append(_dot(stall, end))
            elif seen % nth == 0:
                small.setdefault(hue, []).append(_dot(stall, end))
    return "".join(
        f'<path class="{size} {hue}" d="{"".join(dict.fromkeys(dots))}"/>'
        for size, paths in (("dot", small), ("peak", large))
        for hue, dots in paths.items()
    )


def _dot(stall: Stall, end: float) -> str:
    return f"M{_across(stall.at, end):g} {_TOP + (1 - along(stall.seconds)) * (_LOW - _TOP):.1f}h0"


def _faults(strikes: Sequence[Strike], colours: Mapping[str, str], lines: Mapping[str, int], end: float) -> str:
    """Ticks, each with its words, and as long as the fault lasted."""
    ticks = []
    for strike in strikes:
        hue = colours[kind(strike.scenario)]
        at, until = _across(strike.at, end), _across(max(strike.until, strike.at), end)
        lasting = f"M{at:g} {lines[hue] + 2.5}H{until:g}" if until - at > 1 else ""
        told = markup(f"{strike.scenario} at {clock(strike.at)}: {strike.victim}"[:160])
        mark = "" if strike.verified or strike.wrong else " unproven"
        gap = f", gap {seconds(strike.longest)}" if strike.stalls else ""
        ticks.append(f'<path class="{hue}{mark}" d="M{at:g} {lines[hue]}v5{lasting}"><title>{told}{gap}</title></path>')
    return f'<g class="ticks">{"".join(ticks)}</g>'


def _ground(share: float, high: int) -> str:
    """How far the run went, with the lines of the log scale."""
    wide = share * _WIDE
    lines = "".join(f"M0 {_height(value):.1f}H{wide:.1f}" for value in GRID)
    return f'<rect class="ground" width="{wide:.1f}" height="{high}"/><path class="grid" d="{lines}"/>'


def _scale(high: int) -> str:
    """Names of the log scale's lines, beside a row."""
    return (
        f'<svg class="scale" height="{high}" viewBox="0 0 40 {high}" aria-hidden="true">'
        + "".join(f'<text x="34" y="{_height(at) + 4:.1f}" text-anchor="end">{bound(at)}</text>' for at in GRID)
        + "</svg>"
    )


def _hours(end: float) -> str:
    """The time axis under the rows, in round steps."""
    step = next(one for one in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 1e9) if end / one <= 6)
    marks = [index * step for index in range(int(end // step) + 1)]
    if len(marks) > 1 and end - marks[-1] < 0.02 * end:
        marks.pop()  # its name would run out of the picture
    return (
        '<svg class="hours" aria-hidden="true">'
        + "".join(
            f'<text x="{at / end:.2%}" y="14" text-anchor="{"middle" if at else "start"}">{_short(at)}</text>'
            for at in marks
        )
        + "</svg>"
    )


def _thinned(strikes: Sequence[Strike], limit: int) -> list[Strike]:
    """So many, evenly: never without the longest gap of a scenario or of a run."""
    if len(strikes) <= limit:
        return list(strikes)
    longest: dict[tuple[str, str], int] = {}
    for index, strike in enumerate(strikes):
        for key in (("scenario", strike.scenario), ("run", strike.run)):
            if key not in longest or strike.longest > strikes[longest[key]].longest:
                longest[key] = index
    kept = set(longest.values())
    step = -(-len(strikes) // max(1, limit - len(kept)))
    return [strike for index, strike in enumerate(strikes) if index in kept or index % step == 0]


def _across(at: float, end: float) -> float:
    return round(min(max(at / end, 0.0), 1.0) * _WIDE, 1)


def _height(value: float) -> float:
    return _TOP + (1 - along(value)) * (_LOW - _TOP)


def _short(at: float) -> str:
    if at < 60:
        return f"{at:g} s"
    return f"{at / 60:g} min" if at < 3600 else f"{at / 3600:g} h"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
