"""The worker: engines on one side, jobs on the other, and what it tells the others of itself."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import msgspec
import structlog

from broker.bus import store_health
from broker.bus.clock import now_ms
from broker.bus.errors import BusError, BusUnavailable, StoreRejected
from broker.bus.garbage import Turnover
from broker.bus.health import Health
from broker.bus.jobs import ACK_WAIT
from broker.bus.kv import Bucket
from broker.bus.nats import Bus, Msg
from broker.bus.queue import Delivery
from broker.bus.records import Beat, Job, Load, Model, decode, encode
from broker.bus.retry import retry
from broker.bus.subjects import encode as encode_name
from broker.bus.subjects import log_stream, partition_of, random_id, worker_subject
from broker.bus.unless import unless
from broker.bus.warmth import prefix_hash
from gpu_worker.answer import Lane, Place
from gpu_worker.cadence import Cadence
from gpu_worker.engines import Engine
from gpu_worker.held import Held
from gpu_worker.intake import Intake
from gpu_worker.interruption import Interrupt
from gpu_worker.metrics import INTERVAL, WAITING, Measured
from gpu_worker.publishing import Publishing
from gpu_worker.pulse import Pulse
from gpu_worker.settings import WorkerSettings

IN_PROGRESS_INTERVAL = ACK_WAIT / 3
WATCH_INTERVAL = 1.0
PROVISIONED_INTERVAL = 0.5  # between two looks whether OKOME has made the streams
WARM_PREFIXES = 32
LOOKS = 256  # reads of records per interval; with more jobs than that, they take turns
UNKNOWN_DELAY = 0.5  # seconds until a job is offered again that is in the queue of another model than its own

log = structlog.get_logger("worker")


class _Demand(msgspec.Struct):
    sids: list[str]
    node: str
    state: str


class _Cancel(msgspec.Struct):
    gid: str


class Worker:
    """One worker process. `run(stop)` serves until `stop` is set, then drains."""

    def __init__(self, bus: Bus, id: str, engines: Iterable[Engine], settings: WorkerSettings, health: Health) -> None:
        self.id = id
        self.instance = random_id(8)
        self.drain_asked = asyncio.Event()
        self.serving = asyncio.Event()
        self._bus = bus
        self._settings = settings
        self._health = health
        self._lanes = {card.id: Lane(card, engine, Measured(card.id)) for engine in engines for card in engine.cards}
        self._held: dict[str, Held] = {}
        self._by_session: dict[str, Held] = {}  # at most one generation runs in a session
        self._tasks: set[asyncio.Task[None]] = set()
        self._warm: OrderedDict[str, None] = OrderedDict()
        self._pulse = Pulse(bus, id, self._beat)
        publishing = Publishing(
            bus,
            batch_from=settings.batch_from,
            cadence=Cadence(settings.frame_interval, settings.collect_above),
        )
        WAITING.set_function(lambda: publishing.turns.waiting)
        INTERVAL.set_function(lambda: publishing.cadence.interval)
        self._place = Place(id, settings, Bucket(bus, "generations"), self._pulse, publishing)
        self._intakes = {
            model: Intake(bus, id, model, lane.card.slots, lane.card.queue_limit, partial(self._receive, model))
            for model, lane in self._lanes.items()
        }
        self._turnover = Turnover()
        self._looked_at = 0
        self._draining = False

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set or a drain is asked for; returns when nothing is held any more."""
        self._health.set("starting", "waiting for streams and buckets")
        if not await unless(stop, self._provisioned()):
            return
        async with AsyncExitStack() as stack:
            for command, callback in (
                ("cancel", self._on_cancel),
                ("demand", self._on_demand),
                ("drain", self._on_drain),
            ):
                subscription = await self._bus.subscribe(worker_subject(self.id, command), callback)
                stack.push_async_callback(self._bus.unsubscribe, subscription)
            await self._pulse.start()
            stack.push_async_callback(self._pulse.close)
            for interval, chore in (
                (IN_PROGRESS_INTERVAL, self._put_off_redelivery),
                (self._settings.cancel_interval, self._look_for_cancels),
                (WATCH_INTERVAL, self._look_around),
            ):
                stack.push_async_callback(_cancelled, asyncio.create_task(_every(interval, chore)))
            if not await unless(stop, self._heard_by_nats()):
                return
            for intake in self._intakes.values():
                await intake.start()
                stack.push_async_callback(intake.close)
            self._health.set("starting", None)
            self.serving.set()
            log.info("worker.started", worker=self.id, instance=self.instance, models=list(self._lanes))
            await unless(stop, self.drain_asked.wait())
            await self._drain()

    @property
    def held(self) -> dict[str, Held]:
        """What is in this worker's hands, by gid."""
        return self._held

    # -- starting ----------------------------------------------------------------------------------------------------

    async def _provisioned(self) -> bool:
        """Register the models and make the consumers, as soon as OKOME has made what they live in."""
        models = Bucket(self._bus, "models")

        async def prepare() -> None:
            for model, lane in self._lanes.items():
                card = lane.card
                record = Model(card.id, card.engine, card.context_length, now_ms())
                await models.change(encode_name(model), lambda old, new=record: _newer(old, new))  # type: ignore[misc]
                await self._intakes[model].prepare()

        def waiting(error: Exception) -> None:
            log.debug("worker.not_provisioned", error=repr(error))
            self._health.set("starting", f"waiting for streams and buckets: {error}")

        await retry(
            prepare,
            again=lambda error: isinstance(error, (BusUnavailable, StoreRejected)),
            unanswered=waiting,
            pause=PROVISIONED_INTERVAL,
        )
        return True

    async def _heard_by_nats(self) -> bool:
        """Subscriptions count once the server has read them, which it has when it answers what was sent after them."""
        await retry(
            lambda: self._bus.api("INFO"),
            again=lambda error: isinstance(error, BusError),
            unanswered=lambda error: log.debug("worker.not_heard", error=repr(error)),
            pause=PROVISIONED_INTERVAL,
        )
        return True

    # -- jobs --------------------------------------------------------------------------------------------------------

    def _receive(self, model: str, delivery: Delivery) -> None:
        """A job has been delivered, by a queue of that model: an invitation."""
        try:
            job = decode(delivery.data, Job)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # the last: nested too deeply
            log.error("worker.job_malformed", subject=delivery.subject, error=str(error))
            self._spawn(_drop(delivery))  # nobody can ever carry it out
            self._top_up(model)
            return
        held = self._held.get(job.gid)
        if held is not None and held.adopt(delivery):
            if held.ours:
                self._pulse.beat_soon(job.gid, held.reply)
            self._top_up(model)  # its credit is free again
            return
        lane = self._lanes.get(job.request.model)
        if lane is None or held is not None or self._draining or lane.held >= lane.capacity:
            # What comes although there is no room is not asked for again, so that it does not come here for ever.
            self._spawn(_return(delivery, UNKNOWN_DELAY if lane is None else 0.0))
            self._top_up(model)
            return
        held = self._held[job.gid] = self._by_session[job.sid] = Held(self._place, lane, job, delivery)
        lane.held += 1
        lane.measured.held.inc()
        self._spawn(self._hold(held))
        self._top_up(model)  # by the lane came what the common queue may not bring now

    async def _hold(self, held: Held) -> None:
        model = held.lane.card.id
        try:
            await held.run()
        finally:
            held.lane.held -= 1
            held.lane.measured.held.dec()
            del self._held[held.job.gid]
            if self._by_session.get(held.job.sid) is held:
                del self._by_session[held.job.sid]
            self._turnover.ended(len(self._held))
            if held.conversation:
                self._keep_warm(prefix_hash(model, held.conversation))
            self._top_up(model)

    def _top_up(self, model: str) -> None:
        """Ask for what there is room for: nothing any more while this worker drains."""
        if not self._draining:
            lane = self._lanes[model]
            self._intakes[model].top_up(lane.held, lane.aside)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what it says ------------------------------------------------------------------------------------------------

    def _beat(self) -> Beat:
        models = {}
        for model, lane in self._lanes.items():
            running = lane.running
            slots, queue_limit = (0, 0) if self._draining else (lane.card.slots, lane.card.queue_limit)
            models[model] = Load(slots, running, lane.held - lane.aside - running, queue_limit)
        replies = {gid: held.reply for gid, held in self._held.items() if held.ours}
        return Beat(self.id, self.instance, now_ms(), models, replies, list(self._warm))

    def _keep_warm(self, prefix: str) -> None:
        self._warm[prefix] = None
        self._warm.move_to_end(prefix)
        if len(self._warm) > WARM_PREFIXES:
            self._warm.popitem(last=False)

    # -- what it is told ---------------------------------------------------------------------------------------------

    async def _on_cancel(self, msg: Msg) -> None:
        try:
            gid = msgspec.json.decode(msg.data, type=_Cancel).gid
        except msgspec.DecodeError:
            log.warning("worker.nudge_malformed", subject=msg.subject)
            return
        if held := self._held.get(gid):
            self._spawn(held.check_cancel())

    async def _on_demand(self, msg: Msg) -> None:
        try:
            demand = msgspec.json.decode(msg.data, type=_Demand)
        except msgspec.DecodeError:
            log.warning("worker.nudge_malformed", subject=msg.subject)
            return
        for sid in demand.sids:
            if held := self._by_session.get(sid):
                held.demand(demand.node, demand.state)

    async def _on_drain(self, _: Msg) -> None:
        self.drain_asked.set()

    # -- chores ------------------------------------------------------------------------------------------------------

    async def _put_off_redelivery(self) -> None:
        for number, held in enumerate(list(self._held.values())):
            await held.in_progress()
            if number % 64 == 63:
                await asyncio.sleep(0)  # tokens go first

    async def _look_for_cancels(self) -> None:
        """One read per held job: that is bounded by this worker's load; a watch on `generations` is not, it would bring
        every generation of the system to every worker."""
        held_now = list(self._held.values())
        first = self._looked_at % max(1, len(held_now))
        for held in (held_now[first:] + held_now[:first])[:LOOKS]:
            await held.check_cancel()
        self._looked_at = first + LOOKS

    async def _look_around(self) -> None:
        store_health.tell(self._health, self._bus.storing, asyncio.get_running_loop().time())
        self._health.set("nats", None if self._bus.round_trip_ok else "NATS does not answer")
        for held in self._held.values():
            held.check_abandoned()
        for model, lane in self._lanes.items():
            if lane.aside:
                self._top_up(model)
        await self._look_at_reserves()

    async def _look_at_reserves(self) -> None:
        """Once a second and partition that is written to."""
        reserve = self._place.publishing.reserve
        used = {log_stream(partition_of(held.job.sid)) for held in self._held.values() if held.running}
        reserve.forget(used)
        for stream in used:
            await reserve.learn(stream)

    # -- ending ------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Take no more, give back what has no slot, let what runs finish until a deadline, then leave it to others."""
        self._draining = True
        self._health.set("draining", "this worker is leaving")
        deadline = asyncio.get_running_loop().time() + self._settings.drain_timeout
        log.info("worker.draining", held=len(self._held))
        for intake in self._intakes.values():
            await intake.close()
        for held in list(self._held.values()):
            if not held.running:
                held.interrupt(Interrupt.LEAVING)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        left = list(self._held.values())
        for held in left:
            held.interrupt(Interrupt.LEAVING)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=2.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        log.info("worker.drained", left=len(left))


def _newer(old: bytes | None, new: Model) -> bytes | None:
    """The record to write, or None where the same model is registered already."""
    if old is not None:
        known = decode(old, Model)
        if (known.engine, known.context_length) == (new.engine, new.context_length):
            return None
    return encode(new)


async def _every(interval: float, chore: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(interval)
        try:
            await chore()
        except BusError as error:
            log.debug("worker.chore_put_off", chore=chore.__name__, error=repr(error))
        except Exception as error:  # the safety net of this task: without its chores a worker would lose its jobs
            log.error("worker.chore_failed", chore=chore.__name__, exc_info=error)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _drop(delivery: Delivery) -> None:
    try:
        await delivery.ack()
    except BusError as error:
        log.warning("worker.ack_unanswered", error=repr(error))


async def _return(delivery: Delivery, delay: float) -> None:
    try:
        await delivery.nak(delay)
    except BusError as error:
        log.warning("worker.job_not_given_back", error=repr(error))
