"""The garbage collector, so that it stops nobody's tokens.

CPython looks through everything that lives whenever a quarter has been added, and stands still for it: with 5 000
streams a worker stood for 0.3 s every two seconds, a node and an ingress for up to a second. Almost all of it finds
nothing, because what a stream leaves is freed with its last reference; what is left are some libraries' cycles. So a
process that holds streams looks when enough of them have gone, and not because many have come.
"""

from __future__ import annotations

import gc

YOUNG = 2000  # objects more than before after which the youngest are looked at: 2 ms
MIDDLE = 10  # such looks after which those are looked at that survived them
NEVER = 1 << 30
FEW = 1000  # streams


def settle(*, by_turnover: bool) -> None:
    """Once all is imported, which is never garbage. by_turnover: the oldest are looked at only when `Turnover` says."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NEVER if by_turnover else MIDDLE)


class Turnover:
    """Counts what has ended in one process, and looks for what it left when twice as much has as still lives."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        self._ended = 0

    def ended(self, live: int) -> None:
        """One more; so many are left."""
        self._ended += 1
        if self._ended >= max(FEW, 2 * live):
            self._ended = 0
            gc.collect()
