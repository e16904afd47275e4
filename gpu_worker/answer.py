"""One generation being written by this worker: its attempts, the engine that is pulled, the one terminal frame.

It answers for the order of things: the engine is asked only after `start` or `attempt` is in the log, the terminal
comes last, usage before it. It must not know jobs and acks (`held.py`), nor fences (`outbox.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec
import structlog

from broker.bus.attempts import MAX_BARREN_EPOCHS
from broker.bus.chain import Chain
from broker.bus.clock import now_ms
from broker.bus.conversation import new_input
from broker.bus.frames import ATTEMPT, CANCELLED, DONE, FAILED, START, TOKEN, USAGE
from broker.bus.kv import Bucket
from broker.bus.records import Job, Message
from broker.bus.subjects import random_id
from gpu_worker import engines
from gpu_worker.arbiter import Arbiter
from gpu_worker.believed import believed, poured
from gpu_worker.bound import Bound
from gpu_worker.engines import Engine, EngineFailed, Finish, ModelCard, Piece, Pouring, Prefix, Prompt, Tap
from gpu_worker.interruption import Interrupt, Interruption
from gpu_worker.metrics import CANCELS, PAUSED, RESUMED, Measured
from gpu_worker.outbox import Outbox, State, Stop, next_epoch
from gpu_worker.patience import MOST_FAILURES, Patience, busy_pause
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
from gpu_worker.pulse import Pulse
from gpu_worker.settings import WorkerSettings

OVERLOADED_TIMEOUT = 30.0  # seconds that an engine may refuse although a slot is free
BARREN = f"{MAX_BARREN_EPOCHS} attempts in a row gave no new token"
BROKEN_OFF = f"{MOST_FAILURES} attempts in a row broke off"

log = structlog.get_logger("worker")


class Overtaken(Enum):
    """Somebody wrote between our reading and our first frame: nothing of ours is in the log, so read it again."""

    OVERTAKEN = "overtaken"


Outcome = str | Stop | Overtaken  # a str is the type of the terminal frame that is in the log


@dataclass(slots=True)
class Lane:
    """One model of this worker: its engine, its slots and what it counts."""

    card: ModelCard
    engine: Engine
    measured: Measured
    held: int = 0  # jobs in this worker's hands
    running: int = 0  # of which have a slot
    aside: int = 0  # of which cannot be read now, and keep no slot from others

    @property
    def full(self) -> bool:
        """No slot is free."""
        return self.running >= self.card.slots

    @property
    def capacity(self) -> int:
        """Jobs that may be held at once: until it is known of each whether it needs a slot, and gets one."""
        return self.card.slots + self.card.queue_limit


@dataclass(frozen=True, slots=True)
class Place:
    """What every job needs of the worker that holds it."""

    worker: str
    settings: WorkerSettings
    generations: Bucket
    pulse: Pulse
    publishing: Publishing


class Answer:
    """Made when a slot is there; `demand` and `leave` may be called while one of the three writers runs.

    `first_at`: loop time of the job's first delivery.
    """

    def __init__(self, place: Place, lane: Lane, job: Job, interruption: Interruption, first_at: float) -> None:
        self.tokens = 0  # in the log or on their way there, over all epochs
        self.arbiter = Arbiter(place.settings.max_pause)
        self._place = place
        self._lane = lane
        self._job = job
        self._interruption = interruption
        self._first_at = first_at
        self._loop = asyncio.get_running_loop()
        self._publisher: Publisher | None = None
        self._wrote = False  # a frame of an attempt before this publisher's is in the log
        self._parts: list[str] = []
        self._spoken = 0  # tokens of those
        self._bound = Bound(job.request.max_tokens or lane.card.default_max_tokens, place.settings.answer_limit)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._recheck: asyncio.TimerHandle | None = None
        self._patience = Patience()
        self._log = log.bind(gid=job.gid, sid=job.sid, model=lane.card.id)

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def demand(self, node: str, state: str) -> None:
        """A node tells how its viewers of this session are doing."""
        self.arbiter.hear(node, state, self._loop.time())
        self._arbitrate()

    def leave(self) -> None:
        """Write nothing more: the worker goes."""
        if self._publisher is not None:
            self._publisher.stop(Stop.LEFT)

    async def close(self) -> None:
        """Idempotent; nothing runs behind it."""
        if self._recheck is not None:
            self._recheck.cancel()
        await self._drop_publisher()

    # -- the three ways to write -------------------------------------------------------------------------------------

    async def write(
        self,
        chain: Chain,
        messages: list[Message],
        *,
        said: tuple[str, ...] = (),
        spoken: int = 0,
        size: int = 0,
        barren: int = 0,
    ) -> Outcome:
        """Every attempt that this worker makes, from behind `chain` to the terminal.

        `said` is what the log already holds of the answer, frame by frame, and `spoken` its tokens; `size`: bytes of
        that and of the reasoning; `barren`: how many epochs in a row gave nothing so far.
        """
        self._parts, self._spoken = list(said), spoken
        self.tokens = chain.next_offset if chain.open else 0
        self._bound.tokens, self._bound.size = self.tokens, size
        asked = [engines.Message(message.role, message.content) for message in messages]
        while True:
            before = chain.next_offset if chain.open else 0
            publisher = self._new_publisher(chain, next_epoch(chain))
            # The engine is asked while `start` is on its way: what it says waits behind that. For a takeover many may
            # race, and who loses decodes nothing.
            takes_over = chain.open
            publisher.say(self._opening(chain, publisher.outbox.epoch))
            if takes_over and (over := await self._settled(publisher)) is not None:
                return over
            try:
                return await self._to_the_end(publisher, asked)
            except EngineFailed as error:
                self._log.warning("worker.engine_failed", code=error.code, error=error.message)
                if (over := await self._settled(publisher)) is not None:  # all that was decoded is in the log
                    return over
                chain = publisher.outbox.chain
                new = chain.next_offset - before
                barren = 0 if new else barren + 1
                self._patience.failed(new)
                after = error.retry_after
                if not error.retryable:
                    return await self._end(publisher, FAILED, _broken(error))
                if barren >= MAX_BARREN_EPOCHS:
                    return await self._end(publisher, FAILED, _exhausted(BARREN, error.shown))
                if self._patience.is_over:
                    return await self._end(publisher, FAILED, _exhausted(BROKEN_OFF, error.shown))
            await self._drop_publisher()
            await self._interruption.unless(asyncio.sleep(self._patience.pause(after)))

    async def cancel_unbegun(self, chain: Chain) -> Outcome:
        """Cancelled before anybody began: `start` and the terminal, so that the log is the whole conversation."""
        self._count_cancel()
        publisher = self._new_publisher(chain, 1)
        publisher.say(self._opening(chain, 1))
        return await self._end(publisher, CANCELLED, {"t": now_ms()})

    async def cancel_begun(self, chain: Chain) -> Outcome:
        """Cancelled after another attempt began: a terminal is the only frame of this one."""
        self._count_cancel()
        return await self._only_frame(chain, CANCELLED, {"t": now_ms()})

    async def give_up(self, chain: Chain) -> Outcome:
        """Nobody gave a new token for too many epochs."""
        return await self._only_frame(chain, FAILED, _exhausted(BARREN))

    # -- decoding ----------------------------------------------------------------------------------------------------

    async def _to_the_end(self, publisher: Publisher, asked: list[engines.Message]) -> Outcome:
        """Decode behind what is stored, then the terminal. Raises EngineFailed."""
        deadline = self._loop.time() + OVERLOADED_TIMEOUT
        refusals = 0
        while True:
            try:
                finish = await self._interruption.unless(self._pull(publisher, asked))
                break
            except EngineFailed as error:
                if error.code != "overloaded" or self._loop.time() > deadline:
                    raise
                if (over := await self._settled(publisher)) is not None:
                    return over
                refusals += 1
                await self._interruption.unless(asyncio.sleep(busy_pause(refusals, error.retry_after)))
        if finish is not None:
            usage = {"prompt_tokens": finish.prompt_tokens, "completion_tokens": finish.completion_tokens}
            return await self._end(publisher, DONE, {"finish_reason": finish.finish_reason, "t": now_ms()}, usage)
        if self._interruption.cancelled:
            self._count_cancel()
            return await self._end(publisher, CANCELLED, {"t": now_ms()})
        if self._interruption.leaving:
            publisher.stop(Stop.LEFT)
        return await self._over(publisher)

    async def _pull(self, publisher: Publisher, asked: list[engines.Message]) -> Finish:
        request, bound = self._job.request, self._bound
        prompt = Prompt(tuple(asked), bound.max_tokens, request.temperature, tuple(request.stop), request.seed)
        prefix = Prefix(tuple(self._parts), self.tokens, self._spoken)
        tap, shut = Tap(), asyncio.Event()
        say = self._speaker(publisher, tap, shut, began=None if prefix.tokens else self._first_at)
        engine, model = self._lane.engine, self._lane.card.id
        if isinstance(engine, Pouring):
            gate = self._loop.create_task(self._reopen(publisher, tap, shut), name="answer-gate")
            publisher.follow(tap)
            try:
                return await poured(engine, model, prompt, prefix, bound, say, tap)
            finally:
                publisher.unfollow()
                gate.cancel()
                await asyncio.gather(gate, return_exceptions=True)
        async with aclosing(believed(engine, model, prompt, prefix, bound)) as items:
            async for item in items:
                if not isinstance(item, Piece):
                    return item
                say(item)
                if tap.is_shut:
                    await self._flow(publisher, tap)
        raise AssertionError("an answer that is believed ends with Finish")

    def _speaker(
        self, publisher: Publisher, tap: Tap, shut: asyncio.Event, *, began: float | None
    ) -> Callable[[Piece], None]:
        """What is done with a piece, all of it at once. `began`: when the wait for the first one did, if it is one."""
        measured, parts, time, flowing = self._lane.measured, self._parts, self._loop.time, self._flowing
        before = time()

        def say(piece: Piece) -> None:
            nonlocal began, before
            publisher.offer(piece.kind, piece.text, piece.n)
            self.tokens += piece.n
            if piece.kind == TOKEN:
                parts.append(piece.text)
                self._spoken += piece.n
            now = time()
            if began is not None:
                measured.first(now - began)
                began = None
            measured.decoded(piece.n, now - before)
            before = now
            if not (publisher.has_room and flowing.is_set()):
                tap.turn(shut=True)
                shut.set()

        return say

    async def _flow(self, publisher: Publisher, tap: Tap) -> None:
        """Wait until there is room and somebody reads, then open the tap."""
        while not (publisher.has_room and self._flowing.is_set()):
            await publisher.room()
            await self._flowing.wait()
        tap.turn(shut=False)

    async def _reopen(self, publisher: Publisher, tap: Tap, shut: asyncio.Event) -> None:
        while True:
            await shut.wait()
            shut.clear()
            await self._flow(publisher, tap)

    def _arbitrate(self) -> None:
        if self._recheck is not None:
            self._recheck.cancel()
            self._recheck = None
        if not self.arbiter.paused(self._loop.time()):
            if not self._flowing.is_set():
                self._flowing.set()
                RESUMED.labels(self.arbiter.resumed_by).inc()
            return
        if self._flowing.is_set():
            self._flowing.clear()
            PAUSED.inc()
        at = self.arbiter.changes_at()
        assert at is not None
        self._recheck = self._loop.call_at(at, self._arbitrate)

    # -- writing -----------------------------------------------------------------------------------------------------

    def _opening(self, chain: Chain, epoch: int) -> tuple[str, dict[str, Any]]:
        worker, t = self._place.worker, now_ms()
        if chain.open:
            return ATTEMPT, {"epoch": epoch, "worker": worker, "t": t}
        request = self._job.request
        given = msgspec.to_builtins(new_input(request))
        return START, {"epoch": epoch, "model": request.model, "worker": worker, "input": given, "t": t}

    async def _only_frame(self, chain: Chain, kind: str, fields: dict[str, Any]) -> Outcome:
        publisher = self._new_publisher(chain, next_epoch(chain))
        publisher.say((kind, fields))
        return await self._over(publisher)

    async def _end(
        self, publisher: Publisher, kind: str, fields: dict[str, Any], usage: dict[str, Any] | None = None
    ) -> Outcome:
        publisher.say(*([(USAGE, usage)] if usage is not None else []), (kind, fields))
        return await self._over(publisher)

    async def _over(self, publisher: Publisher) -> Outcome:
        await publisher.over.wait()
        if publisher.outbox.state is State.ENDED:
            return publisher.outbox.frame_type
        return self._stopped(publisher)

    async def _settled(self, publisher: Publisher) -> Outcome | None:
        """Once all that was said is in the log: why nothing can follow, or None where the answer goes on. A log that is
        full has ended it meanwhile, whatever the engine did."""
        if not await publisher.write():
            return self._stopped(publisher)
        return publisher.outbox.frame_type if publisher.outbox.state is State.ENDED else None

    def _stopped(self, publisher: Publisher) -> Outcome:
        """Why nothing more is written."""
        why = publisher.outbox.stopped
        assert why is not None
        if why is Stop.FENCED and not (self._wrote or publisher.outbox.wrote):
            self._interruption.forget_stop()
            return Overtaken.OVERTAKEN
        return why

    def _new_publisher(self, chain: Chain, epoch: int) -> Publisher:
        outbox = Outbox(self._job.gid, epoch, random_id(8), chain)
        settings = self._place.settings
        publisher = Publisher(
            self._place.publishing,
            self._job.sid,
            outbox,
            self._lane.measured,
            lost_timeout=settings.lost_timeout,
            on_over=self._publisher_over,
        )
        self._publisher = publisher
        if self._interruption.leaving:
            publisher.stop(Stop.LEFT)
        return publisher

    def _publisher_over(self) -> None:
        """End the decoding whose tokens nobody stores, if there still is one."""
        if self._publisher is not None:
            self._interruption.set(Interrupt.STOPPED)

    async def _drop_publisher(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            self._wrote = self._wrote or publisher.outbox.wrote
            await publisher.close()

    def _count_cancel(self) -> None:
        CANCELS.labels("silence" if self._interruption.why is Interrupt.ABANDONED else "request").inc()


def _exhausted(message: str, shown: str = "") -> dict[str, Any]:
    """Fields of a `failed` frame. What the engine said of its process (addresses, its last words) is for the log."""
    if shown:
        message = f"{message}: {shown}"
    return {"code": "attempts_exhausted", "message": message, "retryable": True, "t": now_ms()}


def _broken(error: EngineFailed) -> dict[str, Any]:
    """Fields of a `failed` frame: what was asked cannot be answered, and why."""
    code = "engine_failed" if error.code == "overloaded" else error.code  # that one is no code of a terminal
    return {"code": code, "message": error.shown, "retryable": error.retryable, "t": now_ms()}
