"""A long piece of one subject, read in pages by a consumer of its own.

A direct get puts the headers of every message together anew, which is most of what it costs NATS; a consumer gives them
as they are stored, and says the sequence in its acknowledgement subject (docs/decisions/reading.md has the figures).
Making the consumer costs as much as reading some fifty messages: for a short piece a direct get is the better way.
"""

from __future__ import annotations

import asyncio
import contextlib

from broker.bus import pull
from broker.bus.errors import BusUnavailable
from broker.bus.log import PAGE_BYTES, Stored
from broker.bus.nats import Bus
from broker.bus.subjects import random_id
from broker.bus.wire import Heard

OPEN_TIMEOUT = 0.5  # seconds; whoever waits in vain reads by direct gets, which any replica answers
TIMEOUT = 2.0  # seconds for a page
INACTIVE = 10.0  # seconds without a page, after which NATS forgets the consumer by itself


class Scan:
    """`open`, then one page after another; `close` when no more are wanted. `at_end`: there is nothing behind the last
    page."""

    def __init__(self, bus: Bus, stream: str, subject: str, name: str) -> None:
        """The consumer's name begins with `name`."""
        self.at_end = False
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self._consumer = f"{name}-{random_id(6)}"
        self._ours = pull.reply_prefix(stream, self._consumer)
        self._inbox = bus.new_inbox()
        self._stack = contextlib.AsyncExitStack()
        self._found: list[Stored] = []
        self._whole: asyncio.Future[None] | None = None

    async def open(self, after: int) -> None:
        """Behind sequence `after`. Raises BusError; `close` then, too."""
        subscription = await self._bus.listen(self._inbox, self._take)
        self._stack.push_async_callback(self._bus.unsubscribe, subscription)
        self._stack.push_async_callback(self._forget)
        config = {
            "name": self._consumer,
            "filter_subject": self._subject,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "num_replicas": 1,
            "mem_storage": True,
            "inactive_threshold": int(INACTIVE * 1e9),
        }
        await self._bus.api(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}",
            {"stream_name": self._stream, "action": "create", "config": config},
            timeout=OPEN_TIMEOUT,
        )

    async def page(self, batch: int) -> list[Stored]:
        """The next messages, without headers and times, at most `batch` and about PAGE_BYTES; [] where there are none,
        as a replica that lags and a consumer that NATS has not woken yet say, too, or where one alone is larger.
        Raises BusUnavailable: then it is of no more use."""
        self._found = []
        self._whole = asyncio.get_running_loop().create_future()
        self._bus.publish_now(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
            b'{"batch":%d,"max_bytes":%d,"no_wait":true}' % (batch, PAGE_BYTES),
            self._inbox,
        )
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._whole
        except TimeoutError as error:
            raise BusUnavailable(f"{len(self._found)} messages of a scan in {TIMEOUT} s, and no end") from error
        return self._found

    async def close(self) -> None:
        """Idempotent. Raises nothing: NATS forgets by itself, soon, what it cannot be told of."""
        await self._stack.aclose()

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _forget(self) -> None:
        with contextlib.suppress(BusUnavailable):
            self._bus.publish_now(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}", b"")

    def _take(self, message: Heard) -> None:
        reply = message.reply
        if reply.startswith(self._ours):
            seq = int(reply[len(self._ours) :].split(".", 2)[1])
        elif (delivered := pull.parse_reply(reply)) is not None:  # not in the first version
            seq = delivered.seq
        else:
            self._end(message.headers or {})
            return
        self._found.append(Stored(seq, self._subject, message.data))

    def _end(self, headers: dict[str, str]) -> None:
        """404 and 408 where there was no more, 409 where the page is full, in messages or in bytes: every page has one,
        but where the last of so many messages is the last byte of so many, too. There the deadline is the end."""
        if self._whole is None or self._whole.done():
            return
        if pull.read_status(headers) is pull.End.CONSUMER_GONE:
            self._whole.set_exception(BusUnavailable(f"the consumer of a scan is gone: {headers}"))
            return
        self.at_end = headers.get("Status") in ("404", "408")
        self._whole.set_result(None)
