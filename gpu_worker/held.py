"""One job in this worker's hands: from its delivery to its ack, or until it is somebody else's.

    TAKEN ──slot──► RUNNING ──terminal stored──► acked
       │               └─ fenced, purged, lost: dropped, and nothing acked or given back
       ├─ unreadable: given back, later each time, until OKOME has closed its record
       ├─ no slot is free: given back, from a lane into the common queue: whoever has one first takes it
       └─ not ours to do: acked (nothing left) or given back (somebody holds it, or the worker leaves)

What to do is decided in `takeover.py`, the writing is in `answer.py`.

A log that holds what is no frame, or no chain, can be continued by nobody who reads it so: a terminal would have to
follow what it cannot follow, and no reader would show it. The job is neither acked (a worker of another version may
read what we cannot) nor kept (its place belongs to others): it is given back, each time for twice as long. After
`job_wait` OKOME closes the record, which is looked at before the log: whoever gets the job then acks it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog

from broker.bus.begun import begun
from broker.bus.errors import BusError, BusUnavailable, ChainBroken, FrameMalformed
from broker.bus.frames import DONE
from broker.bus.jobs import common_subject, copy_to_common
from broker.bus.operations import GenerationEnded
from broker.bus.queue import Delivery
from broker.bus.records import Generation, Job, Message, decode
from broker.bus.subjects import log_stream, operation_subject, partition_of
from gpu_worker.answer import Answer, Lane, Outcome, Overtaken, Place
from gpu_worker.history import frames_behind, prompt_of
from gpu_worker.interruption import Interrupt, Interruption
from gpu_worker.metrics import ADOPTED, FENCED
from gpu_worker.outbox import Stop
from gpu_worker.takeover import Ack, Adopt, Begin, Decision, GiveUp, NakLater, TakeOver, decide

RETRY_PAUSE = 0.25  # seconds between questions that were not answered
ACK_TRIES = 5
PURGED_DELAY = 0.25  # seconds until a job is offered again whose log was taken away
BROKEN_DELAY = 5.0  # seconds until a job is offered again that could not be carried out here ...
BROKEN_DELAY_HIGH = 60.0  # ... and twice as many each time that it is delivered, up to this
DOUBT = 5.0  # seconds after which the fence judges, although a holder may live who was not heard
UNREADABLE_TIMEOUT = 10.0  # seconds that a log which is no chain is read again: a replica may be behind

log = structlog.get_logger("worker")

Result = TypeVar("Result")


class Held:
    """`run` is its task; everything else may be called meanwhile."""

    def __init__(self, place: Place, lane: Lane, job: Job, delivery: Delivery) -> None:
        self.job = job
        self.lane = lane
        self.running = False  # it has a slot
        self._ours = False  # the log said that it is ours to do, and it was not given back
        self._given_back = False
        self._aside = False
        self.conversation: list[Message] = []  # context and answer, once it is done
        self._place = place
        self._delivery = delivery
        self._loop = asyncio.get_running_loop()
        self._first_at = self._delivered_at = self._loop.time()
        self._interruption = Interruption()
        self._answer: Answer | None = None
        self._asked: asyncio.Task[list[Message]] | None = None  # the prompt, asked for beside the decision
        self._log = log.bind(gid=job.gid, sid=job.sid, model=lane.card.id)

    # -- from outside ------------------------------------------------------------------------------------------------

    @property
    def reply(self) -> str:
        """The newest delivery's reply subject."""
        return self._delivery.reply

    @property
    def ours(self) -> bool:
        """Whether beats say that it is held here: not before the log was read, nor once somebody else may have it."""
        return self._ours and (self.running or not self._stale)

    @property
    def _stale(self) -> bool:
        return self._delivered_at <= self._place.pulse.hearing_since()

    def adopt(self, delivery: Delivery) -> bool:
        """The same job was delivered here again: from now on only that delivery counts. False: it is being given back,
        and so is that one to be."""
        if self._given_back:
            return False
        self._delivery = delivery
        self._delivered_at = self._loop.time()
        ADOPTED.inc()
        self._log.info("worker.delivery_adopted", attempts=delivery.attempts)
        return True

    async def in_progress(self) -> None:
        """Put the redelivery off; raises BusUnavailable."""
        await self._delivery.in_progress()

    def interrupt(self, why: Interrupt) -> None:
        """End it as soon as possible. Idempotent."""
        self._interruption.set(why)
        if why is Interrupt.LEAVING and self._answer is not None:
            self._answer.leave()

    def demand(self, node: str, state: str) -> None:
        """A node tells how its viewers of this session are doing. Before it runs nobody can lag."""
        if self._answer is not None:
            self._answer.demand(node, state)

    def check_abandoned(self) -> None:
        """Apply on_disconnect=cancel where no viewer's node was heard for `grace` seconds."""
        if self.job.on_disconnect != "cancel" or self._answer is None:
            return
        grace, now = self._place.settings.grace, self._loop.time()
        deaf = now - self._place.pulse.hearing_since() < grace  # our own silence is not theirs
        if not deaf and self._answer.arbiter.abandoned(grace, now):
            self.interrupt(Interrupt.ABANDONED)

    async def check_cancel(self) -> None:
        """Read in KV whether it was cancelled: a nudge may be lost or made up, the record is the truth."""
        try:
            record = await self._record()
        except (BusError, msgspec.DecodeError) as error:
            self._log.debug("worker.cancel_unread", error=repr(error))
            return  # read again at the next interval
        if record is None or record.cancel:
            self.interrupt(Interrupt.CANCEL)

    # -- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold the job until it is done or not ours. Cancelling it loses nothing: the job is delivered again."""
        self._log.info("worker.job_taken", attempts=self._delivery.attempts)
        how, tokens = "broken", 0
        try:
            how = await self._live()
        except (ChainBroken, FrameMalformed) as error:
            how = "unreadable"
            self._log.error("worker.log_unreadable", error=repr(error), attempts=self._delivery.attempts)
            await self._give_back(self._broken_delay)
        except Exception as error:  # the safety net of this task: one job must not end the worker
            log.error("worker.job_broken", gid=self.job.gid, exc_info=error)
            await self._give_back(self._broken_delay)
        finally:
            if self._answer is not None:
                tokens = self._answer.tokens
                await self._answer.close()
            await self._ask_no_more()
            self._free_slot()
        self.lane.measured.ended(how)
        seconds = round(self._loop.time() - self._first_at, 3)
        self._log.info("worker.job_let_go", how=how, tokens=tokens, seconds=seconds)

    async def _live(self) -> str:
        if not self.lane.full:
            self._asked = self._loop.create_task(self._ask_prompt(), name="job-prompt")
        while True:
            decision = await self._decide()
            match decision:
                case None:
                    await self._give_back()
                    return "left"
                case Ack(reason):
                    self._log.info("worker.job_over", reason=reason)
                    await self._ack()
                    return "over"
                case NakLater(delay, reason):
                    self._log.info("worker.job_put_off", reason=reason)
                    await self._give_back(delay)
                    return "put_off"
                case Adopt():
                    raise AssertionError("a job that is held here was not adopted at its delivery")
            cancelled = self._interruption.cancelled or getattr(decision, "cancelled", False)
            if not cancelled and not isinstance(decision, GiveUp) and not self._take_slot():
                await self._pass_on()
                return "no_slot"
            if not self._ours:
                self._ours = True
                self._place.pulse.beat_soon(self.job.gid, self.reply)
            outcome = await self._write(decision, cancelled)
            if outcome is not None and not isinstance(outcome, Overtaken):
                return await self._conclude(outcome)

    async def _write(self, decision: Begin | TakeOver | GiveUp, cancelled: bool) -> Outcome | None:
        """Carry the decision out; None where the worker leaves before anything was written."""
        answer = self._answer = Answer(self._place, self.lane, self.job, self._interruption, self._first_at)
        match decision:
            case GiveUp(chain):
                return await answer.give_up(chain)
            case Begin(chain) if cancelled:
                return await answer.cancel_unbegun(chain)
            case TakeOver(chain) if cancelled:
                return await answer.cancel_begun(chain)
        messages = await self._persist(self._prompt)
        if messages is None:
            return None
        if isinstance(decision, Begin):
            outcome = await answer.write(decision.chain, messages)
        else:
            self.lane.measured.takeovers.inc()
            self._log.info("worker.job_taken_over", epoch=decision.epoch, offset=decision.chain.next_offset)
            said, spoken, size, barren = decision.said, decision.spoken, decision.size, decision.barren
            outcome = await answer.write(decision.chain, messages, said=said, spoken=spoken, size=size, barren=barren)
        if outcome == DONE:
            self.conversation = [*messages, Message("assistant", answer.text)]
        return outcome

    async def _conclude(self, outcome: str | Stop) -> str:
        """What follows from how the writing ended."""
        self._free_slot()
        match outcome:
            case Stop.FENCED:
                self._ours = False
                FENCED.inc()
                self._log.warning("worker.job_fenced")  # it is another worker's: nothing acked, nothing given back
            case Stop.LEFT:
                await self._give_back()
            case Stop.REFUSED:
                await self._give_back(self._broken_delay)
            case Stop.PURGED:
                await self._give_back(PURGED_DELAY)  # nobody fenced us: what is left to be done is for whoever reads
            case Stop.LOST:
                self._log.warning("worker.job_dropped", why=outcome.value)  # its next delivery finds out what is left
            case _:
                self._nudge_control()
                await self._ack()
                return outcome
        return outcome.value

    # -- what it asks and says ---------------------------------------------------------------------------------------

    async def _decide(self) -> Decision | None:
        """What the log, KV and the beats ask for; None when the worker is leaving."""
        doubted_since: float | None = None
        while True:
            decision = await self._persist(self._decide_once)
            if not isinstance(decision, TakeOver | GiveUp):
                return decision
            # Its holder may be alive and not heard yet: by a worker that has just begun to listen, or because it took
            # the job a moment ago, and this is a copy of it, or another delivery.
            now = self._loop.time()
            doubted_since = now if doubted_since is None else doubted_since
            known = await self._interruption.unless_leaving(self._place.pulse.hear_of(decision.opening))
            if known or now - doubted_since >= DOUBT:
                return decision

    async def _decide_once(self) -> Decision:
        job, bus = self.job, self._place.publishing.bus
        # Beside one another: whatever happens between the two reads, the fence finds.
        async with begun(frames_behind(bus, job.sid, job.after)) as reading:
            record = await self._record()
            if record is None or not record.status.open:
                return decide(job, (), 0, record, (), {})  # over: its log need not be read, and perhaps cannot be
            if record.after >= job.after:
                frames, last = await reading
                return decide(job, frames, last, record, (), self._place.pulse.others())
        # The log lost its end since this was queued: OKOME told the record, and the job cannot be told.
        self.job = msgspec.structs.replace(job, after=record.after)
        await self._ask_no_more()
        return await self._decide_once()

    async def _prompt(self) -> list[Message]:
        """What was asked for beside the decision, the first time; it is asked anew where that failed."""
        asked, self._asked = self._asked, None
        return await (self._ask_prompt() if asked is None else asked)

    async def _ask_prompt(self) -> list[Message]:
        stream = log_stream(partition_of(self.job.sid))
        async with begun(prompt_of(self._place.publishing.bus, self._place.generations, self.job)) as asking:
            await self._place.publishing.reserve.learn(stream)
            return await asking

    async def _ask_no_more(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def _record(self) -> Generation | None:
        entry = await self._place.generations.get(f"{self.job.sid}.{self.job.gid}")
        return None if entry is None else decode(entry.value, Generation)

    async def _persist(self, ask: Callable[[], Awaitable[Result]]) -> Result | None:
        """Ask until there is an answer; None when the worker is leaving.

        NATS is waited for as long as it takes: nobody else could do better. Raises ChainBroken or FrameMalformed where
        it has answered for UNREADABLE_TIMEOUT, and always with a log that is no chain of frames.
        """
        broken_since: float | None = None
        try:
            while not self._interruption.leaving:
                try:
                    return await ask()
                except BusError as error:
                    broken_since = None
                    self._log.warning("worker.log_unread", error=repr(error))
                except (ChainBroken, FrameMalformed) as error:
                    now = self._loop.time()
                    broken_since = now if broken_since is None else broken_since
                    if now - broken_since >= UNREADABLE_TIMEOUT:
                        raise
                    self._log.warning("worker.log_unread", error=repr(error))
                self._step_aside(True)
                await self._interruption.unless_leaving(asyncio.sleep(RETRY_PAUSE))
            return None
        finally:
            self._step_aside(False)

    def _step_aside(self, aside: bool) -> None:
        """Whether others may have the slot meanwhile that it would be given."""
        if aside != self._aside and not self.running:
            self._aside = aside
            self.lane.aside += 1 if aside else -1

    @property
    def _broken_delay(self) -> float:
        """Seconds until this job is offered again: by the deliveries so far, and never for ever."""
        doublings = min(max(0, self._delivery.attempts - 1), 10)
        return min(BROKEN_DELAY * 2.0**doublings, BROKEN_DELAY_HIGH)

    async def _ack(self) -> None:
        """The job is over. Unacked it is delivered once more, and acked by whoever reads its terminal."""
        for _ in range(ACK_TRIES):
            try:
                await self._delivery.ack()
            except BusUnavailable as error:
                self._log.warning("worker.ack_unanswered", error=repr(error))
                await asyncio.sleep(RETRY_PAUSE)
            else:
                return

    async def _give_back(self, delay: float = 0.0) -> None:
        """Nak, unless the delivery may be stale: a stale nak takes the job from its holder."""
        stale = self._stale
        self._ours, self._given_back = False, True
        self._place.pulse.beat()  # before the nak: whoever gets the job next must not take us for its holder
        if stale:
            self._log.info("worker.stale_delivery_dropped")
            return
        try:
            await self._delivery.nak(delay)
        except BusUnavailable as error:
            self._log.warning("worker.job_not_given_back", error=repr(error))  # delivered again after ack_wait

    async def _pass_on(self) -> None:
        """To whoever has a slot first. A lane's job was to be begun here at once: it goes to the common queue."""
        bus, delivery = self._place.publishing.bus, self._delivery
        if delivery.subject == common_subject(delivery.subject) or self._stale:
            await self._give_back()
            return
        self._given_back = True  # the copy may be delivered here: it is another job of the queue
        try:
            await copy_to_common(bus, delivery.subject, delivery.seq, self.job.gid, delivery.data)
        except BusError as error:
            self._log.warning("worker.job_not_passed_on", error=repr(error))
            await self._give_back(RETRY_PAUSE)
            return
        await self._ack()

    def _nudge_control(self) -> None:
        """Tell OKOME that the answer may be recorded; its sweeper finds it anyway. The reply is for nobody."""
        payload = msgspec.json.encode(GenerationEnded(self.job.sid, self.job.gid))
        bus = self._place.publishing.bus
        try:
            bus.publish_now(operation_subject("generation_ended"), payload, bus.new_inbox())
        except BusUnavailable as error:
            self._log.debug("worker.nudge_lost", error=repr(error))

    def _take_slot(self) -> bool:
        """Whether it has one now."""
        if not self.running and not self.lane.full:
            self.running = True
            self.lane.running += 1
            self.lane.measured.running.inc()
        return self.running

    def _free_slot(self) -> None:
        if self.running:
            self.running = False
            self.lane.running -= 1
            self.lane.measured.running.dec()
