"""docs/soak.md: what half an hour of churn leaves behind, with the figures of one `Soak`. Pure.

The sentences stand in `soak.md` beside this file, so that the command that writes the page writes all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from compose.chaos import gauges, holdings
from compose.chaos.soaked import MIB, RESOLUTIONS, REST, SAMPLE_INTERVAL, SAMPLES, STANDING, Series, Soak
from compose.chaos.trend import Trend, Verdict

TEMPLATE = Path(__file__).with_name("soak.md")
HOUR = 3600.0
BARS = "▁▂▃▄▅▆▇█"
BAR_RANGE = 7.0  # resolutions that a row of bars spans at least: what is noise looks like noise

ROWS = {
    gauges.RSS: "memory, MiB",
    gauges.LIVE: "alive in its heap, MiB",
    gauges.BLOCKS: "blocks of objects",
    holdings.USED: "used, MiB",
    gauges.FDS: "files",
    gauges.TASKS: "tasks",
    gauges.CONSUMERS: "consumers",
    holdings.SUBSCRIPTIONS: "subscriptions",
    "connections": "connections",
    "subscriptions": "subscriptions",
}
"""What has a row of its own, in this order."""

ORDER = ("control", "node", "worker", "ingress", "nats", "redis", "jetstream")
NAMES = {"control": "all of OKOME", "worker": "all workers", "jetstream": "JetStream"}
LIVES = {
    "stay": "viewers stayed to the end, over up to three turns",
    "leave and return": "a viewer left, and another one came with its cursor",
    "kicked": "viewers were cut off by RST, again and again, and came back over either transport",
    "cancel": "the answer was cancelled: before its first token, in its middle, or when it was over",
    "vanish": "whoever had asked went for good, or had never watched",
    "operate": "every operation that the API has, refused credentials among them",
    "abort": "clients broke off at any byte of any request",
}
"""The lives of `churn.py`, in words."""


def page(soak: Soak) -> str:
    """The whole page. A name in the template that there is no figure for is a KeyError."""
    plan = soak.plan
    rows = [one for one in soak.series if one.gauge in ROWS]
    others = [one for one in soak.judged if one.gauge not in ROWS]
    lives = max(1, soak.measured.get("sessions", 0))
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        command=soak.command,
        at=soak.at,
        machine=soak.machine,
        version=soak.version,
        minutes=f"{soak.seconds / 60:.0f}",
        sessions=soak.did.get("sessions", 0),
        rate=f"{soak.did.get('sessions', 0) / soak.seconds:.1f}",
        standing=STANDING,
        result=_result(soak),
        survivors="\n".join(_row(one, one in soak.judged) for one in sorted(rows, key=_place)),
        others=len(others),
        exceptions=_exceptions(others),
        killed=", ".join(f"{what} {_times(often)}" for what, often in sorted(soak.killed.items())) or "nothing",
        mortals="\n".join(_mortal(id, soak.calm) for id in sorted({one.process for one in soak.calm})),
        fell=_fell(soak.fell),
        lived="\n".join(f"| {said} | {soak.did.get(life, 0)} |" for life, said in LIVES.items()),
        did=", ".join(f"{count} {name}" for name, count in soak.did.items() if name not in (*LIVES, "sessions")),
        deleted=soak.did.get("deletes", 0),
        wave=f"{plan.wave:g}",
        rest=f"{REST + SAMPLES * SAMPLE_INTERVAL:g}",
        samples=SAMPLES,
        warm=plan.warm,
        waves=plan.waves,
        lives=lives,
        bytes=f"{MIB / lives:.0f}",
        revoked=f"{_last(soak, _stream('KV_revoked')):.0f}",
        kept=soak.did.get("sessions", 0) - soak.did.get("deletes", 0),
        stored="\n".join(_stored(soak.series)),
    )


def _result(soak: Soak) -> str:
    judged, grows = soak.judged, soak.leaks
    settles = [one for one in judged if one.trend.verdict is Verdict.SETTLES]
    said = f"Of {len(judged)} gauges {len(grows) or 'none'} {'grow' if len(grows) > 1 else 'grows'} beyond noise"
    said += f": {', '.join(f'{one.process} {one.gauge}' for one in grows)}." if grows else "."
    if settles:
        said += f" {len(settles)} rose and settled."
    if soak.unknown:
        said += f" Of {len(soak.unknown)} there were too few readings."
    if soak.interrupted:
        said += " It was broken off early."
    return said


def _place(one: Series) -> tuple[int, str, int]:
    role = one.process.partition("-")[0]
    return (ORDER.index(role) if role in ORDER else len(ORDER), one.process, list(ROWS).index(one.gauge))


def _row(one: Series, judged: bool) -> str:
    trend, unit = one.trend, _unit(one.gauge)
    where = NAMES.get(one.process, one.process)
    return (
        f"| {ROWS[one.gauge]} | {where} | {_number(trend.start, unit)} | {_number(trend.end, unit)} "
        f"| {_slope(trend, unit)} | {_sign(trend) if judged else '–'} | `{bars(one)}` "
        f"| {trend.verdict if judged else 'not judged: its heap is'} |"
    )


def _mortal(id: str, calm: Sequence[Series]) -> str:
    own = {one.gauge: one for one in calm if one.process == id}
    cells = [_slope(own[gauges.RSS].trend, MIB) + " MiB"]
    for gauge in (gauges.FDS, gauges.TASKS, gauges.CONSUMERS, holdings.SUBSCRIPTIONS):
        trend = own[gauge].trend if gauge in own else None
        cells.append("–" if trend is None else f"{trend.start:g} → {trend.end:g}")
    worst = [own[gauge].trend.verdict for gauge in ROWS if gauge in own]
    verdict = next((one for one in (Verdict.GROWS, Verdict.SETTLES, Verdict.UNKNOWN) if one in worst), Verdict.STEADY)
    return f"| {id} | {' | '.join(cells)} | {verdict} |"


def _exceptions(others: Iterable[Series]) -> str:
    loud = [one for one in others if one.trend.verdict in (Verdict.GROWS, Verdict.SETTLES)]
    if not loud:
        return "None of them grows."
    told = [
        f"`{one.gauge}` of {one.process} {one.trend.verdict} ({one.trend.start:g} → {one.trend.end:g})" for one in loud
    ]
    return f"All stand still but: {', '.join(told)}."


def _fell(fell: Sequence[str]) -> str:
    if not fell:
        return "Nothing ended that nobody had killed."
    return f"Ended although nobody had killed them: {'; '.join(fell)}."


def _stream(name: str) -> str:
    return f'{holdings.MESSAGES}{{stream="{name}"}}'


def _last(soak: Soak, gauge: str) -> float:
    return next((one.points[-1][1] for one in soak.series if one.gauge == gauge), 0.0)


def _stored(series: Sequence[Series]) -> Iterable[str]:
    logs = [0.0, 0.0]
    for one in series:
        if not one.gauge.startswith(f"{holdings.MESSAGES}{{"):
            continue
        name = one.gauge.split('"')[1]
        ends = (one.points[min(one.measured, len(one.points) - 1)][1], one.points[-1][1])
        if name.startswith("TOK_"):
            logs = [logs[0] + ends[0], logs[1] + ends[1]]
        else:
            yield f"| `{name}` | {ends[0]:g} | {ends[1]:g} |"
    yield f"| `TOK_*`, together | {logs[0]:g} | {logs[1]:g} |"


def bars(one: Series) -> str:
    """One bar a reading, the warm-up in front of a stroke."""
    values = [value for _, value in one.points]
    low = min(values)
    span = max(max(values) - low, BAR_RANGE * RESOLUTIONS.get(one.gauge, 1.0))
    drawn = "".join(BARS[min(len(BARS) - 1, int((value - low) / span * len(BARS)))] for value in values)
    return f"{drawn[: one.measured]}┊{drawn[one.measured :]}" if one.measured else drawn


def _unit(gauge: str) -> float:
    return MIB if gauge in (gauges.RSS, gauges.LIVE, holdings.USED) else 1.0


def _number(value: float, unit: float) -> str:
    return f"{value / unit:.1f}" if unit > 1 else f"{value:g}"


def _slope(trend: Trend, unit: float) -> str:
    if trend.verdict is Verdict.UNKNOWN:
        return "–"
    per_hour, error = trend.slope * HOUR / unit, trend.error * HOUR / unit
    return "0" if not per_hour and not error else f"{per_hour:+.1f} ± {error:.1f}"


def _sign(trend: Trend) -> str:
    return {Verdict.STEADY: "✓", Verdict.GROWS: "✗"}.get(trend.verdict, "~")


def _times(often: int) -> str:
    return "once" if often == 1 else f"{often} times"
