"""What a fault run leaves behind: pure data, one JSON object a line in `run.jsonl`, and what the report is made of.

A line is one of: the `Run` (first), an `Injection` for each fault, a `Round` when a scenario has been played once and
its transcripts were checked, and `Ended` (last; its absence says that the run was cut off). Times are seconds since
the run began, by one monotonic clock; gaps are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import msgspec


class Run(msgspec.Struct, frozen=True, tag="run", tag_field="kind"):
    """One run against one system. `command` replays the whole of it."""

    id: str
    seed: int
    target: str
    command: str
    began: str
    """ISO 8601, for people."""
    machine: str
    version: str
    control: bool = False
    """A control run: every fault strikes a wrong target, and must be reported as one that did not happen."""


class Stall(msgspec.Struct, frozen=True):
    """The longest silence that one viewer saw around one fault, between two tokens of a running answer."""

    at: float
    seconds: float


class Injection(msgspec.Struct, frozen=True, tag="injection", tag_field="kind"):
    """One fault. `proof` is what showed that it happened, or why nothing did."""

    run: str
    scenario: str
    round: int
    victim: str
    at: float
    until: float
    """When it was undone or had taken its effect."""
    verified: bool
    proof: str
    stalls: tuple[Stall, ...] = ()
    """Of the viewers that depended on the victim."""


class Violation(msgspec.Struct, frozen=True):
    """A broken guarantee: which one, in which session, and what was seen."""

    rule: str
    session: str
    detail: str


class Round(msgspec.Struct, frozen=True, tag="round", tag_field="kind"):
    """A scenario played once. `replay` is the command that plays this very round again."""

    run: str
    scenario: str
    round: int
    began: float
    ended: float
    sessions: int
    generations: int
    tokens: int
    connections: int
    takeovers: int
    resets: int
    violations: tuple[Violation, ...]
    figures: dict[str, tuple[float, ...]]
    """Seconds measured besides stalls, by name: `cancel_to_stopped`, …"""
    replay: str


class Ended(msgspec.Struct, frozen=True, tag="ended", tag_field="kind"):
    run: str
    at: float
    interrupted: bool
    left_out: dict[str, str]
    """Scenarios that could not be played here, and why."""
    rounds: int
    injections: int
    unverified: int
    violations: int
    unplayed: tuple[str, ...] = ()
    """Scenarios that were to be played, and that nobody came to: the system was not there any more."""


Line = Run | Injection | Round | Ended

_encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Line).decode


def write(out: IO[bytes], line: Line) -> None:
    """One line, on disk when this returns: a run that is cut off has left all that it saw."""
    out.write(_encode(line) + b"\n")
    out.flush()


def read(path: Path) -> list[Line]:
    """A run file; a last line that was cut off is left out. Raises OSError, and ValueError naming a broken line."""
    lines: list[Line] = []
    parts = path.read_bytes().split(b"\n")
    for number, part in enumerate(parts, 1):
        if not part:
            continue
        try:
            lines.append(decode(part))
        except msgspec.DecodeError as error:
            if number == len(parts):  # no line end behind it: it was being written
                break
            raise ValueError(f"{path}, line {number}: {error}") from error
    return lines
