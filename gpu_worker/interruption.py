"""What ends a job's waiting or decoding from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import Enum
from typing import Any, TypeVar

from broker.bus.unless import unless

Result = TypeVar("Result")


class Interrupt(Enum):
    CANCEL = "cancel"  # asked for in KV
    ABANDONED = "abandoned"  # on_disconnect=cancel, and no viewer's node was heard for `grace`
    STOPPED = "stopped"  # its publisher may write no more
    LEAVING = "leaving"  # the worker goes


class Interruption:
    """At most one reason; the first one counts, but leaving beats everything."""

    def __init__(self) -> None:
        self.why: Interrupt | None = None
        self._any = asyncio.Event()
        self._leaving = asyncio.Event()

    def set(self, why: Interrupt) -> None:
        if self.why is None or why is Interrupt.LEAVING:
            self.why = why
        self._any.set()
        if why is Interrupt.LEAVING:
            self._leaving.set()

    def forget_stop(self) -> None:
        """A publisher was stopped, and there will be another one."""
        if self.why is Interrupt.STOPPED:
            self.why = None
            self._any.clear()

    @property
    def cancelled(self) -> bool:
        return self.why in (Interrupt.CANCEL, Interrupt.ABANDONED)

    @property
    def leaving(self) -> bool:
        return self.why is Interrupt.LEAVING

    async def unless(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """The result of `work`, or None if an interruption came first: `work` is then cancelled, and has ended."""
        return await unless(self._any, work)

    async def unless_leaving(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """The same for LEAVING only: what has to go on although it was cancelled."""
        return await unless(self._leaving, work)
