"""Work that an event may end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`, or None if `event` came first: `work` is then cancelled, and has ended."""
    if event.is_set():
        work.close()
        return None
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        interrupted = not task.done()
        if interrupted:
            task.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)
    # What finished while it was being cancelled has finished; an error of its clean-up is an error.
    return None if task.cancelled() else task.result()
