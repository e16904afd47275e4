"""The pacer: spreads bursts of live tokens over a short window, so that text flows instead of jumping. Pure.

It delays events and never cuts, drops or reorders them. A token that comes alone goes out at once, so a steady source
costs nothing; of a burst the first token goes out at once, whatever came with it, and the others follow at the pace at
which the source has been giving tokens, or quicker, so that the last is out within `window`. So the viewer is never
behind the source by more than the window, and over any second gets what the source gave in it. History is not paced: it
does not go through here.
"""

from __future__ import annotations

import math
from collections import deque

from broker.bus.frames import REASONING, TOKEN
from broker.node.events import Event

PACED = frozenset({TOKEN, REASONING})
WEIGHT = 0.2  # of the newest burst in the average gap between tokens
HASTE = 0.9  # a little quicker than the source, so that a lead that was lost is not lost for good


class Pacer:
    """One viewer's. Times are seconds of one monotonic clock."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._waiting: deque[tuple[float, Event]] = deque()
        self._tokens = 0  # events with tokens among those
        self._gap = 0.0  # average seconds per token of the source
        self._came_at: float | None = None  # when the burst before came
        self._last_due = -math.inf
        self._last_token_due = -math.inf

    @property
    def due(self) -> float | None:
        """When the next event is to go out; None where none waits."""
        return self._waiting[0][0] if self._waiting else None

    def offer(self, events: list[Event], now: float) -> None:
        """Events that have come just now, in order."""
        tokens = sum(event.name in PACED for event in events)
        if tokens:
            self._learn(tokens, now)
        left = now + self._window - max(now, self._last_due)
        step = left / max(1, tokens)  # many are spread over the window, not piled up at its end
        if self._gap:
            step = min(step, self._gap * HASTE)
        for event in events:
            due = max(now, self._last_due)
            if event.name in PACED:
                if self._tokens or (tokens > 1 and self._last_token_due > now - step):
                    due = max(due, self._last_token_due + step)
                self._tokens += 1
                self._last_token_due = min(due, now + self._window)
            self._last_due = due = min(due, now + self._window)
            self._waiting.append((due, event))

    def take(self, now: float) -> list[Event]:
        """What is to go out now, in order."""
        out: list[Event] = []
        while self._waiting and self._waiting[0][0] <= now:
            event = self._waiting.popleft()[1]
            self._tokens -= event.name in PACED
            out.append(event)
        return out

    def flush(self) -> list[Event]:
        """Everything, at once: the stream ends or its place is lost."""
        out = [event for _, event in self._waiting]
        self._waiting.clear()
        self._tokens = 0
        return out

    def _learn(self, tokens: int, now: float) -> None:
        if self._came_at is not None:
            gap = min((now - self._came_at) / tokens, self._window)
            self._gap += WEIGHT * (gap - self._gap) if self._gap else gap
        self._came_at = now
