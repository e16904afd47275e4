"""A stream node over the model of NATS: the real connection, tail, rings, pages and history."""

from __future__ import annotations

import asyncio
from typing import Any

from broker.bus.errors import BusError
from broker.node.history import History
from broker.node.settings import NodeSettings
from broker.node.tail import Tail
from tests.models.log_model import StreamModel
from tests.models.nats_model import NatsModel
from tests.models.session_model import STREAM
from tests.models.virtual_loop import VirtualLoop

RETRY = 0.1


def partition(nats: NatsModel, incarnation: str = "first") -> StreamModel:
    """The streams that a node reads."""
    for bucket in ("generations", "sessions"):
        nats.add(StreamModel(f"KV_{bucket}", f"$KV.{bucket}.>", last_only=True))
    return nats.add(StreamModel(STREAM, "tok.00.*", incarnation=incarnation))


class NodeModel:
    """One node, its tail begun when the first viewer comes."""

    def __init__(self, nats: NatsModel, loop: VirtualLoop, name: str, **settings: Any) -> None:
        self.name = name
        self.loop = loop
        self.bus = nats.connect(loop, name)
        self.history = History(self.bus)
        self.tail: Tail | None = None
        self._settings = NodeSettings.model_construct(
            **{"ring_frames": 16, "partition_bytes": 1 << 20, "page_readers": 2, "warm_frames": 8, "tail_credit": 8}
            | {"attach_timeout": 5.0} | settings
        )  # fmt: skip
        self._starting = asyncio.Lock()

    async def serving(self) -> Tail:
        async with self._starting:
            while self.tail is None:
                tail = Tail(self.bus, "00", self._settings)
                try:
                    await tail.start()
                    self.tail = tail
                except (BusError, TimeoutError):
                    await tail.close()
                    await asyncio.sleep(RETRY)
        return self.tail

    async def close(self) -> None:
        if self.tail is not None:
            await self.tail.close()
        await self.bus.close()
