"""The tails of a node: one per partition somebody reads, started once however many ask, stopped when idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from broker.bus.errors import BusError, BusUnavailable, StoreRejected
from broker.bus.log import STREAM_NOT_FOUND
from broker.bus.nats import Bus
from broker.node import metrics
from broker.node.ring import Ring
from broker.node.settings import NodeSettings
from broker.node.tail import Tail

log = structlog.get_logger("node")


class Tails:
    """Give out started tails; `sweep` stops those that nobody has read for a while."""

    def __init__(self, bus: Bus, settings: NodeSettings, on_ended: Callable[[Ring], None] = lambda ring: None) -> None:
        self._bus = bus
        self._settings = settings
        self._on_ended = on_ended
        self._tails: dict[str, Tail] = {}
        self._starting: dict[str, asyncio.Task[Tail]] = {}

    def running(self) -> list[Tail]:
        return list(self._tails.values())

    async def get(self, partition: str) -> Tail:
        """A tail that is running; raises BusUnavailable where it cannot be started in time."""
        tail = self._tails.get(partition)
        if tail is not None:
            tail.idle_since = asyncio.get_running_loop().time()
            return tail
        task = self._starting.get(partition) or self._begin(partition)
        return await asyncio.shield(task)  # one viewer that goes away must not stop it for the others

    def warm(self, partitions: Iterable[str]) -> None:
        """Start these, where they do not run: viewers may come soon. Whoever comes is told if one cannot be had."""
        for partition in partitions:
            if partition not in self._tails and partition not in self._starting:
                self._begin(partition)

    async def sweep(self, now: float) -> None:
        for partition, tail in list(self._tails.items()):
            if not tail.read and now - tail.idle_since > self._settings.tail_idle_timeout:
                del self._tails[partition]
                metrics.tails.dec()
                await tail.close()

    async def close(self) -> None:
        for task in list(self._starting.values()):
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await asyncio.gather(*(tail.close() for tail in self._tails.values()))
        self._tails.clear()

    def _begin(self, partition: str) -> asyncio.Task[Tail]:
        def over(done: asyncio.Task[Tail]) -> None:
            self._starting.pop(partition, None)
            if not done.cancelled() and (error := done.exception()) is not None:
                log.debug("node.tail_not_started", partition=partition, error=repr(error))

        task = asyncio.create_task(self._start(partition), name=f"start-tail-{partition}")
        self._starting[partition] = task
        task.add_done_callback(over)
        return task

    async def _start(self, partition: str) -> Tail:
        tail = Tail(self._bus, partition, self._settings, self._on_ended)
        try:
            await tail.start()
        except BaseException as error:
            await tail.close()
            if isinstance(error, StoreRejected) and error.err_code == STREAM_NOT_FOUND:
                raise BusUnavailable(f"there is no partition {partition}") from error
            if isinstance(error, (BusError, TimeoutError)):
                raise BusUnavailable(f"partition {partition} cannot be followed now") from error
            raise
        self._tails[partition] = tail
        metrics.tails.inc()
        return tail
