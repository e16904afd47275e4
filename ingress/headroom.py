"""Callers who are far from their limits, as far as one process can tell: nobody need wait to hear that. Pure."""

from __future__ import annotations

from limits import RateLimitItem

MOST = 100_000  # callers known at once; whoever is one too many has no headroom


class _Window:
    __slots__ = ("count", "over_at", "spent")

    def __init__(self, over_at: float) -> None:
        self.count = 0
        self.over_at = over_at
        self.spent = False


class Headroom:
    """Counts what this process granted. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], _Window] = {}

    def take(self, item: RateLimitItem, name: str, who: str, now: float) -> bool:
        """One more request. True while all in this window are at most half of `item`, this process's part of a quota,
        and nobody said that the quota is spent."""
        window = self._windows.get((name, who))
        if window is None or window.over_at <= now:
            if len(self._windows) >= MOST:
                self._windows = {key: one for key, one in self._windows.items() if one.over_at > now}
                if len(self._windows) >= MOST:
                    return False
            window = self._windows[name, who] = _Window(now + item.get_expiry())
        window.count += 1
        return not window.spent and 2 * window.count <= item.amount

    def spent(self, name: str, who: str) -> None:
        """The quota is, whoever spent it: from now on each request is asked about."""
        if (window := self._windows.get((name, who))) is not None:
            window.spent = True
