"""The open generations: every record in KV `generations` that has not ended, as it is now, and how old it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from broker.bus import clock
from broker.bus.follow import Follow
from broker.bus.nats import Bus
from broker.bus.records import Generation, decode
from control import metrics

PREFIX = "$KV.generations."

log = structlog.get_logger("control")


class OpenGenerations:
    """Follows the bucket and keeps only what is open; ended records, with their texts, pass by."""

    def __init__(self, bus: Bus) -> None:
        self.records: dict[str, Generation] = {}  # gid -> record
        self.on_cancel: Callable[[str], None] = lambda gid: None
        """Called with one of them that somebody asked to cancel."""
        self._since: dict[str, float] = {}  # gid -> loop time when this replica learned of it
        self._loop = asyncio.get_running_loop()
        self._follow = Follow(bus, "KV_generations", [PREFIX + ">"], "okome-open", self._take, last_per_subject=True)

    async def start(self) -> None:
        await self._follow.start()

    async def close(self) -> None:
        await self._follow.close()

    def age(self, record: Generation) -> float:
        """Seconds since it was accepted, at least: what passed here since it is known, or what the clock of whoever
        accepted it leaves for certain. So it is never too much, and after a restart it is at most SKEW too little."""
        now = self._loop.time()
        return max(now - self._since.get(record.id, now), clock.now() - record.created_at / 1000 - clock.SKEW)

    def _take(self, seq: int, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        gid = subject.rpartition(".")[2]
        record = None
        if not headers or "KV-Operation" not in headers:
            try:
                record = decode(data, Generation)
            except msgspec.MsgspecError as error:
                log.warning("generation.unreadable", gid=gid, error=str(error))
        if record is not None and record.status.open:
            self.records[gid] = record
            self._since.setdefault(gid, self._loop.time())
            if record.cancel:
                self.on_cancel(gid)
        else:
            self.records.pop(gid, None)
            self._since.pop(gid, None)
        metrics.open_generations.set(len(self.records))
