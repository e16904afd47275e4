"""docs/performance.md, from the records of a run. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.record import Failed, Line, Missing, Run, Shape, runs
from bench.summary import PATH, Row, rows

OURS = "okome"
RUST = ("vllm-router", "sglang-router")
"""The routers that our figures are held against."""


def page(lines: Sequence[Line], command: str) -> str:
    """The whole page. `command`: what writes it again."""
    measured = runs(lines)
    if not measured:
        raise ValueError("no run in these records")
    parts = [_head(measured, command)]
    missing = {one.contender: one.cure for one in lines if isinstance(one, Missing)}
    if missing:
        said = "; ".join(f"{name} (`{cure}`)" for name, cure in missing.items())
        parts.append(f"Not in these tables, because not installed where they were made: {said}.")
    for shape, found in rows(measured).items():
        failed = [one for one in lines if isinstance(one, Failed) and one.shape == shape]
        parts += [f"### {shape.name}", _table(found), *_verdicts(found)]
        parts += [f"{one.contender} did not carry this load: {one.why}." for one in failed]
        parts.append(f"![latency](performance/{picture(shape)})")
    return "\n\n".join(parts) + "\n"


def picture(shape: Shape) -> str:
    """The file name of a shape's plot."""
    return f"latency-{shape.streams}x{shape.rate:g}x{shape.viewers}.svg"


_INTRODUCTION = """\
Every contender relays the same answers of the same mock engine (`bench/mock_engine.py`: OpenAI-compatible, all streams
step at once, as in real engines) to the same load client (`bench/load.py`), one after the other on one machine whose
cores all of them share. The figures are medians of the rounds. CPU is what the operating system says of each process,
per token that a viewer got. Latency is from the engine's write of a token to the client's read of it.

The routers and proxies keep nothing. What okome's lines pay for is that an answer is in a file on disk before anybody
sees it, and that any process may die."""


def _head(measured: Sequence[Run], command: str) -> str:
    first = measured[0]
    rounds = max(run.round for run in measured) + 1
    return (
        "# What a token costs, beside what else there is\n\n"
        f"Written by `{command}` ({first.began}, {first.machine}; {rounds} rounds in turned order, "
        f"{first.loaded.seconds:.0f} s measured in each after a warm-up).\n\n{_INTRODUCTION}"
    )


def _table(found: Sequence[Row]) -> str:
    best = min((row.whole for row in found if row.contender in RUST), default=0.0)
    heads = [
        "",
        "version",
        "tokens/s",
        "CPU per token",
        "of the best Rust router",
        "p50 / p99",
        "TTFT p50 / p99",
        "client's CPU",
    ]
    table = [heads, ["---"] * len(heads)]
    for row in found:
        latency, ttft = f"{row.p50:.2f} / {row.p99:.2f} ms", f"{row.ttft_p50:.1f} / {row.ttft_p99:.1f} ms"
        cells = [row.contender, row.version, f"{row.rate:.0f}", _cost(row.whole), _ratio(row.whole, best)]
        table.append([*cells, latency, ttft, f"{row.client:.0%}"])
        if row.contender == OURS:
            for name, cost in (("… node alone", row.costs.get("node", 0.0)), ("… the path a token takes", path(row))):
                table.append([name, "", "", _cost(cost), _ratio(cost, best), "", "", ""])
            each = ", ".join(f"{name} {cost:.1f}" for name, cost in row.costs.items())
            table.append([f"… each: {each} µs", *[""] * (len(heads) - 1)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def path(row: Row) -> float:
    """What the roles that a token passes cost together."""
    return sum(row.costs.get(name, 0.0) for name in PATH)


def _cost(microseconds: float) -> str:
    return f"{microseconds:.1f} µs" if microseconds else "–"


def _ratio(cost: float, best: float) -> str:
    return f"{cost / best:.2f} ×" if best and cost else "–"


def _verdicts(found: Sequence[Row]) -> list[str]:
    return [f"**{row.contender}: {'; '.join(row.doubts)}: not to be believed.**" for row in found if row.doubts]
