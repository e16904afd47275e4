"""Whether what is to be stored is acknowledged, as far as one process can tell: a reason not to be ready where not.

A NATS server whose disk was full answers what it is asked and stores nothing in some of its streams, also when there is
room again, until it is started anew.
"""

from __future__ import annotations

from typing import NamedTuple

PATIENCE = 5.0  # seconds between two failures, with nothing stored in between, that make them a reason

FORGOTTEN = 60.0  # seconds after the last failure


class _Failing(NamedTuple):
    first: float
    last: float
    why: str


class Storing:
    """Told of every store that anybody waits for. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._failing: dict[str, _Failing] = {}  # by bucket, partition or queue

    def worked(self, subject: str) -> None:
        if self._failing:
            self._failing.pop(_place(subject), None)

    def failed(self, subject: str, now: float, why: str) -> None:
        place = _place(subject)
        before = self._failing.get(place)
        self._failing[place] = _Failing(before.first if before else now, now, why)

    def trouble(self, now: float) -> str | None:
        """The reason, or None: also where nobody has tried for a while."""
        self._failing = {place: one for place, one in self._failing.items() if now - one.last < FORGOTTEN}
        for place, (first, last, why) in self._failing.items():
            if last - first >= PATIENCE:
                return f"NATS stores nothing in {place} ({why}): where its disk was full, make room and start it anew"
        return None


def _place(subject: str) -> str:
    """`$KV.sessions`, `tok.07`, `job.<model>`: what stands or falls together, and there are few."""
    return ".".join(subject.split(".", 2)[:2])
