"""What dies in between is finished: by any replica, once, and fenced against whoever comes back late."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest

from broker.bus.attempts import barren_epochs
from broker.bus.chain import Chain
from broker.bus.clock import now_ms
from broker.bus.errors import StoreRejected, WrongLastSequence
from broker.bus.frames import Frame
from broker.bus.jobs import consumer_name, ensure_consumer
from broker.bus.kv import Bucket
from broker.bus.log import last, page, store
from broker.bus.nats import Bus
from broker.bus.queue import Delivery, Queue
from broker.bus.records import Generation, Job, Load, Message, Request, decode, encode
from broker.bus.subjects import JOBS_STREAM, log_stream, log_subject, partition_of
from control.app import Okome
from control.lanes import empty_lane
from control.sweeper import SETTLE
from control.transcript import closed
from tests.control.okome import (
    DEADLINE,
    TENANT,
    Writer,
    answer,
    cancel,
    connected,
    ended,
    frames,
    generate,
    generation_record,
    jobs,
    known_to_both,
    new_session,
    replica,
    session_record,
    status_of,
    until,
    worker,
)
from tests.fixtures.nats_server import NatsServer


def whole(log: list[Frame]) -> None:
    """The log is a chain: every frame follows the one before."""
    chain = Chain()
    for frame in log:
        chain.advance(frame)
    assert not chain.open


async def test_an_ended_generation_is_recorded_once_from_its_log(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        made = await generate(bus, sid)
        gid = made.generation_id
        assert await ended(bus, sid, gid) == {"closed": False}
        writer = Writer(bus, sid, gid, 0)
        await writer.begin()
        await writer.say("a", "b", "c")
        await writer.write("usage", {"prompt_tokens": 5, "completion_tokens": 3})
        await writer.done()
        told = await asyncio.gather(*(ended(bus, sid, gid) for _ in range(5)))
        assert all(each == {"closed": True} for each in told)
        record = await generation_record(bus, sid, gid)
        assert record is not None
        assert (record.status, record.text, record.finish_reason) == ("done", "abc", "stop")
        assert (record.prompt_tokens, record.completion_tokens, record.last_seq) == (5, 3, writer.prev)
        assert 0 < record.first_seq < record.last_seq
        session = await session_record(bus, sid)
        assert session is not None
        assert session.running == ""
        assert session.updated_at >= record.created_at


async def test_the_end_of_one_generation_leaves_the_place_of_the_next(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        first = await generate(bus, sid)
        await answer(bus, sid, first, "a")
        second = await generate(bus, sid)
        await ended(bus, sid, first.generation_id)
        session = await session_record(bus, sid)
        assert session is not None
        assert session.running == second.generation_id


async def test_an_end_that_nobody_told_is_found(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        made = await generate(bus, sid)
        await answer(bus, sid, made, "a")
        record = await until(lambda: status_of(bus, sid, made.generation_id), "the sweeper closes it")
        assert record.text == "a"


async def test_a_queued_generation_that_is_cancelled_ends_without_a_worker(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    async with worker(okome, bus):
        made = await generate(bus, sid)
        await cancel(bus, sid, made.generation_id)
        record = await until(lambda: status_of(bus, sid, made.generation_id), "it is cancelled")
    assert record.status == "cancelled"
    log = await frames(bus, sid)
    assert [frame.type for frame in log] == ["start", "cancelled"]
    assert log[0].fields()["input"] == [{"role": "user", "content": "hello"}]
    whole(log)


async def test_the_start_that_okome_writes_tells_only_what_is_new(okome: Okome, bus: Bus) -> None:
    """As a worker's does: of a request that brings its whole context, the messages behind the last answer."""
    sid = await new_session(bus)
    told = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    async with worker(okome, bus):
        made = await generate(bus, sid, messages=told, whole_context=True)
        await cancel(bus, sid, made.generation_id)
        await until(lambda: status_of(bus, sid, made.generation_id), "it is cancelled")
    log = await frames(bus, sid)
    assert log[0].fields()["input"] == [{"role": "user", "content": "three"}]


async def test_a_generation_that_no_worker_takes_expires(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, job_wait=1) as okome, connected(fresh_nats.url) as bus:
        sid = await new_session(bus)
        async with worker(okome, bus):
            made = await generate(bus, sid)
            record = await until(lambda: status_of(bus, sid, made.generation_id), "it expires")
            assert (record.status, record.code) == ("expired", "expired")
            log = await frames(bus, sid)
            assert [frame.type for frame in log] == ["start", "expired"]
            whole(log)
            # a worker that comes late is fenced
            with pytest.raises(WrongLastSequence):
                await Writer(bus, sid, made.generation_id, 0).begin()
            assert (await generate(bus, sid)).generation_id != made.generation_id


async def test_a_begun_generation_that_nobody_goes_on_with_expires_behind_its_prefix(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, job_wait=1) as okome, connected(fresh_nats.url) as bus:
        sid = await new_session(bus)
        async with worker(okome, bus) as played:
            made = await generate(bus, sid)
            played.held[made.generation_id] = "$JS.ACK.x"
            await played.say()
            await until(lambda: okome.pulse.holder(made.generation_id), "it is held")
            writer = Writer(bus, sid, made.generation_id, 0)
            await writer.begin()
            await writer.say("a", "b")
            played.held.clear()
            record = await until(lambda: status_of(bus, sid, made.generation_id), "it expires")
            assert (record.status, record.text) == ("expired", "ab")
            log = await frames(bus, sid)
            assert (log[-1].epoch, log[-1].offset) == (2, 2)
            whole(log)
            with pytest.raises(WrongLastSequence):
                await writer.say("c")


GARBAGE = [
    "okome/not a frame",
    "okome/9 token {gid} 1 aaaaaaaa {prev} 0 1\n{{}}",
    "okome/1 token other 1 aaaaaaaa {prev} 0 1\n{{}}",  # of a generation that nobody knows, and that does not end
]
NOTHING_SAID = [
    f"okome/1 token {{gid}} 1 aaaaaaaa {{prev}} 0 1\n{data}"
    for data in ("not JSON", "[]", '{{"n": 1}}', '{{"text": 7, "n": 1}}')
]


async def test_a_generation_whose_log_cannot_be_gone_on_with_ends_in_its_record(fresh_nats: NatsServer) -> None:
    """What cannot be read can be followed by no terminal: session and job are not held up for ever by that, the others
    are swept as ever, and OKOME lives, which would meet the same frame again at its next start."""
    async with replica(fresh_nats.url, job_wait=1) as okome, connected(fresh_nats.url) as bus:
        sid = await new_session(bus)
        sids = [await new_session(bus) for _ in GARBAGE + NOTHING_SAID]
        async with worker(okome, bus, slots=20):
            stored = {}
            for one, garbage in zip(sids, GARBAGE + NOTHING_SAID, strict=True):
                made = await generate(bus, one)
                writer = Writer(bus, one, made.generation_id, 0)
                await writer.begin()
                frame = garbage.format(gid=made.generation_id, prev=writer.prev).encode()
                await store(bus, log_subject(one), frame)
                stored[one] = made.generation_id, frame
            beside = await generate(bus, sid)
            for one, (gid, frame) in stored.items():
                record = await until(lambda one=one, gid=gid: status_of(bus, one, gid), "it is closed")  # type: ignore[misc]
                assert (record.status, record.code) == ("failed", "log_unreadable")
                assert record.ended_at > record.created_at
                session = await session_record(bus, one)
                assert session is not None
                assert session.running == ""
                end = await last(bus, log_stream(partition_of(one)), log_subject(one))
                assert end is not None
                assert one not in sids[: len(GARBAGE)] or end.data == frame, "nothing was written behind it"
            swept = await until(lambda: status_of(bus, sid, beside.generation_id), "the other one expires")
            assert swept.status == "expired"


async def test_what_a_live_worker_holds_is_left_alone(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, job_wait=0.5) as okome, connected(fresh_nats.url) as bus:
        held, free = await new_session(bus), await new_session(bus)
        async with worker(okome, bus) as played:
            kept = await generate(bus, held)
            played.held[kept.generation_id] = "$JS.ACK.x"
            await played.say()
            lost = await generate(bus, free)
            await until(lambda: status_of(bus, free, lost.generation_id), "the other one expires")
            assert await frames(bus, held) == []


async def test_what_was_held_does_not_expire_with_its_holder_however_old_it_is(fresh_nats: NatsServer) -> None:
    """It was not begun there, and has yet to be offered to another worker."""
    async with replica(fresh_nats.url, job_wait=2) as okome, connected(fresh_nats.url) as bus:
        sid, loop = await new_session(bus), asyncio.get_running_loop()
        async with worker(okome, bus) as played:
            accepted = loop.time()
            made = await generate(bus, sid)
            played.held[made.generation_id] = "$JS.ACK.x"
            await until(lambda: loop.time() > accepted + 2, "it is older than job_wait")
            lost = loop.time()
            played.held.clear()
            record = await until(lambda: status_of(bus, sid, made.generation_id), "it expires in the end")
            assert record.status == "expired"
            assert loop.time() - lost > 1.5


async def test_what_everybody_takes_and_gives_back_expires(fresh_nats: NatsServer) -> None:
    """As one that nobody can begin: each holds it for a moment."""
    async with replica(fresh_nats.url, job_wait=2) as okome, connected(fresh_nats.url) as bus:
        sid = await new_session(bus)
        async with worker(okome, bus) as played, asyncio.TaskGroup() as tasks:
            gid = (await generate(bus, sid)).generation_id

            async def take_and_give_back() -> None:
                while True:
                    played.held[gid] = "$JS.ACK.x"
                    await asyncio.sleep(0.4)
                    played.held.clear()
                    await asyncio.sleep(0.8)

            taking = tasks.create_task(take_and_give_back())
            assert (await until(lambda: status_of(bus, sid, gid), "it expires")).status == "expired"
            taking.cancel()


async def test_a_generation_without_a_job_is_queued(okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replica died before it could."""
    monkeypatch.setattr("control.sweeper.QUEUED_BY_NOW", 0.5)
    monkeypatch.setattr("control.verdicts.QUEUED_BY_NOW", 0.5)
    sid = await new_session(bus)
    async with worker(okome, bus):
        request = Request("m", [Message("user", "x")])
        record = Generation("gorphan", sid, TENANT, request, now_ms(), 0)
        session = await session_record(bus, sid)
        assert session is not None
        # The place first: a record that is seen without it for so long as the test allows is forgotten.
        await Bucket(bus, "sessions").put(
            f"{TENANT}.{sid}", encode(msgspec.structs.replace(session, running="gorphan"))
        )
        await Bucket(bus, "generations").put(f"{sid}.gorphan", encode(record))
        await until(lambda: jobs(bus), "it is queued")
        assert await jobs(bus) == {"job.m.any": 1}


async def test_a_record_that_never_got_the_place_is_forgotten(
    okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.verdicts.QUEUED_BY_NOW", 0.5)
    sid = await new_session(bus)
    record = Generation("gloser", sid, TENANT, Request("m", [Message("user", "x")]), now_ms(), 0)
    await Bucket(bus, "generations").put(f"{sid}.gloser", encode(record))

    async def gone() -> bool:
        return await generation_record(bus, sid, "gloser") is None

    await until(gone, "it is forgotten")
    assert await jobs(bus) == {}
    assert await frames(bus, sid) == []


async def test_a_generation_that_ends_while_the_lanes_are_looked_at_is_passed_over(
    okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was seen to hold it, and before it is looked at its record says that it has ended: the sweeper goes on."""
    sweeper = okome.sweeper
    swept = 0
    async with worker(okome, bus):
        made = await generate(bus, await new_session(bus))
        loop = asyncio.get_running_loop()
        await until(
            lambda: loop.time() - sweeper._unheld.get(made.generation_id, loop.time()) > SETTLE, "nobody holds it"
        )

        async def meanwhile_it_ends(now: float) -> None:
            nonlocal swept
            swept += 1
            sweeper._looked_at.clear()
            sweeper._open.records.pop(made.generation_id, None)

        monkeypatch.setattr(sweeper, "_sweep_lanes", meanwhile_it_ends)
        await until(lambda: swept > 2, "it sweeps on")


async def test_the_jobs_in_a_dead_workers_lane_go_to_the_common_queue(okome: Okome, bus: Bus) -> None:
    async with worker(okome, bus, "w1"):
        await ensure_consumer(bus, "m", "w1")
        await ensure_consumer(bus, "m", "gone")
        for number in range(3):
            await store(bus, "job.m.gone", b"%d" % number, msg_id=f"g{number}")
        await store(bus, "job.m.w1", b"mine", msg_id="gmine")

        async def moved() -> bool:
            return await jobs(bus) == {"job.m.any": 3, "job.m.w1": 1}

        await until(moved, "the lane is empty")


async def test_a_worker_that_drains_keeps_of_its_lane_only_what_it_holds(okome: Okome, bus: Bus) -> None:
    """It takes no more jobs and beats on until the last one is done, for minutes perhaps."""
    async with worker(okome, bus, "w1"), worker(okome, bus, "w2") as leaving:
        made = [await generate(bus, await new_session(bus), warm="w2") for _ in range(3)]
        assert await jobs(bus) == {"job.m.w2": 3}
        leaving.held = {made[1].generation_id: "held"}
        leaving.load = Load(0, 1, 0, 0)

        async def moved() -> bool:
            return await jobs(bus) == {"job.m.any": 2, "job.m.w2": 1}

        await until(moved, "what nobody holds is moved")
        rounds = okome.sweeper._looked_at.copy()
        await until(lambda: okome.sweeper._looked_at != rounds, "it sweeps on")
        assert await moved()
        (kept,) = await page(bus, JOBS_STREAM, "job.m.w2", 0)
        assert (kept.headers or {})["Nats-Msg-Id"] == made[1].generation_id


async def test_a_lane_that_cannot_be_emptied_keeps_nobody_else_waiting(
    okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def refused(bus: Bus, subject: str, *rest: Any) -> int:
        tried.append(subject)
        if subject == "job.m.gone1":
            raise StoreRejected(10077, "maximum bytes exceeded")
        return await empty_lane(bus, subject, *rest)

    monkeypatch.setattr("control.sweeper.empty_lane", refused)
    async with worker(okome, bus):
        for lane in ("gone1", "gone2"):
            await store(bus, f"job.m.{lane}", b"job", msg_id=lane)
        sid = await new_session(bus)
        made = await generate(bus, sid)
        await answer(bus, sid, made, "a")
        await until(lambda: status_of(bus, sid, made.generation_id), "the sweeper closes it")
        assert "job.m.gone1" in tried

        async def moved() -> bool:
            return await jobs(bus) == {"job.m.any": 2, "job.m.gone1": 1}

        await until(moved, "the other lane is empty")


async def test_two_that_empty_a_lane_at_once_move_every_job_once(okome: Okome, bus: Bus) -> None:
    """The slower one finds jobs deleted, among others that stay, at the queue's beginning and at its end."""
    async with worker(okome, bus, "w1"):
        for number in range(12):
            await store(bus, "job.m.gone", b"%d" % number, msg_id=f"g{number}")
            if number % 2:
                await store(bus, "job.m.w1", b"mine", msg_id=f"mine{number}")
        await asyncio.gather(*(empty_lane(bus, "job.m.gone") for _ in range(3)))
        assert await jobs(bus) == {"job.m.any": 12, "job.m.w1": 6}


async def test_a_job_whose_holder_died_unheard_is_delivered_again_long_before_ack_wait(okome: Okome, bus: Bus) -> None:
    """As after everything was killed at once: nobody who lives has ever heard who held it."""
    deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
    async with worker(okome, bus) as alive:
        await ensure_consumer(bus, "m")
        queue = Queue(bus, JOBS_STREAM, consumer_name("m"), deliveries.put_nowait)
        await queue.start()
        queue.want(2)
        held, lost = await generate(bus, await new_session(bus)), await generate(bus, await new_session(bus))
        async with asyncio.timeout(DEADLINE):
            first = {decode(one.data, Job).gid: one for one in (await deliveries.get(), await deliveries.get())}
            alive.held[held.generation_id] = first[held.generation_id].reply
            queue.want(1)
            again = await deliveries.get()
        assert (decode(again.data, Job).gid, again.attempts) == (lost.generation_id, 2)
        assert deliveries.empty()  # what a live worker holds stays with it
        await queue.close()


async def test_two_sweepers_at_once_end_a_generation_once(fresh_nats: NatsServer) -> None:
    async with (
        replica(fresh_nats.url, job_wait=0.5) as one,
        replica(fresh_nats.url, job_wait=0.5) as two,
        connected(fresh_nats.url) as bus,
        worker(one, bus),
    ):
        for okome in (one, two):
            okome.sweeper._pulse = _Always(okome)  # type: ignore[assignment]
        await known_to_both(bus)
        sids = [await new_session(bus) for _ in range(6)]
        made = await asyncio.gather(*(generate(bus, sid) for sid in sids))
        for sid, each in zip(sids, made, strict=True):
            gid = each.generation_id
            await until(lambda sid=sid, gid=gid: status_of(bus, sid, gid), "it expires")  # type: ignore[misc]
            log = await frames(bus, sid)
            assert sum(frame.terminal for frame in log) == 1
            whole(log)


class _Always:
    """A pulse that always says that its replica is the active one."""

    def __init__(self, okome: Okome) -> None:
        self._pulse = okome.pulse

    def active(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pulse, name)


async def test_only_the_first_replica_sweeps_and_the_next_one_follows(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, id="b") as second, connected(fresh_nats.url):
        assert second.pulse.active()
        async with replica(fresh_nats.url, id="a") as first:
            await until(lambda: first.pulse.active() and not second.pulse.active(), "the first one leads")
        await until(second.pulse.active, "the second one takes over")


# -- pure ------------------------------------------------------------------------------


def frame(seq: int, kind: str, gid: str = "g", epoch: int = 1, offset: int = 0, n: int = 0, **data: Any) -> Frame:
    return Frame(seq, kind, gid, epoch, "a", seq - 1, offset, n, msgspec.json.encode(data))


def test_epochs_without_a_token_are_counted_from_the_end() -> None:
    start, token, attempt = frame(1, "start"), frame(2, "token", n=1), frame(3, "attempt")
    for log, count in (([start], 1), ([start, token], 0), ([start, token, attempt], 1), ([start, *[attempt] * 3], 4)):
        assert barren_epochs(log) == count


def test_a_generation_whose_head_has_aged_out_still_ends() -> None:
    record = Generation("g", "00s", TENANT, Request("m", []), 0, 0)
    told = closed(
        record, [frame(9, "token", offset=4, n=1, text="x"), frame(10, "done", offset=5, finish_reason="stop")], 7
    )
    assert told is not None
    assert (told.status, told.completion_tokens, told.last_seq, told.first_seq, told.ended_at) == ("done", 5, 10, 0, 7)


def test_a_log_without_the_end_tells_none() -> None:
    record = Generation("g", "00s", TENANT, Request("m", []), 0, 0)
    for log in itertools.permutations([frame(1, "done", gid="other")], 1):
        assert closed(record, log, 0) is None
    assert closed(record, [], 0) is None
