"""From the records of fault runs to one `Summary`: counts, percentiles, bounds. Pure: reads no file and no clock.

Percentiles are nearest-rank over all values, sorted, never taken from buckets; the buckets of `EDGES` are for drawing.
A gap is counted only where its fault was proven; what happened in control runs is counted apart from faults.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from compose.chaos.record import Ended, Injection, Line, Round, Run, Stall

SHORTEST = 0.005
LONGEST = 30.0
"""Seconds: where the first bucket begins and the last ends. What lies outside counts in the nearest one."""
BUCKETS = 30
EDGES = tuple(round(SHORTEST * (LONGEST / SHORTEST) ** (index / BUCKETS), 6) for index in range(BUCKETS + 1))


class Distribution(msgspec.Struct, frozen=True):
    """Of one value or more, in seconds. `histogram[i]` counts those from `EDGES[i]` to below `EDGES[i + 1]`."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float
    histogram: tuple[int, ...]


class Outcome(msgspec.Struct, frozen=True):
    """What one scenario, or all of them, came to.

    `faults` are of ordinary runs, `verified` those that proved themselves. `decoys` are the faults of control runs,
    `refused` those that were rightly reported as not having happened. Rounds and what they count are of both.
    """

    rounds: int
    faults: int
    verified: int
    decoys: int
    refused: int
    violations: int
    resets: int
    takeovers: int
    sessions: int
    generations: int
    tokens: int
    connections: int
    gaps: Distribution | None
    """Each viewer's longest silence around a fault; None where there was nobody to have one."""
    bound: float | None
    """Of the gaps' p99, seconds; None: no bound."""
    within: bool | None
    """None where there is no bound or no gap."""
    figures: dict[str, Distribution]
    figure_bounds: dict[str, float] = {}
    """Of the figures' p99, seconds, of those that have one."""

    @property
    def late(self) -> list[str]:
        """Figures whose p99 is over its bound."""
        return [name for name, bound in self.figure_bounds.items() if self.figures[name].p99 > bound]


class System(msgspec.Struct, frozen=True):
    """One run: a system under test. `seconds` is how long it went on, as far as is known."""

    id: str
    target: str
    seed: int
    command: str
    began: str
    machine: str
    version: str
    control: bool
    cut_off: bool
    """It was interrupted, or never said that it ended."""
    seconds: float
    rounds: int
    faults: int


class Finding(msgspec.Struct, frozen=True):
    """A broken guarantee, and the command that plays its round again."""

    run: str
    scenario: str
    round: int
    rule: str
    session: str
    detail: str
    replay: str


class Strike(msgspec.Struct, frozen=True):
    """One fault in time, seconds since its run began. `wrong`: a wrong target was struck, in a control run."""

    run: str
    scenario: str
    round: int
    victim: str
    at: float
    until: float
    verified: bool
    wrong: bool
    proof: str
    replay: str
    stalls: tuple[Stall, ...]

    @property
    def longest(self) -> float:
        """Seconds of its longest gap; 0 where it has none."""
        return max((stall.seconds for stall in self.stalls), default=0.0)


class Summary(msgspec.Struct, frozen=True):
    """All that a report is made of. Scenarios are in the order of their names, the rest in that of the records."""

    systems: tuple[System, ...]
    total: Outcome
    scenarios: dict[str, Outcome]
    violations: tuple[Finding, ...]
    left_out: dict[str, str]
    """Scenarios that no run could play, and why."""
    strikes: tuple[Strike, ...]
    unplayed: tuple[str, ...] = ()
    """Scenarios that a run was to play, and none did."""

    @property
    def control(self) -> bool:
        """All runs are control runs."""
        return bool(self.systems) and all(system.control for system in self.systems)

    @property
    def unverified(self) -> list[Strike]:
        """Faults of ordinary runs that could not be shown to have happened."""
        return [strike for strike in self.strikes if not strike.wrong and not strike.verified]

    @property
    def believed(self) -> list[Strike]:
        """Faults of control runs that were said to have happened, although a wrong target was struck."""
        return [strike for strike in self.strikes if strike.wrong and strike.verified]

    @property
    def over(self) -> list[str]:
        """Scenarios whose p99 is over its bound."""
        return [name for name, outcome in self.scenarios.items() if outcome.within is False]

    @property
    def late(self) -> list[str]:
        """Figures whose p99, over all scenarios, is over its bound."""
        return self.total.late

    @property
    def cut_off(self) -> list[System]:
        return [system for system in self.systems if system.cut_off]

    @property
    def held(self) -> bool:
        """No guarantee was broken and every fault told the truth about itself. Bounds are not looked at."""
        return not self.total.violations and not self.unverified and not self.believed

    def passed(self, *, control: bool) -> bool:
        """Held, and not for want of faults: with no fault of this sort, ordinary or control, nothing was shown. Nor
        was anything of a scenario that was to be played, and was not."""
        return self.held and not self.unplayed and (self.total.decoys if control else self.total.faults) > 0


def summarize(
    lines: Iterable[Line], bounds: Mapping[str, float], figures: Mapping[str, float] = MappingProxyType({})
) -> Summary:
    """`bounds`: p99 of the gaps in seconds, by scenario; `figures`: of what else was measured, by name.

    Lines may be of several runs, in any order; each counts.
    """
    lines = list(lines)
    runs = {line.id: line for line in lines if isinstance(line, Run)}
    control = {run.id for run in runs.values() if run.control}
    replays = {(line.run, line.scenario, line.round): line.replay for line in lines if isinstance(line, Round)}
    total = _Tally()
    scenarios: dict[str, _Tally] = {}
    findings: list[Finding] = []
    strikes: list[Strike] = []
    for line in lines:
        match line:
            case Injection():
                key = (line.run, line.scenario, line.round)
                # A run that was cut off may have told of the fault and not of its round: then all of it is replayed.
                replay = replays.get(key) or (runs[line.run].command if line.run in runs else "")
                strikes.append(_strike(line, replay, wrong=line.run in control))
                for tally in (total, scenarios.setdefault(line.scenario, _Tally())):
                    tally.strike(strikes[-1])
            case Round():
                findings += _findings(line)
                for tally in (total, scenarios.setdefault(line.scenario, _Tally())):
                    tally.round(line)
            case Run() | Ended():
                pass
    ends = [line for line in lines if isinstance(line, Ended)]
    left_out = {name: why for line in ends for name, why in line.left_out.items()}
    unplayed = {name for line in ends for name in line.unplayed}
    return Summary(
        systems=tuple(_system(run, lines) for run in runs.values()),
        total=total.outcome(None, figures),
        scenarios={name: scenarios[name].outcome(bounds.get(name), figures) for name in sorted(scenarios)},
        violations=tuple(findings),
        left_out={name: left_out[name] for name in sorted(left_out) if name not in scenarios},
        strikes=tuple(strikes),
        unplayed=tuple(sorted(unplayed - scenarios.keys())),
    )


def distribution(values: Sequence[float]) -> Distribution | None:
    """None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    buckets = Counter(min(max(bisect_right(EDGES, value) - 1, 0), BUCKETS - 1) for value in ordered)

    def rank(percent: int) -> float:
        return ordered[-(-len(ordered) * percent // 100) - 1]

    return Distribution(
        count=len(ordered),
        p50=rank(50),
        p90=rank(90),
        p99=rank(99),
        max=ordered[-1],
        histogram=tuple(buckets[index] for index in range(BUCKETS)),
    )


class _Tally:
    """What adds up to an Outcome."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gaps: list[float] = []
        self.figures: dict[str, list[float]] = {}

    def strike(self, strike: Strike) -> None:
        if strike.wrong:
            self.counts["decoys"] += 1
            self.counts["refused"] += not strike.verified
            return
        self.counts["faults"] += 1
        self.counts["verified"] += strike.verified
        if strike.verified:
            self.gaps += [stall.seconds for stall in strike.stalls]

    def round(self, line: Round) -> None:
        self.counts["rounds"] += 1
        self.counts["violations"] += len(line.violations)
        for name in ("resets", "takeovers", "sessions", "generations", "tokens", "connections"):
            self.counts[name] += getattr(line, name)
        for name, seconds in line.figures.items():
            self.figures.setdefault(name, []).extend(seconds)

    def outcome(self, bound: float | None, figure_bounds: Mapping[str, float]) -> Outcome:
        counts = self.counts
        gaps = distribution(self.gaps)
        figures = {name: distribution(self.figures[name]) for name in sorted(self.figures)}
        return Outcome(
            rounds=counts["rounds"],
            faults=counts["faults"],
            verified=counts["verified"],
            decoys=counts["decoys"],
            refused=counts["refused"],
            violations=counts["violations"],
            resets=counts["resets"],
            takeovers=counts["takeovers"],
            sessions=counts["sessions"],
            generations=counts["generations"],
            tokens=counts["tokens"],
            connections=counts["connections"],
            gaps=gaps,
            bound=bound,
            within=None if bound is None or gaps is None else gaps.p99 <= bound,
            figures={name: figure for name, figure in figures.items() if figure is not None},
            figure_bounds={name: figure_bounds[name] for name in figures if name in figure_bounds},
        )


def _strike(line: Injection, replay: str, *, wrong: bool) -> Strike:
    return Strike(
        run=line.run,
        scenario=line.scenario,
        round=line.round,
        victim=line.victim,
        at=line.at,
        until=line.until,
        verified=line.verified,
        wrong=wrong,
        proof=line.proof,
        replay=replay,
        stalls=line.stalls,
    )


def _findings(line: Round) -> list[Finding]:
    return [
        Finding(line.run, line.scenario, line.round, one.rule, one.session, one.detail, line.replay)
        for one in line.violations
    ]


def _system(run: Run, lines: Sequence[Line]) -> System:
    injections = [line for line in lines if isinstance(line, Injection) and line.run == run.id]
    rounds = [line for line in lines if isinstance(line, Round) and line.run == run.id]
    ends = [line for line in lines if isinstance(line, Ended) and line.run == run.id]
    seconds = [
        *(end.at for end in ends),
        *(played.ended for played in rounds),
        *(max(injection.at, injection.until) for injection in injections),
    ]
    return System(
        id=run.id,
        target=run.target,
        seed=run.seed,
        command=run.command,
        began=run.began,
        machine=run.machine,
        version=run.version,
        control=run.control,
        cut_off=not ends or any(end.interrupted for end in ends),
        seconds=max(seconds, default=0.0),
        rounds=len(rounds),
        faults=len(injections),
    )
