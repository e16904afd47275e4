"""Whose turn it is to publish to a log: a few at a time, of all that one worker writes to it. Pure.

A log stores one message after another. What is sent to one that stores more slowly than tokens come waits there as it
was when it was sent; what waits here collects tokens until its turn, and they are one frame then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW = 16  # publishes on their way to one log (docs/decisions/publishing.md)

Go = Callable[[], None]


class _Log:
    __slots__ = ("first", "flying", "handing", "others_next", "waiting")

    def __init__(self) -> None:
        self.flying = 0
        self.first: deque[Go] = deque()
        self.waiting: deque[Go] = deque()
        self.others_next = True
        self.handing = False

    def next(self) -> Go:
        """Raises IndexError where nobody waits. Who goes first does so not to the others' ruin: every second is one."""
        self.others_next = not self.others_next
        line = self.waiting if (self.others_next and self.waiting) or not self.first else self.first
        return line.popleft()


class Turns:
    """`Go` is how one who waits is told that it is his turn; he says `over` then, as all do who had one."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._logs: dict[str, _Log] = {}

    @property
    def waiting(self) -> int:
        """How many wait for a turn, at all logs."""
        return sum(len(log.first) + len(log.waiting) for log in self._logs.values())

    def ask(self, stream: str, go: Go, *, first: bool) -> bool:
        """True: now. False: `go` is called when it is his turn, sooner for one who says his `first`."""
        log = self._logs.get(stream)
        if log is None:
            log = self._logs[stream] = _Log()
        if log.flying < self._window:
            log.flying += 1
            return True
        (log.first if first else log.waiting).append(go)
        return False

    def over(self, stream: str) -> None:
        """One turn has ended, whatever came of it."""
        log = self._logs[stream]
        log.flying -= 1
        if log.handing:  # said by one who was told to go just now
            return
        log.handing = True
        try:
            while log.flying < self._window and (log.first or log.waiting):
                log.flying += 1
                log.next()()
        finally:
            log.handing = False
