"""The pulse: OKOME beats like everybody who observes, hears the workers' beats, and naks for the dead.

What follows from beats is decided in `broker.bus.observer`; here they arrive and leave.
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from broker.bus.clock import now_ms
from broker.bus.echo import Echo
from broker.bus.errors import BusError
from broker.bus.nats import Bus, Msg, Subscription
from broker.bus.observer import SILENCE, Nak, Observer
from broker.bus.queue import nak
from broker.bus.records import Beat, decode, encode
from broker.bus.subjects import REPLICA_PREFIX, beat_subject, random_id
from control import metrics

INTERVAL = 0.25
SEEN = 10.0  # seconds after its last beat that a worker's capacity still counts

log = structlog.get_logger("control")


class Pulse:
    """One replica's beats and its observer. `id` is the replica's, `okome-<id>` its name among those who beat."""

    def __init__(self, bus: Bus, id: str) -> None:
        self.name = REPLICA_PREFIX + id
        self.instance = random_id(12)
        self.observer = Observer(self.name)
        self._bus = bus
        self._news = asyncio.Event()
        self._echo = Echo(bus, self.observer)
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(beat_subject("*"), self._hear)

    async def hear(self) -> None:
        """Wait until everybody who beats has been heard: a replica that just started would think all workers gone."""
        await asyncio.sleep(2 * INTERVAL)

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._bus.unsubscribe(subscription)

    async def run(self) -> None:
        """Beat and look, four times a second and whenever an instance was replaced, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if loop.time() >= due:
                await self._beat()
                due = max(due + INTERVAL, loop.time())
            hears = await self._echo.hears(self._beat)
            for suspect in self.observer.suspects(loop.time(), hears):
                await self._nak(suspect)
            try:
                async with asyncio.timeout_at(due):
                    await self._news.wait()
                self._news.clear()
            except TimeoutError:
                continue

    def workers(self, within: float = SEEN) -> dict[str, Beat]:
        """The last beats of workers, not older than `within` seconds."""
        beats = self.observer.beats(asyncio.get_running_loop().time(), within)
        return {name: beat for name, beat in beats.items() if not name.startswith(REPLICA_PREFIX)}

    def live(self) -> list[str]:
        """Who beats, this replica among them."""
        return self.observer.live(asyncio.get_running_loop().time())

    def active(self) -> bool:
        """Whether this replica is the first of those alive, and hears: it does what one of them must do."""
        return self._bus.round_trip_ok and self.name == min(
            name for name in self.live() if name.startswith(REPLICA_PREFIX)
        )

    def holder(self, gid: str) -> str:
        """The live worker that holds this generation's job, or ""."""
        return next((name for name, beat in self.workers(SILENCE).items() if gid in beat.held), "")

    async def _hear(self, msg: Msg) -> None:
        try:
            beat = decode(msg.data, Beat)
        except msgspec.MsgspecError as error:
            log.warning("beat.unreadable", subject=msg.subject, error=str(error))
            return
        if beat.worker == self.name:
            self._echo.came()
        if self.observer.on_beat(beat, asyncio.get_running_loop().time()):
            self._news.set()

    async def _beat(self) -> None:
        try:
            await self._bus.publish(beat_subject(self.name), encode(Beat(self.name, self.instance, now_ms())))
        except BusError as error:
            log.debug("beat.lost", error=str(error))

    async def _nak(self, suspect: Nak) -> None:
        metrics.naks.inc()
        log.warning("worker.suspected", worker=suspect.worker, gid=suspect.gid)
        try:
            await nak(self._bus, suspect.reply)
        except BusError as error:  # ack_wait is the last resort
            log.warning("nak.lost", gid=suspect.gid, error=str(error))
