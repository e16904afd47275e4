"""How often an engine that fails is asked again for one answer, and how soon. Pure."""

from __future__ import annotations

import random

MOST_FAILURES = 8  # attempts in a row that broke off: the next would, too
PROGRESS = 64  # new tokens of an attempt that is none of those although it broke off
PAUSE = (0.1, 0.5)  # seconds, at random between, after the first failure
GROWTH = 10  # times as long at most, doubling with each failure: 5 s
BUSY_GROWTH = 4  # the same where an engine says that it is busy: 2 s
MOST_AFTER = 60.0  # seconds that an engine may ask not to be asked in


class Patience:
    """Of this worker, with what its engine gives for one answer: takeovers by others are no failures of an engine."""

    def __init__(self) -> None:
        self.failures = 0  # in a row

    @property
    def is_over(self) -> bool:
        return self.failures >= MOST_FAILURES

    def failed(self, tokens: int) -> None:
        """An attempt broke off after so many new tokens."""
        self.failures = 0 if tokens >= PROGRESS else self.failures + 1

    def pause(self, retry_after: float = 0.0) -> float:
        """Seconds before the next attempt, where the engine said when to come back, too."""
        return _pause(self.failures - 1, GROWTH, retry_after)


def busy_pause(refusals: int, retry_after: float = 0.0) -> float:
    """Seconds before an engine is asked again that was busy so many times in a row."""
    return _pause(refusals - 1, BUSY_GROWTH, retry_after)


def _pause(doublings: int, growth: int, retry_after: float) -> float:
    times: int = min(2 ** max(0, doublings), growth)
    return min(retry_after, MOST_AFTER) + random.uniform(*PAUSE) * times
