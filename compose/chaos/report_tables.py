"""The tables of a report's page: one row per scenario, one per figure. On a phone a row becomes a card. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from compose.chaos.report_plots import spark
from compose.chaos.summary import Distribution, Outcome, Summary
from compose.chaos.wording import bound, count, figure, markup, seconds

SHAPE = "5 ms … 30 s"
_COLUMNS = {
    "Scenario": "what",
    "Measured": "what",
    "Bound of p99": "against",
    SHAPE: "shape",
}
"""Classes of columns that do not just hold a number."""
_TONES = {True: "within", False: "over", None: "free"}
"""The class that colours what is within its bound, or over it."""


def scenarios(summary: Summary, sentences: Mapping[str, str]) -> str:
    """`sentences`: what a scenario does, by name."""
    rows = {name: _row(outcome, summary) for name, outcome in summary.scenarios.items()}
    body = "".join(
        f'<tr class="{tone(summary.scenarios[name])}"><th scope="row"><b>{markup(name)}</b>'
        f"<span>{markup(sentences.get(name, ''))}</span></th>{_cells(row)}</tr>"
        for name, row in rows.items()
    )
    heads = ["Scenario", *next(iter(rows.values()), {})]
    return f'<table class="scenarios">{_heads(heads)}<tbody>{body}</tbody></table>'


def figures(summary: Summary) -> str:
    """Each over all scenarios; where several measured it, then of each."""
    rows = []
    bounds = summary.total.figure_bounds
    for name, whole in summary.total.figures.items():
        parts = [(one, outcome.figures[name]) for one, outcome in summary.scenarios.items() if name in outcome.figures]
        if len(parts) == 1:
            rows.append(_figure(figure(name), parts[0][0], whole, bounds.get(name)))
        else:
            rows.append(_figure(figure(name), "all scenarios", whole, bounds.get(name)))
            rows += [_figure("", one, part, bounds.get(name)) for one, part in parts]
    heads = _heads(["Measured", "Count", "p50", "p90", "p99", "Longest", "Bound of p99", SHAPE])
    return f'<table class="figures">{heads}<tbody>{"".join(rows)}</tbody></table>'


def tone(outcome: Outcome) -> str:
    """The class that colours what belongs to a scenario."""
    return _TONES[outcome.within]


def _row(outcome: Outcome, summary: Summary) -> dict[str, str]:
    """Cells by heading. In control runs, what counts is that a fault was reported as not having happened."""
    refused = outcome.decoys, outcome.refused
    row: dict[str, str] = {}
    if summary.control:
        row["Wrong targets"] = count(outcome.decoys)
        row["Reported"] = _red(count(outcome.refused), wrong=outcome.refused < outcome.decoys)
    else:
        row["Faults"] = count(outcome.faults)
        row["Verified"] = _red(count(outcome.verified), wrong=outcome.verified < outcome.faults)
        if summary.total.decoys:
            row["Control"] = _red(f"{count(refused[1])} of {count(refused[0])}", wrong=refused[1] < refused[0])
    row["Violations"] = _red(count(outcome.violations), wrong=outcome.violations > 0)
    row["Resets"] = count(outcome.resets)
    row["Takeovers"] = count(outcome.takeovers)
    if summary.total.gaps:
        gaps = outcome.gaps
        row["Gaps"] = count(gaps.count) if gaps else "–"
        row["p50"] = seconds(gaps.p50) if gaps else "–"
        row["p99"] = _red(seconds(gaps.p99), wrong=outcome.within is False) if gaps else "–"
        row["Longest"] = seconds(gaps.max) if gaps else "–"
        row["Bound of p99"] = _against(outcome)
        row[SHAPE] = spark(gaps, outcome.bound) if gaps else ""
    return row


def _against(outcome: Outcome) -> str:
    return _bound(outcome.bound, outcome.within)


def _bound(limit: float | None, within: bool | None) -> str:
    if limit is None:
        return '<span class="free">no bound</span>'
    word = {True: "within ", False: "over ", None: ""}[within]
    return f'<span class="{_TONES[within]}">{word}{bound(limit)}</span>'


def _figure(name: str, scenario: str, one: Distribution, limit: float | None) -> str:
    within = None if limit is None else one.p99 <= limit
    row = {"Count": count(one.count), "p50": seconds(one.p50), "p90": seconds(one.p90)}
    row |= {"p99": _red(seconds(one.p99), wrong=within is False), "Longest": seconds(one.max)}
    row |= {"Bound of p99": _bound(limit, within), SHAPE: spark(one, limit)}
    head = f'<th scope="row"><b class="words">{markup(name)}</b><span>{markup(scenario)}</span></th>'
    return f'<tr class="{_TONES[within]}">{head}{_cells(row)}</tr>'


def _heads(heads: list[str]) -> str:
    cells = "".join(f'<th scope="col" class="{_COLUMNS.get(head, "number")}">{head}</th>' for head in heads)
    return f"<thead><tr>{cells}</tr></thead>"


def _cells(row: Mapping[str, str]) -> str:
    return "".join(
        f'<td class="{_COLUMNS.get(head, "number")}{" nil" if cell in ("0", "–") else ""}" data-label="{head}">'
        f"{cell}</td>"
        for head, cell in row.items()
    )


def _red(cell: str, *, wrong: bool) -> str:
    return f'<b class="wrong">{cell}</b>' if wrong else cell
