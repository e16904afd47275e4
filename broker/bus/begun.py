"""Asking two things at once: one is begun, and awaited once the other is known to be worth it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

Answer = TypeVar("Answer")


@asynccontextmanager
async def begun(work: Coroutine[Any, Any, Answer]) -> AsyncIterator[asyncio.Task[Answer]]:
    """`work` as a task that has ended when this block has: cancelled where nobody came to await it, and what it would
    have raised is then nobody's."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
