"""Whether an engine may decode for a session, as its viewers' nodes tell. Pure; time is an argument.

The worker decides, and silence never pauses: a lost nudge may waste tokens, it must not stop an answer.
"""

from __future__ import annotations

HEARD_WITHIN = 5.0  # a node that said nothing for longer does not count
FLOWING, LAGGING = "flowing", "lagging"


class Arbiter:
    """The demand for one generation.

    Paused while at least one node was heard within 5 s and all of those lag; one `flowing` resumes; after `max_pause`
    seconds it goes on whatever they say, and does not pause again before somebody flowed.
    """

    __slots__ = ("_heard", "_max_pause", "_paused_at", "_spent", "_last_heard")

    def __init__(self, max_pause: float) -> None:
        self._max_pause = max_pause
        self._heard: dict[str, tuple[str, float]] = {}  # node -> (state, when)
        self._paused_at: float | None = None
        self._spent = False
        self._last_heard: float | None = None

    def hear(self, node: str, state: str, now: float) -> None:
        """A node's demand. Any other word than the two is not demand and not heard."""
        if state not in (FLOWING, LAGGING):
            return
        self._heard[node] = (state, now)
        self._last_heard = now
        if state == FLOWING:
            self._spent = False

    def paused(self, now: float) -> bool:
        """Whether the engine is to wait now."""
        self._heard = {node: said for node, said in self._heard.items() if now - said[1] < HEARD_WITHIN}
        lagging = bool(self._heard) and all(state == LAGGING for state, _ in self._heard.values())
        if not lagging or self._spent:
            self._paused_at = None
            return False
        if self._paused_at is None:
            self._paused_at = now
        if now - self._paused_at >= self._max_pause:
            self._paused_at = None
            self._spent = True
            return False
        return True

    @property
    def resumed_by(self) -> str:
        """What ended a pause: `viewers`, `max_pause` or `silence`. Asked when `paused` has just become False."""
        return "max_pause" if self._spent else "viewers" if self._heard else "silence"

    def changes_at(self) -> float | None:
        """When a pause may end by itself: ask again then, or when something is heard. None: not paused."""
        if self._paused_at is None or not self._heard:
            return None
        return min(self._paused_at + self._max_pause, min(at for _, at in self._heard.values()) + HEARD_WITHIN)

    def abandoned(self, grace: float, now: float) -> bool:
        """Whether it had viewers, and all of their nodes have been silent for `grace` seconds."""
        return self._last_heard is not None and now - self._last_heard >= grace
