"""Accepting generations: at most one open in a session, none without room, each exactly once under its Idempotency-Key.

The order is: record → the session's place, by compare-and-set → job → answer. A record that did not get the place is
nothing and is swept away; one that got it and has no job is queued by the sweeper.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

import msgspec
import structlog

from broker.bus.begun import begun
from broker.bus.clock import after_ms, now_ms
from broker.bus.conversation import context, new_input, of_record
from broker.bus.errors import BucketConflict, BusError, BusUnavailable, Refusal, StoreRejected
from broker.bus.frames import Frame
from broker.bus.kv import Bucket, Entry
from broker.bus.log import store
from broker.bus.nats import Bus
from broker.bus.operations import CreateGeneration, Explain, GenerationCreated, Route
from broker.bus.records import Generation, Job, Message, Model, Request, Session, decode, encode
from broker.bus.script import ScriptInvalid, parse_script
from broker.bus.subjects import (
    Cursor,
    is_session_id,
    job_subject,
    new_generation_id,
    node_subject,
    partition_of,
)
from control.admission import Admission
from control.endings import Endings
from control.idempotency import Once, Reserved, Taken
from control.keyring import is_tenant
from control.models import SCRIPTED, Models
from control.partitions import Partitions
from control.settings import ControlSettings

JOB_TRIES = 3
RESERVE_TRIES = 5
TOLD_TIMEOUT = 1.0  # seconds that a conversation may take to be read for the sake of a warm lane
TITLE = 60  # characters of the first prompt

log = structlog.get_logger("control")


class _Ground(NamedTuple):
    """What a generation would stand on: all of it read before anything is written."""

    entry: Entry  # of the session
    session: Session
    model: Model
    incarnation: str
    last: Frame | None


class _Made(Exception):
    """Another attempt under the same Idempotency-Key, thus the same id, got the session's place."""

    def __init__(self, record: Generation) -> None:
        super().__init__(record.id)
        self.record = record


class Generations:
    """Accepts generations and queues their jobs."""

    def __init__(
        self,
        bus: Bus,
        settings: ControlSettings,
        once: Once,
        models: Models,
        partitions: Partitions,
        admission: Admission,
        endings: Endings,
    ) -> None:
        self._bus = bus
        self._once = once
        self._models = models
        self._partitions = partitions
        self._admission = admission
        self._endings = endings
        self._sessions = Bucket(bus, "sessions")
        self._generations = Bucket(bus, "generations", settings.deleted_life)

    async def create(self, question: CreateGeneration) -> GenerationCreated:
        """Raises Refusal as api.md's table has it, and BusError."""
        found: list[_Ground] = []

        async def check() -> None:
            found.append(await self._ground(question))

        async def carry_out(gid: str, reserved: Reserved | None) -> GenerationCreated:
            try:
                ground = found[-1] if reserved is not None else await self._ground_for(question, gid)
                return await self._accept(question, gid, ground, reserved)
            except _Made as made:
                return await self._finish(made.record)

        return await self._once.do(
            question.tenant,
            f"generation_create {question.sid}",
            question,
            question.idempotency_key,
            GenerationCreated,
            new_generation_id,
            check,
            carry_out,
        )

    async def explain(self, question: Explain) -> Route:
        self._models.find(question.model)
        if question.sid and not is_session_id(question.sid):
            raise Refusal("malformed", "not a session id", param="sid")
        told = await self._told(question.sid) if question.sid else []
        return await self._admission.explain(question, told)

    # -- is it possible? -------------------------------------------------------------------------------------------

    async def _ground(self, question: CreateGeneration) -> _Ground:
        """Raises Refusal where this generation cannot be."""
        if not is_session_id(question.sid) or not is_tenant(question.tenant):
            raise Refusal("unknown_session", "there is no such session")
        # The session is read before its log: its revision fences whatever is accepted after this moment.
        async with begun(self._partitions.admit(partition_of(question.sid))) as admitting:
            entry = await self._sessions.get(f"{question.tenant}.{question.sid}")
            if entry is None:
                raise Refusal("unknown_session", "there is no such session")
            session = decode(entry.value, Session)
            model = self._models.choose(question.request.model, session.model)
            _check(question.request, model)
            async with begun(self._admission.look(model.id)) as looking:
                info = await admitting
                last = await self._endings.last_frame(session.id)
                await looking
        if last is not None and not last.terminal:
            raise _running(last.gid)
        if session.running and not (last is not None and last.gid == session.running):
            await self._not_queued(session)
        return _Ground(entry, session, model, info.incarnation, last)

    async def _not_queued(self, session: Session) -> None:
        """The log does not know the session's open generation: raises Refusal if it waits for a worker."""
        entry = await self._generations.get(f"{session.id}.{session.running}")
        if entry is not None and decode(entry.value, Generation).status.open:
            raise _running(session.running)

    # -- making it -------------------------------------------------------------------------------------------------

    async def _ground_for(self, question: CreateGeneration, gid: str) -> _Ground:
        """The ground for an id under which another attempt may have made something, or still makes it: that is looked
        for before and after, and never refused. Raises _Made, Refusal."""
        await self._look_for(question.sid, gid)
        try:
            ground = await self._ground(question)
        except Refusal:  # perhaps for what the other attempt has made meanwhile
            await self._look_for(question.sid, gid)
            raise
        await self._look_for(question.sid, gid)
        return ground

    async def _look_for(self, sid: str, gid: str) -> None:
        """Raises _Made where this id got the session's place, whatever came of it since."""
        entry = await self._generations.get(f"{sid}.{gid}")
        if entry is None:
            return
        record = decode(entry.value, Generation)
        if record.status.open:
            session = await self._sessions.get(f"{record.tenant}.{sid}")
            if session is None or decode(session.value, Session).running != gid:
                # It may just be ending: the place is given up first, then the record is closed.
                last = await self._endings.last_frame(sid)
                if last is None or last.gid != gid:
                    return
        raise _Made(record)

    async def _accept(
        self, question: CreateGeneration, gid: str, ground: _Ground, reserved: Reserved | None
    ) -> GenerationCreated:
        request = msgspec.structs.replace(question.request, model=ground.model.id)
        async with self._admission.place(request.model) as before:
            record, revision, ground = await self._take_place(question, request, gid, ground, reserved)
            lane = await self._lane(record, question.warm_worker)
            await self._queue(record, revision, ground.session.on_disconnect, lane)
        log.info(
            "generation.accepted", sid=record.sid, gid=gid, model=request.model, before=before, worker=lane or "any"
        )
        await self._nudge(record, before)
        return GenerationCreated(gid, str(Cursor(ground.incarnation, record.after)), before, lane)

    async def _finish(self, record: Generation) -> GenerationCreated:
        """The answer to what is accepted already; its job is queued once, however often this is done.

        Raises no Refusal: that would say that nothing was made.
        """
        info = await self._partitions.look(partition_of(record.sid))
        if record.status.open:
            await self._adopt(record)
            session = await self._sessions.get(f"{record.tenant}.{record.sid}")
            policy = decode(session.value, Session).on_disconnect if session else "finish"
            try:
                await queue_job(self._bus, record, policy)
            except StoreRejected as error:  # there is no room now: the sweeper queues what has none
                log.info("generation.not_queued", sid=record.sid, gid=record.id, error=repr(error))
        return GenerationCreated(record.id, str(Cursor(info.incarnation, record.after)))

    async def _adopt(self, record: Generation) -> None:
        """Write its record over, as it is: whoever wrote it takes it back only where nobody has told of it since."""
        key = f"{record.sid}.{record.id}"
        entry = await self._generations.get(key)
        if entry is not None and decode(entry.value, Generation).status.open:
            with contextlib.suppress(BucketConflict):  # it is being written to just so
                await self._generations.update(key, entry.value, entry.revision)

    async def _take_place(
        self, question: CreateGeneration, request: Request, gid: str, ground: _Ground, reserved: Reserved | None
    ) -> tuple[Generation, int, _Ground]:
        for _ in range(RESERVE_TRIES):
            found = await self._reserve(request, gid, ground, reserved)
            if found is not None:
                return *found, ground
            ground = await self._ground_for(question, gid)  # refuses where the change was another generation
        raise Refusal("unavailable", "the session is being changed by too many at once", retry_after=1)

    async def _reserve(
        self, request: Request, gid: str, ground: _Ground, reserved: Reserved | None
    ) -> tuple[Generation, int] | None:
        """The record, then the session's one place; of several that try at once exactly one gets it. With the record
        its revision.

        None: the session, or what is under this id, was changed since it was read.
        """
        session = ground.session
        record = Generation(
            id=gid,
            sid=session.id,
            tenant=session.tenant,
            request=request,
            # The order of turns, whichever replicas accept them: behind all that the session's record knows of.
            created_at=after_ms(session.updated_at),
            after=ground.last.seq if ground.last else 0,
        )
        try:
            revision = await self._write(record, reserved is not None)
        except BucketConflict:
            return None
        if reserved is not None:  # beside the record, which counts for nothing as long as it has no place
            try:
                await reserved()
            except Taken:
                with contextlib.suppress(BusError):  # without a place it is swept away
                    await self._generations.delete(f"{session.id}.{gid}")
                raise
        taken = msgspec.structs.replace(
            session, running=gid, updated_at=record.created_at, title=session.title or _title(request)
        )
        try:
            await self._sessions.update(f"{session.tenant}.{session.id}", encode(taken), ground.entry.revision)
        except BucketConflict:
            now = await self._sessions.get(f"{session.tenant}.{session.id}")
            if now is None or decode(now.value, Session).running != gid:  # else it is the record of who has the place
                with contextlib.suppress(BucketConflict):  # another attempt's since, which may have the place
                    await self._generations.delete(f"{session.id}.{gid}", revision)
            return None
        return record, revision

    async def _write(self, record: Generation, first: bool) -> int:
        """The record's revision: ours alone, even where another attempt wrote under this id. Raises BucketConflict."""
        key = f"{record.sid}.{record.id}"
        there = None if first else await self._generations.get(key)
        if there is None:
            return await self._generations.create(key, encode(record))
        if not decode(there.value, Generation).status.open:
            raise BucketConflict(self._generations.name, key)
        return await self._generations.update(key, encode(record), there.revision)

    async def _lane(self, record: Generation, hint: str) -> str:
        """The worker whose warm lane the job goes to, or "". A hint from the hot cache spares reading what was told.

        The session's place is taken by now: what cannot be read costs a worker one prefill, and never the request.
        """
        request = record.request
        if not self._admission.has_choice(request.model):
            return ""
        if hint and (worker := self._admission.hinted(request.model, hint)):
            return worker
        told = list(request.messages)
        if not request.whole_context:
            try:
                async with asyncio.timeout(TOLD_TIMEOUT):
                    told = await self._told(record.sid)
            except (BusError, msgspec.MsgspecError, TimeoutError) as error:
                log.info("lane.not_looked_for", sid=record.sid, gid=record.id, error=repr(error))
                return ""
        return self._admission.lane(request.model, told).worker

    async def _told(self, sid: str) -> list[Message]:
        """The session's conversation as far as it is recorded: a moment late, as a hint may be."""
        records = [decode(entry.value, Generation) for entry in (await self._generations.all(f"{sid}.*")).values()]
        done = sorted((record for record in records if not record.status.open), key=lambda record: record.created_at)
        return context(of_record(record) for record in done)

    async def _queue(self, record: Generation, revision: int, policy: str, lane: str) -> None:
        """Put the job into the queue, once: `Nats-Msg-Id` is the gid. Raises Refusal, BusUnavailable."""
        try:
            await queue_job(self._bus, record, policy, lane)
        except StoreRejected as error:
            try:
                await self._generations.delete(f"{record.sid}.{record.id}", revision)
            except BucketConflict:  # another attempt has told of it: the sweeper queues what has no job
                log.info("generation.not_queued", sid=record.sid, gid=record.id, error=repr(error))
                return
            await self._sessions.change(f"{record.tenant}.{record.sid}", lambda value: _given_up(value, record.id))
            raise Refusal("overloaded", "the queue is full", retry_after=2) from error

    async def _nudge(self, record: Generation, before: int) -> None:
        event = {
            "sid": record.sid,
            "generation_id": record.id,
            "input": msgspec.to_builtins(new_input(record.request)),
            "position": before,
        }
        try:
            await self._bus.publish(node_subject("all", "queued"), msgspec.json.encode(event))
        except BusUnavailable as error:  # never the only copy of anything
            log.debug("nudge.lost", sid=record.sid, error=str(error))


async def queue_job(bus: Bus, record: Generation, policy: str, lane: str = "", msg_id: str = "") -> None:
    """Publish the job until it is known to be stored. Raises StoreRejected, BusUnavailable."""
    request = record.request
    payload = encode(Job(record.id, record.sid, record.tenant, request, record.after, now_ms(), policy))
    for left in reversed(range(JOB_TRIES)):
        try:
            await store(bus, job_subject(request.model, lane or None), payload, msg_id=msg_id or record.id)
            return
        except BusUnavailable:
            if not left:
                raise


def _running(gid: str) -> Refusal:
    return Refusal("generation_running", f"generation {gid} is open in this session")


def _check(request: Request, model: Model) -> None:
    if not request.messages:
        raise Refusal("malformed", "there is no message", param="messages")
    if model.engine == SCRIPTED:
        said = [message.content for message in request.messages if message.role == "user"]
        try:
            parse_script(said[-1] if said else "")
        except ScriptInvalid as error:
            told_by = "messages" if request.whole_context else "prompt"
            raise Refusal("malformed", error.message, param=error.param or told_by) from error


def _title(request: Request) -> str:
    said = next((message.content for message in request.messages if message.role == "user"), "")
    line = " ".join(said.split())
    return line if len(line) <= TITLE else line[: TITLE - 1] + "…"


def _given_up(value: bytes | None, gid: str) -> bytes | None:
    if value is None or (session := decode(value, Session)).running != gid:
        return None
    return encode(msgspec.structs.replace(session, running=""))
