"""The worker's pulse: its beats out, everybody else's in, and what follows from a silence.

The rules are in `broker.bus.observer`; here are the clock, the subject and the naks. It also knows since when this
worker hears without interruption: who was stopped or cut off for a second assumes that its jobs went to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec
import structlog

from broker.bus.beats import PART_BYTES, more, split
from broker.bus.clock import now_ms
from broker.bus.echo import Echo
from broker.bus.errors import BusError, BusUnavailable, StoreRejected
from broker.bus.nats import Bus, Msg, Subscription
from broker.bus.observer import SILENCE, Observer
from broker.bus.queue import nak
from broker.bus.records import Beat, encode
from broker.bus.subjects import beat_subject
from gpu_worker.metrics import NAKS
from gpu_worker.takeover import Opening, untold

INTERVAL = 0.25
SOON = 0.02  # seconds
MANY = 200  # held jobs from which on a beat that comes soon tells only what is new
INTERRUPTED = 0.9  # seconds between two beats of ours after which others may have counted us dead

log = structlog.get_logger("worker")

_decode = msgspec.json.Decoder(Beat).decode


class Pulse:
    """`describe` makes this worker's beat. Start, then close."""

    def __init__(self, bus: Bus, worker: str, describe: Callable[[], Beat]) -> None:
        self._bus = bus
        self._worker = worker
        self._subject = beat_subject(worker)
        self._describe = describe
        self._observer = Observer(worker)
        self._loop = asyncio.get_running_loop()
        self._beaten_at = self._loop.time()
        self._hearing_since = self._loop.time()
        self._echo = Echo(bus, self._observer)
        self._news = asyncio.Event()  # an instance was replaced: its jobs are free at once
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._heard = asyncio.Event()  # the next beat of another, then another event
        self._last: Beat | None = None
        self._new: dict[str, str] = {}  # held since then

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(beat_subject("*"), self._hear)
        self._hearing_since = self._beaten_at = self._loop.time()
        self._task = asyncio.create_task(self._run(), name="pulse")

    async def close(self) -> None:
        """Idempotent. The worker is silent from here on."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._bus.unsubscribe(subscription)

    def others(self) -> dict[str, Beat]:
        """The last beats of live workers other than this one."""
        return self._observer.beats(self._loop.time())

    def hearing_since(self) -> float:
        """Loop time since when beats have been heard and sent without interruption.

        What was delivered before may be somebody else's by now: it must be neither acked nor given back.
        """
        now = self._loop.time()
        if now - self._beaten_at > INTERRUPTED:
            self._hearing_since = now
        return self._hearing_since

    async def hear_of(self, opening: Opening | None) -> bool:
        """Whether it is known that who wrote `opening` is gone, or no longer holds what it began.

        False: it was not, but somebody who lives had a second to be heard in: look again.
        """
        heard_since = max(self.hearing_since(), self._observer.hearing_since)
        if untold(opening, self.others()):
            with suppress(TimeoutError):
                async with asyncio.timeout(SILENCE):
                    while untold(opening, self.others()):
                        await self._heard.wait()
            return False
        if (left := heard_since + SILENCE - self._loop.time()) > 0:
            await asyncio.sleep(left)
            return False
        return True

    def beat(self) -> None:
        """One beat now: the world has changed here."""
        beat = self._last = self._describe()
        self._new = {}
        self._say(split(beat, min(PART_BYTES, self._bus.max_payload // 2)))

    def _say(self, parts: list[Beat]) -> None:
        try:
            for part in parts:
                self._bus.publish_now(self._subject, encode(part))
        except BusUnavailable:
            return  # cut off; `_beaten_at` stays, so others' verdict is assumed
        except StoreRejected as error:  # a server that takes not even a part: to the others we are as good as silent
            log.error("worker.beat_refused", error=str(error))
            return
        if self._bus.round_trip_ok:
            self._beaten_at = self._loop.time()

    def beat_soon(self, gid: str, reply: str) -> None:
        """One beat for all that is taken within SOON: a job that no beat has told of is not missed when we are gone."""
        self._new[gid] = reply
        if self._soon is None:
            self._soon = self._loop.call_later(SOON, self._beat_now)

    def _beat_now(self) -> None:
        self._soon = None
        if self._last is None or len(self._last.held) < MANY:
            self.beat()
        elif self._new:
            news, self._new = self._new, {}
            self._say([more(msgspec.structs.replace(self._last, t=now_ms()), news)])

    async def _run(self) -> None:
        due = self._loop.time()
        while True:
            try:
                if self._loop.time() >= due:
                    due = max(due + INTERVAL, self._loop.time())
                    self.hearing_since()
                    self.beat()
                await self._observe()
            except Exception as error:  # the safety net of this task: a worker without a pulse is taken for dead
                log.error("worker.pulse_failed", exc_info=error)
            try:
                async with asyncio.timeout_at(due):
                    await self._news.wait()
                self._news.clear()
            except TimeoutError:
                continue

    async def _hear(self, msg: Msg) -> None:
        if msg.subject == self._subject:  # our own: there is nothing new in it, and it may be half a megabyte
            self._echo.came()
            return
        try:
            beat = _decode(msg.data)
        except msgspec.DecodeError:
            log.warning("worker.beat_malformed", subject=msg.subject)
            return
        if self._observer.on_beat(beat, self._loop.time()):
            self._news.set()
        heard, self._heard = self._heard, asyncio.Event()
        heard.set()

    async def _prove(self) -> None:
        self.beat()

    async def _observe(self) -> None:
        hears = await self._echo.hears(self._prove)
        for dead in self._observer.suspects(self._loop.time(), hears):
            try:
                await nak(self._bus, dead.reply)
            except BusError:
                return  # cut off in this moment: JetStream delivers again after ack_wait
            NAKS.inc()
            log.warning("worker.dead_worker_noticed", dead=dead.worker, gid=dead.gid)
