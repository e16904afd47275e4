"""Where a subscriber writes live events without waking whoever reads it."""

from __future__ import annotations

from typing import Protocol

from broker.node.events import Event


class Sink(Protocol):
    """Where live events may be written at once, without waking whoever reads `events()`."""

    @property
    def ready(self) -> bool:
        """Whether it takes anything now."""

    def write(self, batch: list[Event]) -> None: ...
