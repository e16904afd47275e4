"""Who publishes again what nothing was said of: of all that one worker writes to one log, one for all of them.

A log whose leader has gone answers nobody for a second or more, and a NATS that is cut off longer. Each of 4 000
streams that tried every 20 to 50 ms used a core for it, of the worker and of NATS, in the moment in which both have the
most to do. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

Go = Callable[[], None]


class Probes:
    """`Go` is how one who waits is told to try."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[Go, None]] = {}  # by stream; the first of each tries for the others

    def wait(self, stream: str, go: Go) -> bool:
        """Whether it is for this one to try again and again. Whoever is told no is told to go when something was said,
        or when it is for him to try."""
        waiting = self._waiting.setdefault(stream, {})
        waiting.setdefault(go)
        return next(iter(waiting)) == go

    def told(self, stream: str) -> None:
        """The log was heard of: everybody goes."""
        if waiting := self._waiting.pop(stream, None):
            for go in waiting:
                go()

    def leave(self, stream: str, go: Go) -> None:
        """This one waits no longer; did he try for the others, the next one does. Idempotent."""
        waiting = self._waiting.get(stream, {})
        if go not in waiting:
            return
        tried = next(iter(waiting)) == go
        del waiting[go]
        if not waiting:
            del self._waiting[stream]
        elif tried:
            next(iter(waiting))()
