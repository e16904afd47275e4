"""▸ Writing and jobs: what the log holds decides, and whoever cannot hear touches nobody's job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from broker.bus.chain import Chain
from broker.bus.clock import now_ms
from broker.bus.frames import ATTEMPT, DONE, START, TOKEN, encode_frame
from broker.bus.log import store
from broker.bus.nats import Bus, Msg
from broker.bus.records import Beat, Load, encode
from broker.bus.subjects import beat_subject
from gpu_worker.engines import Finish, ModelCard, Piece, Prefix, Prompt, Say
from gpu_worker.engines.engine import unsaid
from gpu_worker.metrics import Measured
from gpu_worker.outbox import FULL_HIGH, Outbox, State, Stop
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
from gpu_worker.pulse import Pulse
from tests.fixtures.nats_server import NatsServer
from tests.gpu_worker.bed import DEADLINE, SID, Bed
from tests.gpu_worker.test_worker import text

STARTED = (START, {"epoch": 1, "model": "m", "worker": "w1", "input": [], "t": 0})
DONE_EVENT = (DONE, {"finish_reason": "stop", "t": 0})


class Undecided(Bus):
    """The next `undecided` publishes are not answered by anybody, at once; when, under which fence and on what subject
    they came."""

    undecided = 0

    def call(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.tries.append((loop.time(), (headers or {})["Nats-Expected-Last-Subject-Sequence"]))
        self.subjects.append(subject)
        if self.undecided == 0:
            super().call(subject, payload, headers, on_reply)
            return
        self.undecided -= 1
        loop.call_soon(on_reply, None)

    @property
    def tries(self) -> list[tuple[float, str]]:
        found: list[tuple[float, str]] = self.__dict__.setdefault("_tries", [])
        return found

    @property
    def subjects(self) -> list[str]:
        found: list[str] = self.__dict__.setdefault("_subjects", [])
        return found


async def publisher_on(url: str) -> tuple[Publisher, Undecided]:
    bus = await Undecided.connect(url, "undecided")
    assert isinstance(bus, Undecided)
    publisher = Publisher(Publishing(bus), SID, Outbox("g1", 1, "attempt1", Chain()), Measured("test"))
    assert await publisher.write(STARTED)
    return publisher, bus


@pytest.mark.usefixtures("patient")
async def test_an_undecided_publish_is_tried_again_after_a_pause_under_the_same_fence(bed: Bed) -> None:
    """20 to 50 ms, so that an election is not met with a storm."""
    publisher, bus = await publisher_on(bed.url)
    bus.tries.clear()
    bus.undecided = 5
    publisher.offer(TOKEN, "a ", 1)
    assert await publisher.write()
    fences = {fence for _, fence in bus.tries}
    pauses = [later - earlier for (earlier, _), (later, _) in zip(bus.tries, bus.tries[1:], strict=False)]
    assert len(bus.tries) == 6
    assert len(fences) == 1
    assert min(pauses) >= 0.019
    assert await publisher.write(DONE_EVENT)
    await publisher.close()
    await bus.close()


@pytest.mark.usefixtures("patient")
async def test_of_many_whom_nobody_answers_one_tries_for_all(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker of thousands of streams meets an election with nothing but tries, and so does NATS."""
    monkeypatch.setattr("gpu_worker.publisher.PARKED", 1000.0)
    first, bus = await publisher_on(bed.url)
    publishing, measured = Publishing(bus), Measured("test")
    many = [
        Publisher(publishing, f"{SID[:-2]}{number:02}", Outbox("g1", 1, "a", Chain()), measured) for number in range(10)
    ]
    await asyncio.gather(*(publisher.write(STARTED) for publisher in many))
    bus.subjects.clear()
    bus.undecided = 10 + 20
    for publisher in many:
        publisher.offer(TOKEN, "a ", 1)
    assert all(await asyncio.gather(*(publisher.write() for publisher in many)))
    everybody = sorted(set(bus.subjects))
    assert len(everybody) == 10
    assert sorted(bus.subjects[:10]) == everybody
    assert len(set(bus.subjects[10 : 10 + 21])) == 1, "one tries, also when it is answered"
    assert sorted(set(bus.subjects[10 + 21 :])) == sorted(set(everybody) - {bus.subjects[10]})
    assert len(bus.subjects) == 10 + 21 + 9
    for publisher in (first, *many):
        await publisher.close()
    await bus.close()


async def test_one_that_tries_for_all_and_is_stopped_leaves_it_to_the_next(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_worker.publisher.PARKED", 1000.0)
    first, bus = await publisher_on(bed.url)
    await first.write(DONE_EVENT)
    publishing, measured = Publishing(bus), Measured("test")
    one, other = (
        Publisher(publishing, f"{SID[:-1]}{number}", Outbox("g1", 1, "a", Chain()), measured) for number in range(2)
    )
    bus.undecided = 1000
    one.say(STARTED)
    other.say(STARTED)
    await asyncio.sleep(0.01)  # both know that nobody answers
    bus.undecided = 0
    one.stop(Stop.LEFT)
    async with asyncio.timeout(10):
        assert await other.write()
    for publisher in (first, one, other):
        await publisher.close()
    await bus.close()


async def test_the_first_token_is_on_its_way_before_the_engine_is_asked_for_another(bed: Bed) -> None:
    publisher, bus = await publisher_on(bed.url)
    bus.tries.clear()
    publisher.offer(TOKEN, "a ", 1)
    assert len(bus.tries) == 1
    publisher.offer(TOKEN, "b ", 1)
    assert len(bus.tries) == 1, "one publish in flight"
    assert await publisher.write(DONE_EVENT)
    await publisher.close()
    await bus.close()


class Counted:
    """An engine as fast as it can be, which counts what was pulled out of it, and how often it was asked."""

    def __init__(self, tokens: int) -> None:
        self.cards = (ModelCard("counted", 1_000_000, 4, 4, "counted", None),)
        self.tokens = tokens
        self.pulled = 0
        self.asked: list[int] = []
        self.began = asyncio.Event()

    def children(self) -> list[tuple[str, int]]:
        return []

    async def start(self, say: Say = unsaid) -> None:
        return

    async def close(self) -> None:
        return

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        self.asked.append(prefix.tokens)
        self.began.set()
        for index in range(prefix.tokens, self.tokens):
            self.pulled = index + 1
            yield Piece(f"5.{index} ", 1)
            if index % 64 == 63:
                await asyncio.sleep(0)
        yield Finish("stop", 1, self.tokens)


async def test_a_full_buffer_pauses_the_engine(bed: Bed, fresh_nats: NatsServer) -> None:
    """While NATS does not take anything, at most a buffer is decoded ahead; afterwards every token is there."""
    engine = Counted(60_000)
    async with bed.worker("w1", engine):
        await bed.ask("g1", [], model="counted")
        await engine.began.wait()
        fresh_nats.freeze()
        stood = -1
        async with asyncio.timeout(DEADLINE):
            while stood != engine.pulled:
                stood = engine.pulled
                await asyncio.sleep(0.2)
        assert stood < engine.tokens, "the engine was not paused"
        fresh_nats.thaw()
        assert (await bed.ended("g1")).type == DONE
        assert bed.text("g1") == text(5, engine.tokens)
    assert len(bed.text("g1")) / 2 > FULL_HIGH


async def test_the_engine_is_asked_while_start_is_on_its_way(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """▸ A first token waits for no answer of the log: here that comes only after the engine has been asked."""
    engine = Counted(30)
    waiting: list[asyncio.Task[None]] = []

    class Slow(Bus):
        def call(
            self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
        ) -> None:
            async def when_asked(msg: Msg | None) -> None:
                await engine.began.wait()
                on_reply(msg)

            def later(msg: Msg | None) -> None:
                waiting.append(asyncio.create_task(when_asked(msg)))

            super().call(subject, payload, headers, later if b" start " in payload else on_reply)

    monkeypatch.setattr("tests.gpu_worker.bed.Bus", Slow)
    async with bed.worker("w1", engine):
        await bed.enqueue(await bed.ask("g1", [], model="counted", after=0, enqueue=False))
        assert (await bed.ended("g1")).type == DONE
    await asyncio.gather(*waiting)
    assert len(waiting) == 1
    assert bed.text("g1") == text(5, 30)


async def test_what_the_loser_of_a_race_to_begin_decodes_is_in_no_log(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's `start` comes between the reading and the writing: the first one is fenced, reads again, takes
    over from whoever wrote it, and what it had decoded before is forgotten."""
    engine = Counted(30)
    raced = asyncio.Event()

    class Raced(Bus):
        def call(
            self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
        ) -> None:
            if raced.is_set() or b" start " not in payload:
                super().call(subject, payload, headers, on_reply)
                return
            raced.set()
            start = {"epoch": 1, "model": "counted", "worker": "rival", "input": [], "t": 0}
            rival = encode_frame(START, "g1", 1, "rival000", 0, 0, 0, start)
            none = {"Nats-Expected-Last-Subject-Sequence": "0"}

            def then(msg: Msg | None) -> None:
                Bus.call(self, subject, payload, headers, on_reply)

            super().call(subject, rival, none, then)

    monkeypatch.setattr("tests.gpu_worker.bed.Bus", Raced)
    async with bed.worker("w1", engine):
        await bed.enqueue(await bed.ask("g1", [], model="counted", after=0, enqueue=False))
        assert (await bed.ended("g1")).type == DONE
    assert raced.is_set()
    assert engine.asked == [0, 0]
    assert [(frame.type, frame.epoch) for frame in bed.of("g1") if frame.type in (START, ATTEMPT)] == [
        (START, 1),
        (ATTEMPT, 2),
    ]
    assert bed.text("g1") == text(5, 30)


async def test_whoever_loses_the_race_for_a_takeover_decodes_nothing(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """▸ The engine is asked only after `attempt` is in the log, behind the last frame that was read.

    Here another worker's `attempt` comes between the reading and the writing: the first one is fenced, reads again and
    is asked once, behind what the log holds then.
    """
    engine = Counted(30)
    start = {"epoch": 1, "model": "counted", "worker": "dead", "input": [], "t": 0}
    end = await store(bed.bus, f"tok.00.{SID}", encode_frame(START, "g1", 1, "dead0000", 0, 0, 0, start), expect_last=0)
    raced = asyncio.Event()
    asked_at_race: list[int] = []

    class Raced(Bus):
        def call(
            self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
        ) -> None:
            if raced.is_set() or b" attempt " not in payload:
                super().call(subject, payload, headers, on_reply)
                return
            raced.set()
            rival = encode_frame(ATTEMPT, "g1", 2, "rival000", end, 0, 0, {"epoch": 2, "worker": "rival", "t": 0})

            def then(msg: Msg | None) -> None:
                def answered(answer: Msg | None) -> None:
                    asked_at_race.append(len(engine.asked))
                    on_reply(answer)

                Bus.call(self, subject, payload, headers, answered)

            super().call(subject, rival, {"Nats-Expected-Last-Subject-Sequence": str(end)}, then)

    monkeypatch.setattr("tests.gpu_worker.bed.Bus", Raced)
    async with bed.worker("w1", engine):
        job = await bed.ask("g1", [], model="counted", after=0, enqueue=False)
        await bed.enqueue(job)
        assert (await bed.ended("g1")).type == DONE
    assert raced.is_set()
    assert asked_at_race == [0], "it was asked before its attempt was in the log"
    assert engine.asked == [0]
    assert [frame.epoch for frame in bed.of("g1") if frame.type == ATTEMPT] == [2, 3]
    assert bed.text("g1") == text(5, 30)


async def test_a_worker_that_cannot_hear_naks_nobody(bed: Bed) -> None:
    """Its way to NATS does not answer: then everybody is silent, and that is nobody's death."""

    class Deaf(Bus):
        answered = False

        @property
        def round_trip_ok(self) -> bool:
            return self.answered

    naks: asyncio.Queue[Msg] = asyncio.Queue()
    await bed.bus.subscribe("held.by.w1", naks.put)
    bus = await Deaf.connect(bed.url, "w2")
    assert isinstance(bus, Deaf)
    loop = asyncio.get_running_loop()
    pulse = Pulse(bus, "w2", lambda: Beat("w2", "two", now_ms(), {"m": Load(1, 0, 0, 0)}, {}))
    await pulse.start()
    try:
        beat = Beat("w1", "one", now_ms(), {"m": Load(1, 1, 0, 0)}, {"g": "held.by.w1"})
        async with asyncio.timeout(DEADLINE):
            while "w1" not in pulse.others():  # the server may not have read yet that somebody listens
                await bed.bus.publish(beat_subject("w1"), encode(beat))
                await asyncio.sleep(0.01)
        silent_at = loop.time()
        beats = 0
        while loop.time() < silent_at + 1.6 or beats < 4:  # longer than any silence that is believed
            before = bed.beats.get("w2")
            await bed.until(lambda before=before: bed.beats.get("w2") is not before)  # type: ignore[misc]
            beats += 1
        assert naks.empty()
        bus.answered = True
        async with asyncio.timeout(DEADLINE):
            assert (await naks.get()).data == b"-NAK"
    finally:
        await pulse.close()
        await bus.close()


def test_a_publish_is_one_at_a_time() -> None:
    outbox = Outbox("g1", 1, "attempt1", Chain())
    outbox.event(*STARTED)
    assert outbox.take() is not None
    outbox.piece(TOKEN, "a ", 1)
    assert outbox.take() is None
    assert outbox.state is State.IN_FLIGHT
