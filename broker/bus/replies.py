"""Who waits for which answer at a connection's own inbox. Every question has a token of its own, never used again.

A question is waited for by whoever asked it, or *timed*: a publish, which is given up after the connection's `Patience`
by one timer for all of them. `futility` is told what became of publishes, timed or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property
from typing import Generic, TypeVar

from broker.bus.futility import Futility
from broker.bus.patience import LEAST, Patience

Answer = TypeVar("Answer")

MANY, API, PUBLISH = "m", "a", "p"  # what the tokens of such questions begin with; those of others are numbers


class Replies(Generic[Answer]):
    """`take` is given the answer, or None where there will be none."""

    def __init__(self) -> None:
        self._last = 0
        self._waiting: dict[str, Callable[[Answer | None], None]] = {}
        self._timed: dict[str, float] = {}  # token -> loop time when it was sent, in order
        self._timer: asyncio.TimerHandle | None = None
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

    def time(self, token: str) -> None:
        """From now on `token`, a PUBLISH, is under way: with no answer in time its `take` gets None."""
        self._timed[token] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(LEAST, self._expire)

    def forget(self, token: str) -> None:
        self._waiting.pop(token, None)

    def gave_up(self, token: str) -> None:
        """Whoever asked waits no longer."""
        self.forget(token)
        if token.startswith(PUBLISH):
            self.futility.in_vain(self._loop.time())

    def arrived(self, token: str, answer: Answer, *, nobody: bool = False) -> None:
        """`nobody`: the answer is that there is nobody to answer."""
        take = self._waiting.get(token)
        if take is None:
            return
        kind = token[0]
        if kind == MANY:
            take(answer)
            return
        del self._waiting[token]
        if kind == PUBLISH:
            sent_at = self._timed.pop(token, None)
            now = self._loop.time()
            if nobody:
                self.futility.in_vain(now)
            else:
                self.futility.decided()
                if sent_at is not None:
                    self._patience.answered(now - sent_at)
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
        loop = self._loop
        now = loop.time()
        late = [token for token, sent_at in self._timed.items() if sent_at + self._patience.seconds <= now]
        if late:
            self._patience.in_vain()
            self.futility.in_vain(now)
        for token in late:
            self._settle(token, None)
        self._timer = None
        if self._timed:  # patience may become less meanwhile, so it looks at least so often
            soonest = next(iter(self._timed.values())) + self._patience.seconds
            self._timer = loop.call_at(min(soonest, now + LEAST), self._expire)
