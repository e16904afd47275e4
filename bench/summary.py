"""From runs to what a table says: medians of the rounds, and whether they may be believed. Pure, but for the traces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.record import Loaded, Resumed, Run, Shape
from bench.trace import named

ENGINE = "engine"
PATH = ("worker", "nats", "node", "ingress")
"""The roles that a token passes; Redis and OKOME are beside the way."""
SPREAD = 0.3
"""Of the CPU per token between rounds, above which a figure is no figure."""
SATURATED = 0.85
"""Of a core that the load client used, above which it measured itself."""
KEPT_UP = 0.97
"""Of the tokens asked for, below which a contender was behind when the window ended."""
AHEAD = 1.03
"""Of them, above which it was behind when the window began, and what had piled up was counted."""
OTHERS = 0.1
"""Of the machine's CPU, above which somebody else was measured, too."""


@dataclass(frozen=True)
class Row:
    """One contender under one shape. Times in milliseconds, costs in microseconds of CPU per token that a viewer got.

    kept_up: the share of the tokens asked for that came. costs: by role, and `whole`: all of its processes. used:
    cores, by role. memory: resident bytes by role. client: share of a core that the load client used. cores: that all
    used together, client and engine among it. others: share of the machine that went to somebody else. lag: of the
    event loops, by role, in the worst round. spread: (highest − lowest) ÷ median of `whole` over the rounds.
    """

    contender: str
    version: str
    rounds: int
    rate: float
    kept_up: float
    costs: dict[str, float]
    used: dict[str, float]
    memory: dict[str, float]
    whole: float
    spread: float
    p50: float
    p99: float
    ttft_p50: float
    ttft_p99: float
    client: float
    cores: float
    wrong: int
    lost: int
    stalled: int
    others: float
    curve: list[float]
    lag: dict[str, float | None]

    @property
    def doubts(self) -> list[str]:
        """Why its figures are not to be believed, in words."""
        doubts = []
        if self.wrong:
            doubts.append(f"{self.wrong} tokens out of order, twice or missing")
        if self.lost:
            doubts.append(f"{self.lost} connections lost")
        if self.kept_up < KEPT_UP:
            doubts.append(f"only {self.kept_up:.0%} of the tokens arrived in their time")
        if self.kept_up > AHEAD:
            doubts.append(f"{self.kept_up:.0%} of the tokens of its time arrived, held up before")
        if self.stalled:
            doubts.append(f"{self.stalled} viewers had stopped getting any")
        if self.others > OTHERS:
            doubts.append(f"others used {self.others:.0%} of the machine")
        if self.client > SATURATED:
            doubts.append(f"the load client used {self.client:.0%} of a core")
        if self.spread > SPREAD:
            doubts.append(f"rounds differ by {self.spread:.0%}")
        return doubts


def role(process: str) -> str:
    """`node-1` → `node`; a peer's only process → its own name."""
    name, _, number = process.rpartition("-")
    return name if number.isdigit() else process


def rows(runs: Iterable[Run]) -> dict[Shape, list[Row]]:
    """By shape, from those that ask for few tokens to those that ask for many."""
    grouped: dict[Shape, dict[str, list[Run]]] = {}
    for run in runs:
        grouped.setdefault(run.shape, {}).setdefault(run.contender, []).append(run)
    shapes = sorted(grouped, key=lambda shape: (shape.asked, shape.streams, shape.engines, shape.trace))
    return {shape: [_row(found) for found in grouped[shape].values()] for shape in shapes}


def _row(runs: Sequence[Run]) -> Row:
    costs = [_costs(run) for run in runs]
    wholes = [sum(cost.values()) for cost in costs]
    whole = median(wholes)
    loads = [run.loaded for run in runs]
    return Row(
        contender=runs[0].contender,
        version=runs[0].version,
        rounds=len(runs),
        rate=median(one.tokens / one.seconds for one in loads),
        kept_up=median(_kept_up(run.shape, run.loaded) for run in runs),
        costs={name: median(cost.get(name, 0.0) for cost in costs) for name in costs[0]},
        used={name: median(_used(run).get(name, 0.0) for run in runs) for name in costs[0]},
        memory={name: median(_memory(run).get(name, 0.0) for run in runs) for name in costs[0]},
        whole=whole,
        spread=(max(wholes) - min(wholes)) / whole if whole else 0.0,
        p50=median(one.latency.p50 for one in loads),
        p99=median(one.latency.p99 for one in loads),
        ttft_p50=median(one.ttft.p50 for one in loads),
        ttft_p99=median(one.ttft.p99 for one in loads),
        client=median(one.cpu / one.seconds for one in loads),
        cores=median(_cores(run) for run in runs),
        wrong=sum(one.wrong for one in loads),
        lost=sum(one.lost for one in loads),
        stalled=sum(one.stalled for one in loads),
        others=median(run.others for run in runs),
        lag=_lag(runs),
        curve=[median(points) for points in zip(*(one.latency.curve for one in loads), strict=True)],
    )


def _kept_up(shape: Shape, loaded: Loaded) -> float:
    """A trace has silences, and a window may have one more or less of them: neither is behind or ahead."""
    if not shape.asked:
        return 1.0
    if not shape.trace:
        return loaded.tokens / loaded.seconds / shape.asked
    if (trace := named(shape.trace)) is None:
        return 1.0
    least, most = (tokens * shape.streams * shape.viewers for tokens in trace.within(loaded.seconds))
    return loaded.tokens / min(max(loaded.tokens, least), most)


def _lag(runs: Sequence[Run]) -> dict[str, float | None]:
    """Of the worst process of each role, in the worst round."""
    lags: dict[str, list[float | None]] = {}
    for run in runs:
        for name, late in run.lag.items():
            lags.setdefault(role(name), []).append(late)
    return {name: _worst(late) for name, late in lags.items()}


def _worst(lags: Sequence[float | None]) -> float | None:
    """None is more than any of them."""
    known = [lag for lag in lags if lag is not None]
    return max(known) if len(known) == len(lags) else None


def _costs(run: Run) -> dict[str, float]:
    """Microseconds per token, by role."""
    costs: dict[str, float] = {}
    for name, held in run.processes.items():
        if name != ENGINE:
            costs[role(name)] = costs.get(role(name), 0.0) + 1e6 * held.cpu / max(1, run.loaded.tokens)
    return costs


def _used(run: Run) -> dict[str, float]:
    """Cores, by role."""
    used: dict[str, float] = {}
    for name, held in run.processes.items():
        used[role(name)] = used.get(role(name), 0.0) + held.cpu / run.loaded.seconds
    return used


def _cores(run: Run) -> float:
    return (run.loaded.cpu + sum(held.cpu for held in run.processes.values())) / run.loaded.seconds


def _memory(run: Run) -> dict[str, float]:
    """Resident bytes, by role."""
    memory: dict[str, float] = {}
    for name, held in run.processes.items():
        memory[role(name)] = memory.get(role(name), 0.0) + held.rss
    return memory


def per_stream(found: Mapping[Shape, Sequence[Row]], contender: str) -> dict[float, dict[str, float]]:
    """Bytes that one stream more costs each role, by rate: between the fewest and the most streams of that rate, one
    viewer each and of one engine. What a process needs for itself is in both, and so in neither."""
    by_rate: dict[float, dict[int, Row]] = {}
    for shape, measured in found.items():
        for row in measured:
            if row.contender == contender and shape.viewers == 1 and shape.engines == 1 and not shape.trace:
                by_rate.setdefault(shape.rate, {})[shape.streams] = row
    slopes = {}
    for rate, of_streams in sorted(by_rate.items()):
        few, many = min(of_streams), max(of_streams)
        if few < many:
            less, more = of_streams[few].memory, of_streams[many].memory
            slopes[rate] = {name: (more[name] - less[name]) / (many - few) for name in less}
    return slopes


def attach(resumed: Sequence[Resumed], contender: str) -> float:
    """Seconds of CPU that one who comes back costs node and ingress, all processes of them: the median of the rounds.

    Raises ValueError where that was not measured, or is less than nothing.
    """
    found = [
        sum(cost for name, cost in one.attach.items() if role(name) in ("node", "ingress"))
        for one in resumed
        if one.contender == contender and one.attach
    ]
    if not found:
        raise ValueError(
            f"the records do not say what coming back costs {contender!r}: `okome bench resume` measures it"
        )
    if (middle := median(found)) <= 0:
        raise ValueError(f"coming back cost {contender!r} {middle:.0f} µs: the rounds differ by more than it costs")
    return middle / 1e6
