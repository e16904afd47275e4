"""A sharded system of millions of sessions, simulated event by event: how evenly placement loads it, and what happens
when a machine dies or everybody comes back. Pure; a seed plays the same run.

Placement is the product's own (`ingress/placement.py`). A viewer who comes back waits in the queue of the machine that
its partition is placed on; each of the machine's processes takes one after the other, for as long as an attach was
measured to cost, and has only the part of its core that the tokens of those who stay leave it.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from broker.bus.subjects import partition_name
from ingress.placement import assign

SPREAD = 0.05
"""Seconds within which the relays of a machine that died notice it: their connections break."""


@dataclass(frozen=True)
class Fleet:
    """machines: that hold viewers, of `processes` each. attach: seconds of CPU of one viewer who comes. free: part of
    each process's core that is left for that."""

    machines: int
    processes: int
    partitions: int
    sessions: int
    attach: float
    free: float


@dataclass(frozen=True)
class Waits:
    """Of viewers who came back, in seconds from when they asked: `most` machines' queues among `machines`."""

    viewers: int
    machines: int
    p50: float
    p99: float
    longest: float


@dataclass(frozen=True)
class Found:
    """balance: the sessions of the fullest machine, as a multiple of the mean. after: the same with that machine dead.
    moved: share of the sessions that its death moves although they were elsewhere."""

    balance: float
    moved: float
    after: float
    death: Waits
    storm: Waits


def simulate(fleet: Fleet, *, storm: float, within: float, seed: int = 1) -> Found:
    """The fullest machine dies; and, by itself, the share `storm` of all viewers comes back within `within` seconds, as
    they do when the ingress before them dies. Raises ValueError for a fleet that is none."""
    if fleet.machines < 2 or fleet.partitions < fleet.machines:
        raise ValueError("at least two machines, and a partition for each of them")
    rng = random.Random(seed)
    names = [partition_name(index) for index in range(fleet.partitions)]
    mean = fleet.sessions / fleet.partitions
    held = {name: max(0, round(rng.gauss(mean, mean**0.5))) for name in names}  # sids are drawn evenly
    nodes = [f"node-{index}" for index in range(fleet.machines)]
    placed = assign(names, nodes, nodes)
    loads = _loads(placed, held, nodes)
    dead = max(nodes, key=lambda node: loads[node])
    left = [node for node in nodes if node != dead]
    again = assign(names, nodes, left)
    others = [name for name in names if placed[name] != dead and again[name] != placed[name]]
    after = _loads(again, held, left)
    come: dict[str, list[float]] = {}
    for name in names:
        if placed[name] == dead:
            come.setdefault(again[name], []).extend(rng.uniform(0.0, SPREAD) for _ in range(held[name]))
    back = {
        node: [rng.uniform(0.0, within) for _ in range(round(storm * loads[node]))]
        for node in rng.sample(nodes, min(20, len(nodes)))  # machines do not wait for one another
    }
    return Found(
        balance=max(loads.values()) * fleet.machines / sum(loads.values()),
        moved=sum(held[name] for name in others) / sum(held.values()),
        after=max(after.values()) * len(left) / sum(after.values()),
        death=_waits(fleet, list(come.values())),
        storm=_waits(fleet, list(back.values())),
    )


def _loads(placed: dict[str, str], held: dict[str, int], nodes: Sequence[str]) -> dict[str, int]:
    loads = dict.fromkeys(nodes, 0)
    for name, node in placed.items():
        loads[node] += held[name]
    return loads


def _waits(fleet: Fleet, queues: Sequence[list[float]]) -> Waits:
    waits: list[float] = []
    service = fleet.attach / fleet.free
    for arrivals in queues:
        free_at = [0.0] * fleet.processes
        for came in sorted(arrivals):
            begins = max(came, heapq.heappop(free_at))
            heapq.heappush(free_at, begins + service)
            waits.append(begins + service - came)
    waits.sort()
    if not waits:
        return Waits(0, len(queues), 0.0, 0.0, 0.0)
    return Waits(len(waits), len(queues), waits[len(waits) // 2], waits[int(0.99 * (len(waits) - 1))], waits[-1])
