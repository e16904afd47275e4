"""The chain: which frame may follow which in one session's log. Pure.

Writers refuse to publish, and readers to show, a frame that does not follow. The chain, not any consumer's count,
proves that nothing is missing: every frame names the sequence before it.
"""

from __future__ import annotations

from broker.bus.errors import ChainBroken
from broker.bus.frames import ATTEMPT, REASONING, START, TERMINAL, TOKEN, Frame


class Chain:
    """The end of one session's log, as seen by whoever read it so far.

    `last` is the last sequence (0: the log is empty). A chain that starts in the middle of a log (`Chain(last=…)` with
    nothing read yet) adopts the generation of the first frame it sees.
    """

    __slots__ = ("last", "gid", "epoch", "attempt", "next_offset", "open", "known")

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.gid = ""
        self.epoch = 0
        self.attempt = ""
        self.next_offset = 0
        self.open = False  # a generation has started and not ended
        self.known = last == 0  # an empty log is known completely

    def advance(self, frame: Frame) -> None:
        """Take the next frame; raises ChainBroken and changes nothing if it does not follow."""
        if frame.prev != self.last or frame.seq <= self.last:
            raise ChainBroken(f"{frame.seq} follows {frame.prev}, not {self.last}")
        if self.known:
            self._check(frame)
        self.known = True
        self.last = frame.seq
        self.gid = frame.gid
        self.epoch = frame.epoch
        self.attempt = frame.attempt
        self.next_offset = frame.offset + frame.n
        self.open = frame.type not in TERMINAL

    def _check(self, frame: Frame) -> None:
        if frame.n < 0 or (frame.n and frame.type not in (TOKEN, REASONING)):
            raise ChainBroken(f"{frame.seq}: {frame.type} of {frame.n} tokens")
        if frame.type == START:
            if self.open:
                raise ChainBroken(f"{frame.seq}: start of {frame.gid} while {self.gid} runs")
            if frame.offset != 0 or frame.epoch != 1:
                raise ChainBroken(f"{frame.seq}: start at offset {frame.offset}, epoch {frame.epoch}")
            if frame.gid == self.gid:
                raise ChainBroken(f"{frame.seq}: {frame.gid} starts again after its end")
            return
        if not self.open:
            raise ChainBroken(f"{frame.seq}: {frame.type} after the end of {self.gid}")
        if frame.gid != self.gid:
            raise ChainBroken(f"{frame.seq}: {frame.gid} inside {self.gid}")
        if frame.offset != self.next_offset:
            raise ChainBroken(f"{frame.seq}: offset {frame.offset}, expected {self.next_offset}")
        if frame.type == ATTEMPT or frame.attempt != self.attempt:
            # Another writer: its first frame opens the next epoch. It is an `attempt`, or a terminal (a sweeper's end).
            if frame.epoch != self.epoch + 1 or (frame.type != ATTEMPT and frame.type not in TERMINAL):
                raise ChainBroken(f"{frame.seq}: {frame.type} of epoch {frame.epoch} after epoch {self.epoch}")
        elif frame.epoch != self.epoch:
            raise ChainBroken(f"{frame.seq}: epoch {frame.epoch} inside epoch {self.epoch}")
