"""Where a model's jobs come in: its queue for any worker and this worker's warm lane, with credits for both.

A pull that was sent cannot be taken back, so every credit given to one of the two is room kept free until a job has
used it: what is held and what is promised never exceed the capacity. The lane keeps a few credits of its own, or a
long `any` queue would starve it, and never so many that a slot stays free for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import structlog

from broker.bus.errors import BusError
from broker.bus.jobs import consumer_name, ensure_consumer
from broker.bus.nats import Bus
from broker.bus.queue import Delivery, Queue
from broker.bus.subjects import JOBS_STREAM

LANE_CREDITS = 8  # at most
REMAKE_PAUSE = 0.5

log = structlog.get_logger("worker")


class Credits(NamedTuple):
    """Jobs that may still arrive: from the queue for any worker, and from the warm lane."""

    any: int
    lane: int


def lane_credits(slots: int, queue_limit: int) -> int:
    """Credits that the lane keeps, taken from the room of those that wait for a slot: perhaps nothing comes by the
    lane, and then each slot is to be had by the common queue. 0: a worker where none may wait has no lane."""
    return min(LANE_CREDITS, max(1, (slots + queue_limit) // 4), queue_limit)


def share(capacity: int, lane_goal: int, held: int, promised: Credits) -> Credits:
    """The new promises, given what is held. Never less than before: a pull cannot be taken back."""
    free = capacity - held - promised.any - promised.lane
    if free <= 0:
        return promised
    lane = promised.lane + min(free, max(0, lane_goal - promised.lane))
    return Credits(promised.any + free - (lane - promised.lane), lane)


class Intake:
    """The standing pulls of one model. `top_up` whenever a job was let go; `on_delivery` gets what arrives."""

    def __init__(
        self,
        bus: Bus,
        worker: str,
        model: str,
        slots: int,
        queue_limit: int,
        on_delivery: Callable[[Delivery], None],
    ) -> None:
        self._bus = bus
        self._capacity = slots + queue_limit
        self._lane_goal = lane_credits(slots, queue_limit)
        self._on_delivery = on_delivery
        self._promised = Credits(0, 0)
        self._model = model
        self._worker = worker
        self._any = Queue(bus, JOBS_STREAM, consumer_name(model), partial(self._take, True))
        self._lane: Queue | None = None
        if self._lane_goal:
            self._lane = Queue(bus, JOBS_STREAM, consumer_name(model, worker), partial(self._take, False))
        self._keepers: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Make the consumers; raises BusError while JOBS is not there."""
        for queue in self._queues():
            await self._make(queue)

    async def start(self) -> None:
        for queue in self._queues():
            await queue.start()
            keeper = asyncio.create_task(self._keep(queue), name=f"intake-{queue.consumer}")
            self._keepers.add(keeper)
            keeper.add_done_callback(self._keepers.discard)
        self.top_up(0)

    async def close(self) -> None:
        """Take no more. Idempotent."""
        keepers = list(self._keepers)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for queue in self._queues():
            await queue.close()

    def top_up(self, held: int) -> None:
        """Ask for as many jobs as there is room for beside the `held` ones."""
        self._promised = share(self._capacity, self._lane_goal, held, self._promised)
        self._any.want(self._promised.any)
        if self._lane is not None:
            self._lane.want(self._promised.lane)

    def _queues(self) -> list[Queue]:
        return [self._any] if self._lane is None else [self._any, self._lane]

    async def _make(self, queue: Queue) -> None:
        await ensure_consumer(self._bus, self._model, None if queue is self._any else self._worker)

    def _take(self, common: bool, delivery: Delivery) -> None:
        promised = self._promised
        if common:
            self._promised = promised._replace(any=max(0, promised.any - 1))
        else:
            self._promised = promised._replace(lane=max(0, promised.lane - 1))
        self._on_delivery(delivery)

    async def _keep(self, queue: Queue) -> None:
        """Make a durable again that somebody removed."""
        while True:
            await queue.missing.wait()
            queue.missing.clear()
            try:
                await self._make(queue)
            except BusError as error:
                log.warning("worker.consumer_not_made", consumer=queue.consumer, error=repr(error))
                queue.missing.set()
                await asyncio.sleep(REMAKE_PAUSE)
                continue
            except Exception as error:  # the safety net of this task: without its consumer a worker gets no jobs
                log.error("worker.consumer_broken", consumer=queue.consumer, exc_info=error)
                queue.missing.set()
                await asyncio.sleep(REMAKE_PAUSE)
                continue
            log.info("worker.consumer_made", consumer=queue.consumer)
            queue.want(self._promised.any if queue is self._any else self._promised.lane)
