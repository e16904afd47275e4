"""An answer that is good for a moment: asked for once by all who want it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from broker.bus.errors import BusError, BusUnavailable

Answer = TypeVar("Answer")


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
        if (shared := self._asking.get(key)) is not None:
            # Shielded: whoever stops waiting must not end it for the others.
            return await asyncio.shield(shared)
        mine = self._asking[key] = loop.create_future()
        began = loop.time()
        try:
            answer = await self._ask(key)
        except BaseException as error:
            mine.set_exception(error if isinstance(error, BusError) else BusUnavailable("the question was given up"))
            mine.exception()  # marked as retrieved: perhaps nobody else waits
            raise
        else:
            self._seen[key] = (began, answer)
            mine.set_result(answer)
            return answer
        finally:
            del self._asking[key]
