"""What holds when workers die, freeze, leave, and when NATS delivers twice, forgets or restarts."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from broker.bus import log
from broker.bus.frames import ATTEMPT, CANCELLED, DONE, FAILED, START, TERMINAL, TOKEN, encode_frame
from broker.bus.nats import Bus
from broker.bus.observer import delivery_order
from broker.bus.queue import Delivery, nak
from broker.bus.records import Status
from gpu_worker import held, pulse
from gpu_worker.metrics import ADOPTED, ENDED
from tests.fixtures.nats_server import NatsServer
from tests.gpu_worker.bed import DEADLINE, SID, Bed, Process
from tests.gpu_worker.test_worker import ENDLESS, OneSlot, text

LONG = {"tokens": 600, "rate": 200, "seed": 5}


@asynccontextmanager
async def process(bed: Bed, id: str, **settings: str) -> AsyncIterator[Process]:
    worker = await Process.start(bed.url, id, **settings)
    try:
        yield worker
    finally:
        await worker.close()


async def heard_again(bed: Bed, worker: str) -> None:
    """Whoever listens by now has heard of it: only a worker that was heard can be missed."""
    heard = bed.beats[worker].t
    await bed.until(lambda: bed.beats[worker].t > heard)


def epochs(bed: Bed, gid: str) -> list[int]:
    return sorted({frame.epoch for frame in bed.of(gid)})


async def test_a_killed_workers_generation_goes_on_elsewhere_from_the_stored_prefix(bed: Bed) -> None:
    """Noticed by its silence, within the bound that viewers were promised (2 s) plus what a busy machine adds."""
    async with process(bed, "w1") as dying:
        await bed.ask("g1", LONG)
        await bed.until(lambda: bed.tokens("g1") > 50)
        async with bed.worker("w2"):
            await heard_again(bed, "w1")
            dying.signal(signal.SIGKILL)
            killed_at = time.monotonic()
            await bed.until(lambda: ATTEMPT in bed.types("g1"))
            gap = time.monotonic() - killed_at
            assert (await bed.ended("g1")).type == DONE
            assert epochs(bed, "g1") == [1, 2]
            assert bed.text("g1") == text(5, 600)
            takeover = next(frame for frame in bed.of("g1") if frame.type == ATTEMPT)
            assert takeover.offset > 50
            assert takeover.fields()["worker"] == "w2"
            assert gap < 4
            await bed.no_jobs_left()


async def test_a_job_is_told_of_before_its_first_beat_is_due(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies between two beats leaves jobs that observers know of; others would wait for the sweeper."""
    monkeypatch.setattr(pulse, "INTERVAL", 3600.0)
    async with bed.worker("w1"):
        await bed.ask("g1", LONG)
        await bed.until(lambda: "w1" in bed.beats and "g1" in bed.beats["w1"].held)


async def test_a_job_that_outlived_its_log_is_read_from_where_its_record_says(bed: Bed) -> None:
    """The log lost its end: what the job was accepted behind is gone, and OKOME has told its record so. Behind the
    job's own place nothing of the answer would be found, and it would begin again."""
    start = {"epoch": 1, "model": "scripted", "worker": "w0", "input": [], "t": 0}
    first = await log.store(bed.bus, f"tok.00.{SID}", encode_frame(START, "g1", 1, "aaaaaaaa", 0, 0, 0, start))
    said = {"text": text(5, 2), "n": 2}
    await log.store(bed.bus, f"tok.00.{SID}", encode_frame(TOKEN, "g1", 1, "aaaaaaaa", first, 0, 2, said))
    job = await bed.ask("g1", {"tokens": 9, "rate": 0, "seed": 5}, after=1000, enqueue=False)
    await bed.record("g1", after=0)
    await bed.enqueue(job)
    async with bed.worker("w1"):
        assert (await bed.ended("g1")).type == DONE
        assert bed.types("g1")[:3] == [START, TOKEN, ATTEMPT]
        assert bed.text("g1") == text(5, 9)


async def test_a_zombie_finds_itself_fenced_and_acks_and_naks_nothing(bed: Bed) -> None:
    async with process(bed, "w1") as zombie, bed.worker("w2"):
        await bed.until(lambda: {"w1", "w2"} <= set(bed.beats))
        # Whichever of the two gets it: the one in the process of its own is the one to freeze.
        gid = await first_taken_by(bed, "w1")
        reply = bed.beats["w1"].held[gid]
        zombie.signal(signal.SIGSTOP)
        await bed.until(lambda: ATTEMPT in bed.types(gid))
        stored = bed.tokens(gid)
        zombie.signal(signal.SIGCONT)
        resumed = len(bed.verdicts)
        await zombie.says("worker.job_fenced")
        await bed.until(lambda: bed.tokens(gid) > stored + 50)
        attempt = next(index for index, frame in enumerate(bed.of(gid)) if frame.type == ATTEMPT)
        assert {frame.epoch for frame in bed.of(gid)[attempt:]} == {2}
        assert [verdict for verdict in bed.verdicts[resumed:] if verdict[0] == reply] == []
        await bed.cancel(gid, "w1", "w2", sid=f"00{gid}xxxxxx")
        assert (await bed.ended(gid)).type == CANCELLED
        assert bed.text(gid) == text(5, bed.tokens(gid))


async def first_taken_by(bed: Bed, worker: str) -> str:
    """Ask until that worker runs one; the others are cancelled."""
    for number in range(20):
        gid, sid = f"g{number}", f"00g{number}xxxxxx"
        await bed.ask(gid, ENDLESS, sid=sid)
        await bed.until(lambda gid=gid: bed.tokens(gid) > 10)  # type: ignore[misc]
        if bed.of(gid)[0].fields()["worker"] == worker:
            await bed.holds(worker, gid)
            return gid
        await bed.cancel(gid, "w1", "w2", sid=sid)
        await bed.ended(gid)
    raise AssertionError(f"{worker} never got a job")


async def test_a_job_delivered_again_where_it_runs_is_adopted_and_acked_by_its_newest_delivery(bed: Bed) -> None:
    adopted = ADOPTED._value.get()
    async with bed.worker("w1"):
        await bed.ask("g1", LONG)
        await bed.until(lambda: bed.tokens("g1") > 10)
        await bed.holds("w1", "g1")
        first = bed.beats["w1"].held["g1"]
        await nak(bed.bus, first)  # what an election of JetStream's leader does to every held job
        await bed.until(lambda: delivery_order(bed.beats["w1"].held["g1"]) > delivery_order(first))
        newest = bed.beats["w1"].held["g1"]
        assert (await bed.ended("g1")).type == DONE
        await bed.no_jobs_left()
        assert epochs(bed, "g1") == [1]
        assert ADOPTED._value.get() == adopted + 1
        assert [reply for reply, verdict in bed.verdicts if verdict == b"+ACK"] == [newest]


async def test_a_job_delivered_elsewhere_while_its_holder_lives_is_put_off(bed: Bed) -> None:
    put_off = ENDED.labels("scripted", "put_off")._value
    before = put_off.get()
    async with bed.worker("w1", OneSlot(queue_limit=0)):
        await bed.ask("g1", {"tokens": 600, "rate": 150, "seed": 5})  # w2 may doubt for a second first
        await bed.until(lambda: bed.tokens("g1") > 10)
        await bed.holds("w1", "g1")
        async with bed.worker("w2"):
            await nak(bed.bus, bed.beats["w1"].held["g1"])
            await bed.until(lambda: put_off.get() > before)
            assert (await bed.ended("g1")).type == DONE
            assert epochs(bed, "g1") == [1]
            assert bed.text("g1") == text(5, 600)
            await bed.no_jobs_left()


async def test_a_finished_job_delivered_again_is_only_acked(bed: Bed) -> None:
    job = await bed.ask("g1", {"tokens": 5, "rate": 0})
    async with bed.worker("w1"):
        await bed.ended("g1")
        await bed.no_jobs_left()
        stored = len(bed.frames)
        await bed.bus.request("job.scripted.any", __import__("msgspec").json.encode(job))  # without a Msg-Id
        await bed.until(lambda: sum(verdict == b"+ACK" for _, verdict in bed.verdicts) == 2)
        assert len(bed.frames) == stored


async def test_a_delivery_from_before_an_interruption_is_not_given_back(bed: Bed) -> None:
    """▸ A stale nak takes the job from its holder. Who stood still for a second cannot know whose it is."""
    async with bed.worker("w1", OneSlot(), cancel_interval=60, drain_timeout=0.3) as here:
        await bed.ask("g1", ENDLESS)
        await bed.holds("w1", "g1")
        stale = bed.beats["w1"].held["g1"]
        hearing_since = here.worker._pulse.hearing_since()
        time.sleep(1.2)  # noqa: ASYNC251 - the fault: this process stands still, as under SIGSTOP
        await bed.until(lambda: here.worker._pulse.hearing_since() > hearing_since)
        here.stop.set()
        await bed.until(lambda: not here.worker.held)
        assert stale not in [reply for reply, _ in bed.verdicts]


async def test_a_worker_that_leaves_gives_its_jobs_to_others(bed: Bed) -> None:
    """What runs too long is left where it is and goes on elsewhere."""
    async with bed.worker("w1", OneSlot(), cancel_interval=60, drain_timeout=0.5) as leaving:
        await bed.ask("g1", LONG)
        await bed.until(lambda: bed.tokens("g1") > 10)
        async with bed.worker("w2"):
            await bed.until(lambda: "w2" in bed.beats)
            leaving.stop.set()
            assert (await bed.ended("g1")).type == DONE
            assert epochs(bed, "g1") == [1, 2]
            assert bed.text("g1") == text(5, 600)
            await bed.no_jobs_left()


async def test_what_runs_may_finish_before_a_worker_leaves(bed: Bed) -> None:
    async with bed.worker("w1", drain_timeout=10) as leaving:
        await bed.ask("g1", {"tokens": 60, "rate": 100, "seed": 5})
        await bed.until(lambda: bed.tokens("g1") > 10)
        leaving.stop.set()
        assert (await bed.ended("g1")).type == DONE
        assert epochs(bed, "g1") == [1]


async def test_an_operators_drain_ends_the_worker(bed: Bed) -> None:
    async with process(bed, "w1") as worker:
        await bed.bus.publish("worker.w1.drain", b"{}")
        assert await asyncio.wait_for(worker.process.wait(), 10) == 0


async def test_three_deaths_without_a_token_end_in_attempts_exhausted(bed: Bed) -> None:
    """The log tells a new holder that nobody gave a token: it writes the terminal as its only frame."""
    mute = {"tokens": 5, "rate": 50, "ttft_ms": 600_000}
    await bed.ask("g1", mute)
    for number in range(3):
        async with process(bed, f"w{number}") as dying:
            await bed.until(lambda number=number: len(bed.of("g1")) == number + 1)  # type: ignore[misc]
            await bed.holds(f"w{number}", "g1")
            reply = bed.beats[f"w{number}"].held["g1"]
            dying.signal(signal.SIGKILL)
            await dying.process.wait()
        await nobody_pulls(bed)
        await nak(bed.bus, reply)
    async with bed.worker("w9"):
        end = await bed.ended("g1")
        assert bed.types("g1") == [START, ATTEMPT, ATTEMPT, FAILED]
        assert end.fields()["code"] == "attempts_exhausted"
        assert end.epoch == 4
        await bed.no_jobs_left()


async def nobody_pulls(bed: Bed) -> None:
    """The server knows that the dead one is gone, to whom it would still deliver what is given back at once."""
    async with asyncio.timeout(DEADLINE):
        while (await bed.bus.api("CONSUMER.INFO.JOBS.any_scripted"))["num_waiting"]:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("said", [{"tokens": 50_000, "rate": 0}, {"tokens": 1_000_000, "rate": 2000}])
async def test_a_full_log_ends_the_generation_in_log_full(fresh_nats: NatsServer, said: dict[str, int]) -> None:
    """And the decoding: nobody waits for the end of what would take minutes."""
    bed = Bed(fresh_nats.url, await Bus.connect(fresh_nats.url, "bed"))
    await bed.make(max_bytes=60_000)
    async with bed.worker("w1"):
        await bed.ask("g1", {**said, "seed": 5})
        end = await bed.ended("g1")
        assert end.type == FAILED
        assert end.fields()["code"] == "log_full"
        assert text(5, bed.tokens("g1")) == bed.text("g1")
        await bed.no_jobs_left()
    await bed.close()


async def test_a_deleted_session_is_not_written_to_again(bed: Bed) -> None:
    async with bed.worker("w1", cancel_interval=60):
        await bed.ask("g1", ENDLESS)
        await bed.until(lambda: bed.tokens("g1") > 10)
        await bed.holds("w1", "g1")
        await bed.generations.delete(f"{SID}.g1")
        await bed.bus.api("STREAM.PURGE.TOK_00", {"filter": f"tok.00.{SID}"})
        await bed.until(lambda: "g1" not in bed.beats["w1"].held)
        info: dict[str, Any] = await bed.bus.api("STREAM.INFO.TOK_00")
        assert info["state"]["messages"] == 0


GARBAGE = [
    b"okome/not a frame",
    b"okome/9 token g1 1 aaaaaaaa 1 0 1\n{}",  # of a version that we do not know
    b"okome/1 token g1 1 aaaaaaaa 77 0 1\n{}",  # of no chain
    b"okome/1 token g1 1 aaaaaaaa 1 0 1\nnot JSON",
    b'okome/1 token g1 1 aaaaaaaa 1 0 1\n{"text": 7}',
    b'okome/1 token g1 1 aaaaaaaa 1 0 1\n{"n": 1}',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_a_log_that_cannot_be_read_is_given_back_later_each_time_and_over_once_it_is_recorded_so(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, garbage: bytes
) -> None:
    """Nobody may write behind it. The job is kept for a worker that can read it, until OKOME has closed its record."""
    monkeypatch.setattr(held, "UNREADABLE_TIMEOUT", 0.3)
    monkeypatch.setattr(held, "BROKEN_DELAY", 0.1)
    start = encode_frame(START, "g1", 1, "aaaaaaaa", 0, 0, 0, {"epoch": 1, "model": "scripted", "worker": "w0"})
    seq = await log.store(bed.bus, f"tok.00.{SID}", start, expect_last=0)
    assert seq == 1
    await log.store(bed.bus, f"tok.00.{SID}", garbage)
    async with bed.worker("w1", slots=1):
        await bed.ask("g1", {"tokens": 5, "rate": 0}, after=0)
        delays = await bed.until(lambda: len(found := later(bed)) > 2 and found)
        assert delays[:3] == [0.1, 0.2, 0.4]
        await bed.ask("g2", {"tokens": 5, "rate": 0, "seed": 2}, sid="00other111")
        await bed.until(lambda: DONE in bed.types("g2"))  # its place was free for another one
        assert bed.types("g1")[:1] == [START]
        assert not any(frame.terminal for frame in bed.of("g1"))
        end = await log.last(bed.bus, "TOK_00", f"tok.00.{SID}")
        assert end is not None
        assert end.data == garbage, "nothing was written behind it"
        await bed.record("g1", status=Status.FAILED)
        await bed.no_jobs_left()


async def test_while_a_log_cannot_be_read_its_job_keeps_no_slot_from_others(bed: Bed) -> None:
    start = encode_frame(START, "g1", 1, "aaaaaaaa", 0, 0, 0, {"epoch": 1, "model": "scripted", "worker": "w0"})
    await log.store(bed.bus, f"tok.00.{SID}", start, expect_last=0)
    await log.store(bed.bus, f"tok.00.{SID}", GARBAGE[0])
    async with bed.worker("w1", OneSlot()) as here:
        await bed.ask("g1", {"tokens": 5, "rate": 0}, after=0)
        await bed.until(lambda: "g1" in here.worker.held)
        await bed.ask("g2", {"tokens": 5, "rate": 0, "seed": 2}, sid="00other111")
        await bed.until(lambda: DONE in bed.types("g2"), held.UNREADABLE_TIMEOUT / 2)
        assert "g1" in here.worker.held
        await bed.record("g1", status=Status.FAILED)
        await bed.no_jobs_left()


def later(bed: Bed) -> list[float]:
    """The delays (seconds) with which jobs were given back so far."""
    said = [verdict.partition(b" ")[2] for _, verdict in bed.verdicts if verdict.startswith(b"-NAK")]
    return [json.loads(text)["delay"] / 1e9 for text in said if text]


async def test_a_job_that_is_broken_for_long_is_offered_seldom_and_never_given_up(bed: Bed) -> None:
    job = await bed.ask("g1", {"tokens": 1}, enqueue=False)
    async with bed.worker("w1") as here:
        lane = here.worker._lanes["scripted"]

        def delay(attempts: int) -> float:
            delivery = Delivery(bed.bus, "job.scripted.any", b"", "reply", 1, attempts)
            return held.Held(here.worker._place, lane, job, delivery)._broken_delay

        assert [delay(attempts) for attempts in (0, 1, 2, 3, 4)] == [5, 5, 10, 20, 40]
        assert delay(5) == delay(1000) == held.BROKEN_DELAY_HIGH


async def test_the_only_nats_server_is_killed_and_nothing_is_lost_or_doubled(fresh_nats: NatsServer) -> None:
    bed = Bed(fresh_nats.url, await Bus.connect(fresh_nats.url, "bed"))
    await bed.make(storage="file")
    async with bed.worker("w1"):
        await bed.ask("g1", LONG)
        await bed.until(lambda: bed.tokens("g1") > 50)
        fresh_nats.restart()
        assert (await bed.ended("g1", 30)).type == DONE
        assert bed.text("g1") == text(5, 600)
        assert sum(frame.type in TERMINAL for _, frame in bed.frames) == 1
        await bed.no_jobs_left()
    await bed.close()


async def test_a_log_that_stores_nothing_is_told_while_answers_stand(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a NATS server's disk is full: everybody hears everybody, and only who publishes can know."""
    monkeypatch.setattr("broker.bus.storing.PATIENCE", 0.2)
    loop = asyncio.get_running_loop()
    async with bed.worker("w1") as w1:
        await bed.ask("g1", LONG)
        await bed.until(lambda: bed.tokens("g1") > 50)
        with monkeypatch.context() as full:
            full.setattr(w1.bus, "call", lambda *call: loop.call_later(0.01, call[-1], None))
            await bed.until(lambda: "NATS stores nothing in tok." in w1.health.reasons.get("store", ""))
            assert REGISTRY.get_sample_value("okome_store_failing") == 1
        assert (await bed.ended("g1")).type == DONE
        await bed.until(lambda: not w1.health.reasons)
        assert REGISTRY.get_sample_value("okome_store_failing") == 0
