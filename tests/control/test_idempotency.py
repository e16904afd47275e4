"""Idempotency-Keys: a repeat gets the first answer, whoever died, was slow, or has no room meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from broker.bus import operations as ops
from broker.bus.clock import now_ms
from broker.bus.errors import Refusal, StoreRejected
from broker.bus.kv import Bucket
from broker.bus.log import store
from broker.bus.nats import Bus
from broker.bus.records import Generation, Message, Request, Session, decode, encode
from broker.bus.subjects import log_stream, log_subject, partition_of
from control import generations
from control.app import Okome
from control.generations import Generations, _Ground, queue_job
from control.idempotency import fingerprint
from tests.control.okome import (
    TENANT,
    Writer,
    answer,
    connected,
    ended,
    generate,
    generation_record,
    jobs,
    last_sequences,
    new_session,
    refused,
    replica,
    session_record,
    until,
    worker,
)
from tests.fixtures.nats_server import NatsServer


async def left_undone(bus: Bus, question: ops.CreateGeneration, gid: str) -> None:
    """The key is again as a replica leaves it that died before it put its answer there."""
    (key,) = await Bucket(bus, "idempotency").all()
    unfinished = {"fingerprint": fingerprint(question), "answer": {}, "reserved": gid}
    await Bucket(bus, "idempotency").put(key, msgspec.json.encode(unfinished))


async def test_a_repeat_gets_the_first_answer_and_makes_nothing(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        first = await generate(bus, sid, key="k")
        assert await generate(bus, sid, key="k") == first
        await answer(bus, sid, first, "a")
        await ended(bus, sid, first.generation_id)
        assert await generate(bus, sid, key="k") == first
        assert await jobs(bus) == {"job.m.any": 1}
        other = await new_session(bus)
        assert (await generate(bus, other, key="k")).generation_id != first.generation_id


async def test_a_repeat_is_answered_whatever_a_new_request_would_be_told(
    okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log cannot be read, or has rubbish at its end; nobody runs the model any more; or whether there could be an
    answer is not known. And it writes nothing."""
    sid = await new_session(bus)
    async with worker(okome, bus) as played:
        first = await generate(bus, sid, key="k")
        played.models = ()
        await until(lambda: not okome.pulse.workers()["w1"].models, "it offers nothing any more")
        kept = ["JOBS", "KV_generations", "KV_idempotency", "KV_sessions"]
        before = await last_sequences(bus, kept)
        assert await generate(bus, sid, key="k") == first
        await store(bus, log_subject(sid), b"rubbish")
        assert await generate(bus, sid, key="k") == first
        await bus.api(f"STREAM.DELETE.{log_stream(partition_of(sid))}")
        assert await generate(bus, sid, key="k") == first

        async def unanswered(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(Generations, "_ground", unanswered)
        assert await generate(bus, sid, key="k") == first
        assert await last_sequences(bus, kept) == before


async def test_a_repeat_that_another_hint_comes_with_is_a_repeat(okome: Okome, bus: Bus) -> None:
    """The node that it comes through knows by then who holds the session warm: the client has asked the same."""
    sid = await new_session(bus)
    async with worker(okome, bus):
        first = await generate(bus, sid, key="k")
        assert await generate(bus, sid, key="k", warm="w1") == first


async def test_another_body_under_the_same_key_is_a_mismatch(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        await generate(bus, sid, "one", key="k")
        assert (await refused(bus, sid, "two", key="k")).code == "idempotency_mismatch"


async def test_repeats_at_once_get_one_answer(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        made = await asyncio.gather(*(generate(bus, sid, key="k") for _ in range(6)))
        assert len({each.generation_id for each in made}) == 1
        assert await jobs(bus) == {"job.m.any": 1}
        assert list(await Bucket(bus, "generations").all(f"{sid}.*")) == [f"{sid}.{made[0].generation_id}"]


async def test_a_refusal_is_not_kept(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        first = await generate(bus, sid, key="a")
        assert (await refused(bus, sid, key="b")).code == "generation_running"
        await answer(bus, sid, first, "x")
        assert (await generate(bus, sid, key="b")).generation_id != first.generation_id


@pytest.mark.parametrize("died_after", ["the key", "the record", "the place", "the job"])
async def test_what_a_dead_replica_left_undone_is_finished_under_the_same_id(
    okome: Okome, bus: Bus, died_after: str
) -> None:
    """Whatever step it reached: one generation, one job, and the repeat gets its id."""
    sid = await new_session(bus)
    question = ops.CreateGeneration(TENANT, sid, Request("m", [Message("user", "hello")]), "k")
    async with worker(okome, bus):
        first = await generate(bus, sid, key="k")
        gid = first.generation_id
        # Back to what a replica leaves that was killed at this point.
        await left_undone(bus, question, gid)
        record = await generation_record(bus, sid, gid)
        session = await session_record(bus, sid)
        assert record is not None
        assert session is not None
        steps = ["the key", "the record", "the place", "the job"]
        reached = steps.index(died_after)
        if reached < 3:
            await bus.api("STREAM.PURGE.JOBS")
        if reached < 2:
            free = msgspec.structs.replace(session, running="")
            await Bucket(bus, "sessions").put(f"{TENANT}.{sid}", msgspec.json.encode(free))
        if reached < 1:
            await Bucket(bus, "generations").delete(f"{sid}.{gid}")
        again = await bus.ask("generation_create", question, ops.GenerationCreated, timeout=10)
        assert (again.generation_id, again.cursor) == (gid, first.cursor)
        kept = await session_record(bus, sid)
        assert kept is not None
        assert kept.running == gid
        made = await generation_record(bus, sid, gid)
        assert isinstance(made, Generation)
        # The queue forgets a message id after two minutes; within them it calls a repeat of a purged job a repeat.
        if reached == 3:
            assert await jobs(bus) == {"job.m.any": 1}
        else:
            await queue_job(bus, made, "finish", msg_id=f"{gid}@0")
            assert await jobs(bus) == {"job.m.any": 1}


async def test_what_was_accepted_is_answered_also_when_nothing_new_would_be(fresh_nats: NatsServer) -> None:
    """A refusal would give the key back, and a repeat would be a first request: of a second answer, or refused for its
    own first one."""
    async with (
        replica(fresh_nats.url, partitions=1, log_max_bytes=1024 * 1024) as okome,
        connected(fresh_nats.url) as bus,
        worker(okome, bus),
    ):
        sid, other = await new_session(bus), await new_session(bus)
        question = ops.CreateGeneration(TENANT, sid, Request("m", [Message("user", "hello")]), "k")
        first = await generate(bus, sid, key="k")
        await left_undone(bus, question, first.generation_id)
        writer = Writer(bus, other, "gfills", 0)
        await writer.begin()
        await writer.say("x" * 960_000)
        await writer.done()
        await asyncio.sleep(0.3)  # a look at the log is used for so long
        assert (await refused(bus, other)).code == "overloaded"
        again = await generate(bus, sid, key="k")
        assert (again.generation_id, again.cursor) == (first.generation_id, first.cursor)
        assert await generate(bus, sid, key="k") == again


async def test_what_was_accepted_is_not_given_up_because_the_queue_is_full_now(fresh_nats: NatsServer) -> None:
    """It may have been taken long ago; and where it never had a job, the sweeper queues it."""
    async with (
        replica(fresh_nats.url, jobs_max_bytes=1024 * 1024) as okome,
        connected(fresh_nats.url) as bus,
        worker(okome, bus, slots=50),
    ):
        sid = await new_session(bus)
        question = ops.CreateGeneration(TENANT, sid, Request("m", [Message("user", "hello")]), "k")
        first = await generate(bus, sid, key="k")
        await left_undone(bus, question, first.generation_id)
        # What the queue forgets after two minutes: that it ever had this job.
        config = (await bus.api("STREAM.INFO.JOBS"))["config"]
        await bus.api("STREAM.DELETE.JOBS")
        await bus.api("STREAM.CREATE.JOBS", config)
        size = 512 * 1024
        while size:
            try:
                await store(bus, "job.other.any", b"x" * size)
            except StoreRejected:
                size //= 2
        assert (await refused(bus, await new_session(bus))).code == "overloaded"
        again = await generate(bus, sid, key="k")
        assert (again.generation_id, again.cursor) == (first.generation_id, first.cursor)
        session = await session_record(bus, sid)
        assert session is not None
        assert session.running == first.generation_id
        assert await generation_record(bus, sid, first.generation_id) is not None


@pytest.mark.parametrize(("bucket", "verb"), [("generations", "create"), ("sessions", "update")])
async def test_an_attempt_that_was_only_slow_undoes_nothing_of_the_one_that_took_over(
    okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch, bucket: str, verb: str
) -> None:
    """It stands still before its record, or before the session's place, for longer than a repeat waits. When it goes
    on, what the repeat has made runs, or has ended already."""
    stood: set[str] = set()
    over = asyncio.Event()
    write = getattr(Bucket, verb)

    async def slow(self: Bucket, key: str, *args: Any) -> int:
        if self.name == bucket and key not in stood:
            stood.add(key)
            await over.wait()
        written: int = await write(self, key, *args)
        return written

    async def reserved() -> bool:
        return len(await Bucket(bus, "idempotency").all()) == 2

    runs, ends = await new_session(bus), await new_session(bus)
    async with worker(okome, bus):
        monkeypatch.setattr(Bucket, verb, slow)
        tries = [asyncio.create_task(generate(bus, sid, key="k")) for sid in (runs, ends)]
        await until(lambda: len(stood) == 2, "both stand still")
        await until(reserved, "beside that, the keys are theirs")
        repeats = await asyncio.gather(*(generate(bus, sid, key="k") for sid in (runs, ends)))
        await answer(bus, ends, repeats[1], "a")
        await ended(bus, ends, repeats[1].generation_id)
        over.set()
        for first, repeat in zip(await asyncio.gather(*tries), repeats, strict=True):
            assert (first.generation_id, first.cursor) == (repeat.generation_id, repeat.cursor)
        running = await generation_record(bus, runs, repeats[0].generation_id)
        done = await generation_record(bus, ends, repeats[1].generation_id)
        assert running is not None
        assert running.status.open
        assert done is not None
        assert (done.status, done.text) == ("done", "a")
        for sid, open_one in ((runs, running.id), (ends, "")):
            session = await session_record(bus, sid)
            assert session is not None
            assert session.running == open_one
        assert await jobs(bus) == {"job.m.any": 2}


@pytest.fixture
async def accepted(okome: Okome, bus: Bus) -> tuple[Generations, Generation, int]:
    """What accepts generations, and one that it has written down and given its session's place; its revision."""
    made = Generations(bus, okome.settings, *[cast(Any, None)] * 5)
    sid = await new_session(bus)
    record = Generation("g1", sid, TENANT, Request("m", [Message("user", "x")]), now_ms(), 0)
    revision = await Bucket(bus, "generations").create(f"{sid}.g1", encode(record))
    session = await session_record(bus, sid)
    assert session is not None
    await Bucket(bus, "sessions").put(f"{TENANT}.{sid}", encode(msgspec.structs.replace(session, running="g1")))
    return made, record, revision


async def test_who_took_over_leaves_the_record_to_the_one_who_has_the_place(
    bus: Bus, accepted: tuple[Generations, Generation, int]
) -> None:
    """Both write under the same id, and the first one gets the place in between."""
    made, record, _ = accepted
    entry = await Bucket(bus, "sessions").get(f"{TENANT}.{record.sid}")
    assert entry is not None
    before = msgspec.structs.replace(decode(entry.value, Session), running="")
    ground = _Ground(entry._replace(revision=entry.revision - 1), before, cast(Any, None), "inc", None)
    assert await made._reserve(record.request, "g1", ground, None) is None
    assert await generation_record(bus, record.sid, "g1") is not None


@pytest.mark.parametrize("told", [True, False])
async def test_a_full_queue_takes_back_only_what_nobody_else_has_told_of(
    bus: Bus, accepted: tuple[Generations, Generation, int], monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    made, record, revision = accepted

    async def full(*_: Any) -> None:
        raise StoreRejected(10077, "maximum bytes exceeded")

    monkeypatch.setattr(generations, "queue_job", full)
    if told:
        await made._adopt(record)
        await made._queue(record, revision, "finish", "")
    else:
        with pytest.raises(Refusal, match="queue is full"):
            await made._queue(record, revision, "finish", "")
    session = await session_record(bus, record.sid)
    assert session is not None
    there = await generation_record(bus, record.sid, "g1")
    assert (session.running, there is not None) == (("g1", True) if told else ("", False))
