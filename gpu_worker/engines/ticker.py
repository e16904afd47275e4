"""One timer for every generation that waits for a moment."""

import asyncio
import heapq
import math

GRID = 0.001
"""Moments are rounded up to this many seconds, so that generations due about now share one turn of the loop.
Deadlines are absolute, so the rounding never adds up.
"""


class Ticker:
    """Wakes tasks at given times of the loop's clock.

    A heap of tuples under a single `call_at`, because one `asyncio.sleep` per token and generation costs more: its
    timer handles are compared in Python and each is a turn of the loop by itself. `ScriptedEngine` has the numbers.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._gone = 0
        self._armed: asyncio.TimerHandle | None = None
        self._armed_for = math.inf

    def __len__(self) -> int:
        """Entries kept, those of cancelled waits included."""
        return len(self._heap)

    async def until(self, when: float) -> None:
        """Returns at `when` or up to GRID later, in the next turn of the loop if it has passed, early when closed.
        Cancelling it loses nothing.
        """
        loop = asyncio.get_running_loop()
        when = math.ceil(when / GRID) * GRID
        wake: asyncio.Future[None] = loop.create_future()
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, wake))
        if when < self._armed_for:
            self._arm(loop, when)
        try:
            await wake
        except asyncio.CancelledError:
            self._forget()
            raise

    def close(self) -> None:
        """Wakes everyone who waits, early. Idempotent."""
        if self._armed is not None:
            self._armed.cancel()
        self._armed, self._armed_for = None, math.inf
        waiting, self._heap = self._heap, []
        for _, _, wake in waiting:
            if not wake.done():
                wake.set_result(None)

    def _forget(self) -> None:
        # The entries of cancelled waits stay until due, which may be minutes; sweep when they are most of the heap.
        self._gone += 1
        if self._gone > 64 and self._gone * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].done()]
            heapq.heapify(self._heap)
            self._gone = 0

    def _arm(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._armed is not None:
            self._armed.cancel()
        self._armed_for = when
        self._armed = loop.call_at(when, self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._armed, self._armed_for = None, math.inf
        # uvloop's timers may fire up to a millisecond early by loop.time(): what was armed for is due.
        now = loop.time() + GRID / 2
        heap = self._heap
        while heap and heap[0][0] <= now:
            wake = heapq.heappop(heap)[2]
            if not wake.done():
                wake.set_result(None)
        if heap:
            self._arm(loop, heap[0][0])
