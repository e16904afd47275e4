"""Frames of many answers, stored as one batch: one sync of the log's file is for all of them, and one answer."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from broker.bus import log as bus_log
from broker.bus.errors import BusError, BusUnavailable, StoreRejected
from broker.bus.log import BATCH_MOST, NO_BATCHES, Fenced
from broker.bus.nats import Bus
from broker.bus.subjects import random_id
from gpu_worker.metrics import BATCHED, FAILED_BATCHES
from gpu_worker.reserve import Reserve
from gpu_worker.turns import Writer

BYTES = 1024 * 1024  # of the frames of a batch, about
MOST_IDS = 10_000  # before one is used again, which it may be when its batch is over

log = structlog.get_logger("worker")


class Batches:
    """Those of one worker; as `turns.Batches`."""

    def __init__(self, bus: Bus, reserve: Reserve) -> None:
        self.made = 0
        self._bus = bus
        self._reserve = reserve
        self._id = random_id(6)

    def can(self, stream: str) -> bool:
        return self._reserve.takes_batches(stream)

    def go(self, stream: str, next_one: Callable[[], Writer | None], over: Callable[[], None]) -> None:
        batch = _Batch(stream, over)
        try:
            batch.load(next_one)
            if batch.messages:
                self.made += 1
                BATCHED.inc(len(batch.messages))
                id = f"{self._id}{self.made % MOST_IDS}"
                bus_log.store_batch(self._bus, id, batch.messages, lambda answer: self._answered(batch, answer))
                return
        except BusError as error:
            batch.failed(error)
        except Exception as error:  # the safety net of a turn: everybody else would wait for it for ever
            log.error("worker.batch_failed", stream=stream, exc_info=error)
            batch.failed(BusUnavailable(str(error)))
        over()

    def _answered(self, batch: _Batch, answer: int | BusError) -> None:
        if isinstance(answer, int):
            batch.stored(answer)
        else:
            if isinstance(answer, StoreRejected) and answer.err_code == NO_BATCHES:
                self._reserve.no_batches(batch.stream)
            batch.failed(answer)
        batch.over()


class _Batch:
    """Frames on their way, and whose they are."""

    def __init__(self, stream: str, over: Callable[[], None]) -> None:
        self.stream = stream
        self.over = over
        self.messages: list[Fenced] = []
        self._writers: list[Writer] = []

    def load(self, next_one: Callable[[], Writer | None]) -> None:
        size = 0
        while len(self.messages) < BATCH_MOST and size < BYTES and (writer := next_one()) is not None:
            if (message := writer.load()) is not None:
                self._writers.append(writer)
                self.messages.append(message)
                size += len(message.payload)

    def stored(self, newest: int) -> None:
        """One behind the other, the last one as `newest`."""
        first = newest - len(self._writers) + 1
        for seq, writer in enumerate(self._writers, first):
            self._tell(writer, seq)

    def failed(self, error: BusError) -> None:
        """None of them is stored, or it is not known: each tries by himself, and finds out."""
        FAILED_BATCHES.inc()
        log.info("worker.batch_not_stored", stream=self.stream, frames=len(self._writers), error=str(error))
        undecided = BusUnavailable(f"the batch was not stored: {error}")
        for writer in self._writers:
            self._tell(writer, undecided)

    def _tell(self, writer: Writer, answer: int | BusError) -> None:
        try:
            writer.answered(answer)
        except Exception as error:  # the others are to be told all the same
            log.error("worker.batch_untold", stream=self.stream, exc_info=error)
