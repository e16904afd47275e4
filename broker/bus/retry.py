"""Asking again where NATS does not answer yet.

A cluster that has just come up has no leader for this or that stream, a busy machine takes seconds to answer, and a
stream that another one is just making is not found for a moment. None of that is a reason not to start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.bus.errors import BusUnavailable, Refusal, StoreRejected
from broker.bus.log import STREAM_NOT_FOUND

PAUSE = 0.25  # seconds

Answer = TypeVar("Answer")


def not_now(error: Exception) -> bool:
    """Whether asking again may change this answer."""
    match error:
        case BusUnavailable():
            return True
        case StoreRejected(err_code=code):
            return code == STREAM_NOT_FOUND
        case Refusal(retry_after=seconds):
            return seconds is not None
    return False


async def retry(
    step: Callable[[], Awaitable[Answer]],
    deadline: float | None = None,
    *,
    again: Callable[[Exception], bool] = not_now,
    unanswered: Callable[[Exception], None] = lambda error: None,
    pause: float = PAUSE,
) -> Answer:
    """`step`, which may be repeated, until all that it asks is answered. `unanswered(error)`: before each repeat.

    Raises what is not to be asked `again`, and what it raised last when the `deadline` (loop time; None: never) has
    passed.
    """
    while True:
        try:
            return await step()
        except Exception as error:
            if not again(error) or (deadline is not None and asyncio.get_running_loop().time() >= deadline):
                raise
            unanswered(error)
        await asyncio.sleep(pause)
