"""Who else is there: ingresses (they share a quota when Redis is away), workers (by beats), OKOME (by asking)."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from broker.bus.errors import BusError, BusUnavailable, Refusal
from broker.bus.nats import Bus, Msg, Subscription
from broker.bus.records import Beat, decode
from broker.bus.subjects import beat_subject, ingress_subject
from ingress.metrics import Metrics

log = structlog.get_logger("ingress.surroundings")

INTERVAL = 1.0
PEER_TIMEOUT = 3.0
WORKER_TIMEOUT = 1.0


class Heard:
    """Names and when they were last heard; what is silent for `timeout` seconds is forgotten. Pure: time is given."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._heard: dict[str, float] = {}

    def hear(self, name: str, now: float) -> None:
        self._heard[name] = now

    def count(self, now: float) -> int:
        for name in [name for name, at in self._heard.items() if now - at > self._timeout]:
            del self._heard[name]
        return len(self._heard)


class Surroundings:
    def __init__(self, bus: Bus, ingress: str, metrics: Metrics) -> None:
        self._bus = bus
        self._ingress = ingress
        self._metrics = metrics
        self._peers = Heard(PEER_TIMEOUT)
        self._workers = Heard(WORKER_TIMEOUT)
        self._subscriptions: list[Subscription] = []
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.control_up = False

    async def start(self) -> None:
        self._subscriptions = [
            await self._bus.subscribe(ingress_subject("*", "beat"), self._on_peer),
            await self._bus.subscribe(beat_subject("*"), self._on_beat),
        ]
        self._task = asyncio.create_task(self._watch(), name="surroundings")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for subscription in self._subscriptions:
            await self._bus.unsubscribe(subscription)

    def peers(self) -> int:
        """Live ingresses, this one included."""
        self._peers.hear(self._ingress, self._loop.time())
        return self._peers.count(self._loop.time())

    async def _on_peer(self, msg: Msg) -> None:
        self._peers.hear(msg.subject.split(".")[1], self._loop.time())

    async def _on_beat(self, msg: Msg) -> None:
        try:
            beat = decode(msg.data, Beat)
        except msgspec.MsgspecError:
            log.warning("beat.malformed", subject=msg.subject)
            return
        if beat.models:
            self._workers.hear(beat.worker, self._loop.time())

    async def _watch(self) -> None:
        while True:
            started = self._loop.time()
            try:
                await self._bus.publish(ingress_subject(self._ingress, "beat"), b"{}")
            except BusUnavailable:
                log.debug("beat.unsent")  # said by the bus itself, once
            self._observe(await self._ping())
            self._metrics.peers.set(self.peers())
            self._metrics.workers.set(self._workers.count(self._loop.time()))
            await asyncio.sleep(max(0.1, started + INTERVAL - self._loop.time()))

    async def _ping(self) -> bool:
        try:
            await self._bus.ask("ping", {}, dict, timeout=INTERVAL)
        except (BusError, Refusal, msgspec.MsgspecError):
            return False
        return True

    def _observe(self, up: bool) -> None:
        if up is not self.control_up:
            log.info("control.judged", up=up)
        self.control_up = up
        self._metrics.control.set(up)
