"""An answer that is good for a moment: asked for once by all who want it at the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class _GivenUp(Exception):
    """Whoever asked for all did not wait for the answer."""


class Fresh(Generic[Answer]):
    """`ask(key)`, at most once per `life` seconds and key; who asks meanwhile shares the request."""

    def __init__(self, ask: Callable[[str], Awaitable[Answer]], life: float) -> None:
        self._ask = ask
        self._life = life
        self._seen: dict[str, tuple[float, Answer]] = {}
        self._asking: dict[str, asyncio.Future[Answer]] = {}

    async def get(self, key: str) -> Answer:
        """Raises what `ask` raises."""
        loop = asyncio.get_running_loop()
        seen = self._seen.get(key)
        if seen is not None and loop.time() - seen[0] <= self._life:
            return seen[1]
        while (shared := self._asking.get(key)) is not None:
            with contextlib.suppress(_GivenUp):
                # Shielded: whoever stops waiting must not end it for the others.
                return await asyncio.shield(shared)
        mine = self._asking[key] = loop.create_future()
        began = loop.time()
        try:
            answer = await self._ask(key)
        except BaseException as error:
            given_up = isinstance(error, asyncio.CancelledError)  # the first of those who wait asks again
            mine.set_exception(_GivenUp() if given_up else error)
            mine.exception()  # marked as retrieved: perhaps nobody else waits
            raise
        else:
            self._seen[key] = (began, answer)
            mine.set_result(answer)
            return answer
        finally:
            del self._asking[key]
