"""The partitions: which one a session is born in, and what the leader says of each log."""

from __future__ import annotations

import secrets

from broker.bus.errors import Refusal
from broker.bus.log import StreamInfo, stream_info
from broker.bus.nats import Bus
from broker.bus.subjects import log_stream
from control.fresh import Fresh

FRESH = 0.25  # seconds that a look at a log is used for admission
FULL = 0.9  # of max_bytes: what runs keeps the rest


class Partitions:
    """What is known of the logs, asked of their leaders and kept for a moment."""

    def __init__(self, bus: Bus, names: list[str]) -> None:
        self.names = names
        self._infos = Fresh(lambda partition: stream_info(bus, log_stream(partition)), FRESH)

    def choose(self) -> str:
        """For a new session: at random, so that nobody can aim. Never recomputed afterwards."""
        return secrets.choice(self.names)

    async def look(self, partition: str) -> StreamInfo:
        """What the log is, a moment ago. Raises BusError."""
        return await self._infos.get(partition)

    async def admit(self, partition: str) -> StreamInfo:
        """As `look`, for something new: raises Refusal `overloaded` when it is nearly full."""
        info = await self.look(partition)
        if info.max_bytes > 0 and info.bytes >= FULL * info.max_bytes:
            raise Refusal("overloaded", "the log of this session is nearly full", retry_after=30)
        return info
