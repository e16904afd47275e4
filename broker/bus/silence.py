"""When silence means that a consumer is gone. Pure; time is an argument.

Quick to believe it, because what follows costs a millisecond and a viewer waits; slow to believe it again and again,
because a machine that is too busy to send heartbeats must not be given more to do.
"""

from __future__ import annotations

MISSED = 2  # heartbeats
LONGEST = 1.25  # seconds: after repeated silence
CALM = 5.0  # seconds without a replacement after which silence is believed quickly again


class Silence:
    """`look` is called once in every heartbeat interval; a look that comes late says that we stood still ourselves."""

    __slots__ = ("heartbeat", "_heard_at", "_looked_at", "_allowed", "_gone_at")

    def __init__(self, heartbeat: float, now: float) -> None:
        self.heartbeat = heartbeat
        self._heard_at = self._looked_at = now
        self._allowed = self._shortest
        self._gone_at = now - CALM

    @property
    def _shortest(self) -> float:
        return min(LONGEST, MISSED * self.heartbeat)

    def hear(self, now: float) -> None:
        self._heard_at = now

    def look(self, now: float) -> bool:
        """Whether the consumer counts as gone."""
        late = now - self._looked_at - self.heartbeat
        self._looked_at = now
        if late > self.heartbeat:
            self._heard_at = max(self._heard_at, now - self.heartbeat)  # what came meanwhile has not been read yet
            return False
        return now - self._heard_at > self._allowed

    def gone(self, now: float) -> None:
        """It was replaced for its silence."""
        self._allowed = self._shortest if now - self._gone_at > CALM else min(LONGEST, 2 * self._allowed)
        self._gone_at = now
