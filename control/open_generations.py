"""The open generations: every record in KV `generations` that has not ended, as it is now."""

from __future__ import annotations

import msgspec
import structlog

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
        self._follow = Follow(bus, "KV_generations", [PREFIX + ">"], "okome-open", self._take, last_per_subject=True)

    async def start(self) -> None:
        await self._follow.start()

    async def close(self) -> None:
        await self._follow.close()

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
        else:
            self.records.pop(gid, None)
        metrics.open_generations.set(len(self.records))
