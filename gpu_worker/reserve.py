"""The room kept in session logs for terminal frames: tokens stop before a stream is full, so that an end still fits.

JetStream has no reserve of its own: a stream that discards new messages refuses whatever does not fit, the `failed`
that should say so among it. OKOME admits nothing beyond 90 %; workers write no tokens beyond 98 %.
"""

from __future__ import annotations

import asyncio

from broker.bus import log
from broker.bus.nats import Bus

KEPT = 50  # one part of this many is for terminals
OVERHEAD = 250  # bytes, at most, that the server adds to a frame: subject, headers, record
FRESH = 1.0  # seconds that the leader's word counts, what this worker wrote since added


class _Stream:
    __slots__ = ("asked_at", "room", "batches")

    def __init__(self, asked_at: float, room: float, batches: bool) -> None:
        self.asked_at = asked_at
        self.room = room
        self.batches = batches


class Reserve:
    """What the streams that this worker writes to have left for tokens."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._streams: dict[str, _Stream] = {}

    async def learn(self, stream: str) -> None:
        """Ask the leader, unless it was asked a moment ago. Raises BusError."""
        now = asyncio.get_running_loop().time()
        known = self._streams.get(stream)
        if known is not None and now - known.asked_at < FRESH:
            return
        info = await log.stream_info(self._bus, stream)
        room = float("inf") if info.max_bytes < 0 else info.max_bytes - info.max_bytes // KEPT - info.bytes
        self._streams[stream] = _Stream(now, room, info.batches)

    def take(self, stream: str, size: int) -> bool:
        """Whether a frame of tokens of `size` bytes may be written; where nobody asked, the server decides."""
        known = self._streams.get(stream)
        if known is None:
            return True
        known.room -= size + OVERHEAD
        return known.room >= 0

    def takes_batches(self, stream: str) -> bool:
        """Whether frames of several answers may be stored in it as one batch."""
        known = self._streams.get(stream)
        return known is not None and known.batches

    def no_batches(self, stream: str) -> None:
        """The log says so, whatever was learnt of it."""
        known = self._streams.get(stream)
        if known is not None:
            known.batches = False

    def forget(self, used: set[str]) -> None:
        """Keep only the streams in use."""
        for stream in self._streams.keys() - used:
            del self._streams[stream]
