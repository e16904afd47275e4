"""How an answer reads: whether tokens are there when a reader comes to them, and whether they flow or jump. Pure.

`on_time` is the fluidity index of Etalon (arXiv 2407.07000): a reader begins SLACK after the engine's first token and
reads at the engine's mean pace over the whole answer; a token that is not there in its turn is late, and reading goes
on from it. Who shows everything later may be late once and then no more, at the price that `held_p99` tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from bench.trace import Stream

SLACK = 0.1
"""Seconds: a pause that nobody notices."""
FRAME = 1 / 60
"""Seconds between two pictures of a display."""


class Fluidity(NamedTuple):
    """Of all streams of a trace. Shares of tokens; milliseconds behind the engine; tokens a second.

    together: the most tokens of one answer that appeared in one picture of a display. behind: of the last token, most.
    rate: the highest that an answer had over a second, and the engine's beside it.
    """

    on_time: float
    together: int
    held_p99: float
    behind: float
    rate: float
    engine_rate: float


def fluidity(streams: Sequence[Stream], shown: Sequence[Sequence[float]]) -> Fluidity:
    """Raises ValueError where something was swallowed."""
    both = list(zip(streams, shown, strict=True))
    held = sorted(1000 * (out - token.at) for stream, times in both for token, out in zip(stream, times, strict=True))
    came = [[token.at for token in stream] for stream in streams]
    return Fluidity(
        on_time=fmean(_on_time(times, out) for times, out in zip(came, shown, strict=True)),
        together=max(_together(out) for out in shown),
        held_p99=held[int(0.99 * (len(held) - 1))],
        behind=max(1000 * (out[-1] - times[-1]) for times, out in zip(came, shown, strict=True)),
        rate=max(map(_rate, shown)),
        engine_rate=max(map(_rate, came)),
    )


def _on_time(came: Sequence[float], shown: Sequence[float]) -> float:
    pace = (came[-1] - came[0]) / max(1, len(came) - 1)
    due = came[0] + SLACK
    met = 0
    for out in shown:
        if out <= due + 1e-9:
            met += 1
        else:
            due = out
        due += pace
    return met / len(shown)


def _together(shown: Sequence[float]) -> int:
    return max(Counter(int(out / FRAME) for out in shown).values())


def _rate(times: Sequence[float]) -> float:
    """Tokens in the fullest second; of an answer shorter than that, all of it."""
    first = most = 0
    for last, at in enumerate(times):
        while at - times[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return float(most)
