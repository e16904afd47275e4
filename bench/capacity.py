"""The capacity model: from what was measured to how much of everything a load needs. Pure.

What a role uses is taken to be linear: cores = token·(tokens/s that viewers get) + active·(streams in an answer) +
open·(open streams) + base. The four are fitted to the measured runs, those of streams in which nothing was asked among
them, none below zero, by the least squares of the relative errors; how far the model is from each point it was made of
is told with it (`Fit.errors`). A worker knows nothing of a stream in which nothing is asked. A machine whose processes
wait for one another coalesces tokens, which makes each cheaper: the fit is then between the two, and its error says so.
Where a worker would let tokens collect because it has very many, what counts is the same with each token at once: a
load is planned for the dearer way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from bench.ours import AT_ONCE, LOGS
from bench.record import Shape
from bench.summary import PATH, Row
from broker.bus.frames import decode_frame, encode_tokens
from broker.bus.log import FENCE
from broker.bus.subjects import MAX_PARTITIONS, log_subject
from broker.bus.wire import publish_command
from broker.node.events import of_frame
from compose.up.roles import PARTITIONS

BUSY = 0.6
"""Of a core that a process may use: the rest is for bursts, and for what a neighbour leaves when it dies."""
FRAMES = 10_000
"""Frames a second that one partition's stream is planned for, if there can be so many partitions."""
TAILS = int(LOGS[PARTITIONS])
"""Partitions of the measured system: a node's base is for so many tails."""
_SID = "00" + "a" * 20
_FRAME = encode_tokens("token", "g" + "a" * 15, 1, "a" * 8, 10**9, 1000, 1, " token")
STORED = len(publish_command(log_subject(_SID), "_INBOX." + "a" * 20, {FENCE: str(10**9)}, _FRAME))
"""Bytes that the frame of one token takes on its way to a log."""
SHOWN = len(of_frame(decode_frame(_FRAME, 10**9), "a" * 8).sse)
"""Bytes of it that a viewer gets: id, event, data."""


@dataclass(frozen=True)
class Point:
    """One measured shape: cores that each role used, resident bytes."""

    shape: Shape
    tokens: float
    cores: Mapping[str, float]


@dataclass(frozen=True)
class Fit:
    """One role's. token: µs of CPU per token; active, open: µs per second of a stream in an answer, and more of every
    open one; base: µs per second. errors: by shape, model ÷ measured − 1.
    """

    token: float
    active: float
    open: float
    base: float
    errors: Mapping[Shape, float]

    def cores(self, tokens: float, active: float, streams: float, processes: float = 1) -> float:
        return (self.token * tokens + self.active * active + self.open * streams + self.base * processes) / 1e6


def points(found: Mapping[Shape, Sequence[Row]], contender: str) -> list[Point]:
    """What was measured of one contender, a viewer a stream; with each token at once, where that was measured, too.
    Streams in which nothing is asked cost the same however a token is stored: of them those of `okome` count, too."""
    points = []
    for shape, rows in found.items():
        named = {row.contender: row for row in rows}
        row = named.get(contender + AT_ONCE) or named.get(contender)
        if not row and not shape.rate:
            row = named.get(contender.partition(",")[0])
        if row and shape.viewers == 1 and not shape.trace and shape.engines == 1:
            points.append(Point(shape, row.rate, {role: row.used.get(role, 0.0) for role in PATH}))
    return points


def fit(measured: Sequence[Point], role: str) -> Fit:
    """Raises ValueError where fewer than three points were measured, or the role used nothing in one."""
    if len(measured) < 3:
        raise ValueError(f"{len(measured)} shapes were measured; the model needs three")
    if idle := [one.shape.name for one in measured if not one.cores[role]]:
        raise ValueError(f"no {role} used anything where {', '.join(idle)} was measured: it has no part in that path")
    columns = (0, 1, 3) if role == "worker" else (0, 1, 2, 3)
    rows = [_terms(one) for one in measured]
    wanted = [one.cores[role] * 1e6 for one in measured]
    best: tuple[float, tuple[float, ...]] = (math.inf, (0.0, 0.0, 0.0, 0.0))
    for used in (used for size in range(1, len(columns) + 1) for used in combinations(columns, size)):
        found = _least_squares([[row[i] / want for i in used] for row, want in zip(rows, wanted, strict=True)])
        if found is None or min(found) < 0:
            continue
        whole = [0.0, 0.0, 0.0, 0.0]
        for i, value in zip(used, found, strict=True):
            whole[i] = value
        error = sum(
            (sum(a * b for a, b in zip(row, whole, strict=True)) / want - 1) ** 2
            for row, want in zip(rows, wanted, strict=True)
        )
        best = min(best, (error, tuple(whole)))
    token, active, of_open, base = best[1]
    errors = {
        one.shape: sum(a * b for a, b in zip(row, best[1], strict=True)) / want - 1
        for one, row, want in zip(measured, rows, wanted, strict=True)
    }
    return Fit(token, active, of_open, base, errors)


def _terms(point: Point) -> tuple[float, ...]:
    """What the coefficients of a `Fit` are multiplied with, in their order."""
    streams = float(point.shape.streams)
    return point.tokens, streams if point.shape.rate else 0.0, streams, 1.0


def _least_squares(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """x for which rows·x is nearest to 1 in every row; None where the rows do not determine it."""
    size = len(rows[0])
    matrix = [
        [sum(row[i] * row[j] for row in rows) for j in range(size)] + [sum(row[i] for row in rows)] for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda j: abs(matrix[j][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if abs(matrix[i][i]) < 1e-12 * max(1e-12, max(abs(value) for value in matrix[i])):
            return None
        for j in range(size):
            if j != i:
                factor = matrix[j][i] / matrix[i][i]
                matrix[j] = [a - factor * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]


@dataclass(frozen=True)
class Demand:
    """What is to be carried. active: share of the open streams in which an answer is being written, at `rate` tokens/s.

    cores: of each machine. replicas: NATS servers that store a frame. streams: that one process may hold.
    """

    sessions: int
    rate: float
    active: float
    cores: int
    replicas: int
    streams: int

    @property
    def tokens(self) -> float:
        return self.sessions * self.active * self.rate


@dataclass(frozen=True)
class Share:
    """What one role needs: processes, each of one core (NATS uses all of a machine), on so many machines.

    bound: what asks for so many. network: bytes a second into and out of one machine. memory: bytes of one machine.
    """

    role: str
    processes: int
    machines: int
    bound: str
    network: float
    memory: float


@dataclass(frozen=True)
class Plan:
    demand: Demand
    partitions: int
    frames: float  # a second and partition
    shares: Sequence[Share]
    warnings: Sequence[str]


def plan(demand: Demand, fits: Mapping[str, Fit], memory: Mapping[str, float], balance: float = 1.0) -> Plan:
    """`memory`: bytes that one stream more costs each role, as measured. balance: sessions of the fullest node machine,
    as a multiple of the mean."""
    shares = [_share(role, demand, fits[role], memory.get(role, 0.0), balance) for role in PATH]
    node = next(share for share in shares if share.role == "node")
    partitions = min(MAX_PARTITIONS, max(TAILS, 4 * node.machines, math.ceil(demand.tokens / FRAMES)))
    warnings = []
    frames = demand.tokens / partitions
    if frames > FRAMES:
        warnings.append(
            f"{frames:,.0f} frames/s are more than the {FRAMES:,} that one partition's stream is planned for, and "
            f"{partitions} partitions are the most there can be: answers have to be written in fewer frames "
            "(OKOME_WORKER_FRAME_INTERVAL), or by more than one system"
        )
    if node.machines > MAX_PARTITIONS:
        warnings.append(
            f"{node.machines} node machines are more than there are partitions, {MAX_PARTITIONS}: some would hold "
            "nothing. Machines of more cores are wanted, or more than one system; what happens when one dies is not "
            "simulated"
        )
    elif partitions < 4 * node.machines:
        warnings.append(
            f"{node.machines} node machines share {MAX_PARTITIONS} partitions, the most there can be: placement is by "
            "partition, so machines of more cores are wanted, each running a process per core behind one port"
        )
    return Plan(demand, partitions, frames, shares, warnings)


def _share(role: str, demand: Demand, fit: Fit, memory: float, balance: float) -> Share:
    tokens = demand.tokens
    copies = demand.replicas if role == "nats" else 1
    room = BUSY - (fit.base / 1e6 if role != "nats" else 0.0)
    needs = {"CPU": copies * fit.cores(tokens, demand.sessions * demand.active, demand.sessions, 0) / max(0.05, room)}
    if role == "ingress":
        needs[f"{demand.streams} streams a process"] = demand.sessions / demand.streams
    if role == "node":  # placement is by partition: not all machines have as much
        needs[f"{demand.streams} streams a process of the fullest"] = balance * demand.sessions / demand.streams
    if role == "nats":
        needs["copies"] = float(demand.replicas * demand.cores)
    bound = max(needs, key=lambda name: needs[name])
    processes = max(1, math.ceil(needs[bound]))
    machines = math.ceil(processes / demand.cores)
    if role == "nats":
        machines = max(demand.replicas, machines)
        processes = machines
    # In and out. Of NATS: from the worker, to and from the other copies, to one node.
    passes = {
        "worker": SHOWN + STORED,
        "nats": STORED * 2 * demand.replicas,
        "node": STORED + SHOWN,
        "ingress": 2 * SHOWN,
    }
    return Share(
        role,
        processes,
        machines,
        bound,
        network=passes[role] * tokens / machines,
        memory=memory * demand.sessions / machines,
    )
