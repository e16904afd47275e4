"""What can go wrong between a node and NATS, as connections that do it: each tells afterwards that it happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.bus.errors import BusUnavailable
from broker.bus.log import is_end_of_batch
from broker.bus.nats import Bus, Heard, Subscription


class Lagging(Bus):
    """Direct gets are answered by a replica that lacks everything behind `knows`; requests go to the leader."""

    knows: int | None = None  # None: it has all
    believed_empty = 0

    async def collect(
        self, subject: str, payload: bytes, is_last: Callable[[Heard], bool], *, timeout: float = 2.0
    ) -> list[Heard]:
        messages = await super().collect(subject, payload, is_last, timeout=timeout)
        if self.knows is None or not subject.startswith("$JS.API.DIRECT.GET.TOK_"):
            return messages
        kept = [m for m in messages[:-1] if int((m.headers or {})["Nats-Sequence"]) <= self.knows]
        assert is_end_of_batch(messages[-1])
        self.believed_empty += not kept
        return [*kept, messages[-1]]


class Gapped(Bus):
    """Direct gets come without the first message of every batch: a replica that is being rebuilt."""

    gapped = 0
    left = 0  # batches still to come like this

    async def collect(
        self, subject: str, payload: bytes, is_last: Callable[[Heard], bool], *, timeout: float = 2.0
    ) -> list[Heard]:
        messages = await super().collect(subject, payload, is_last, timeout=timeout)
        if self.left <= 0 or len(messages) < 3 or not subject.startswith("$JS.API.DIRECT.GET.TOK_"):
            return messages
        self.left -= 1
        self.gapped += 1
        return messages[1:]


class Minority(Bus):
    """Cut off from the majority: consumers of `deaf` streams heartbeat happily, and nothing of those arrives."""

    deaf: str = ""  # beginning of stream names
    swallowed = 0
    kicked = 0

    async def kick(self) -> None:
        self.kicked += 1
        await super().kick()

    async def listen(self, subject: str, taker: Callable[[Heard], None]) -> Subscription:
        def hear(msg: Heard) -> None:
            if self.deaf and msg.reply.startswith(f"$JS.ACK.{self.deaf}"):
                self.swallowed += 1
                return
            if self.deaf and msg.headers and "Nats-Last-Consumer" in msg.headers:
                msg.headers["Nats-Last-Consumer"] = "0"  # as far as that side knows, nothing was sent
            taker(msg)

        return await super().listen(subject, hear)


class Leaderless(Bus):
    """Partitions have no leader to ask while `lost`."""

    lost = False
    refused = 0

    async def api(self, verb: str, body: Any = None, *, timeout: float = 2.0) -> dict[str, Any]:
        if self.lost and verb.startswith(("STREAM.INFO.TOK_", "STREAM.MSG.GET.TOK_")):
            self.refused += 1
            raise BusUnavailable("no leader")
        return await super().api(verb, body, timeout=timeout)
