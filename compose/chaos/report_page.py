"""The report's page: one HTML file that needs nothing else, neither scripts nor assets. Pure.

Whatever comes from a run (a detail quotes what clients were sent) is text on the page and nothing but text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from compose.chaos import report_plots as plots
from compose.chaos import report_tables as tables
from compose.chaos import report_timeline as timeline
from compose.chaos import wording
from compose.chaos.summary import Finding, Outcome, Strike, Summary
from compose.chaos.wording import clock, count, counted, markup, seconds

STYLE = Path(__file__).with_name("report.css")
LISTED = 100
"""Rounds with violations, or unverified faults, that the page lists; report.json has them all."""
FINDINGS = 10
"""Violations of one round that the page lists: when all is broken, the page is still one that opens."""
DETAIL = 1_000
"""Characters of a detail that the page shows."""

LOGO = (
    '<svg class="logo" viewBox="0 0 32 32" aria-hidden="true"><ellipse cx="11.2" cy="17.6" rx="3" ry="6.6" '
    'transform="rotate(-24 11.2 17.6)"/><ellipse cx="20.8" cy="17.6" rx="3" ry="6.6" transform="rotate(24 20.8 17.6)"/>'
    '<ellipse cx="16" cy="13.2" rx="3" ry="6.8"/></svg>'
)
_SPAN = r'<span class="whole">\g<0></span>'
STAMP = {"good": "Held", "warn": "Held, with remarks", "bad": "Broken"}


def page(summary: Summary, sentences: Mapping[str, str]) -> str:
    """`sentences`: what a scenario does, by name."""
    findings = _findings(summary)
    broken = not summary.held
    body = [
        _head(summary),
        findings if broken else "",
        _scenarios(summary, sentences),
        _left_out(summary),
        _gaps(summary),
        _timeline(summary),
        _figures(summary),
        "" if broken else findings,
        _foot(summary),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{markup(wording.verdict(summary))}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n"
        f"</head>\n<body>\n{chr(10).join(part for part in body if part)}\n</body>\n</html>\n"
    )


def _head(summary: Summary) -> str:
    tone = wording.tone(summary)
    total = summary.total
    struck = (total.decoys, "faults at wrong targets") if summary.control else (total.faults, "faults")
    numbers = [
        struck,
        (total.rounds, "rounds"),
        (total.sessions, "sessions"),
        (total.generations, "generations"),
        (total.tokens, "tokens compared"),
        (total.connections, "viewers’ connections"),
        (total.takeovers, "takeovers"),
        (total.resets, "resets"),
    ]
    systems = summary.systems
    longest = max((system.seconds for system in systems), default=0.0)
    facts = {
        "Seed": _some(str(system.seed) for system in systems),
        "When": _when([system.began for system in systems]),
        "How long": f"{clock(longest)}{f', the longest of {len(systems)} runs' if len(systems) > 1 else ''}",
        "Machine": _some(system.machine for system in systems),
        "Version": _some(f"okome {system.version}" for system in systems),
    }
    stamp = "Nothing struck" if not total.faults + total.decoys and summary.held else STAMP[tone]
    return (
        f'<header class="{tone}"><div class="brand">{LOGO}<b>OKOME</b> <span>fault run</span>{_links(summary)}</div>'
        f'<p class="stamp">{stamp}</p><h1>{_together(markup(wording.verdict(summary)))}.</h1>'
        + "".join(f'<p class="remark">{_whole(markup(one))}</p>' for one in wording.remarks(summary))
        + '<ul class="numbers">'
        + "".join(f"<li><b>{count(number)}</b> {word}</li>" for number, word in numbers)
        + '</ul><dl class="facts">'
        + "".join(f"<div><dt>{name}</dt><dd>{markup(fact)}</dd></div>" for name, fact in facts.items())
        + f"</dl>{_commands(summary)}</header>"
    )


def _links(summary: Summary) -> str:
    there = {
        "scenarios": ("Scenarios", summary.scenarios),
        "gaps": ("Gaps", summary.total.gaps),
        "timeline": ("Over time", summary.strikes),
        "figures": ("Figures", summary.total.figures),
        "violations": ("Violations", True),
    }
    links = "".join(f'<a href="#{where}">{name}</a>' for where, (name, any_of_it) in there.items() if any_of_it)
    return f'<nav aria-label="On this page">{links}</nav>'


def _commands(summary: Summary) -> str:
    commands = list(dict.fromkeys(system.command for system in summary.systems))
    if not commands:
        return ""
    blocks = "".join(map(_command, commands))
    heading = "The command that made it" if len(commands) == 1 else f"The {len(commands)} commands that made it"
    return f"<details><summary>{heading}</summary>{blocks}</details>"


def _findings(summary: Summary) -> str:
    rounds: dict[tuple[str, str, int], list[Finding]] = {}
    for finding in summary.violations:
        rounds.setdefault((finding.run, finding.scenario, finding.round), []).append(finding)
    entries = [
        f"<article><h3>{markup(scenario)} <span>round {number}, run {_whole(markup(run))}</span></h3>"
        + "".join(_finding(finding) for finding in found[:FINDINGS])
        + _more(len(found) - FINDINGS, "of this round")
        + f"{_replay(found[0].replay)}</article>"
        for (run, scenario, number), found in list(rounds.items())[:LISTED]
    ]
    judged = f"{counted(summary.total.generations, 'generation')}, {counted(summary.total.tokens, 'token')}"
    none = f"None. What viewers saw was compared with script and log, byte by byte: {judged}."
    if not summary.total.generations:
        none = "None, and nothing that they could have been found in."
    parts = [
        '<section id="violations"><h2>Violations</h2>',
        *(entries or [f'<p class="none">{none}</p>']),
        _more(len(rounds) - LISTED, "rounds"),
        _unproven("Faults that were not verified", "What showed nothing", summary.unverified),
        _unproven("Faults at wrong targets that were said to have happened", "What was believed", summary.believed),
    ]
    return "".join(parts) + "</section>"


def _finding(finding: Finding) -> str:
    session = f" in session <code>{markup(finding.session)}</code>" if finding.session else ""
    cut = " …" if len(finding.detail) > DETAIL else ""
    return f'<p class="broken"><b>{markup(finding.rule)}</b>{session}</p><p>{markup(finding.detail[:DETAIL])}{cut}</p>'


def _unproven(heading: str, label: str, strikes: list[Strike]) -> str:
    if not strikes:
        return ""
    return (
        f'<h2 class="second">{heading}</h2>'
        + "".join(
            f"<article><h3>{markup(strike.scenario)} <span>round {strike.round}, run {_whole(markup(strike.run))}, "
            f"at {clock(strike.at)}</span></h3><p>Struck: {markup(strike.victim[:DETAIL])}</p>"
            f"<p>{label}: {markup(strike.proof[:DETAIL])}</p>{_replay(strike.replay)}</article>"
            for strike in strikes[:LISTED]
        )
        + _more(len(strikes) - LISTED, "faults")
    )


def _replay(command: str) -> str:
    return f'<p class="label">Play it again</p>{_command(command)}' if command else ""


def _command(words: str) -> str:
    """A flag stays on one line with its value, and is not torn at its dashes."""
    return f"<pre><code>{re.sub(r'--[a-z]+(?: (?!--)[^ ]+)?', _SPAN, markup(words))}</code></pre>"


def _more(number: int, what: str) -> str:
    return f'<p class="more">{count(number)} more {what} stand in report.json.</p>' if number > 0 else ""


def _scenarios(summary: Summary, sentences: Mapping[str, str]) -> str:
    if not summary.scenarios:
        return ""
    words = (
        "A gap is the longest silence that one viewer saw around one fault, between two tokens of a running answer; "
        "the answer’s own rhythm, 20 to 50 ms, is in it. Bars are the square root of how many."
    )
    if summary.control:
        words = (
            "Each fault struck something that nobody depends on, so its proof had to fail: a proof that cannot fail "
            "proves nothing."
        )
    return (
        f'<section id="scenarios"><h2>Scenarios</h2><p class="lead">{words}</p>'
        f"{tables.scenarios(summary, sentences)}</section>"
    )


def _gaps(summary: Summary) -> str:
    measured = [(name, outcome, outcome.gaps) for name, outcome in summary.scenarios.items() if outcome.gaps]
    if not measured:
        return ""
    measured.sort(key=lambda one: (-one[2].p99, one[0]))
    rows = "".join(
        f'<div class="row {tables.tone(outcome)}"><b>{markup(name)}</b>{plots.strip(gaps, outcome.bound)}'
        f"<span>{seconds(gaps.p99)} <i>{_beside(outcome)}</i></span></div>"
        for name, outcome, gaps in measured
    )
    return (
        '<section id="gaps"><h2>Gap distribution per fault</h2><p class="lead">Longest p99 first, on a logarithmic '
        f'scale. The shading is how many gaps lie there.</p><ul class="legend">{plots.legend()}</ul>'
        f'<div class="plot">{_axis()}{rows}{_axis()}</div></section>'
    )


def _axis() -> str:
    return f'<div class="row axis"><b></b>{plots.ruler()}<span></span></div>'


def _beside(outcome: Outcome) -> str:
    if outcome.bound is None:
        return "no bound"
    return f"{'over' if outcome.within is False else 'of'} {wording.bound(outcome.bound)}"


def _timeline(summary: Summary) -> str:
    if not summary.strikes:
        return ""
    rows, thinned = timeline.rows(summary)
    hues = timeline.hues(summary.strikes)
    others = [one for one, hue in hues.items() if hue == "hx"]
    names = [(one, hue) for one, hue in hues.items() if hue != "hx"]
    names += [(", ".join(others), "hx")] if others else []
    legend = "".join(f'<li><i class="{hue}"></i>{markup(name)}</li>' for name, hue in names)
    note = f" To keep the page small, {thinned}." if thinned else ""
    return (
        '<section id="timeline"><h2>Faults against gaps, over time</h2><p class="lead">A row is a system under test. '
        "Below, a tick is a fault and a bar as long as it lasted; above, a dot is a gap, by its length, and a larger "
        f'one the longest of its fault.{note}</p><ul class="legend">{legend}</ul>{"".join(rows)}</section>'
    )


def _figures(summary: Summary) -> str:
    if not summary.total.figures:
        return ""
    return (
        '<section id="figures"><h2>Figures</h2><p class="lead">Times that scenarios measured besides gaps.</p>'
        f"{tables.figures(summary)}</section>"
    )


def _left_out(summary: Summary) -> str:
    if not summary.left_out:
        return ""
    entries = "".join(
        f"<div><dt>{markup(name)}</dt><dd>{markup(why)}</dd></div>" for name, why in summary.left_out.items()
    )
    return f'<section id="left-out"><h2>Left out</h2><dl class="facts">{entries}</dl></section>'


def _foot(summary: Summary) -> str:
    return (
        "<footer><p>This page again, from the records that lie beside it:</p>"
        "<pre><code>okome chaos merge . --report .</code></pre>"
        "<p>The same numbers for machines: <code>report.json</code>. Percentiles are nearest-rank over all values.</p>"
        "</footer>"
    )


def _whole(words: str) -> str:
    """Names are not torn at their dashes."""
    return re.sub(r"\w+(?:-\w+)+", _SPAN, words)


def _together(words: str) -> str:
    """A number stays on one line with what it counts."""
    return re.sub(r"(\d) (?=[a-z])", "\\1\N{NO-BREAK SPACE}", words)


def _some(values: Iterable[str]) -> str:
    """The different ones, a few of them."""
    different = list(dict.fromkeys(values))
    more = f" and {len(different) - 5} more" if len(different) > 5 else ""
    return ", ".join(different[:5]) + more or "–"


def _when(began: list[str]) -> str:
    if not began:
        return "–"
    first, last = _day(min(began)), _day(max(began))
    if first == last:
        return first
    day, _, hour = last.rpartition(", ")
    return f"{first.removesuffix(' UTC')} to {hour if day and first.startswith(day + ', ') else last}"


def _day(moment: str) -> str:
    try:
        at = datetime.fromisoformat(moment).astimezone(UTC)
    except ValueError:
        return moment
    return f"{at.day} {at:%B %Y, %H:%M} UTC"
