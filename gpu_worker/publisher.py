"""The fenced writer of one attempt at a generation: an outbox and its way to the log.

Driven by callbacks: the answer to one publish sends the next, and no token costs a task. What to write and what an
answer means is decided in `outbox.py`; here are the clock, the connection and whoever waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import structlog

from broker.bus import log as bus_log
from broker.bus.clock import now_ms
from broker.bus.errors import BusError, BusUnavailable, ChainBroken, FrameMalformed, StoreRejected, WrongLastSequence
from broker.bus.frames import Frame
from broker.bus.log import STREAM_FULL, STREAM_NOT_FOUND, Fenced
from broker.bus.strays import last_frame
from broker.bus.subjects import log_stream, log_subject, partition_of
from gpu_worker.engines import Tap
from gpu_worker.metrics import RETRIES, Measured
from gpu_worker.outbox import FRAME_TEXT, FULL_HIGH, FULL_LOW, Outbox, State, Stop
from gpu_worker.publishing import Publishing

PAUSE_LOW, PAUSE_HIGH = 0.020, 0.050  # seconds before an undecided publish is tried again, at random between
PARKED = 4.0  # seconds, about, after which it is tried although another one tries for all
DRAWS = 8  # reads for one frame at most
MOMENT = 0.001  # seconds: what uvloop tells apart; a timer for less would fire in the same moment again and again
FULL_PAUSE = 1.0  # seconds between tries to get a terminal into a full stream
# The same as no answer: the stream has more waiting than it may hold, or is being restored.
RETRIED = frozenset({429, STREAM_NOT_FOUND})

log = structlog.get_logger("worker")


class Publisher:
    """Writes one outbox to a session's log until its terminal is stored, or it must stop.

    `over` is set when it has ended or stopped; `on_over` is called once, then. `lost_timeout`: seconds without any
    decision on a publish after which the attempt gives up: the job is delivered again, and its next holder reads on.
    Tokens that come within the cadence's interval are one frame; the first ones, and whatever is said that is no token,
    go at once. What an engine leaves unread is not looked at meanwhile.
    """

    def __init__(
        self,
        publishing: Publishing,
        sid: str,
        outbox: Outbox,
        measured: Measured,
        *,
        lost_timeout: float = 60.0,
        on_over: Callable[[], None] | None = None,
    ) -> None:
        self.outbox = outbox
        self.over = asyncio.Event()
        self._bus = publishing.bus
        self._stream = log_stream(partition_of(sid))
        self._sid = sid
        self._subject = log_subject(sid)
        self._measured = measured
        self._reserve = publishing.reserve
        self._probes = publishing.probes
        self._turns = publishing.turns
        self._cadence = publishing.cadence
        self._lost_timeout = lost_timeout
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._room.set()
        self._settled = asyncio.Event()
        self._settled.set()
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sent_at = 0.0
        self._undecided_since: float | None = None
        self._full = False
        self._in_line = False
        self._tap = Tap()
        self._more_there = False  # than was drawn for the last frame
        self._drawing = False  # what is offered is for the frame that is being made
        self._streaming = False  # tokens of this attempt are in the log

    # -- for the generation ------------------------------------------------------------------------------------------

    def offer(self, kind: str, text: str, n: int) -> None:
        """`n` more tokens: published at once when nothing is in flight, else part of the next frame. Never waits."""
        self.outbox.piece(kind, text, n)
        if not self._drawing:
            self._news()
        if self.outbox.waiting >= FULL_HIGH:
            self._room.clear()

    def follow(self, tap: Tap) -> None:
        """Of an engine that can leave its tokens where they are, take what there is when a frame can be made of it."""
        self._tap = tap
        tap.on_unread = self._news

    def unfollow(self) -> None:
        self._tap.on_unread = None
        self._tap = Tap()
        self._more_there = False

    @property
    def has_room(self) -> bool:
        return self._room.is_set()

    async def room(self) -> None:
        """Wait while the buffer is full. Returns at once after a stop: nothing that is offered then is kept."""
        await self._room.wait()

    def say(self, *events: tuple[str, dict[str, Any]]) -> None:
        """Events behind all that was offered. Never waits."""
        for kind, data in events:
            self.outbox.event(kind, data)
        if self.outbox.state is State.IDLE and not self._in_line:
            self._send()

    async def write(self, *events: tuple[str, dict[str, Any]]) -> bool:
        """Say events, and wait until all that was said and offered is in the log.

        True: it is, and after a terminal nothing can follow. False: the attempt was stopped, see `outbox.stopped`.
        Cancelling loses nothing: what was said is still published.
        """
        if not self.over.is_set():
            self._settled.clear()
        self.say(*events)
        if not self.over.is_set():
            self._settle()  # there may have been nothing left to say
            await self._settled.wait()
        return self.outbox.state is not State.STOPPED

    def stop(self, why: Stop) -> None:
        """Publish nothing more; an answer that is still under way is not heard. Idempotent."""
        self.outbox.stop(why)
        self._settle()

    async def close(self) -> None:
        """Stop if still open, and leave nothing behind that runs."""
        self.stop(Stop.LEFT)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    # -- the way to the log ------------------------------------------------------------------------------------------

    def _news(self) -> None:
        if self.outbox.state is State.IDLE and not self._in_line and (self._timer is None or not self._pause()):
            self._send()

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.outbox.has_more or self._tap.source.unread:
            if pause := self._pause():
                self._again(pause)
            elif self._turns.ask(
                self._stream, self, first=not self._streaming, alone=self.outbox.state is State.UNDECIDED
            ):
                self.go()
            else:
                self._in_line = True

    def _pause(self) -> float:
        """Seconds for which what there is to say collects more."""
        outbox = self.outbox
        if not self._cadence.interval or not self._streaming or self._more_there or outbox.state is not State.IDLE:
            return 0.0
        if (outbox.has_more and outbox.next_type != outbox.frame_type) or outbox.events or outbox.waiting >= FRAME_TEXT:
            return 0.0
        if not self._settled.is_set():  # somebody waits until all is in the log
            return 0.0
        left = self._cadence.due(self._sent_at) - self._loop.time()
        return left if left >= MOMENT else 0.0

    def go(self) -> None:
        """It is its turn: publish alone."""
        publish = None
        try:
            publish = self.load()
        finally:
            if publish is None:
                self._turns.over(self._stream)
        if publish is not None:
            self._publish(publish)

    def _publish(self, publish: Fenced) -> None:
        try:
            bus_log.store_soon(self._bus, self._subject, publish.payload, publish.expect_last, self._answered_alone)
        except BusError as error:  # not connected: nothing was sent, so nothing will call back
            self._answered_alone(error)
        except Exception as error:  # the safety net of a turn: whoever handed it on would not hear his own answer
            self._turns.over(self._stream)
            log.error("worker.publish_failed", subject=self._subject, exc_info=error)
            self.stop(Stop.REFUSED)

    def load(self) -> Fenced | None:
        """What is to be published now, of which `answered` is told; None: nothing."""
        self._in_line = False
        try:
            return self._load()
        except Exception as error:  # as above
            log.error("worker.publish_failed", subject=self._subject, exc_info=error)
            self.stop(Stop.REFUSED)
            return None

    def _load(self) -> Fenced | None:
        if self._tap.source.unread and self.outbox.state is State.IDLE:
            self._draw()
        publish = self.outbox.take()
        if publish is None:  # stopped meanwhile, or what was there is no token
            return None
        self._sent_at = self._loop.time()
        if self._undecided_since is not None:
            RETRIES.inc()
        if self.outbox.sends_tokens and not self._reserve.take(self._stream, len(publish.payload)):
            self._stream_full()
            return None
        return Fenced(self._subject, publish.payload, publish.expect_last)

    def _draw(self) -> None:
        draw = self._tap.source.draw
        self._drawing = True
        try:
            self._more_there = draw()
            for _ in range(DRAWS):
                if not self._more_there or self.outbox.waiting >= FRAME_TEXT:
                    break
                self._more_there = draw()
        finally:
            self._drawing = False

    def _answered_alone(self, answer: int | BusError) -> None:
        self._turns.over(self._stream)
        self.answered(answer)

    def answered(self, answer: int | BusError) -> None:
        """What became of what was loaded."""
        if self.outbox.state is not State.IN_FLIGHT:
            return  # stopped meanwhile
        match answer:
            case int():
                self._measured.acknowledged(self._loop.time() - self._sent_at)
                self.outbox.stored(answer)
            case WrongLastSequence(last=last):
                self.outbox.refused(last)
            case StoreRejected(err_code=code) if code == STREAM_FULL:
                self._probes.told(self._stream)
                self._stream_full()
                return
            case BusUnavailable():
                self.outbox.undecided()
            case StoreRejected(err_code=code) if code in RETRIED:
                self.outbox.undecided()
            case _:
                log.error("worker.publish_refused", subject=self._subject, error=str(answer))
                self.outbox.stop(Stop.REFUSED)
        self._proceed()

    def _proceed(self) -> None:
        state = self.outbox.state
        if state is not State.UNDECIDED:  # which a leader without a quorum leaves it, whatever it answers
            self._probes.told(self._stream)
        if state is State.IDLE:
            self._undecided_since = None
            if self.outbox.sends_tokens:
                self._tokens_stored()
            self._send()
        elif state is State.UNDECIDED:
            if self._still_hoping():
                tries = self._probes.wait(self._stream, self._go)
                self._again(random.uniform(PAUSE_LOW, PAUSE_HIGH) if tries else random.uniform(PARKED / 2, PARKED))
        elif state is State.READING:
            self._reading = self._loop.create_task(self._read(), name="publisher-read")
        self._settle()

    def _tokens_stored(self) -> None:
        self._cadence.stored(self.outbox.frame_tokens, self._loop.time())
        if not self._streaming:
            self._streaming = True
            self._cadence.enter()

    def _stream_full(self) -> None:
        """No room for this frame. For the terminal that says so there is the reserve."""
        if self.outbox.chain.open and not self._full and not self.outbox.terminal_sent:
            self._full = True
            log.error("worker.log_full", stream=self._stream)
            message = "the log has no room for more of this answer"
            self.outbox.full({"code": "log_full", "message": message, "retryable": False, "t": now_ms()})
            self._again(0)
        else:
            self.outbox.undecided()
            if self._still_hoping():
                self._again(FULL_PAUSE)
        self._settle()

    def _still_hoping(self) -> bool:
        now = self._loop.time()
        if self._undecided_since is None:
            self._undecided_since = now
        if now - self._undecided_since < self._lost_timeout:
            return True
        self.outbox.stop(Stop.LOST)
        return False

    def _again(self, delay: float) -> None:
        self._timer = self._loop.call_later(delay, self._send)

    def _go(self) -> None:
        """The log was heard of, or it is for this one to hear of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._again(random.uniform(0, PAUSE_HIGH))  # not all of a thousand in one turn of the loop

    async def _read(self) -> None:
        """Somebody wrote behind my fence: read who, at the leader."""
        try:
            frame = await last_frame(self._bus, self._sid)
        except (BusUnavailable, StoreRejected):
            if self.outbox.state is State.READING:
                self.outbox.undecided()
        except FrameMalformed as error:  # not one of mine, whatever it is
            log.error("worker.foreign_frame", subject=self._subject, error=str(error))
            self.outbox.stop(Stop.FENCED)
        except Exception as error:  # the safety net of this task: an attempt that waits for its end would wait for ever
            log.error("worker.read_failed", subject=self._subject, exc_info=error)
            if self.outbox.state is State.READING:
                self.outbox.undecided()
        else:
            if self.outbox.state is State.READING:
                self._found(frame)
        self._proceed()

    def _found(self, frame: Frame | None) -> None:
        try:
            self.outbox.found(frame)
        except ChainBroken as error:  # my attempt id on a frame that I cannot have written
            log.error("worker.foreign_frame", subject=self._subject, error=str(error))
            self.outbox.stop(Stop.FENCED)

    def _settle(self) -> None:
        outbox = self.outbox
        if outbox.waiting <= FULL_LOW:
            self._room.set()
        over = outbox.state in (State.ENDED, State.STOPPED)
        if over or outbox.quiet:
            self._settled.set()
        if over and not self.over.is_set():
            self.over.set()
            if self._streaming:
                self._cadence.leave()
            self._probes.leave(self._stream, self._go)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._on_over is not None:
                self._on_over()
