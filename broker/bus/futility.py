"""When a server that answers pings is of no use: cut off from the others, it stores nothing. Pure; time is an argument.

Only what is published tells: a server that is alone still answers reads, from what it has.
"""

FIRST, LONGEST = 2.0, 16.0  # seconds; an election is not over sooner, and moving does not hurry it


class Futility:
    def __init__(self) -> None:
        self._since: float | None = None  # the first publish in vain behind the last that was decided
        self._patience = FIRST

    def decided(self) -> None:
        self._since = None
        self._patience = FIRST

    def in_vain(self, now: float) -> None:
        """A publish had no answer, or nobody to answer it."""
        if self._since is None:
            self._since = now

    def look(self, now: float) -> bool:
        """Whether to try another server. If that is no better, it is true again after twice as long."""
        if self._since is None or now - self._since < self._patience:
            return False
        self._since = None
        self._patience = min(LONGEST, 2 * self._patience)
        return True
