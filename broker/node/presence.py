"""This node's entry in bucket `nodes`: written at start, every 2 s, and at once when its state changes."""

from __future__ import annotations

import asyncio

import structlog

from broker.bus.clock import now_ms
from broker.bus.errors import BusError
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Node, encode

log = structlog.get_logger("node")

INTERVAL = 2.0


class Presence:
    """Says where this node is and how it does. Ingresses also ask /readyz: this only tells them whom to ask."""

    def __init__(self, bus: Bus, id: str, url: str) -> None:
        self.state = "unready"
        self.subscribers = 0
        self._id = id
        self._url = url
        self._nodes = Bucket(bus, "nodes")
        self._changed = asyncio.Event()

    def set(self, state: str, subscribers: int) -> None:
        self.subscribers = subscribers
        if state != self.state:
            self.state = state
            self._changed.set()

    async def _announce(self) -> None:
        """Write the entry now; raises BusError."""
        self._changed.clear()
        await self._nodes.put(self._id, encode(Node(self._id, self._url, self.state, self.subscribers, now_ms())))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._announce()
            except BusError as error:
                log.debug("node.presence_not_written", error=repr(error))
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def leave(self) -> None:
        """The last word: this node is gone. Without it the bucket forgets the node by itself."""
        try:
            await self._nodes.delete(self._id)
        except BusError as error:
            log.debug("node.presence_not_removed", error=repr(error))
