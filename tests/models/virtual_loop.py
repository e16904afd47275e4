"""Virtual time: event loops that move only when a model says so, by a clock that only the model sets.

Several loops share one clock, so that a process that stands still is a loop that is left out. Nothing here waits, and
nothing depends on how busy the machine is.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

TURNS = 20_000  # of one loop without time passing: more is somebody who spins
BEGIN, END = 1100.0, 2048.0  # seconds between which neighbouring times are the same distance apart


class Clock:
    """Monotonic time in seconds, and the loops that live by it, in the order in which they are run."""

    def __init__(self) -> None:
        self.now = BEGIN
        self.loops: list[VirtualLoop] = []
        self.failures: list[BaseException] = []  # that reached nobody: raised by whoever lets time pass next

    def loop(self) -> VirtualLoop:
        loop = VirtualLoop(self)
        self.loops.append(loop)
        return loop

    def settle(self) -> None:
        """Run everybody until nobody can go on without time passing."""
        for _ in range(TURNS):
            moved = sum(loop.turn() for loop in self.loops)  # all of them
            if self.failures:
                raise self.failures.pop(0)
            if not moved:
                return
        raise AssertionError("somebody never waits")

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.now + seconds
        assert end < END
        while True:
            self.settle()
            due = min(loop.due() for loop in self.loops)
            if due > end:
                break
            self.now = max(self.now, due)
        self.now = end

    def run(self, loop: VirtualLoop, work: Coroutine[Any, Any, Result], within: float = 60.0) -> Result:
        """The result of `work` on `loop`, while everybody runs; fails where it takes longer than `within`."""
        task = loop.create_task(work)
        end = self.now + within
        while True:
            self.settle()
            if task.done():
                return task.result()
            due = min(each.due() for each in self.loops)
            assert due <= end, f"{task} has not ended in {within} s"
            self.now = max(self.now, due)

    def close(self) -> None:
        """Cancel what still runs, and end every loop."""
        for loop in self.loops:
            loop.set_exception_handler(lambda loop, context: None)  # what failed has been told
            loop.frozen = False
            for task in asyncio.all_tasks(loop):
                task.cancel()
        self.failures.clear()
        self.settle()
        for loop in self.loops:
            left = asyncio.all_tasks(loop)
            assert not left, f"still running: {left}"
            loop.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop without sockets. While `frozen` it stands still, and time goes on without it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_Deaf())
        self._clock = clock
        self._clock_resolution = math.ulp(BEGIN)  # no timer is early: who asks whether it is time would go round
        self.frozen = False
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        return self._clock.now

    def turn(self) -> bool:
        """Whoever is ready runs once; False where nobody was."""
        if self.frozen or not (self._ready or self.due() <= self._clock.now):  # type: ignore[attr-defined]
            return False
        self.call_soon(self.stop)
        self.run_forever()
        return True

    def due(self) -> float:
        """When the next timer is due."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        if self.frozen or not scheduled:
            return float("inf")
        return scheduled[0].when()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._clock.failures.append(context.get("exception") or AssertionError(context["message"]))


class _Deaf(selectors.SelectSelector):
    """Nothing ever happens outside."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []
