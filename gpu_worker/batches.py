"""Frames of many answers, stored as one batch: one sync of the log's file is for all of them, and one answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from broker.bus import log as bus_log
from broker.bus.errors import BusError, BusUnavailable, StoreRejected, WrongLastSequence
from broker.bus.log import BATCH_MOST, STREAM_FULL, Fenced
from broker.bus.nats import Bus
from broker.bus.subjects import random_id
from gpu_worker.metrics import BATCHED, FAILED_BATCHES
from gpu_worker.reserve import Reserve
from gpu_worker.turns import Writer

BYTES = 1024 * 1024  # of the frames of a batch, about
FEW = 8  # frames of a refused batch that are not worth another one

log = structlog.get_logger("worker")


class _Loaded(NamedTuple):
    writer: Writer
    message: Fenced

    def tell(self, answer: int | BusError) -> None:
        try:
            self.writer.answered(answer)
        except Exception as error:  # the others are to be told all the same
            log.error("worker.batch_untold", subject=self.message.subject, exc_info=error)


class Batches:
    """Those of one worker; as `turns.Batches`."""

    def __init__(self, bus: Bus, reserve: Reserve) -> None:
        self._bus = bus
        self._reserve = reserve
        self._ids = map(f"{random_id(8)}{{}}".format, itertools.count())

    def can(self, stream: str) -> bool:
        return self._reserve.takes_batches(stream)

    def go(self, stream: str, next_one: Callable[[], Writer | None], over: Callable[[], None]) -> None:
        turn = _Turn(self._bus, self._reserve, self._ids.__next__, stream, over)
        turn.send(_load(next_one))


def _load(next_one: Callable[[], Writer | None]) -> list[_Loaded]:
    loaded: list[_Loaded] = []
    size = 0
    while len(loaded) < BATCH_MOST and size < BYTES and (writer := next_one()) is not None:
        try:
            message = writer.load()
        except Exception as error:  # the others are to go all the same
            log.error("worker.batch_not_loaded", exc_info=error)
            continue
        if message is not None:
            loaded.append(_Loaded(writer, message))
            size += len(message.payload)
    return loaded


class _Turn:
    """One batch on its way, and what becomes of it: `over` is called when each of its writers has been told.

    Refused, nothing of it is stored, for one frame's sake: it goes again in halves, so that the others wait for a few
    batches more until that one is found, and nobody's fence is another's doubt.
    """

    def __init__(
        self, bus: Bus, reserve: Reserve, next_id: Callable[[], str], stream: str, over: Callable[[], None]
    ) -> None:
        self._bus = bus
        self._reserve = reserve
        self._next_id = next_id
        self._stream = stream
        self._over = over
        self._parts = 0

    def send(self, loaded: Sequence[_Loaded]) -> None:
        self._parts += 1
        try:
            if not loaded:
                return
            BATCHED.inc(len(loaded))
            messages = [one.message for one in loaded]
            bus_log.store_batch(self._bus, self._next_id(), messages, partial(self._answered, loaded))
            self._parts += 1
        except BusError as error:  # not connected: nobody will call back
            self._lost(loaded, error)
        except Exception as error:  # the safety net of a turn: everybody else would wait for it for ever
            log.error("worker.batch_failed", stream=self._stream, exc_info=error)
            self._lost(loaded, error)
        finally:
            self._part_over()

    def _answered(self, loaded: Sequence[_Loaded], answer: int | BusError) -> None:
        match answer:
            case int():
                for seq, one in enumerate(loaded, answer - len(loaded) + 1):
                    one.tell(seq)
            case BusUnavailable():
                self._lost(loaded, answer)
            case _:
                self._refused(loaded, answer)
        self._part_over()

    def _lost(self, loaded: Sequence[_Loaded], error: Exception) -> None:
        """Whether it is stored is not known: each tries by himself, and finds out."""
        FAILED_BATCHES.inc()
        log.info("worker.batch_lost", stream=self._stream, frames=len(loaded), error=str(error))
        undecided = BusUnavailable(f"the batch was not acknowledged: {error}")
        for one in loaded:
            one.tell(undecided)

    def _refused(self, loaded: Sequence[_Loaded], error: BusError) -> None:
        FAILED_BATCHES.inc()
        log.info("worker.batch_refused", stream=self._stream, frames=len(loaded), error=str(error))
        about_one = isinstance(error, WrongLastSequence) or (
            isinstance(error, StoreRejected) and error.err_code == STREAM_FULL
        )
        if not about_one:  # not allowed, too large, too many at once: until the leader is asked again
            self._reserve.no_batches(self._stream)
        if about_one and len(loaded) > FEW:
            half = len(loaded) // 2
            self.send(loaded[:half])
            self.send(loaded[half:])
        else:
            for one in loaded:
                self._send_alone(one)

    def _send_alone(self, one: _Loaded) -> None:
        self._parts += 1
        try:
            subject, payload, expect_last = one.message
            bus_log.store_soon(self._bus, subject, payload, expect_last, partial(self._answered_alone, one))
        except BusError as error:
            self._answered_alone(one, error)
        except Exception as error:  # as above
            log.error("worker.batch_failed", stream=self._stream, exc_info=error)
            self._answered_alone(one, BusUnavailable(str(error)))

    def _answered_alone(self, one: _Loaded, answer: int | BusError) -> None:
        one.tell(answer)
        self._part_over()

    def _part_over(self) -> None:
        self._parts -= 1
        if not self._parts:
            self._over()
