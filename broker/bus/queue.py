"""Queue: taking jobs from a work queue's durable consumer, with explicit acknowledgement.

The puller says how many it wants (`want`); what was asked for cannot be taken back, so whoever asks keeps room for it
until that pull is over (EXPIRES).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from broker.bus import pull
from broker.bus.errors import BusError, BusUnavailable, StoreRejected
from broker.bus.nats import Bus, Msg, Subscription

log = structlog.get_logger("bus")

# A pull outlives whoever is frozen or cut off: what is given back then would be delivered to nobody, until ack_wait.
# So it ends before the silence of its owner is noticed (1 s after a beat, and beats come every 0.25 s).
EXPIRES = 0.7
HEARTBEAT = 0.3
SILENCE = 2.5 * pull.HEARTBEAT
CONSUMER_NOT_FOUND = 10014


class Delivery:
    """One delivery of one job. Only the newest delivery of a job may be acknowledged: a stale ack deletes a job that
    somebody else holds, and a stale nak takes it from them."""

    __slots__ = ("subject", "data", "reply", "seq", "attempts", "_bus")

    def __init__(self, bus: Bus, subject: str, data: bytes, reply: str, seq: int, attempts: int) -> None:
        self._bus = bus
        self.subject = subject
        self.data = data
        self.reply = reply
        self.seq = seq
        self.attempts = attempts

    async def ack(self, *, timeout: float = 2.0) -> None:
        """The job is over. Waits until the server says so; raises BusUnavailable where it does not."""
        await self._bus.request(self.reply, b"+ACK", timeout=timeout)

    async def nak(self, delay: float = 0.0) -> None:
        """Give the job back, to be delivered again after `delay` seconds."""
        await nak(self._bus, self.reply, delay)

    async def in_progress(self) -> None:
        """Put the redelivery off for another `ack_wait`."""
        await self._bus.publish(self.reply, b"+WPI")


async def nak(bus: Bus, reply: str, delay: float = 0.0) -> None:
    """Nak a delivery known by its reply subject: an observer does it for a dead worker."""
    await bus.publish(reply, b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK")


class Queue:
    """A standing pull on the durable `consumer` of `stream`, which must exist."""

    def __init__(self, bus: Bus, stream: str, consumer: str, on_delivery: Callable[[Delivery], None]) -> None:
        self.consumer = consumer
        self.missing = asyncio.Event()  # the durable is gone: whoever provisions it should be told
        self._bus = bus
        self._stream = stream
        self._on_delivery = on_delivery
        self._outstanding = 0  # jobs that were asked for and may still arrive, wanted or not
        self._target = 0
        self._heard_at = 0.0
        self._inbox = bus.new_inbox()
        self._subscription: Subscription | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(self._inbox, self._receive)
        self._heard_at = asyncio.get_running_loop().time()
        self._keeper = asyncio.create_task(self._keep(), name=f"queue-{self.consumer}")

    async def close(self) -> None:
        """Take no more. Idempotent. Deliveries that are on their way are redelivered after `ack_wait`."""
        self._target = 0
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._bus.unsubscribe(subscription)

    def want(self, count: int) -> None:
        """So many further jobs are wanted from now on. Where more were asked for, those may arrive as well."""
        self._target = count
        self._ask()

    def _ask(self) -> None:
        """Pull what is lacking, once that is more than may still arrive: sooner would be a pull for each job, each of
        which the server ends, and takes its turn with, by itself."""
        lacking = self._target - self._outstanding
        if lacking > self._outstanding:
            self._pull(lacking)

    def _pull(self, batch: int) -> None:
        try:
            self._bus.publish_now(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self.consumer}",
                pull.request(batch, expires=EXPIRES, heartbeat=HEARTBEAT),
                self._inbox,
            )
        except BusUnavailable:
            return  # the keeper asks again once connected
        if self._outstanding == 0:
            self._heard_at = asyncio.get_running_loop().time()
        self._outstanding += batch

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(pull.HEARTBEAT)
            if loop.time() - self._heard_at < SILENCE or not (self._target or self._outstanding):
                continue
            # No heartbeat: the pull died with a server or a connection. A pull that did survive only means one
            # delivery too many, which the worker gives back.
            self._outstanding = 0
            self._heard_at = loop.time()
            if self._target == 0:
                continue
            try:
                await self._bus.api(f"CONSUMER.INFO.{self._stream}.{self.consumer}")
            except StoreRejected as error:
                if error.err_code == CONSUMER_NOT_FOUND:
                    self.missing.set()
                else:
                    log.warning("bus.queue_refused", consumer=self.consumer, error=str(error))
                continue
            except BusError as error:
                log.debug("bus.queue_silent", consumer=self.consumer, error=repr(error))
                continue
            except Exception as error:  # the safety net of this task: whoever waits for jobs would get none any more
                log.error("bus.queue_failed", consumer=self.consumer, exc_info=error)
                continue
            self._ask()

    async def _receive(self, msg: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        delivered = pull.parse_reply(msg.reply)
        if delivered is not None:
            self._outstanding = max(0, self._outstanding - 1)
            self._target = max(0, self._target - 1)
            self._on_delivery(Delivery(self._bus, msg.subject, msg.data, msg.reply, delivered.seq, delivered.attempts))
            return
        headers = msg.headers or {}
        match pull.read_status(headers):
            case pull.End.HEARTBEAT:
                return
            case pull.End.PULL_OVER:
                self._outstanding = max(0, self._outstanding - int(headers.get("Nats-Pending-Messages", 0)))
                self._ask()
            case pull.End.CONSUMER_GONE:
                self._outstanding = 0
                self.missing.set()
