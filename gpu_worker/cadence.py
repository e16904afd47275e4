"""How long the tokens of one answer collect before they are a frame: not at all, until a worker has very many. Pure.

What the path costs, it costs for a frame, however many tokens are in it (docs/decisions/publishing.md). A worker with
more than `collect_above` tokens a second makes about two fifths as many frames: each answer one per interval.
"""

from __future__ import annotations

LONGEST = 0.2  # seconds; text that comes in fewer than five pieces a second is seen to stutter
STEP = 0.02  # seconds: one answer more or less moves nobody's moments
MOMENTS = 4  # in an interval, at which all frames go that are due about then: everybody is woken for many
WINDOW = 1.0  # seconds over which tokens are counted
LEFT = 0.4  # of `collect_above`, about: the frames that are left where tokens collect
CALM = 0.8  # of `collect_above`, under which every token is its own frame again


class Cadence:
    """One for all answers of a worker.

    `least`: seconds between two frames of an answer, about, whatever the load. `collect_above`: tokens a second of all
    answers; 0: as many as there may be. `interval`: seconds, what results. `streaming`: answers that have tokens.
    """

    def __init__(self, least: float = 0.0, collect_above: int = 0) -> None:
        self.interval = least
        self._least = least
        self._collect_above = collect_above
        self.streaming = 0
        self._tokens = 0
        self._since = 0.0
        self._calm = True

    def enter(self) -> None:
        """One more answer has tokens."""
        self.streaming += 1

    def leave(self) -> None:
        self.streaming -= 1
        if not self.streaming:
            self.interval, self._calm = self._least, True

    def stored(self, n: int, now: float) -> None:
        """`n` tokens of any answer came into the log; `now` of the loop's clock, in seconds."""
        self._tokens += n
        past = now - self._since
        if past >= WINDOW:
            if past < 2 * WINDOW:  # else nothing was stored for a while, which says nothing of what is to be
                self._look(self._tokens / past)
            self._since, self._tokens = now, 0

    def due(self, sent: float) -> float:
        """When the next frame of an answer may go whose last one was sent at `sent`."""
        moments = MOMENTS / self.interval
        return round((sent + self.interval) * moments) / moments

    def _look(self, rate: float) -> None:
        self._calm = not self._collect_above or rate <= self._collect_above * (1.0 if self._calm else CALM)
        self.interval = self._least
        if not self._calm:
            wanted = min(self.streaming / (self._collect_above * LEFT), LONGEST)
            self.interval = max(self._least, round(wanted / STEP) * STEP)
