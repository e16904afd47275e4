"""How long one connection waits for the answer to a publish: the retransmission timeout of RFC 6298. Pure.

A publish may be made again under its fence before the first one is decided, so waiting too short costs a message and a
read, and waiting too long is a stall that a viewer sees. A fixed second was such a stall: a leader that leaves drops
what it has not answered (one viewer of forty waited 1.05 s).
"""

LEAST, MOST = 0.05, 1.0  # seconds


class Patience:
    """`seconds` is what to wait now: the usual time and four times its deviation, and longer after waits in vain."""

    def __init__(self) -> None:
        self.seconds = MOST
        self._usual: float | None = None
        self._deviation = 0.0
        self._vain = 0
        self._slowest = 0.0  # since the last one that counted
        self._counts_again_at = 0.0

    def answered(self, took: float, now: float) -> None:
        """An answer came after `took` seconds. Not for the answer to a publish that was made twice.

        Of those that come within LEAST the slowest counts. A thousand answers to one burst, counted one by one, would
        leave nothing of what was usual before, and the next burst would be waited for as long as its first one takes.
        """
        self._vain = 0
        if took > self._slowest:
            self._slowest = took
        if now < self._counts_again_at:
            return
        took, self._slowest, self._counts_again_at = self._slowest, 0.0, now + LEAST
        if self._usual is None:
            self._usual, self._deviation = took, took / 2
        else:
            self._deviation += (abs(took - self._usual) - self._deviation) / 4
            self._usual += (took - self._usual) / 8
        self.seconds = min(MOST, max(LEAST, self._usual + 4 * self._deviation))

    def in_vain(self) -> None:
        """No answer came in time. Whoever was asked may have left, which makes nobody slower, so the next wait is as
        long; where that was in vain too, the path has become slower, and doing more would not make it quicker."""
        self._vain += 1
        if self._vain > 1:
            self.seconds = min(MOST, 2 * self.seconds)
