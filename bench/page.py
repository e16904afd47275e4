"""docs/performance.md, from the records of a run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from bench.markdown import table
from bench.ours import PUBLISHED
from bench.record import Failed, First, Line, Missing, Resumed, Run, Shape, runs
from bench.summary import PATH, Row, per_stream, rows

OURS = "okome"
RUST = ("vllm-router", "sglang-router")
"""The routers that our figures are held against."""


def page(lines: Sequence[Line], command: str, plots: str = "performance") -> str:
    """The whole page. `command`: what writes it again. plots: the folder beside it that they are in."""
    measured = runs(lines)
    if not measured:
        raise ValueError("no run in these records")
    parts = [_head(measured, _when(lines), command)]
    missing = {one.contender: one.cure for one in lines if isinstance(one, Missing)}
    if missing:
        said = "; ".join(f"{name} (`{cure}`)" for name, cure in missing.items())
        parts.append(f"Not in these tables, because not installed where they were made: {said}.")
    summed = rows(measured)
    failures = [one for one in lines if isinstance(one, Failed)]
    for shape, all_found in summed.items():
        found = asked(all_found)
        if not shape.rate or not found:
            continue
        parts += [f"### {shape.name}", _table(found), *_verdicts(found), *_fewer(found, _rounds(measured))]
        parts += _apart([one for one in measured if one.shape == shape and PUBLISHED not in one.contender])
        parts += [_failure(one) for one in failures if one.shape == shape and PUBLISHED not in one.contender]
        parts.append(f"![latency]({plots}/{picture(shape)})")
    published = [one for one in failures if PUBLISHED in one.contender]
    if published or any(PUBLISHED in row.contender for found in summed.values() for row in found):
        parts += ["### From a token's publish to its reader", _PUBLISHED, *_published(summed, _rounds(measured))]
        parts += [f"{one.shape.name}: {_failure(one)}" for one in published]
    if first := [one for one in lines if isinstance(one, First)]:
        parts += ["### First tokens where nothing else runs", _FIRST, _firsts(first)]
    if resumed := [one for one in lines if isinstance(one, Resumed)]:
        alike: dict[tuple[Shape, str], list[Resumed]] = {}
        for one in resumed:
            alike.setdefault((one.shape, one.contender), []).append(one)
        parts += ["### Coming back", *map(_resumes, alike.values())]
    if memory := per_stream(summed, OURS):
        ours = [row for found in summed.values() for row in found if row.contender == OURS]
        parts += ["### Memory of a stream", _MEMORY, _memory(memory), *_fewer(ours, _rounds(measured))[:1]]
    return "\n\n".join(parts) + "\n"


def asked(found: Sequence[Row]) -> list[Row]:
    """Those that ask an engine: what makes its tokens itself has a table of its own."""
    return [row for row in found if PUBLISHED not in row.contender]


def _failure(one: Failed) -> str:
    return f"{one.contender} did not carry this load: {one.why.splitlines()[-1]}"


def _published(summed: Mapping[Shape, Sequence[Row]], rounds: int) -> list[str]:
    """Its table, and what is to be said against it."""
    lines, against = [["", "tokens/s", "p50 / p99", "CPU per token", "cores used"]], []
    for shape, all_found in summed.items():
        found = [row for row in all_found if PUBLISHED in row.contender]
        for row in found:
            name, latency = f"{shape.name}: {row.contender}", f"{row.p50:.2f} / {row.p99:.2f} ms"
            lines.append([name, f"{row.rate:.0f}", latency, _cost(row.whole), f"{row.cores:.1f}"])
        against += [f"{shape.name}: {said}" for said in (*_verdicts(found), *_fewer(found, rounds))]
    return [table(lines), *against]


def _firsts(found: Sequence[First]) -> str:
    """Medians of the rounds, the quickest first: the engine alone, where it was measured."""
    names = dict.fromkeys(one.contender for one in found)
    times = {name: [one.times for one in found if one.contender == name] for name in names}
    medians = {name: (median(one.p50 for one in its), median(one.p99 for one in its)) for name, its in times.items()}
    ordered = sorted(medians.items(), key=lambda item: item[1])
    low, high = ordered[0][1]
    lines = [["", "rounds × answers", "p50 / p99", "more than the first line"]]
    for name, (p50, p99) in ordered:
        counted = f"{len(times[name])} × {times[name][0].count}"
        lines.append([name, counted, f"{p50:.2f} / {p99:.2f} ms", f"{p50 - low:.2f} / {p99 - high:.2f} ms"])
    return table(lines)


def _resumes(found: Sequence[Resumed]) -> str:
    """Medians of the rounds."""
    shape = found[0].shape
    p50, p95, p99 = (median(getattr(one.ring, name) for one in found) for name in ("p50", "p95", "p99"))
    replayed = median(seconds for one in found for seconds in one.seconds)
    slowest = max(seconds for one in found for seconds in one.seconds)
    quiet, resuming, replaying = (
        median(getattr(one, name).p99 for one in found) for name in ("quiet", "resuming", "replaying")
    )
    doubt = sum(one.wrong + one.lost for one in found)
    lines = [
        f"While {shape.name} were watched ({found[0].contender}; `okome bench resume`, rounds: {len(found)}):",
        "",
        "| | |",
        "|---|---|",
        f"| the end of a session that runs: request → first replayed token, p50 / p95 / p99 of {found[0].ring.count} "
        f"| {p50:.1f} / {p95:.1f} / {p99:.1f} ms |",
        f"| a session of {found[0].history} tokens in {found[0].events} events: request → `caught_up`, median / most "
        f"| {replayed:.2f} / {slowest:.2f} s |",
        f"| everybody else's latency, p99: nobody resumes / many resume / the long session is read "
        f"| {quiet:.1f} / {resuming:.1f} / {replaying:.1f} ms |",
    ]
    if doubt:
        lines += ["", f"**{doubt} tokens out of order or connections lost: not to be believed.**"]
    return "\n".join(lines)


def _memory(found: Mapping[float, Mapping[str, float]]) -> str:
    lines = [["tokens/s of each", *PATH]]
    for rate, slopes in found.items():
        lines.append([f"{rate:g}", *(f"{slopes.get(name, 0.0) / 1024:.1f} KiB" for name in PATH)])
    return table(lines)


def picture(shape: Shape) -> str:
    """The file name of a shape's plot."""
    engines = f"of{shape.engines}" if shape.engines > 1 else ""
    return f"latency-{shape.streams}x{shape.trace or f'{shape.rate:g}'}x{shape.viewers}{engines}.svg"


_INTRODUCTION = """\
Every contender relays the same answers of the same mock engine (`bench/mock_engine.py`: OpenAI-compatible, all streams
step at once, as in real engines; *of 8 engines*: an eighth of them, then the next eighth) to the same load client
(`bench/load.py`), one after the other on one machine whose cores all of them share. The figures are medians of the
rounds. CPU is what the operating system says of each process, per token that a viewer got. Latency is from the engine's
write of a token to the client's read of it. *× 3 viewers*: of okome three watch one answer; a router keeps none, so its
three viewers ask for an answer each, which the engine makes three times.

What the harness itself takes is in the latencies of all: *engine alone*, where a table has it, is the same client on
the engine without a relay. *TTFT* is from the request for an answer to its first token, of all answers; they are asked
for one after another, while those before them run already. The wait for the engine's next step is in it (at 20 tokens/s
25 ms on average), and a new connection: the viewer's own, but with okome, whose viewers are connected before, that of
the request, and with durable-streams both. okome's viewers ask for no pacing (`pace=0`); else it is `okome up` with its
defaults, but one node and limits that refuse nobody.

*synced every 1s* is okome with one NATS server whose files are synced once a second instead of before every
acknowledgement. It has eight logs, and no batches, where `okome up` makes two of its own and writes frames of many
answers at once, with one sync (docs/decisions/publishing.md). If the machine loses its power, the last second of
answers may be lost with it. Who wants to be spared that without waiting for the disk runs three servers, which sync
once a second by default and each store every frame; that costs more, and is in these tables only where a line says
*3 NATS servers*.

Behind a ratio, *?*: the router's own figure is not to be believed.

*Cores used* is what everything used together, engine and client among it: where that is all that the machine has,
latencies are those of a queue.

The routers and proxies keep nothing. What okome's lines pay for is that an answer is in a file on disk before anybody
sees it, and that any process may die."""


_PUBLISHED = """\
What our own part of the way takes where no step of an engine makes all tokens at once: the worker makes them itself
(`scripted` engine; `"clock": true` has each token say when) and publishes each as soon as it is made. Each stream has
its own time, in whole milliseconds, so that some are made together; how late the worker was at making one is not in
the figures. Pacing is off, one viewer a stream."""


_FIRST = """\
From the request for an answer to its first token, one answer after another (`okome bench first`). With okome a viewer
is there already, and the request is for an answer in its session: accepted, queued, taken and written down before the
token is."""


_MEMORY = """\
Resident memory that one stream more costs each role: the difference between the fewest and the most streams of one
rate, divided by how many more there were. One viewer a stream; 0 tokens/s are sessions in which nothing was asked."""


def _when(lines: Sequence[Line]) -> str:
    """When the first and the last of them was measured."""
    began = sorted(one.began for one in lines if isinstance(one, Run | First | Resumed))
    return began[0] if began[0] == began[-1] else f"{began[0]} to {began[-1]}"


def _head(measured: Sequence[Run], when: str, command: str) -> str:
    first = measured[0]
    rounds = _rounds(measured)
    commits = ", ".join(dict.fromkeys(run.commit for run in measured if run.commit))
    where = f"commit {commits}, {first.machine}" if commits else first.machine
    return (
        "# What a token costs, beside what else there is\n\n"
        f"Written by `{command}` (measured {when}, {where}; {rounds} rounds in turned order, "
        f"{first.loaded.seconds:.0f} s measured in each after a warm-up).\n\n{_INTRODUCTION}"
    )


def _table(found: Sequence[Row]) -> str:
    router = min((row for row in found if row.contender in RUST), key=lambda row: row.whole, default=None)
    heads = [
        "",
        "version",
        "tokens/s",
        "CPU per token",
        "of the best Rust router",
        "p50 / p99",
        "TTFT p50 / p99",
        "cores used",
    ]
    lines = [heads]
    for row in found:
        latency, ttft = f"{row.p50:.2f} / {row.p99:.2f} ms", f"{row.ttft_p50:.1f} / {row.ttft_p99:.1f} ms"
        cells = [row.contender, row.version, f"{row.rate:.0f}", _cost(row.whole), _ratio(row.whole, router)]
        lines.append([*cells, latency, ttft, f"{row.cores:.1f}"])
        if row.contender.startswith(OURS):
            for name, cost in (("… node alone", row.costs.get("node", 0.0)), ("… the path a token takes", path(row))):
                lines.append([name, "", "", _cost(cost), _ratio(cost, router), "", "", ""])
            each = ", ".join(f"{name} {cost:.1f}" for name, cost in row.costs.items())
            lines.append([f"… each: {each} µs", *[""] * (len(heads) - 1)])
            if row.lag:
                late = ", ".join(f"{name} {'> all' if most is None else f'{most:g}'}" for name, most in row.lag.items())
                lines.append([f"… event loops late, p99 at most: {late} ms", *[""] * (len(heads) - 1)])
    return table(lines)


def path(row: Row) -> float:
    """What the roles that a token passes cost together."""
    return sum(row.costs.get(name, 0.0) for name in PATH)


def _cost(microseconds: float) -> str:
    return f"{microseconds:.1f} µs" if microseconds else "–"


def _ratio(cost: float, router: Row | None) -> str:
    if router is None or not router.whole or not cost:
        return "–"
    return f"{cost / router.whole:.2f} ×" + " ?" * bool(router.doubts)


def _rounds(measured: Sequence[Run]) -> int:
    return max(run.round for run in measured) + 1


def _fewer(found: Sequence[Row], rounds: int) -> list[str]:
    """Who was measured less often than the page says."""
    return [f"{row.contender}: in {row.rounds} of {rounds} rounds." for row in found if row.rounds < rounds]


def _apart(measured: Sequence[Run]) -> list[str]:
    """Those whose rounds did not overlap the router's, nor those of anybody who overlaps it, and so on: the machine may
    have been another then."""
    spans: dict[str, tuple[str, str]] = {}
    for one in measured:
        first, last = spans.get(one.contender, (one.began, one.began))
        spans[one.contender] = (min(first, one.began), max(last, one.began))
    groups: list[list[str]] = []
    over = ""
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        if not groups or over < first:
            groups.append([])
        groups[-1].append(name)
        over = max(over, last)
    reference = next((name for name in RUST if name in spans), "")
    with_it = next((group for group in groups if reference in group), max(groups, key=len, default=[]))
    return [
        f"{name}: not measured in turn with {reference or 'the others of this table'}."
        for name, (first, last) in spans.items()
        if name not in with_it and first < last  # one round has no length that could overlap
    ]


def _verdicts(found: Sequence[Row]) -> list[str]:
    return [f"**{row.contender}: {'; '.join(row.doubts)}: not to be believed.**" for row in found if row.doubts]
