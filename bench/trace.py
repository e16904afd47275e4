"""Recorded answers of real engines: when each token came. What the files are is told in `traces/README.md`."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import msgspec

DIRECTORY = Path(__file__).with_name("traces")


class Token(NamedTuple):
    """`at`: seconds after the request."""

    at: float
    text: str


Stream = Sequence[Token]

PAUSE = 0.05
"""Seconds between the end of a trace and its next beginning, where it is played over and over."""


class Trace(NamedTuple):
    """Answers that ran at the same time on one engine."""

    name: str
    streams: list[Stream]

    @property
    def steps(self) -> list[tuple[float, list[int]]]:
        """When which streams get a token, from the first one on."""
        found: dict[float, list[int]] = {}
        for number, stream in enumerate(self.streams):
            for token in stream:
                found.setdefault(token.at, []).append(number)
        first = min(found)
        return [(at - first, streams) for at, streams in sorted(found.items())]

    @property
    def period(self) -> float:
        """Seconds from one beginning to the next, played over and over."""
        return self.steps[-1][0] + PAUSE

    @property
    def rate(self) -> float:
        """Tokens a second of one stream, on average, played over and over."""
        return sum(map(len, self.streams)) / len(self.streams) / self.period

    def within(self, seconds: float) -> tuple[float, float]:
        """Tokens that one stream, on average, gets in so many seconds, played over and over: at least, and at most."""
        once, period = self.steps, self.period
        whole, part = divmod(seconds, period)
        begins = [at for at, _ in once]
        times = [*begins, *(at + period for at in begins)]
        before = [0, *accumulate(len(streams) for _, streams in (*once, *once))]
        counts = []
        for first, at in enumerate(begins):  # a window that begins with a step, and one that begins behind it
            end = bisect_left(times, at + part)
            counts += [before[end] - before[first], before[max(end, first + 1)] - before[first + 1]]
        least, most = (whole * before[len(once)] + count for count in (min(counts), max(counts)))
        return least / len(self.streams), most / len(self.streams)


class _Line(msgspec.Struct):
    stream: int
    index: int
    t_ns: int
    text: str


@functools.cache
def named(name: str) -> Trace | None:
    """None where there is none of that name. Raises OSError, msgspec.DecodeError."""
    file = DIRECTORY / f"{name}.jsonl"
    return read(file) if file.is_file() else None


_decoder = msgspec.json.Decoder(_Line)


def recorded() -> list[Trace]:
    """All that there are, by name. Raises OSError, msgspec.DecodeError."""
    return [read(file) for file in sorted(DIRECTORY.glob("*.jsonl"))]


def read(file: Path) -> Trace:
    """Raises OSError, msgspec.DecodeError."""
    streams: dict[int, list[Token]] = {}
    for line in map(_decoder.decode, file.read_bytes().splitlines()):
        streams.setdefault(line.stream, []).append(Token(line.t_ns / 1e9, line.text))
    return Trace(file.stem, list(streams.values()))


def steady(rate: float, seconds: float) -> Trace:
    """One answer of a word every 1 / `rate` seconds: an engine quicker than any here."""
    return Trace(f"{rate:g} words/s", [[Token(i / rate, f" w{i}") for i in range(int(rate * seconds))]])


def jittered(trace: Trace, times: float) -> Trace:
    """The same answers, every gap `times` as far from the mean of its stream: none below zero, the whole as long."""
    return Trace(f"{trace.name}, {times:g} × jitter", [_jittered(stream, times) for stream in trace.streams])


def _jittered(stream: Stream, times: float) -> Stream:
    gaps = [after.at - before.at for before, after in pairwise(stream)]
    mean = fmean(gaps)
    wider = [max(0.0, mean + times * (gap - mean)) for gap in gaps]
    scale = sum(gaps) / (sum(wider) or 1.0)
    at = stream[0].at
    out = [stream[0]]
    for gap, token in zip(wider, stream[1:], strict=True):
        at += gap * scale
        out.append(token._replace(at=at))
    return out
