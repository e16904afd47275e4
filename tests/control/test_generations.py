"""Generations: one open in a session, room for each, each accepted once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import REGISTRY

from broker.bus import operations as ops
from broker.bus.errors import BusUnavailable, Refusal
from broker.bus.kv import Bucket
from broker.bus.log import page
from broker.bus.nats import Bus, Msg
from broker.bus.records import Job, Load, Message, decode
from broker.bus.subjects import job_subject, log_stream, parse_cursor
from broker.bus.warmth import prefix_hash
from control.app import Okome
from control.generations import Generations
from tests.control.okome import (
    SCRIPT,
    TENANT,
    Writer,
    answer,
    connected,
    ended,
    generate,
    generation_record,
    jobs,
    known_to_both,
    last_sequences,
    new_session,
    refused,
    replica,
    session_record,
    until,
    worker,
)
from tests.fixtures.clock import clock_off
from tests.fixtures.nats_server import NatsServer


async def written(bus: Bus) -> list[int]:
    """The last sequences of everything that a refused request must leave alone."""
    names = (await bus.api("STREAM.NAMES"))["streams"]
    return await last_sequences(bus, sorted(name for name in names if name not in ("KV_secrets", "KV_models")))


async def test_an_accepted_generation_has_a_record_a_place_and_a_job(okome: Okome, bus: Bus) -> None:
    nudges: asyncio.Queue[Msg] = asyncio.Queue()
    await bus.subscribe("node.all.queued", nudges.put)
    sid = await new_session(bus, on_disconnect="cancel")
    async with worker(okome, bus):
        made = await generate(bus, sid, "What is\n it?")
    gid = made.generation_id
    record = await generation_record(bus, sid, gid)
    assert record is not None
    assert (record.status, record.after, record.request.model) == ("queued", 0, "m")
    session = await session_record(bus, sid)
    assert session is not None
    assert (session.running, session.title) == (gid, "What is it?")
    (stored,) = await page(bus, "JOBS", "job.*.*", 0)
    assert stored.subject == job_subject("m")
    assert (stored.headers or {})["Nats-Msg-Id"] == gid
    job = decode(stored.data, Job)
    assert (job.gid, job.sid, job.after, job.on_disconnect) == (gid, sid, 0, "cancel")
    assert parse_cursor(made.cursor).sequence == 0
    async with asyncio.timeout(5):
        nudge = json.loads((await nudges.get()).data)
    assert nudge == {
        "sid": sid,
        "generation_id": gid,
        "input": [{"role": "user", "content": "What is\n it?"}],
        "position": 0,
    }


async def test_turns_are_in_the_order_of_their_acceptance_whichever_replicas_clocks_said_when(
    okome: Okome, bus: Bus
) -> None:
    """What a model is told, and what a fresh viewer sees, is ordered by `created_at`: the second turn may have been
    accepted by a replica that is minutes behind the first one's."""
    sid = await new_session(bus)
    times = []
    async with worker(okome, bus):
        for offset in (300, -240, 0):
            with clock_off(offset):
                made = await generate(bus, sid)
                await answer(bus, sid, made, "a")
                await ended(bus, sid, made.generation_id)
            record = await generation_record(bus, sid, made.generation_id)
            assert record is not None
            assert record.ended_at >= record.created_at
            times.append(record.created_at)
    assert times == sorted(set(times))


async def test_the_cursor_stands_before_the_start(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        writer = await answer(bus, sid, await generate(bus, sid), "a", "b")
        made = await generate(bus, sid)
        info = (await bus.api(f"STREAM.INFO.{log_stream(sid[:2])}"))["config"]
        assert made.cursor == f"{info['metadata']['incarnation']}-{writer.prev}"


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"model": "nobody"}, "unknown_model", "model"),
        ({"messages": []}, "malformed", "messages"),
        ({"tenant": "other"}, "unknown_session", None),
        ({"model": "scripted", "messages": [Message("user", "hello")]}, "malformed", "prompt"),
        ({"model": "scripted", "messages": [Message("user", '{"tokens": "many"}')]}, "malformed", "tokens"),
        ({"model": "scripted", "messages": [Message("user", '{"speed": 1}')]}, "malformed", "speed"),
        ({"model": "scripted", "messages": [Message("system", "{}")]}, "malformed", "prompt"),
        (
            {"model": "scripted", "messages": [Message("user", "hello")], "whole_context": True},
            "malformed",
            "messages",
        ),
    ],
)
async def test_a_generation_that_cannot_be_is_refused_and_nothing_is_written(
    okome: Okome, bus: Bus, asked: dict[str, Any], code: str, param: str | None
) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus, "w1", "m"), worker(okome, bus, "w2", "scripted", engine="scripted"):
        before = await written(bus)
        refusal = await refused(bus, sid, key="k", **asked)
        assert (refusal.code, refusal.param) == (code, param)
        assert await written(bus) == before


@pytest.mark.parametrize("sid", ["00nosuchsession", "x", "00.*", ">"])
async def test_a_generation_in_no_session_is_unknown(okome: Okome, bus: Bus, sid: str) -> None:
    async with worker(okome, bus):
        assert (await refused(bus, sid)).code == "unknown_session"


async def test_a_script_is_taken_by_the_scripted_engine(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus, model="")
    async with worker(okome, bus, "w2", "scripted", engine="scripted"):
        made = await generate(bus, sid, SCRIPT, model="")
        record = await generation_record(bus, sid, made.generation_id)
        assert record is not None
        assert record.request.model == "scripted"


async def test_the_real_model_is_the_default_and_the_session_may_name_another(okome: Okome, bus: Bus) -> None:
    async with worker(okome, bus, "w2", "scripted", engine="scripted"), worker(okome, bus, "w1", "m"):
        for session_model, expected in (("", "m"), ("scripted", "scripted")):
            sid = await new_session(bus, model=session_model)
            made = await generate(bus, sid, SCRIPT, model="")
            record = await generation_record(bus, sid, made.generation_id)
            assert record is not None
            assert record.request.model == expected


async def test_a_second_generation_is_refused_while_one_is_queued_or_runs(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        made = await generate(bus, sid)
        before = await written(bus)
        assert (await refused(bus, sid, key="other")).code == "generation_running"
        assert await written(bus) == before
        writer = Writer(bus, sid, made.generation_id, 0)
        await writer.begin()
        await writer.say("a")
        assert (await refused(bus, sid)).code == "generation_running"
        await writer.done()
        # The record is not closed yet: the log's last frame decides.
        assert (await generate(bus, sid)).generation_id != made.generation_id


async def test_a_log_that_runs_refuses_even_if_the_record_does_not_know(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        await Writer(bus, sid, "gelsewhere", 0).begin()
        assert (await refused(bus, sid)).code == "generation_running"


async def test_of_generations_asked_for_at_once_on_two_replicas_exactly_one_wins(fresh_nats: NatsServer) -> None:
    async with (
        replica(fresh_nats.url) as one,
        replica(fresh_nats.url) as two,
        connected(fresh_nats.url) as bus,
        worker(one, bus, slots=100),
    ):
        await until(lambda: "w1" in two.pulse.workers(), "both hear the worker")
        await known_to_both(bus)
        for _ in range(5):
            sid = await new_session(bus)
            tries = await asyncio.gather(*(generate(bus, sid) for _ in range(10)), return_exceptions=True)
            (won,) = [each for each in tries if isinstance(each, ops.GenerationCreated)]
            assert {each.code for each in tries if isinstance(each, Refusal)} == {"generation_running"}
            kept = await Bucket(bus, "generations").all(f"{sid}.*")
            assert list(kept) == [f"{sid}.{won.generation_id}"]
        assert await jobs(bus) == {"job.m.any": 5}


async def test_a_session_patched_at_the_same_moment_does_not_lose_a_generation(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)

    async def patch(number: int) -> None:
        await bus.ask("session_patch", ops.PatchSession(TENANT, sid, title=f"t{number}"), dict, timeout=8)

    async with worker(okome, bus):
        patches = asyncio.gather(*(patch(number) for number in range(3)))
        made = await generate(bus, sid)
        await patches
        session = await session_record(bus, sid)
        assert session is not None
        assert session.running == made.generation_id


# -- room ------------------------------------------------------------------------------


async def test_a_model_without_workers_is_unavailable(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus) as played:
        played.models = ()
        await until(lambda: not okome.pulse.workers()["w1"].models, "it offers nothing any more")
        before = await written(bus)
        refusal = await refused(bus, sid, key="k")
        assert refusal.code == "unavailable"
        assert refusal.retry_after
        after = await written(bus)
        assert sum(after) - sum(before) <= 2  # the key that was reserved and given back
        assert await Bucket(bus, "idempotency").all() == {}
        played.models = ("m",)
        await until(lambda: bool(okome.pulse.workers()["w1"].models), "it offers it again")
        await generate(bus, sid, key="k")  # at once: nobody is waited for who might be at it


async def test_more_than_the_workers_take_is_overload_told_at_once(okome: Okome, bus: Bus) -> None:
    sids = await asyncio.gather(*(new_session(bus) for _ in range(30)))
    async with worker(okome, bus, slots=3, queue=4):
        tries = await asyncio.gather(*(generate(bus, sid) for sid in sids), return_exceptions=True)
    won = [each for each in tries if isinstance(each, ops.GenerationCreated)]
    refusals = [each for each in tries if isinstance(each, Refusal)]
    assert len(won) == 7
    assert {each.code for each in refusals} == {"overloaded"}
    assert all(each.retry_after for each in refusals)
    assert await jobs(bus) == {"job.m.any": 7}
    assert sorted(each.position for each in won) == list(range(7))
    records = [await session_record(bus, sid) for sid in sids]
    assert sum(1 for record in records if record and record.running) == 7


async def test_what_a_worker_that_drains_has_yet_to_finish_takes_no_room_of_the_others(okome: Okome, bus: Bus) -> None:
    """Its slots do not count any more, and neither does what runs in them."""
    async with worker(okome, bus, "w1", slots=3, queue=0) as draining:
        for _ in range(3):
            await generate(bus, await new_session(bus))
        draining.load = Load(0, 3, 0, 0)
        async with worker(okome, bus, "w2", slots=1, queue=1):
            await until(lambda: not okome.pulse.workers()["w1"].models["m"].slots, "it is known to drain")
            assert [(await generate(bus, await new_session(bus))).position for _ in range(2)] == [0, 1]
            assert (await refused(bus, await new_session(bus))).code == "overloaded"

            async def told() -> bool:
                route = await bus.ask("route", ops.Explain("m"), ops.Route)
                return (route.waiting, route.capacity) == (1, 2)

            await until(told, "one waits for the slot of the other")


async def test_what_waits_is_counted_where_workers_have_no_queue_too(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in JOBS then, and no worker knows of it."""
    monkeypatch.setattr("control.app.WAITING_INTERVAL", 0.05)

    def counted() -> float | None:
        return REGISTRY.get_sample_value("okome_control_waiting_jobs", {"model": "m"})

    async with replica(fresh_nats.url) as okome, connected(fresh_nats.url) as bus:
        async with worker(okome, bus, slots=16, queue=0) as w1:
            for _ in range(4):
                await generate(bus, await new_session(bus))
            await until(lambda: counted() == 0, "each has its slot")
            w1.load = Load(1, 1, 0, 0)
            await until(lambda: counted() == 3, "those without a slot wait")
        fresh_nats.freeze()
        await until(lambda: counted() is None, "nobody knows how many wait")
        fresh_nats.thaw()


async def test_a_log_that_is_nearly_full_admits_nothing(fresh_nats: NatsServer) -> None:
    async with (
        replica(fresh_nats.url, partitions=1, log_max_bytes=1024 * 1024) as okome,
        connected(fresh_nats.url) as bus,
        worker(okome, bus),
    ):
        sid, other = await new_session(bus), await new_session(bus)
        writer = Writer(bus, other, "gfills", 0)
        await writer.begin()
        await writer.say("x" * 960_000)
        await asyncio.sleep(0.3)  # a look at the log is used for so long
        refusal = await refused(bus, sid)
        assert (refusal.code, refusal.retry_after) == ("overloaded", 30)


async def test_a_full_queue_is_overload_and_leaves_the_session_free(fresh_nats: NatsServer) -> None:
    async with (
        replica(fresh_nats.url, jobs_max_bytes=1024 * 1024) as okome,
        connected(fresh_nats.url) as bus,
        worker(okome, bus, slots=50),
    ):
        big = "x" * 400_000
        sids = [await new_session(bus) for _ in range(3)]
        await generate(bus, sids[0], big)
        await generate(bus, sids[1], big)
        assert (await refused(bus, sids[2], big)).code == "overloaded"
        session = await session_record(bus, sids[2])
        assert session is not None
        assert session.running == ""
        assert not await Bucket(bus, "generations").all(f"{sids[2]}.*")


# -- lanes ------------------------------------------------------------------------------


async def test_the_worker_that_holds_the_prefix_warm_gets_the_job_while_it_has_room(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus, "w1"), worker(okome, bus, "w2") as second:
        first = await generate(bus, sid, "hello")
        assert first.worker == ""
        await answer(bus, sid, first, "Hi", " there")
        await ended(bus, sid, first.generation_id)
        warm = prefix_hash("m", [Message("user", "hello"), Message("assistant", "Hi there")])
        second.warm = [warm]
        await until(lambda: okome.pulse.workers()["w2"].warm, "its warmth is heard")
        told = await bus.ask("route", ops.Explain("m", sid), ops.Route)
        assert (told.worker, told.subject) == ("w2", "job.m.w2")
        made = await generate(bus, sid, "and then?")
        assert made.worker == "w2"
        assert (await jobs(bus))["job.m.w2"] == 1
        other = await new_session(bus)
        second.load = Load(4, 4, 0, 4)
        await until(lambda: okome.pulse.workers()["w2"].models["m"].running == 4, "it is busy")
        context = [Message("user", "hello"), Message("assistant", "Hi there"), Message("user", "more")]
        assert (await generate(bus, other, messages=context, whole_context=True)).worker == ""


async def test_the_whole_context_of_a_request_finds_its_warm_worker(okome: Okome, bus: Bus) -> None:
    context = [Message("user", "hello"), Message("assistant", "Hi"), Message("user", "more")]
    async with worker(okome, bus, "w1") as first, worker(okome, bus, "w2"):
        first.warm = [prefix_hash("m", context[:2])]
        await until(lambda: okome.pulse.workers()["w1"].warm, "its warmth is heard")
        made = await generate(bus, await new_session(bus), messages=context, whole_context=True)
        assert made.worker == "w1"


async def test_a_hint_from_the_hot_cache_is_taken_only_where_that_worker_is_live_and_has_room(
    okome: Okome, bus: Bus
) -> None:
    async with worker(okome, bus, "w1"), worker(okome, bus, "w2") as second:
        assert (await generate(bus, await new_session(bus), warm="w2")).worker == "w2"
        assert (await generate(bus, await new_session(bus), warm="gone")).worker == ""
        second.load = Load(8, 0, 0, 0)
        await until(lambda: not okome.pulse.workers()["w2"].models["m"].queue_limit, "it has no lane")
        assert (await generate(bus, await new_session(bus), warm="w2")).worker == ""
        second.load = Load(4, 4, 0, 4)
        await until(lambda: okome.pulse.workers()["w2"].models["m"].running == 4, "it is busy")
        assert (await generate(bus, await new_session(bus), warm="w2")).worker == ""


@pytest.mark.parametrize("trouble", ["no answer", "silence", "another version's record"])
async def test_a_conversation_that_cannot_be_read_for_its_lane_costs_no_request(
    okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The session's place is taken by then: a refusal would be of what runs a moment later."""
    sid = await new_session(bus)
    asked: list[str] = []

    async def unread(self: Generations, sid: str) -> list[Message]:
        asked.append(sid)
        if trouble == "silence":
            await asyncio.Event().wait()
        raise BusUnavailable("nobody answers")

    async with worker(okome, bus, "w1"), worker(okome, bus, "w2"):
        if trouble == "another version's record":
            await Bucket(bus, "generations").put(f"{sid}.gother", b"{}")
        else:
            monkeypatch.setattr(Generations, "_told", unread)
        assert (await generate(bus, sid)).worker == ""
        assert asked == ([] if trouble == "another version's record" else [sid])
        assert await jobs(bus) == {"job.m.any": 1}
