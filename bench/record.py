"""What a run leaves behind, a line of JSON each: raw, so that every figure in a report can be worked out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from bench.histogram import Times


class Shape(msgspec.Struct, frozen=True):
    """So many streams of so many tokens a second, each watched by so many viewers. trace: whose rhythm they have;
    `rate` is then what its streams give on average. engines: so many decode them, and step one after another."""

    streams: int
    rate: float
    viewers: int = 1
    trace: str = ""
    engines: int = 1

    @property
    def asked(self) -> float:
        """Tokens a second that all viewers together are to get."""
        return self.streams * self.rate * self.viewers

    @property
    def name(self) -> str:
        viewers = f" × {self.viewers} viewers" if self.viewers > 1 else ""
        engines = f" of {self.engines} engines" if self.engines > 1 else ""
        return f"{self.streams} × {self.trace or f'{self.rate:g}/s'}{viewers}{engines}"


class Loaded(msgspec.Struct, frozen=True):
    """What the load client saw in its window. tokens: received, of all viewers. cpu: its own, seconds.

    wrong: tokens that came out of order, twice or not at all. lost: connections that ended before their time.
    stalled: viewers who at its end had had no token for several steps.
    """

    tokens: int
    seconds: float
    cpu: float
    wrong: int
    lost: int
    latency: Times
    ttft: Times
    stalled: int = 0


class Held(msgspec.Struct, frozen=True):
    """One process over the window: CPU seconds, and bytes resident at its end."""

    cpu: float
    rss: int


class Run(msgspec.Struct, frozen=True, tag="run", tag_field="kind"):
    """One contender under one load. `processes` by name, the mock engine's among them. lag: milliseconds by which 99 of
    100 looks at an event loop were late at most, of the processes that count it; None: by more than they tell apart.
    commit: of what was measured, "" where that is not known. others: share of the machine's CPU that went to whatever
    does not belong to the run."""

    contender: str
    version: str
    shape: Shape
    round: int
    began: str
    machine: str
    loaded: Loaded
    processes: dict[str, Held]
    lag: dict[str, float | None] = {}
    commit: str = ""
    others: float = 0.0


class Missing(msgspec.Struct, frozen=True, tag="missing", tag_field="kind"):
    """A peer that is not here, and the command that brings it."""

    contender: str
    cure: str


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind"):
    """A contender that did not carry a load: `why` has its last words, or what the load client met."""

    contender: str
    version: str
    shape: Shape
    round: int
    why: str


class Resumed(msgspec.Struct, frozen=True, tag="resumed", tag_field="kind"):
    """What resuming costs whoever resumes, and the others. `ring`: from the request to the first replayed token.

    history: tokens of the long session, in `events` events; seconds: from each request to `caught_up`. Latencies of
    everybody else: while nobody resumed, while many resumed at the end, while the long session was read. attach:
    microseconds of CPU that one who comes back costs, by process: what was used more in the second window.
    """

    shape: Shape
    round: int
    began: str
    machine: str
    ring: Times
    history: int
    events: int
    seconds: list[float]
    quiet: Times
    resuming: Times
    replaying: Times
    wrong: int
    lost: int
    attach: dict[str, float] = {}
    contender: str = "okome"


class First(msgspec.Struct, frozen=True, tag="first", tag_field="kind"):
    """One contender on a machine that does nothing else: from the request for an answer to its first token."""

    contender: str
    version: str
    round: int
    began: str
    machine: str
    times: Times


Line = Run | Missing | Failed | Resumed | First

_decoder = msgspec.json.Decoder(Line)


def write(path: Path, line: Line) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")


def read(path: Path) -> Iterator[Line]:
    """Raises OSError, msgspec.DecodeError."""
    for line in path.read_bytes().splitlines():
        yield _decoder.decode(line)


def runs(lines: Iterable[Line]) -> list[Run]:
    return [line for line in lines if isinstance(line, Run)]
