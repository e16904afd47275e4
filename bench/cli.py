"""`okome bench`: from flags to measurements and the page."""

from __future__ import annotations

import asyncio
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import capacity, first, fluidity_page, plan_page, plot, record, relay
from bench import page as pages
from bench import resume as resuming
from bench.contender import Contender
from bench.fleet import Fleet, Found, simulate
from bench.fluidity import fluidity as compared
from bench.ours import Okome
from bench.pacing import PeerFailed, pacings
from bench.peers import Direct, peers
from bench.record import Shape
from bench.summary import PATH, attach, per_stream, rows
from bench.trace import jittered, recorded, steady
from broker.bus.lifecycle import raise_file_limit
from broker.bus.subjects import MAX_PARTITIONS
from compose import folder

__all__ = ["PeerFailed", "WrongUse", "firsts", "fluidity", "measure", "plan", "resume", "write"]

SHAPES = ("300x20", "1000x20", "300x100")
RECORDS = "runs.jsonl"
RESUME_RAMP = 10.0  # seconds in which the answers begin that are watched meanwhile
SPARE_FILES = 200  # of a process: its files, and its other connections
JITTER = 5.0
QUICK = (300.0, 10.0)  # words a second, seconds
GROWTH = 1.02
"""Of what a fleet is planned for, until its fullest machine has room: what is fullest differs by chance."""
_SHAPE = re.compile(r"(\d{1,5})x(?:(\d{1,4})(?:x(\d))?(?:of(\d{1,2}))?|([a-z]\w+))")


class WrongUse(ValueError):
    """A flag that says nothing that can be measured."""


def shape(text: str) -> Shape:
    """`1000x20`: a thousand streams of 20 tokens/s; `1000x20x3`: each watched by three; `1000x20of8`: of eight engines;
    `100xvllm_8_streams`: in the rhythm of a recorded trace. Raises WrongUse."""
    found = _SHAPE.fullmatch(text)
    if found is None or 0 in (int(found[1]), int(found[3] or 1), int(found[4] or 1)):
        raise WrongUse(
            f"--shape {text}: streams x tokens a second, such as 1000x20, 1000x20x3 for three viewers each, 1000x20of8 "
            "for eight engines, 1000x0 for streams in which nothing is asked, 100xvllm_8_streams for a trace's rhythm"
        )
    if name := found[5]:
        traces = {trace.name: trace for trace in recorded()}
        if name not in traces:
            raise WrongUse(f"--shape {text}: the traces are {', '.join(traces)}")
        return Shape(int(found[1]), round(traces[name].rate, 3), trace=name)
    return Shape(int(found[1]), float(found[2]), int(found[3] or 1), engines=int(found[4] or 1))


def chosen(only: Sequence[str], option: str = "--only") -> list[Contender]:
    """Raises WrongUse."""
    ours = [
        Okome(),
        Okome(synced="1s"),
        Okome(synced="1s", frames=0.2),
        Okome(synced="1s", collecting=False),
        Okome(synced="1s", processes=2),
        Okome(servers=3),
        Okome(websocket=True),
        Okome(published=True),
        Okome(published=True, synced="1s"),
    ]
    all_there: list[Contender] = [Direct(), *ours, *peers()]
    there = {one.name: one for one in all_there}
    # Beside whom nobody can be put, because it asks no engine; and three servers, which want a machine each.
    by_itself = {one.name for one in ours if one.published or one.servers > 1}
    if unknown := [name for name in only if name not in there]:
        raise WrongUse(f"{option} {', '.join(unknown)}: one of {', '.join(there)}")
    return [one for name, one in there.items() if (name in only if only else name not in by_itself)]


def open_files(shapes: Sequence[Shape]) -> None:
    """As many as the machine allows, for whatever is started from now on: okome's roles see to that by themselves,
    peers do not. Raises WrongUse where that is not enough: a viewer is two connections of a relay."""
    raise_file_limit()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for one in shapes:
        if (needed := 2 * one.streams * one.viewers + SPARE_FILES) > limit:
            raise WrongUse(f"{one.name}: needs {needed} open files, and {limit} are allowed here (ulimit -n)")


def measure(shapes: Sequence[str], only: Sequence[str], rounds: int, seconds: float, report: Path) -> Path:
    """Run it; where the records are. Raises WrongUse, Unusable."""
    contenders = chosen(only)
    wanted = [shape(text) for text in shapes or SHAPES]
    if any(not one.rate for one in wanted) and any(not isinstance(one, Okome) for one in contenders):
        raise WrongUse("a shape in which nothing is asked is for sessions: --only okome")
    if any(one.trace or one.engines > 1 for one in wanted) and any(_asks_nobody(one) for one in contenders):
        raise WrongUse("a rhythm of engines is for contenders that ask one")
    open_files(wanted)
    folder.make(report, "--report")
    file = report / RECORDS
    if file.exists():
        raise WrongUse(f"--report {report}: holds the records of another run already")

    asyncio.run(relay.measure(contenders, wanted, rounds, relay.Timing(window=seconds), file, _said))
    return file


def firsts(only: Sequence[str], asks: int, rounds: int, report: Path) -> Path:
    """Measure it; where the records are, behind what is there already.

    Raises WrongUse, Unusable, NotStarted, TimeoutError.
    """
    contenders = chosen(only)
    if any(_asks_nobody(one) for one in contenders):
        raise WrongUse("first tokens are held against those of an engine: only for contenders that ask one")
    open_files([])
    folder.make(report, "--report")
    file = report / RECORDS
    asyncio.run(first.measure(contenders, asks, rounds, file, _said))
    return file


def _asks_nobody(one: Contender) -> bool:
    return isinstance(one, Okome) and one.published


def _said(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def resume(text: str, name: str, resumes: float, history: int, rounds: int, seconds: float, report: Path) -> Path:
    """Measure it of one of our own contenders; where the records are, behind what is there already.

    Raises WrongUse, Unusable, NotStarted, TimeoutError.
    """
    watched = shape(text)
    if not watched.rate:
        raise WrongUse(f"--shape {text}: nobody can come back to tokens that do not come")
    (okome,) = chosen([name], "--contender")
    if not isinstance(okome, Okome) or okome.published:
        raise WrongUse(f"--contender {name}: nothing there that one could come back to")
    if okome.websocket:
        raise WrongUse(f"--contender {name}: who comes back does so with a cursor of an event stream")
    open_files([watched])
    folder.make(report, "--report")
    file = report / RECORDS
    timing = relay.Timing(ramp=RESUME_RAMP, window=seconds)
    asyncio.run(resuming.measure(okome, watched, resumes, history, rounds, timing, file, _said))
    return file


def write(file: Path, where: Path, command: str) -> None:
    """The page, and beside it its plots and the records. Raises OSError, ValueError."""
    lines = list(record.read(file))
    where.write_text(pages.page(lines, command, where.stem))
    beside = where.parent / where.stem
    beside.mkdir(exist_ok=True)
    if file.resolve() != (kept := beside / RECORDS).resolve():
        kept.write_bytes(file.read_bytes())
    for one, all_found in rows(record.runs(lines)).items():
        found = pages.asked(all_found)
        if one.rate and found:
            (beside / pages.picture(one)).write_text(plot.curves({row.contender: row.curve for row in found}))


def fluidity(command: str) -> str:
    """The page of how answers read. Raises OSError, ValueError, PeerFailed."""
    traces = recorded()
    traces += [*(jittered(trace, JITTER) for trace in traces), steady(*QUICK)]
    here = [one for one in pacings() if not one.missing]
    missing = {type(one).__name__: one.missing for one in pacings() if one.missing}
    rows = [
        fluidity_page.Row(trace.name, one.name, compared(trace.streams, one.shown(trace.streams)))
        for trace in traces
        for one in here
    ]
    return fluidity_page.page(rows, missing, command)


def plan(file: Path, demand: capacity.Demand, contender: str, storm: float, within: float, command: str) -> str:
    """The page of what a load needs. Raises OSError, ValueError: these records do not tell enough."""
    lines = list(record.read(file))
    found = rows(record.runs(lines))
    if not (points := capacity.points(found, contender)):
        raise ValueError(f"{file} holds nothing of {contender!r}")
    fits = {role: capacity.fit(points, role) for role in PATH}
    cost = attach([one for one in lines if isinstance(one, record.Resumed)], contender)
    slopes = per_stream(found, pages.OURS)
    memory = max(slopes.values(), key=lambda one: one.get("node", 0.0), default={})
    planned, fleet, found_then = balanced(demand, fits, memory, cost, storm, within)
    return plan_page.page(planned, fits, contender, fleet, found_then, storm, within, command)


def balanced(
    demand: capacity.Demand,
    fits: Mapping[str, capacity.Fit],
    memory: Mapping[str, float],
    attach: float,
    storm: float,
    within: float,
) -> tuple[capacity.Plan, Fleet | None, Found | None]:
    """A plan in which the fullest node machine holds no more than it may, also when another has died; and what was
    simulated for it: None where there are more machines than can be placed on."""
    balance = 1.0
    while True:
        planned = capacity.plan(demand, fits, memory, balance)
        node = next(share for share in planned.shares if share.role == "node")
        if node.machines > MAX_PARTITIONS:
            return planned, None, None
        fleet = Fleet(
            machines=(machines := max(2, node.machines)),
            processes=demand.cores,
            partitions=max(planned.partitions, machines),
            sessions=demand.sessions,
            attach=attach,
            free=1.0 - capacity.BUSY,
        )
        found = simulate(fleet, storm=storm, within=within)
        fullest = max(found.balance, found.after * machines / (machines - 1))
        if fullest * demand.sessions <= node.machines * demand.cores * demand.streams:
            return planned, fleet, found
        balance = max(balance * GROWTH, fullest)
