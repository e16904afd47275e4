"""Callers who are far from their limits, as far as one process can tell: nobody need wait to hear that. Pure."""

from __future__ import annotations

from limits import RateLimitItem

PART = 4  # one part of so many of a quota is headroom
LEAST = 100  # requests that a quota allows at least, where there is any headroom: a small one is kept to the letter
MOST = 20_000  # callers known at once; whoever is one too many has no headroom
SWEEP_INTERVAL = 1.0  # seconds between two looks for those whose window is over


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
        self._swept_at = 0.0

    def __len__(self) -> int:
        return len(self._windows)

    def take(self, item: RateLimitItem, name: str, who: str, now: float) -> bool:
        """One more request. True while all in this window are a small part of `item`, this process's part of a quota,
        and nobody said that the quota is spent."""
        if now - self._swept_at >= SWEEP_INTERVAL:
            self._swept_at = now
            self._windows = {key: one for key, one in self._windows.items() if one.over_at > now}
        window = self._windows.get((name, who))
        if window is None or window.over_at <= now:
            if item.amount < LEAST or (window is None and len(self._windows) >= MOST):
                return False
            window = self._windows[name, who] = _Window(now + item.get_expiry())
        window.count += 1
        return not window.spent and PART * window.count <= item.amount

    def spent(self, item: RateLimitItem, name: str, who: str, now: float) -> None:
        """The quota is, whoever spent it: for as long as one window each request is asked about."""
        if (window := self._windows.get((name, who))) is not None:
            window.spent = True
            window.over_at = now + item.get_expiry()
