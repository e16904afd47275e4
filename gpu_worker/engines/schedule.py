"""When the tokens of a script are due: a pure function of the script and where to begin."""

from collections.abc import Iterator
from typing import NamedTuple

from broker.bus.script import Script

MAX_PIECE = 64
"""Most tokens of one step: a reader of the log should never meet a frame that is all of an answer."""

_MASK = 2**64 - 1


class Step(NamedTuple):
    """Tokens `first` … `first + n - 1` are due together, `due` seconds after the generation began here. n = 0: the
    engine fails there.
    """

    due: float
    first: int
    n: int


def spread(seed: int, group: int) -> float:
    """A number in [-1, 1) drawn from (seed, group) alone (splitmix64), so that an epoch that begins in the middle has
    the gaps of one that began at 0.
    """
    z = (seed * 0x9E3779B97F4A7C15 + (group + 1) * 0xD1B54A32D192ED03) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) / 2**63 - 1.0


def schedule(script: Script, first: int, end: int) -> Iterator[Step]:
    """The steps of tokens `first` … `end - 1`, `due` never decreasing, no step longer than MAX_PIECE.

    An epoch that begins at `first` > 0 begins there at once: `ttft_ms` and the wait before token `first` were served
    by the epoch before.
    """
    fail_at = script.fail_at
    last = end if fail_at is None or fail_at >= end or fail_at < first else fail_at
    size = script.burst if script.rate else MAX_PIECE
    gap = script.burst / script.rate if script.rate else 0.0
    alone = script.broken_at  # a step of its own: what comes with it would be lost with it
    stall_at = script.stall_at
    stall = script.stall_ms / 1000
    due = script.ttft_ms / 1000 if first == 0 else 0.0
    index = first
    while True:
        if index > first and index % size == 0:
            due += gap * (1.0 + script.jitter * spread(script.seed, index // size)) if script.jitter else gap
        if index == stall_at and (index > first or index == 0):
            due += stall
        if index >= last:
            if last == fail_at and last < end:
                yield Step(due, index, 0)
            return
        upto = min(last, index + MAX_PIECE, index - index % size + size)
        if stall_at is not None and index < stall_at < upto:
            upto = stall_at
        if alone is not None and index <= alone < upto:
            upto = alone if index < alone else alone + 1
        yield Step(due, index, upto - index)
        index = upto
