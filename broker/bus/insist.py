"""Asking again where NATS does not answer yet.

A cluster that has just come up has no leader for this or that stream, a busy machine takes seconds to answer, and a
stream that another one is just making is not found for a moment. None of that is a reason not to start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.bus.errors import BusError, BusUnavailable, Refusal, StoreRejected
from broker.bus.log import STREAM_NOT_FOUND

RETRY = 0.25

Answer = TypeVar("Answer")


async def insist(
    step: Callable[[], Awaitable[Answer]],
    deadline: float | None = None,
    unanswered: Callable[[str], None] = lambda why: None,
) -> Answer:
    """`step`, which may be repeated, until everything that it asks is answered. `unanswered(why)`: before each repeat.

    Raises what a repeat would not change, and what it raised last when the `deadline` (loop time) has passed.
    """
    while True:
        try:
            return await step()
        except (BusError, Refusal) as error:
            if not _not_now(error) or (deadline is not None and asyncio.get_running_loop().time() >= deadline):
                raise
            unanswered(str(error))
        await asyncio.sleep(RETRY)


def _not_now(error: BusError | Refusal) -> bool:
    match error:
        case BusUnavailable():
            return True
        case StoreRejected(err_code=code):
            return code == STREAM_NOT_FOUND
        case Refusal(retry_after=seconds):
            return seconds is not None
    return False
