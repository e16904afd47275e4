"""What a soak is to do, and what it leaves: pure data, judged by `trend.py`, told by `soak_page.py`."""

from __future__ import annotations

import msgspec

from compose.chaos import gauges, holdings
from compose.chaos.trend import Point, Trend, Verdict, trend

WAVES = 30
SHORTEST_WAVE, LONGEST_WAVE = 20.0, 60.0
"""Seconds, the rest included."""
REST = 9.0
"""Seconds until what is kept for the next one is let go: connections to a node 5 s, a tail here 3 s, a grace 2 s."""
SAMPLES, SAMPLE_INTERVAL = 3, 0.5
"""Readings of one rest, of which the median counts."""
STANDING = 6
"""Viewers who are there from the beginning to the end."""

MIB = 1024.0 * 1024.0
RESOLUTIONS = {gauges.RSS: MIB, gauges.LIVE: MIB, holdings.USED: MIB, gauges.BLOCKS: 2000.0}
"""The smallest rises that are worth a word; of all that is counted it is 1."""
BY_DESIGN = frozenset({holdings.POOLED, holdings.MESSAGES, holdings.KEYS})
"""What is kept for a while, or up to a size: told, and not judged."""


class Plan(msgspec.Struct, frozen=True):
    """So many waves of so many seconds each, of which the last `rest` are quiet; `sessions` at a time.

    `warm`: the first waves, which are left out; `calm`: the wave from which on something dies in each. It does in the
    first half of the warm-up, too, and twice as many sessions live then: what its neighbours' deaths ask of a process
    was asked before it is measured, and more of it. An allocator does not give back what one moment needed.
    """

    waves: int
    wave: float
    sessions: int
    warm: int
    calm: int
    rest: float = REST

    def living(self, wave: int) -> int:
        """So many sessions at a time."""
        return 2 * self.sessions if wave <= self.warm // 2 else self.sessions

    def deadly(self, wave: int) -> bool:
        """Whether something dies in it; waves count from 0, and in the first one everybody lives."""
        return wave >= self.calm or 1 <= wave <= self.warm // 2


def plan(minutes: float, sessions: int) -> Plan:
    """As many waves as there is room for, each as long as it may be: a third warm-up, a third calm."""
    wave = min(LONGEST_WAVE, max(SHORTEST_WAVE, minutes * 60 / WAVES))
    waves = max(1, round(minutes * 60 / wave))
    return Plan(waves, wave, sessions, warm=waves // 3, calm=waves - waves // 3)


class Series(msgspec.Struct, frozen=True):
    """One gauge of one process, at every rest. `measured`: from which reading on it counts."""

    process: str
    gauge: str
    points: tuple[Point, ...]
    measured: int

    @property
    def trend(self) -> Trend:
        return trend(self.points[self.measured :], RESOLUTIONS.get(self.gauge, 1.0))


class Soak(msgspec.Struct, frozen=True):
    """What a soak leaves. `series`: of the processes that lived through all of it; `calm`: of those that were killed,
    until then. `did`: what the churn counted, in all and since it was warm. `killed`: by process, how often and how.
    `fell`: what ended although nobody had killed it. `interrupted`: it was broken off, and is not worth much."""

    command: str
    at: str
    machine: str
    version: str
    plan: Plan
    seconds: float
    measured_seconds: float
    did: dict[str, int]
    measured: dict[str, int]
    killed: dict[str, int]
    fell: tuple[str, ...]
    interrupted: bool
    series: tuple[Series, ...]
    calm: tuple[Series, ...]

    @property
    def judged(self) -> list[Series]:
        """All that must not grow. Where a process tells what is alive in its heap, that counts, and not what the kernel
        has given it."""
        collected = {one.process for one in self.series if one.gauge == gauges.LIVE}
        return [
            one
            for one in (*self.series, *self.calm)
            if one.gauge.partition("{")[0] not in BY_DESIGN
            and not (one.gauge == gauges.RSS and one.process in collected)
        ]

    @property
    def leaks(self) -> list[Series]:
        return [one for one in self.judged if one.trend.verdict is Verdict.GROWS]

    @property
    def unknown(self) -> list[Series]:
        return [one for one in self.judged if one.trend.verdict is Verdict.UNKNOWN]

    @property
    def amiss(self) -> list[str]:
        """What grows, what ended by itself, and why less was shown than a soak is for; in words."""
        said = [f"{one.process} {one.gauge} grows" for one in self.leaks]
        said += [f"{one} ended by itself" for one in self.fell]
        if self.interrupted:
            said.append("it was broken off early")
        if self.unknown:
            said.append(f"there are too few readings of {len(self.unknown)} gauges")
        lived, given_up = self.measured.get("sessions", 0), self.measured.get("given up", 0)
        if lived <= 2 * given_up:
            said.append(f"of {lived} sessions that were measured {given_up} were given up")
        return said

    @property
    def passed(self) -> bool:
        """Nothing grows, nothing ended by itself, and there was enough to see it by."""
        return not self.amiss
