"""Questions that are asked again: on a loaded machine one that stays without an answer says nothing about the system.

What is answered, be it by a refusal, is an answer. Only who is asked in vain for a long time is stuck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.bus.errors import BusError, BusUnavailable
from broker.bus.retry import retry

ANSWER_TIMEOUT = 30.0
RETRY_PAUSE = 0.2
PATIENT = 10.0
"""Seconds that are waited for one answer where asking a second time would hide what the first time did."""

UNANSWERED = (BusUnavailable, OSError, EOFError)
"""What is raised where nobody answers; TimeoutError is an OSError."""
FAILED = (BusError, OSError, EOFError)
"""The same, and what is raised where the bus says no."""

Told = TypeVar("Told")


class Unanswered(TimeoutError):
    """Nobody answered in all that time; the message says what the last try came to."""


async def answered(
    ask: Callable[[], Awaitable[Told]],
    *,
    timeout: float = ANSWER_TIMEOUT,
    again: tuple[type[Exception], ...] = UNANSWERED,
) -> Told:
    """Ask until there is an answer. `again`: what is none. Raises Unanswered, and what else `ask` raises.

    A question may take effect although its answer is lost: what is asked for must bear being done twice.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        return await retry(ask, deadline, again=lambda error: isinstance(error, again), pause=RETRY_PAUSE)
    except again as error:
        raise Unanswered(f"nobody answered within {timeout:g} s: {error!r}") from error
