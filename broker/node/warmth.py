"""Which worker holds a conversation warm, remembered in the hot cache: a hint for routing, never a promise."""

from __future__ import annotations

import asyncio

from broker.bus.records import Message, Request
from broker.bus.warmth import prefix_hash
from broker.node.cache import HotCache, Kind
from broker.node.ring import Ring

MAX_WRITES = 64  # at once; what comes meanwhile is not remembered


class Warmth:
    """Reads hints before a generation is asked for, and writes one after it ended."""

    def __init__(self, cache: HotCache) -> None:
        self._cache = cache
        self._writes: set[asyncio.Task[bool]] = set()

    async def holder(self, request: Request, sid: str) -> str:
        """The worker, or "" where none is known, or the request brings its own context or names no model."""
        if request.whole_context or not request.model:
            return ""
        found = await self._cache.get(Kind.PREFIX, _conversation(request.model, sid))
        return found.decode("utf-8", "replace") if found else ""

    def ended(self, ring: Ring) -> None:
        """A generation that this node relayed has ended: its worker holds the session's conversation warm now."""
        if not ring.worker or not ring.model or len(self._writes) >= MAX_WRITES:
            return
        prefix = _conversation(ring.model, ring.sid)
        task = asyncio.create_task(self._cache.put(Kind.PREFIX, prefix, ring.worker.encode()), name="warmth")
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        for task in list(self._writes):
            task.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)


def _conversation(model: str, sid: str) -> str:
    """Names a session's own conversation, which grows with every turn: the prefix of whatever is asked next."""
    return prefix_hash(model, [Message("session", sid)])
