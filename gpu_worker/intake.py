"""Where a model's jobs come in: its queue for any worker and this worker's warm lane.

Of the common queue a worker asks for as many jobs as it has free slots: what waits, waits there, for whichever worker
has a slot first. A job that waited at a worker would wait for that one, whoever else were free.

By the lane comes what OKOME means for this worker because it can begin at once. A pull that was sent cannot be taken
back, so the lane's few are asked for beside the others: no slot is kept free for a lane by which perhaps nothing comes,
and none is without a lane because of what may still come by the queue. What then finds no slot is given back
(`held.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
    """Jobs to ask for: of the queue for any worker, and of the warm lane."""

    any: int
    lane: int


def lane_credits(slots: int, queue_limit: int) -> int:
    """Jobs that the lane may bring at once. 0: a worker where none may wait has no lane."""
    return min(LANE_CREDITS, max(1, (slots + queue_limit) // 4), queue_limit)


def share(slots: int, queue_limit: int, held: int, aside: int = 0) -> Credits:
    """What to ask for beside the `held` ones, of which those `aside` need no slot now: never more than
    `slots + queue_limit` with them."""
    room = max(0, slots + queue_limit - held)
    common = min(room, max(0, slots - held + aside))
    return Credits(common, min(lane_credits(slots, queue_limit), room - common))


class Intake:
    """The standing pulls of one model. `top_up` whenever a job was taken or let go; `on_delivery` gets what arrives."""

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
        self._slots = slots
        self._queue_limit = queue_limit
        self._wanted = Credits(0, 0)
        self._model = model
        self._worker = worker
        self._any = Queue(bus, JOBS_STREAM, consumer_name(model), on_delivery)
        self._lane: Queue | None = None
        if lane_credits(slots, queue_limit):
            self._lane = Queue(bus, JOBS_STREAM, consumer_name(model, worker), on_delivery)
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

    def top_up(self, held: int, aside: int = 0) -> None:
        """Ask for as many jobs as there is room for beside the `held` ones."""
        self._wanted = share(self._slots, self._queue_limit, held, aside)
        self._any.want(self._wanted.any)
        if self._lane is not None:
            self._lane.want(self._wanted.lane)

    def _queues(self) -> list[Queue]:
        return [self._any] if self._lane is None else [self._any, self._lane]

    async def _make(self, queue: Queue) -> None:
        await ensure_consumer(self._bus, self._model, None if queue is self._any else self._worker)

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
            queue.want(self._wanted.any if queue is self._any else self._wanted.lane)
