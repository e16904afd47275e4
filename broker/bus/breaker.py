"""A circuit breaker for what may be away: Redis. Pure: time is given."""

from __future__ import annotations

FAILURES_TO_OPEN = 3
OPEN_SECONDS = 2.0


class Breaker:
    """Lets calls through until FAILURES_TO_OPEN in a row failed; then one probe every OPEN_SECONDS."""

    def __init__(self) -> None:
        self._failures = 0
        self._closed_again_at = 0.0

    def allows(self, now: float) -> bool:
        if self._failures < FAILURES_TO_OPEN:
            return True
        if now < self._closed_again_at:
            return False
        self._closed_again_at = now + OPEN_SECONDS  # this one is the probe; the others go on without
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, now: float) -> None:
        self._failures += 1
        self._closed_again_at = now + OPEN_SECONDS
