"""Follow: a standing pull consumer that heals itself. Every message of its filters, once, in order, without a gap.

What ends a consumer is not announced (a server killed with its R1 consumer is silence; a minority side heartbeats
for ever), so: a jump in the consumer's own count, a heartbeat that counts more than arrived, missed heartbeats, a
status that says so, or `restart()` by whoever asked the leader: each makes a new consumer, under a new name (the old
name may hang for 3 s), right after the last message that was delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from broker.bus import pull
from broker.bus.errors import BusError, BusUnavailable
from broker.bus.log import stream_info
from broker.bus.nats import Bus, Heard, Subscription
from broker.bus.silence import Silence
from broker.bus.subjects import random_id

log = structlog.get_logger("bus")

OnMessage = Callable[[int, str, bytes, dict[str, str] | None], None]

INACTIVE = 10.0  # seconds until the server forgets a consumer that nobody pulls from
RETRY = 0.1
FIRST_ANSWER, LAST_ANSWER = 0.25, 2.0  # seconds that the making of a successor may take, doubled each time


class Follow:
    """Follow `filters` of `stream` and give every message to `on_message(sequence, subject, payload, headers)`.

    `after`: start behind this sequence; None starts at what comes next. `last_per_subject`: start with the newest
    message of every subject (KV). `headers` False: nobody reads them, and None comes in their place. At most `credit`
    messages are on their way at once. `on_message` must not wait; what it raises ends the process's trust in this
    follow: it is logged and the message counts as delivered.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        filters: list[str],
        name: str,
        on_message: OnMessage,
        *,
        after: int | None = None,
        last_per_subject: bool = False,
        credit: int = 512,
        heartbeat: float = pull.HEARTBEAT,
        headers: bool = True,
        on_replaced: Callable[[], None] = lambda: None,
    ) -> None:
        self.stream = stream
        self.seq = after or 0  # of the last message delivered
        self.restarts = 0
        self.caught_up = asyncio.Event()  # what was there at the start has been delivered
        self._bus = bus
        self._filters = filters
        self._name = name
        self._on_message = on_message
        self._on_replaced = on_replaced
        self._from_now = after is None and not last_per_subject
        self._last_per_subject = last_per_subject
        self._credit = credit
        self._headers = headers
        self._consumer = ""
        self._ours = "?"  # how acknowledgement subjects of this consumer begin
        self._consumer_seq = 0
        self._outstanding = 0
        self._behind = 0  # messages that were there when the consumer was made and have not been delivered
        self._loop = asyncio.get_running_loop()
        self._silence = Silence(heartbeat, self._loop.time())
        self._held = False
        self._broken = asyncio.Event()
        self._subscription: Subscription | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._inbox = ""

    async def start(self) -> None:
        """Make the consumer and begin; raises BusError where the stream cannot be followed now."""
        try:
            await self._open()
        except BaseException:
            await self._discard()
            raise
        # Between two connections nobody was subscribed, and a server that finds nobody there drops the pull in silence.
        self._bus.on_reconnected.add(self.restart)
        self._keeper = asyncio.create_task(self._keep(), name=f"follow-{self.stream}")
        self._look()

    async def close(self) -> None:
        """Idempotent. The consumer is deleted if the server answers at once, else it is forgotten after INACTIVE."""
        self._bus.on_reconnected.discard(self.restart)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._discard()

    def restart(self) -> None:
        """The consumer is not to be trusted any more: make a new one behind the last message delivered."""
        self._broken.set()

    def hold(self, held: bool) -> None:
        """Stop (or go on) asking for more: overload. What is on its way still arrives."""
        self._held = held
        self._silence.hear(self._loop.time())
        if not held:
            self._top_up()

    # -- one consumer's life ---------------------------------------------------------------------------------------

    async def _open(self, timeout: float = LAST_ANSWER) -> None:
        consumer = f"{self._name}-{random_id(6)}"
        self._inbox = self._bus.new_inbox()
        self._subscription = await self._bus.listen(self._inbox, self._receive)
        answer = await self._bus.api(
            f"CONSUMER.CREATE.{self.stream}.{consumer}",
            {"stream_name": self.stream, "action": "create", "config": self._config(consumer)},
            timeout=timeout,
        )
        self._consumer = consumer
        self._ours = pull.reply_prefix(self.stream, consumer)
        self._consumer_seq = 0
        self._outstanding = 0
        self._broken.clear()
        self._silence.hear(self._loop.time())
        if self._from_now:
            # From here on a successor must start behind this point, also if nothing arrives before it is needed.
            self.seq = max(self.seq, answer["delivered"]["stream_seq"])
            self._from_now = False
        self._behind = answer["num_pending"]
        if self._behind == 0:
            self.caught_up.set()
        self._top_up()

    def _config(self, consumer: str) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": consumer,
            "ack_policy": "none",
            "replay_policy": "instant",
            "num_replicas": 1,
            "mem_storage": True,
            "inactive_threshold": int(INACTIVE * 1e9),
            "max_waiting": 16,
        }
        if len(self._filters) == 1:
            config["filter_subject"] = self._filters[0]
        else:
            config["filter_subjects"] = self._filters
        if self._last_per_subject and not self.caught_up.is_set():
            config["deliver_policy"] = "last_per_subject"
        elif self._from_now:
            config["deliver_policy"] = "new"
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self.seq + 1}
        return config

    async def _discard(self) -> None:
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer, self._ours = self._consumer, "", "?"
        try:
            if subscription is not None:
                await self._bus.unsubscribe(subscription)
            if consumer and self._bus.connected:
                await self._bus.publish(f"$JS.API.CONSUMER.DELETE.{self.stream}.{consumer}", b"")
        except (BusError, OSError) as error:  # the server forgets both by itself
            log.debug("bus.consumer_left_behind", stream=self.stream, consumer=consumer, error=repr(error))

    def _look(self) -> None:
        """Once in every heartbeat interval. A timer and not a task that waits: a node has 20 looks a second for each of
        its partitions, and these were a tenth of what it did."""
        now = self._loop.time()
        self._watch = self._loop.call_at(now + self._silence.heartbeat, self._look)
        silent = self._silence.look(now)
        if silent and self._consumer and not self._held and not self._broken.is_set():
            self._silence.gone(now)
            self._broken.set()

    async def _keep(self) -> None:
        while True:
            await self._broken.wait()
            self.restarts += 1
            log.info("bus.consumer_replaced", stream=self.stream, consumer=self._consumer, after=self.seq)
            await self._discard()
            patience = FIRST_ANSWER
            while not self._consumer:
                try:
                    if self._last_per_subject:
                        await self._notice_replacement()
                    # The server it was put on may be just starting; the next one is put on any server again.
                    await self._open(patience)
                    continue
                except BusError as error:
                    log.debug("bus.consumer_refused", stream=self.stream, error=repr(error))
                except Exception as error:  # the safety net of this task: whoever follows would never hear again
                    log.error("bus.follow_failed", stream=self.stream, exc_info=error)
                patience = min(LAST_ANSWER, 2 * patience)
                await self._discard()
                await asyncio.sleep(RETRY)

    async def _notice_replacement(self) -> None:
        """A stream that ends before our place was made anew: all of it is new. (Of logs, the node's tail judges.)"""
        info = await stream_info(self._bus, self.stream)
        if info.last_seq < self.seq:
            log.warning("bus.stream_replaced", stream=self.stream, was=self.seq, now=info.last_seq)
            self.seq = 0
            self.caught_up.clear()
            self._on_replaced()

    def _top_up(self) -> None:
        if self._held or self._outstanding > self._credit // 2:
            return
        batch = self._credit - self._outstanding
        try:
            self._bus.publish_now(
                f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self._consumer}",
                pull.request(batch, heartbeat=self._silence.heartbeat),
                self._inbox,
            )
        except BusUnavailable:
            return  # the keeper hears no heartbeat and makes a new consumer once connected
        self._outstanding += batch

    def _receive(self, msg: Heard) -> None:
        self._silence.hear(self._loop.time())
        reply, ours = msg.reply, self._ours
        words = reply[len(ours) :].split(".") if reply.startswith(ours) else ()
        if len(words) == 5:
            seq, count, pending = int(words[1]), int(words[2]), int(words[4])
        else:  # not in the first version
            delivered = pull.parse_reply(reply)
            if delivered is None:
                self._receive_status(msg.headers or {})
                return
            if delivered.consumer != self._consumer:
                return  # of one given up; the new one delivers it again
            _, _, seq, count, pending = delivered
        if self._broken.is_set():
            return
        if count != self._consumer_seq + 1:
            self._broken.set()  # one was lost on the way
            return
        self._consumer_seq = count
        self._outstanding -= 1
        if seq > self.seq:
            self.seq = seq
            try:
                self._on_message(seq, msg.subject, msg.data, msg.headers if self._headers else None)
            except Exception as error:  # the safety net of the follow: one bad message must not stop those behind it
                log.error("bus.message_failed", stream=self.stream, seq=seq, exc_info=error)
        self._behind -= 1
        if (self._behind <= 0 or pending == 0) and not self.caught_up.is_set():
            self.caught_up.set()  # a busy stream may never be at its end, but what was there at the start has come
        if self._outstanding <= self._credit // 2:
            self._top_up()

    def _receive_status(self, headers: dict[str, str]) -> None:
        match pull.read_status(headers):
            case pull.End.HEARTBEAT:
                if int(headers.get("Nats-Last-Consumer", 0)) > self._consumer_seq:
                    self._broken.set()  # the last message was lost: nothing behind it will show that
            case pull.End.PULL_OVER:
                self._outstanding = max(0, self._outstanding - int(headers.get("Nats-Pending-Messages", 0)))
                self._top_up()
            case pull.End.CONSUMER_GONE:
                self._broken.set()
