"""Whose turn it is to publish to a log: a few at a time, of all that one worker writes to it, or many in a batch. Pure.

A log stores one message after another. What is sent to one that stores more slowly than tokens come waits there as it
was when it was sent; what waits here collects tokens until its turn, and they are one frame then. Where a log takes
batches, fewer are on their way alone, and those who wait go at once when there are enough of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from broker.bus.errors import BusError
from broker.bus.log import Fenced

WINDOW = 16  # publishes on their way to one log (docs/decisions/publishing.md)
WINDOW_BATCHED = 2  # ... to one that takes batches
FEWEST = 16  # in a batch: fewer are quicker one by one (`python -m bench.batches`)


class Writer(Protocol):
    """One who has frames to store. `go`: it is his turn alone, and he says `over` when it has ended. `load`: what he
    would store in a batch, None for nothing; then he waits for `answered`, with the sequence or the error."""

    def go(self) -> None: ...
    def load(self) -> Fenced | None: ...
    def answered(self, answer: int | BusError) -> None: ...


class Batches(Protocol):
    """The way of a batch to a log."""

    def can(self, stream: str) -> bool:
        """Whether that log takes them."""

    def go(self, stream: str, next_one: Callable[[], Writer | None], over: Callable[[], None]) -> None:
        """One turn for as many as `next_one` gives and may go at once; `over` is called when it has ended."""


class _Log:
    __slots__ = ("alone", "batched", "first", "flying", "handing", "others_next", "waiting")

    def __init__(self) -> None:
        self.flying = 0
        self.batched = False  # a batch is on its way, and everybody else waits
        self.first: deque[Writer] = deque()
        self.waiting: deque[Writer] = deque()
        self.alone: deque[Writer] = deque()
        self.others_next = True
        self.handing = False

    def __len__(self) -> int:
        return len(self.first) + len(self.waiting) + len(self.alone)

    def next(self) -> Writer:
        """Raises IndexError where nobody waits. Who goes first does so not to the others' ruin: every second is one."""
        self.others_next = not self.others_next
        others = self.alone or self.waiting
        return (others if (self.others_next and others) or not self.first else self.first).popleft()

    def one_of_many(self) -> Writer | None:
        """The next who may go with others."""
        line = self.first or self.waiting
        return line.popleft() if line else None

    def are(self, fewest: int) -> bool:
        """Whether so many wait for a batch. None is made while somebody waits who is to go alone: there might always be
        enough before him.
        """
        return not self.alone and len(self.first) + len(self.waiting) >= fewest


class Turns:
    """`batches`: None, and everybody goes alone. `window`: how many may be on their way to a log, else as above.
    `fewest`: frames of a batch.
    """

    def __init__(self, window: int | None = None, batches: Batches | None = None, fewest: int = FEWEST) -> None:
        self._window = window
        self._fewest = fewest
        self.batches = batches
        self._logs: dict[str, _Log] = {}

    @property
    def waiting(self) -> int:
        """How many wait for a turn, at all logs."""
        return sum(map(len, self._logs.values()))

    def ask(self, stream: str, writer: Writer, *, first: bool, alone: bool = False) -> bool:
        """True: now. False: he is told when it is his turn, sooner if he says his `first`. `alone`: not with others,
        whom his failure would hold up."""
        log = self._logs.get(stream)
        if log is None:
            log = self._logs[stream] = _Log()
        if not log.batched and log.flying < self._most(stream):
            log.flying += 1
            return True
        (log.alone if alone else log.first if first else log.waiting).append(writer)
        return False

    def over(self, stream: str) -> None:
        """One turn has ended, whatever came of it."""
        log = self._logs[stream]
        log.flying -= 1
        self._hand(stream, log)

    def _batch_over(self, stream: str, log: _Log) -> None:
        log.batched = False
        self._hand(stream, log)

    def _most(self, stream: str) -> int:
        if self._window is not None:
            return self._window
        return WINDOW_BATCHED if self.batches is not None and self.batches.can(stream) else WINDOW

    def _hand(self, stream: str, log: _Log) -> None:
        if log.handing:  # said by one who was told to go just now
            return
        log.handing = True
        try:
            while len(log) and not log.batched:
                if self.batches is not None and log.are(self._fewest) and self.batches.can(stream):
                    log.batched = True
                    self.batches.go(stream, log.one_of_many, partial(self._batch_over, stream, log))
                elif log.flying < self._most(stream):
                    log.flying += 1
                    log.next().go()
                else:
                    break
        finally:
            log.handing = False
