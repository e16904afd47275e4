"""What a worker guarantees while nothing fails: byte-exact answers, one terminal, cancels, bounds, conversations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from broker.bus.frames import ATTEMPT, CANCELLED, DONE, FAILED, START, TOKEN, USAGE
from broker.bus.jobs import ACK_WAIT
from broker.bus.kv import Bucket
from broker.bus.log import store
from broker.bus.nats import Bus
from broker.bus.pull import ack_subject
from broker.bus.queue import nak
from broker.bus.records import Message, Model, Status, decode
from broker.bus.subjects import JOBS_STREAM, job_subject, worker_subject
from gpu_worker.engines import EngineFailed, EngineSettings, Finish, ModelCard, Piece, Prefix, Prompt, Say, create
from gpu_worker.engines.engine import unsaid
from gpu_worker.worker import _every
from tests.gpu_worker.bed import DEADLINE, SID, Bed
from tests.gpu_worker.pouring import poured

SCRIPT = {"tokens": 300, "rate": 0, "seed": 3}
ENDLESS = {"tokens": 100_000, "rate": 200, "seed": 5}
SILENT = {"tokens": 5, "rate": 50, "ttft_ms": 600_000}


def text(seed: int, tokens: int) -> str:
    return "".join(f"{seed}.{i} " for i in range(tokens))


async def test_a_generation_is_byte_exact_and_ends_once(bed: Bed) -> None:
    async with bed.worker("w1"):
        await bed.ask("g1", SCRIPT)
        end = await bed.ended("g1")
        assert end.type == DONE
        assert bed.text("g1") == text(3, 300)
        types = bed.types("g1")
        assert types[0] == START
        assert types[-2:] == [USAGE, DONE]
        assert bed.of("g1")[0].fields()["input"] == [{"role": "user", "content": json.dumps(SCRIPT)}]
        assert bed.of("g1")[-2].fields()["completion_tokens"] == 300
        await bed.no_jobs_left()


async def test_tokens_coalesce_behind_the_publish_in_flight_and_the_first_is_not_held_back(bed: Bed) -> None:
    async with bed.worker("w1"):
        await bed.ask("g1", {"tokens": 5000, "rate": 0})
        await bed.ended("g1")
        frames = [frame for frame in bed.of("g1") if frame.type == TOKEN]
        assert sum(frame.n for frame in frames) == 5000
        assert len(frames) < 5000
        assert frames[0].offset == 0


async def test_the_model_is_registered_and_the_load_is_in_the_beats(bed: Bed) -> None:
    async with bed.worker("w1", slots=3):
        entry = await Bucket(bed.bus, "models").get("scripted")
        assert entry is not None
        assert decode(entry.value, Model).engine == "scripted"
        await bed.ask("g1", ENDLESS)
        await bed.holds("w1", "g1")
        load = (await bed.until(lambda: bed.beats["w1"].models["scripted"].running and bed.beats["w1"])).models[
            "scripted"
        ]
        assert (load.slots, load.running, load.queued, load.queue_limit) == (3, 1, 0, 0)
        assert bed.beats["w1"].held["g1"].startswith("$JS.ACK.JOBS.any_scripted.")
        await bed.cancel("g1", "w1")
        await bed.ended("g1")


async def test_a_running_generation_is_cancelled_by_its_nudge(bed: Bed) -> None:
    async with bed.worker("w1", cancel_interval=60):
        await bed.ask("g1", ENDLESS)
        await bed.until(lambda: bed.tokens("g1") > 10)
        await bed.cancel("g1", "w1")
        assert (await bed.ended("g1")).type == CANCELLED
        assert bed.text("g1") == text(5, bed.tokens("g1"))
        await bed.no_jobs_left()


async def test_a_cancel_reaches_a_generation_before_its_first_token(bed: Bed) -> None:
    async with bed.worker("w1", cancel_interval=60):
        await bed.ask("g1", SILENT)
        await bed.until(lambda: START in bed.types("g1"))
        await bed.cancel("g1", "w1")
        assert (await bed.ended("g1")).type == CANCELLED


async def test_a_cancel_is_found_though_its_nudge_was_lost(bed: Bed) -> None:
    async with bed.worker("w1", cancel_interval=0.2):
        await bed.ask("g1", ENDLESS)
        await bed.until(lambda: bed.tokens("g1") > 10)
        await bed.cancel("g1")
        assert (await bed.ended("g1", 3)).type == CANCELLED


async def test_a_nudge_without_a_recorded_cancel_is_not_believed(bed: Bed) -> None:
    async with bed.worker("w1", cancel_interval=60):
        await bed.ask("g1", {"tokens": 60, "rate": 100})
        await bed.until(lambda: bed.tokens("g1") > 5)
        for payload in (b'{"sid": "x", "gid": "g1"}', b"junk"):
            await bed.bus.publish(worker_subject("w1", "cancel"), payload)
        assert (await bed.ended("g1")).type == DONE


async def test_what_waits_is_taken_by_whoever_has_a_slot_first(bed: Bed) -> None:
    """▸ A job that waited at a worker would wait for that one, whoever else were free."""
    async with bed.worker("w1", OneSlot()), bed.worker("w2", OneSlot()):
        await bed.ask("g0", ENDLESS, sid="00endless0")
        await bed.until(lambda: START in bed.types("g0"))
        busy = bed.of("g0")[0].fields()["worker"]
        for number in range(1, 5):
            await bed.ask(f"g{number}", {"tokens": 20, "rate": 100}, sid=f"00session{number}")
        for number in range(1, 5):
            assert (await bed.ended(f"g{number}")).type == DONE
            assert bed.of(f"g{number}")[0].fields()["worker"] != busy
        assert not any(frame.terminal for frame in bed.of("g0"))


async def test_a_lanes_job_that_finds_no_slot_goes_to_whoever_has_one(bed: Bed) -> None:
    async with bed.worker("w1", OneSlot(), cancel_interval=60):
        await bed.ask("g0", ENDLESS, sid="00endless0")
        await bed.until(lambda: START in bed.types("g0"))
        async with bed.worker("w2", OneSlot()):
            job = await bed.ask("g1", SCRIPT, enqueue=False)
            await bed.enqueue(job, "w1")
            assert (await bed.ended("g1")).type == DONE
            assert bed.of("g1")[0].fields()["worker"] == "w2"
        await bed.until(lambda: bed.beats["w1"].models["scripted"].queued == 0)
        await bed.cancel("g0", "w1", sid="00endless0")
        await bed.ended("g0")
        await bed.no_jobs_left()


async def test_a_lanes_job_that_comes_back_here_while_it_is_passed_on_is_not_lost(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """▸ The copy is another job of the queue: acked in place of the lane's it is gone, and a second one would be
    refused as a repeat."""

    async def answered_late(bus: Bus, subject: str, data: bytes, **options: Any) -> int:
        stored = await store(bus, subject, data, **options)
        async with asyncio.timeout(DEADLINE):
            while not (await delivered(bed, "any_scripted"))["consumer_seq"]:
                continue
        await bed.bus.request("$JS.API.INFO")
        return stored

    monkeypatch.setattr("broker.bus.jobs.store", answered_late)
    async with bed.worker("w1", OneSlot(), cancel_interval=60):
        await bed.enqueue(await bed.ask("g0", ENDLESS, sid="00endless0", enqueue=False), "w1")
        await bed.until(lambda: START in bed.types("g0"))  # and a job for any worker is still asked for
        await bed.enqueue(await bed.ask("g1", SCRIPT, enqueue=False), "w1")
        await bed.until(lambda: [data for _, data in bed.verdicts if data == b"+ACK"])
        # As OKOME does for whoever may have died.
        last = await delivered(bed, "lane_w1_scripted")
        await nak(bed.bus, ack_subject(JOBS_STREAM, "lane_w1_scripted", last["stream_seq"], last["consumer_seq"]))
        await bed.cancel("g0", "w1", sid="00endless0")
        assert (await bed.ended("g1")).type == DONE
        await bed.no_jobs_left()


async def delivered(bed: Bed, consumer: str) -> dict[str, int]:
    found: dict[str, int] = (await bed.bus.api(f"CONSUMER.INFO.JOBS.{consumer}"))["delivered"]
    return found


async def test_while_a_slot_is_free_the_lane_is_asked_for_its_jobs(bed: Bed) -> None:
    """Also where as many for any worker were asked for before, and may still come."""
    async with bed.worker(
        "w1", create("scripted", EngineSettings(scripted_slots=4, queue_limit=1)), cancel_interval=60
    ):
        for number in range(3):
            sid = f"00endless{number}"
            await bed.enqueue(await bed.ask(f"g{number}", ENDLESS, sid=sid, enqueue=False), "w1")
            await bed.until(lambda gid=f"g{number}": START in bed.types(gid))  # type: ignore[misc]


async def test_cancelled_before_any_worker_took_it(bed: Bed) -> None:
    await bed.ask("g1", ENDLESS)
    await bed.cancel("g1")
    async with bed.worker("w1"):
        await bed.ended("g1")
        assert bed.types("g1") == [START, CANCELLED]
        await bed.no_jobs_left()


async def test_every_slot_is_filled_where_none_may_wait_for_one(bed: Bed) -> None:
    async with bed.worker("w1", slots=4):
        for number in range(4):
            await bed.ask(f"g{number}", ENDLESS, sid=f"00session{number}")
        await bed.until(lambda: all(START in bed.types(f"g{number}") for number in range(4)))


@pytest.mark.parametrize(
    "payload", [b"", b'{"gid": 1}', b'{"gid": "\xff"}', b'{"x": ' + b"[" * 100_000], ids=["", "type", "utf-8", "depth"]
)
async def test_a_job_that_cannot_be_read_is_taken_out_and_its_room_is_free_again(bed: Bed, payload: bytes) -> None:
    async with bed.worker("w1", OneSlot(queue_limit=0)):
        for number in range(2):  # one more than there is room
            await store(bed.bus, job_subject("scripted"), payload, msg_id=f"bad{number}")
        await bed.ask("g1", SCRIPT)
        assert (await bed.ended("g1")).type == DONE
        await bed.no_jobs_left()


async def test_scripts_wait_for_a_slot_as_all_others_do(bed: Bed) -> None:
    async with bed.worker("w1", create("scripted", EngineSettings(scripted_slots=1, queue_limit=4))):
        for number in range(4):
            await bed.ask(f"g{number}", {"tokens": 20, "rate": 200}, sid=f"00session{number}")
        for number in range(4):
            assert (await bed.ended(f"g{number}")).type == DONE
            assert ATTEMPT not in bed.types(f"g{number}"), "the engine had no room for it"


async def test_no_more_is_held_than_there_are_slots(bed: Bed) -> None:
    """The others stay in the queue, for whoever has room."""
    async with bed.worker("w1", OneSlot(queue_limit=2), cancel_interval=60) as here:
        for number in range(8):
            await bed.ask(f"g{number}", {"tokens": 5, "rate": 50}, sid=f"00session{number}")
        most = 0

        def watch() -> bool:
            nonlocal most
            most = max(most, len(here.worker.held))
            return sum(frame.terminal for _, frame in bed.frames) == 8

        await bed.until(watch)
        assert most == 1
        await bed.no_jobs_left()


async def test_the_warm_lane_is_served(bed: Bed) -> None:
    async with bed.worker("w1", OneSlot()):
        job = await bed.ask("g1", SCRIPT, enqueue=False)
        await bed.enqueue(job, "w1")
        assert (await bed.ended("g1")).type == DONE
        await bed.until(lambda: bed.beats["w1"].warm)


async def test_more_than_a_thousand_jobs_are_held_at_once(bed: Bed) -> None:
    """▸ `max_ack_pending` is −1: the default of 1 000 would stall job 1 001.

    On a machine so busy that the worker gives its connection up, the jobs under way on it come again after ACK_WAIT.
    """
    async with bed.worker("w1", cancel_interval=60) as here:
        jobs = 1001
        await asyncio.gather(*(bed.ask(f"g{n}", SILENT, sid=f"00many{n:05}", after=0) for n in range(jobs)))
        await bed.until(lambda: len(here.worker.held) == jobs, 2 * ACK_WAIT)
        await bed.until(lambda: sum(frame.type == START for _, frame in bed.frames) == jobs)


async def test_an_engine_that_fails_for_good_ends_in_failed(bed: Bed) -> None:
    async with bed.worker("w1"):
        await bed.ask("g1", {"tokens": 20, "rate": 0, "fail_at": 7})
        end = await bed.ended("g1")
        assert end.type == FAILED
        assert end.fields()["code"] == "engine_failed"
        assert bed.text("g1") == text(7, 7)
        await bed.no_jobs_left()


async def test_an_engine_that_broke_is_tried_again_behind_what_is_stored(bed: Bed) -> None:
    async with bed.worker("w1", OneSlot(breaks_at=[3, 5])):
        await bed.ask("g1", {"tokens": 8, "rate": 0, "seed": 1})
        assert (await bed.ended("g1")).type == DONE
        assert bed.text("g1") == text(1, 8)
        assert [(f.type, f.epoch, f.offset) for f in bed.of("g1") if f.type == "attempt"] == [
            ("attempt", 2, 3),
            ("attempt", 3, 5),
        ]


async def test_three_attempts_without_a_token_end_in_attempts_exhausted(bed: Bed) -> None:
    async with bed.worker("w1", OneSlot(breaks_at=[2, 2, 2, 2, 2])):
        await bed.ask("g1", {"tokens": 8, "rate": 0, "seed": 1})
        end = await bed.ended("g1")
        assert end.fields()["code"] == "attempts_exhausted"
        assert "child" not in end.fields()["message"], "what an engine says of its process is not for viewers"
        assert bed.types("g1").count("attempt") == 3
        assert bed.text("g1") == text(1, 2)


async def test_a_chore_that_fails_once_is_done_again() -> None:
    """A worker that silently stopped putting off redeliveries would lose its jobs."""
    done = asyncio.Event()
    times = 0

    async def chore() -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise ValueError("a defect")
        done.set()

    task = asyncio.create_task(_every(0.001, chore))
    try:
        async with asyncio.timeout(5):
            await done.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_overloaded_engine_is_asked_again_without_another_epoch(bed: Bed) -> None:
    async with bed.worker("w1", OneSlot(overloaded=2)):
        await bed.ask("g1", {"tokens": 8, "rate": 0, "seed": 1})
        assert (await bed.ended("g1")).type == DONE
        assert {frame.epoch for frame in bed.of("g1")} == {1}


async def test_earlier_turns_come_from_the_log_and_from_records(bed: Bed) -> None:
    engine = OneSlot()
    async with bed.worker("w1", engine):
        await bed.ask("g1", {"tokens": 2, "rate": 0, "seed": 1})
        first = await bed.ended("g1")
        await bed.ask("g2", {"tokens": 2, "rate": 0, "seed": 2})
        second = await bed.ended("g2")
        # The first turn's record is written, its log is gone; the second turn is only in the log.
        await bed.record("g1", status=Status.DONE, text="1.0 1.1 ", first_seq=1, last_seq=first.seq)
        await bed.bus.api("STREAM.PURGE.TOK_00", {"seq": first.seq + 1})
        await bed.ask("g3", [Message("user", "third")], after=second.seq)
        await bed.ended("g3")
        said = [(m.role, m.content[-10:]) for m in engine.prompts[-1].messages]
        assert [role for role, _ in said] == ["user", "assistant", "user", "assistant", "user"]
        assert said[1] == ("assistant", "1.0 1.1 ")
        assert said[3] == ("assistant", "2.0 2.1 ")
        assert said[4] == ("user", "third")


async def test_a_whole_context_is_taken_as_it_is_and_start_tells_only_what_is_new(bed: Bed) -> None:
    engine = OneSlot()
    async with bed.worker("w1", engine):
        await bed.ask("g0", {"tokens": 1, "rate": 0})
        await bed.ended("g0")
        told = [Message("system", "be brief"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
        await bed.ask("g1", told, request={"whole_context": True})
        await bed.ended("g1")
        assert [m.content for m in engine.prompts[-1].messages] == ["be brief", "a", "b", "c"]
        assert bed.of("g1")[0].fields()["input"] == [{"role": "user", "content": "c"}]


@pytest.mark.parametrize("way", ["asked", "told"])
async def test_the_engine_pauses_while_every_viewer_lags(bed: Bed, way: str) -> None:
    engine = create("scripted")
    async with bed.worker("w1", poured(engine) if way == "told" else engine):
        await bed.ask("g1", ENDLESS)
        await bed.until(lambda: bed.tokens("g1") > 10)
        await demand(bed, "lagging")
        stood = await bed.until(stands_still(bed))
        await demand(bed, "flowing")
        await bed.until(lambda: bed.tokens("g1") > stood + 10, 2)
        await bed.cancel("g1", "w1")
        await bed.ended("g1")


async def test_silence_of_the_viewers_applies_the_policy(bed: Bed) -> None:
    async with bed.worker("w1", grace=1.0):
        await bed.ask("g1", ENDLESS, on_disconnect="cancel")
        await bed.ask("g2", ENDLESS, sid="00finish1", on_disconnect="finish")
        await bed.until(lambda: bed.tokens("g1") > 10 and bed.tokens("g2") > 10)
        await demand(bed, "flowing")
        await demand(bed, "flowing", "00finish1")
        assert (await bed.ended("g1")).type == CANCELLED
        assert not any(frame.terminal for frame in bed.of("g2"))
        await bed.cancel("g2", "w1", sid="00finish1")
        await bed.ended("g2")


async def test_control_is_told_that_an_answer_may_be_recorded(bed: Bed) -> None:
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(msg: object) -> None:
        told.put_nowait(msg.data)  # type: ignore[attr-defined]

    await bed.bus.subscribe("okome.v1.generation_ended", hear)
    async with bed.worker("w1"):
        await bed.ask("g1", SCRIPT)
        assert json.loads(await asyncio.wait_for(told.get(), 10)) == {"sid": SID, "gid": "g1"}


async def test_a_job_that_is_none_is_dropped_and_disturbs_nobody(bed: Bed) -> None:
    async with bed.worker("w1"):
        await bed.bus.request("job.scripted.any", b"junk")
        await bed.ask("g1", SCRIPT)
        await bed.ended("g1")
        await bed.no_jobs_left()


async def demand(bed: Bed, state: str, sid: str = SID) -> None:
    payload = {"sids": [sid, "00unknown"], "node": "n1", "state": state}
    await bed.bus.publish(worker_subject("w1", "demand"), json.dumps(payload).encode())


def stands_still(bed: Bed) -> Callable[[], int]:
    """The number of tokens, once three beats of the worker have not changed it."""
    seen: list[tuple[int, int]] = []

    def look() -> int:
        t = bed.beats["w1"].t
        if not seen or seen[-1][0] != t:
            seen.append((t, bed.tokens("g1")))
        still = len(seen) > 3 and len({count for _, count in seen[-3:]}) == 1
        return seen[-1][1] if still else 0

    return look


class OneSlot:
    """An engine with one slot that plays scripts, and breaks, refuses or remembers as it is told."""

    def __init__(self, *, queue_limit: int = 3, breaks_at: list[int] | None = None, overloaded: int = 0) -> None:
        self.prompts: list[Prompt] = []
        self._card = ModelCard("scripted", 1000, 1, queue_limit, "scripted")
        self._breaks_at = breaks_at or []
        self._overloaded = overloaded

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        return (self._card,)

    async def start(self, say: Say = unsaid) -> None: ...

    async def close(self) -> None: ...

    def children(self) -> list[tuple[str, int]]:
        return []

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        self.prompts.append(prompt)
        if self._overloaded:
            self._overloaded -= 1
            raise EngineFailed("overloaded", "not now", retryable=True)
        try:
            script = json.loads(prompt.messages[-1].content)
        except ValueError:
            script = {"tokens": 0, "seed": 0}
        breaks_at = self._breaks_at.pop(0) if self._breaks_at else None
        for i in range(prefix.tokens, script["tokens"]):
            if i == breaks_at:
                raise EngineFailed("engine_failed", "the child died", retryable=True)
            await asyncio.sleep(1 / script["rate"] if script["rate"] else 0)
            yield Piece(f"{script.get('seed', 7)}.{i} ", 1)
        if breaks_at == script["tokens"]:
            raise EngineFailed("engine_failed", "the child died", retryable=True)
        yield Finish("stop", 1, script["tokens"])
