"""Workers' beats as a node hears them: who holds which generation. Kept raw and read only when somebody asks."""

from __future__ import annotations

import asyncio

import msgspec

from broker.bus.nats import Bus, Msg, Subscription
from broker.bus.records import Beat
from broker.bus.records import decode as decode_record
from broker.bus.subjects import beat_subject

FORGET = 5.0  # seconds without a beat


class Beats:
    """The newest beat of every worker."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._raw: dict[str, tuple[float, bytes]] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(beat_subject("*"), self._receive)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._bus.unsubscribe(self._subscription)

    def live(self) -> list[Beat]:
        now = asyncio.get_running_loop().time()
        beats: list[Beat] = []
        for worker, (heard, raw) in list(self._raw.items()):
            if now - heard > FORGET:
                del self._raw[worker]
                continue
            try:
                beats.append(decode_record(raw, Beat))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # somebody else's message on this subject
        return beats

    def holders(self, gid: str) -> list[str]:
        """The workers that say they hold a generation; all of them where none does (it may be on its way)."""
        live = [beat for beat in self.live() if beat.models]
        return [beat.worker for beat in live if gid in beat.held] or [beat.worker for beat in live]

    async def _receive(self, msg: Msg) -> None:
        self._raw[msg.subject.rpartition(".")[2]] = (asyncio.get_running_loop().time(), msg.data)
