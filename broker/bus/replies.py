"""Who waits for which answer at a connection's own inbox. Every question has a token of its own, never used again.

A question is waited for by whoever asked it, or *timed*: a publish, which is given up after the connection's `Patience`
by one timer for all of them. Publishes go on *ways*, on each of which they are answered in the order in which they were
sent: as long as those before it are answered, a publish waits its turn, and is not lost. `futility` is told what became
of publishes, timed or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property
from typing import Generic, TypeVar

from broker.bus.futility import Futility
from broker.bus.patience import LEAST, MOST, Patience

Answer = TypeVar("Answer")

MANY, API, PUBLISH = "m", "a", "p"  # what the tokens of such questions begin with; those of others are numbers


class _Way:
    __slots__ = ("answered", "heard_at")

    def __init__(self) -> None:
        self.answered = 0  # number of the newest publish that was
        self.heard_at = 0.0  # loop time


_Timed = tuple[float, int, _Way, float]
"""When it was sent, in loop time; its number in the order of sending; where; and how long it is waited for at least."""


def waits_since(timed: _Timed) -> float:
    """When something was heard last that makes waiting worth while."""
    sent_at, number, way, _ = timed
    return sent_at if number < way.answered else max(sent_at, way.heard_at)  # the first: it was overtaken


class Replies(Generic[Answer]):
    """`take` is given the answer, or None where there will be none."""

    def __init__(self) -> None:
        self._last = 0
        self._waiting: dict[str, Callable[[Answer | None], None]] = {}
        self._timed: dict[str, _Timed] = {}  # by token, in the order of sending
        self._sent = 0
        self._ways: dict[str, _Way] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._patience = Patience()
        self.futility = Futility()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()  # to ask for it each time would be a system call each time

    def __len__(self) -> int:
        """How many answers are waited for."""
        return len(self._waiting)

    def expect(self, take: Callable[[Answer | None], None], kind: str = "") -> str:
        """A new token. `take` is called once with the answer; again and again where the kind is MANY."""
        self._last += 1
        self._waiting[token := f"{kind}{self._last}"] = take
        return token

    def time(self, token: str, way: str = "", least: float = 0.0) -> None:
        """From now on `token`, a PUBLISH, is on its way: with no answer in time its `take` gets None. `least`: seconds
        that it is waited for whatever others take, who learn nothing from it.
        """
        self._sent += 1
        if (taken := self._ways.get(way)) is None:
            taken = self._ways[way] = _Way()
        self._timed[token] = (self._loop.time(), self._sent, taken, least)
        if self._timer is None:
            self._look_at(self._loop.time() + LEAST)

    def forget(self, token: str) -> None:
        self._waiting.pop(token, None)

    def gave_up(self, token: str) -> None:
        """Whoever asked waits no longer."""
        self.forget(token)
        if token.startswith(PUBLISH):
            self.futility.in_vain(self._loop.time())

    def arrived(self, token: str, answer: Answer, *, nobody: bool = False, refused: bool = False) -> None:
        """`nobody`: the answer is that there is nobody to answer. `refused`: it is none of a publish that was stored.
        Only what is stored is answered in order: a fence that does not hold is refused before what was published
        earlier has its quorum."""
        take = self._waiting.get(token)
        if take is None:
            return
        kind = token[0]
        if kind == MANY:
            take(answer)
            return
        del self._waiting[token]
        if kind == PUBLISH:
            timed = self._timed.pop(token, None)
            now = self._loop.time()
            if nobody:
                self.futility.in_vain(now)
            else:
                self.futility.decided()
            if timed is not None and not (nobody or refused):
                sent_at, number, way, least = timed
                way.heard_at = now
                if number > way.answered:
                    way.answered = number
                if not least:
                    self._patience.answered(now - sent_at, now)
        take(answer)

    def disconnected(self) -> None:
        """What a server would have answered itself will not come any more; what OKOME answers still may."""
        for token in list(self._waiting):
            if token.startswith((PUBLISH, API)):
                self._settle(token, None)

    def close(self) -> None:
        for token in list(self._waiting):
            self._settle(token, None)
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self, token: str, answer: Answer | None) -> None:
        self._timed.pop(token, None)
        if take := self._waiting.pop(token, None):
            take(answer)

    def _expire(self) -> None:
        now = self._loop.time()
        patience = self._patience.seconds
        if now - self._due > LEAST / 2:  # this loop stood still: what was answered meanwhile is not read yet
            patience = max(MOST, patience)
        late, soonest = [], now + LEAST  # patience may become less meanwhile, so it looks at least so often
        for token, timed in self._timed.items():
            if timed[0] + patience > now:
                soonest = min(soonest, timed[0] + patience)
                break  # nor is any of those that were sent behind it
            due = waits_since(timed) + max(patience, timed[3])
            if due <= now:
                late.append(token)
            else:
                soonest = min(soonest, due)
        if late:
            self._patience.in_vain()
            self.futility.in_vain(now)
        for token in late:
            self._settle(token, None)
        self._timer = None
        if self._timed:
            self._look_at(max(soonest, now + LEAST / 4))  # thousands may be waiting their turn, each with its own time

    def _look_at(self, due: float) -> None:
        self._due = due
        self._timer = self._loop.call_at(due, self._expire)
