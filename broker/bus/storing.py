"""Whether what is to be stored is acknowledged, as far as one process can tell: a reason not to be ready where not.

A NATS server whose disk was full answers what it is asked and stores nothing, also when there is room again, until it
is started anew.
"""

from __future__ import annotations

PATIENCE = 5.0  # seconds between two failures, with nothing stored in between, that make it a reason


class Storing:
    """Told of every store that anybody waits for. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._failed_first: float | None = None
        self._failed_last = 0.0
        self._why = ""

    def worked(self) -> None:
        self._failed_first = None

    def failed(self, now: float, why: str) -> None:
        if self._failed_first is None:
            self._failed_first = now
        self._failed_last, self._why = now, why

    def trouble(self) -> str | None:
        """The reason, or None."""
        if self._failed_first is None or self._failed_last - self._failed_first < PATIENCE:
            return None
        return f"NATS stores nothing ({self._why}): where its disk was full, make room and start it anew"
