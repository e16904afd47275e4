"""Workers' beats as a node hears them: who holds which generation. Kept raw and read only when somebody asks."""

from __future__ import annotations

import asyncio

import msgspec

from broker.bus.nats import Bus, Msg, Subscription
from broker.bus.records import Beat
from broker.bus.records import decode as decode_record
from broker.bus.subjects import beat_subject

FORGET = 5.0  # seconds without a beat


MOST_PARTS = 256  # of one beat, with what was added to it since: a beat comes four times a second


class _Part(msgspec.Struct):
    part: int = 0
    more: bool = False


_decode_part = msgspec.json.Decoder(_Part).decode


class Beats:
    """The newest beat of every worker."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._raw: dict[str, tuple[float, list[bytes]]] = {}  # worker -> when, and the parts of its newest beat
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
                first, *others = [decode_record(part, Beat) for part in raw]
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # somebody else's message on this subject
            held = first.held
            for part in others:
                held |= part.held  # one that was lost on the way only means that a nudge goes to all of them
            beats.append(first)
        return beats

    @property
    def several(self) -> bool:
        """Whether more than one worker was heard lately."""
        now = asyncio.get_running_loop().time()
        return sum(1 for heard, _ in self._raw.values() if now - heard <= FORGET) > 1

    def holders(self, gid: str) -> list[str]:
        """The workers that say they hold a generation; all of them where none does (it may be on its way)."""
        live = [beat for beat in self.live() if beat.models]
        return [beat.worker for beat in live if gid in beat.held] or [beat.worker for beat in live]

    def by_generation(self) -> dict[str, str]:
        """Who holds each generation that anybody says to hold. Reads every beat: not for every viewer."""
        return {gid: beat.worker for beat in self.live() for gid in beat.held}

    async def _receive(self, msg: Msg) -> None:
        worker, now = msg.subject.rpartition(".")[2], asyncio.get_running_loop().time()
        _, before = self._raw.get(worker, (now, []))
        part = _part(msg.data)
        if part.more:
            if 0 < len(before) < MOST_PARTS:
                before.append(msg.data)
            return
        goes_on = bool(before) and part.part == len(before)
        self._raw[worker] = (now, [*before, msg.data] if goes_on else [msg.data])


def _part(beat: bytes) -> _Part:
    """Which part of a beat it is: the first, where it is no beat."""
    try:
        return _decode_part(beat)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Part()
