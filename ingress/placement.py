"""Which node serves which partition: rendezvous hashing with bounded load. Pure.

Placement is an optimisation, never a lock: any node can serve any session. It keeps the sessions of one partition on
one node, so that a node follows few logs, and it is the same in every ingress without a word between them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from math import ceil

SLACK = 1.25
"""A node gets at most this many times its even share of the partitions."""


def score(partition: str, node: str) -> int:
    """How much `partition` wants to be on `node`: the same number everywhere."""
    return int.from_bytes(blake2b(f"{partition}@{node}".encode(), digest_size=8).digest(), "big")


def rank(partition: str, nodes: Iterable[str]) -> list[str]:
    """All of `nodes`, the one that the partition wants most first."""
    return sorted(nodes, key=lambda node: (score(partition, node), node), reverse=True)


def capacity(partitions: int, nodes: int) -> int:
    """The most partitions that one of `nodes` may hold."""
    return ceil(SLACK * partitions / nodes)


def assign(partitions: Sequence[str], members: Collection[str], live: Collection[str]) -> dict[str, str]:
    """Partition -> live node; empty when none is live.

    First all members get their share, as if all were well; then only what lies on a member that is not live is given to
    the others. So a node that fails, drains or comes back moves its own share and nothing else.
    """
    if not live:
        return {}
    assigned: dict[str, str] = {}
    everybody = set(members) | set(live)
    _fill(assigned, partitions, everybody, capacity(len(partitions), len(everybody)))
    for partition in [partition for partition, node in assigned.items() if node not in live]:
        del assigned[partition]
    _fill(assigned, partitions, live, capacity(len(partitions), len(live)))
    return assigned


def _fill(assigned: dict[str, str], partitions: Sequence[str], nodes: Collection[str], most: int) -> None:
    """Give every partition that has no node one with room: of all remaining wishes the strongest is granted first."""
    load = dict.fromkeys(nodes, 0)
    for node in assigned.values():
        load[node] += 1
    open_ = [partition for partition in partitions if partition not in assigned]
    wishes = sorted(((score(partition, node), partition, node) for partition in open_ for node in nodes), reverse=True)
    for _, partition, node in wishes:
        if partition not in assigned and load[node] < most:
            assigned[partition] = node
            load[node] += 1


class Placement:
    """One membership's answer to "which node?"; made anew at every change."""

    def __init__(self, partitions: Sequence[str], members: Collection[str], live: Collection[str]) -> None:
        self.live = frozenset(live)
        self._assigned = assign(partitions, members, live)
        self._ranks: dict[str, list[str]] = {}

    def choose(self, partition: str, excluding: Collection[str] = ()) -> str | None:
        """The partition's node, or the next in its rank that is not excluded; None when there is none.

        A partition that placement was not told of (added to a live system meanwhile) is placed by rank alone.
        """
        first = self._assigned.get(partition)
        if first is not None and first not in excluding:
            return first
        ranked = self._ranks.get(partition)
        if ranked is None:
            ranked = self._ranks[partition] = rank(partition, self.live)
        return next((node for node in ranked if node not in excluding), None)
