"""Takeover and fence: whoever writes, and whoever believes that it still may, the log is one answer, told once.

Three real workers share a queue. They are frozen and come back, killed, drained and cut off; their publishes are
stored late, twice, or without an answer; jobs are delivered again, or twice; a stale nak takes them, a stale ack
deletes them; the log is purged under them, and full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.bus import log as jetstream
from broker.bus.frames import Frame
from broker.bus.nats import Bus
from broker.bus.observer import SILENCE, Observer
from gpu_worker import answer, pulse, takeover
from gpu_worker.engines import Prefix
from gpu_worker.held import Held
from gpu_worker.outbox import Outbox, State
from tests.models.client_model import Sent
from tests.models.fleet_model import SIDS, FleetModel
from tests.models.machine import finds, plays
from tests.models.worker_model import WorkerModel

LIVES = 6  # worker processes in one interleaving, at most
PATIENCE = 90.0  # seconds after everything has healed in which every answer must have ended


class Takeover(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fleet = FleetModel()
        self.nats = self.fleet.nats
        self.calm = False  # nothing happens that may cost an epoch
        self.broken_at: dict[str, float] = {}  # worker -> when its connection was last away for a while

    @initialize(slow=st.booleans(), calm=st.booleans())
    def begin(self, slow: bool, calm: bool) -> None:
        self.calm = calm
        self.nats.latency = lambda: 0.002 if slow else 0.0
        for name in ("w1", "w2", "w3"):
            self.fleet.workers.append(WorkerModel(self.nats, name))
        self.fleet.clock.advance(0.3)
        self.fleet.ask(SIDS[0])
        self.fleet.clock.advance(0.06)

    # -- the world -----------------------------------------------------------------------------------------------------

    @rule(sid=st.sampled_from(SIDS))
    def ask(self, sid: str) -> None:
        self.fleet.ask(sid)

    @rule(sid=st.sampled_from(SIDS))
    def cancel(self, sid: str) -> None:
        self.fleet.cancel(sid)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.1, 0.4, 1.3]))
    def time_passes(self, seconds: float) -> None:
        self.fleet.clock.advance(seconds)

    @rule(which=st.integers(0, LIVES), turns=st.integers(1, 8))
    def one_goes_on(self, which: int, turns: int) -> None:
        """One worker is quicker than the others."""
        worker = self.worker(which)
        for _ in range(turns):
            worker.loop.turn()

    # -- workers -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.calm)
    @rule(which=st.integers(0, LIVES), frozen=st.booleans())
    def freeze(self, which: int, frozen: bool) -> None:
        self.worker(which).freeze(frozen)

    @precondition(lambda self: not self.calm and len(self.fleet.workers) < LIVES)
    @rule(which=st.integers(0, LIVES), same=st.booleans())
    def kill(self, which: int, same: bool) -> None:
        """Another one is started, under the same name or a new one."""
        worker = self.worker(which)
        worker.kill()
        name = worker.name if same else f"w{len(self.fleet.workers) + 1}"
        self.fleet.workers.append(WorkerModel(self.nats, name))

    @precondition(lambda self: not self.calm and len(self.fleet.workers) < LIVES)
    @rule(which=st.integers(0, LIVES))
    def drain(self, which: int) -> None:
        self.worker(which).drain()
        self.fleet.workers.append(WorkerModel(self.nats, f"w{len(self.fleet.workers) + 1}"))

    @precondition(lambda self: not self.calm)
    @rule(which=st.integers(0, LIVES), times=st.integers(1, 3))
    def engine_fails(self, which: int, times: int) -> None:
        self.worker(which).engine.fails = times

    @rule(which=st.integers(0, LIVES), seconds=st.sampled_from([0.0, 0.0, 0.02, 0.1, 0.3]))
    def connection_breaks(self, which: int, seconds: float) -> None:
        """Whoever is away again and again is silent for too long, and so dead."""
        worker = self.worker(which)
        now = self.fleet.clock.now
        worker.client.cut()
        if seconds and now - self.broken_at.get(worker.name, 0.0) > 2 * SILENCE:
            self.broken_at[worker.name] = now
            self.fleet.clock.advance(seconds)
        worker.client.join()

    @rule(
        seconds=st.sampled_from([0.3, 0.9, 1.1, 1.3, 1.6]), last=st.integers(0, LIVES), by=st.sampled_from([0.01, 0.2])
    )
    def server_stands_still(self, seconds: float, last: int, by: float) -> None:
        """And goes on as if nothing had happened; one connection it reads last."""
        self.nats.stand_still(seconds, self.worker(last).client, by)

    # -- the way to the log --------------------------------------------------------------------------------------------

    @rule(whose=st.sampled_from(["", "", "w1", "w2", "all"]))
    def hold_publishes(self, whose: str) -> None:
        """From now on the publishes of some wait for `publish_arrives`."""

        def holds(sent: Sent) -> bool:
            return sent.subject.startswith("tok.") and whose in ("all", sent.client.bus.id if sent.client.bus else "")

        self.nats.holds = holds

    @precondition(lambda self: self.nats.held)
    @rule(which=st.integers(0, 20), keep=st.booleans(), answered=st.booleans())
    def publish_arrives(self, which: int, keep: bool, answered: bool) -> None:
        """Late, in any order; perhaps not for the last time; perhaps its answer gets lost."""
        self.nats.let_go(which % len(self.nats.held), keep=keep, answered=answered)

    @precondition(lambda self: self.nats.held)
    @rule(which=st.integers(0, 20))
    def publish_is_lost(self, which: int) -> None:
        del self.nats.held[which % len(self.nats.held)]

    @rule(down=st.booleans())
    def jetstream(self, down: bool) -> None:
        self.nats.down = down

    @rule(full=st.booleans())
    def stream_full(self, full: bool) -> None:
        self.fleet.log.full = full

    @precondition(lambda self: not self.calm)
    @rule(sid=st.sampled_from(SIDS))
    def purge(self, sid: str) -> None:
        """The session's log is emptied, under whoever writes it."""
        judge = self.fleet.judges[sid]
        if self.fleet.log.last_of(judge.subject):
            over = {gid for gid, _ in judge.ended.items()}
            self.nats.held = [sent for sent in self.nats.held if sent.data.split(b" ")[2].decode() not in over]
            self.fleet.log.purge(judge.subject)
            judge.purged()

    # -- the queue -----------------------------------------------------------------------------------------------------

    @rule()
    def everything_is_delivered_again(self) -> None:
        """What the death of a NATS leader does to jobs, although every worker lives."""
        for queue in self.fleet.queues:
            queue.redeliver_all(self.fleet.clock.now)
        self.nats.pump("JOBS")
        self.fleet.clock.advance(0.02)

    @precondition(lambda self: not self.calm and self.fleet.jobs.messages)
    @rule(which=st.integers(0, 5), verdict=st.sampled_from([b"-NAK", b"+ACK"]))
    def a_stale_verdict(self, which: int, verdict: bytes) -> None:
        """Somebody who holds a job no longer gives it back, or says that it is over."""
        job = self.fleet.jobs.messages[which % len(self.fleet.jobs.messages)]
        for queue in self.fleet.queues:
            queue.answered(job.seq, verdict, self.fleet.clock.now)
        self.nats.pump("JOBS")

    @precondition(lambda self: self.fleet.open)
    @rule(which=st.integers(0, 1))
    def queued_twice(self, which: int) -> None:
        sid = sorted(self.fleet.open)[which % len(self.fleet.open)]
        self.fleet.queue(sid, f"@{self.fleet.jobs.last_seq}")

    # -- what must be true ---------------------------------------------------------------------------------------------

    @invariant()
    def what_left_a_buffer_is_in_the_log(self) -> None:
        for worker in self.fleet.workers:
            if worker.gone:
                continue
            assert not worker.engine.wrong, worker.engine.wrong
            for outbox in worker.outboxes:
                chain = outbox.chain
                if chain.open:
                    frame = self.fleet.frame(chain.last)
                    assert frame is not None, "an acknowledged frame is not in the log"
                    assert (frame.gid, frame.offset + frame.n) == (outbox.gid, chain.next_offset)

    @invariant()
    def whoever_lives_is_not_taken_over(self) -> None:
        """Deliveries that come again, slow answers and broken connections cost no epoch."""
        if self.calm:
            assert not any(judge.attempts for judge in self.fleet.judges.values()), "a living worker was taken over"

    def worker(self, which: int) -> WorkerModel:
        living = [worker for worker in self.fleet.workers if not worker.gone]
        return living[which % len(living)]

    def teardown(self) -> None:
        try:
            if self.fleet.workers:
                self.in_the_end()
        finally:
            self.fleet.close()

    def in_the_end(self) -> None:
        """Everything heals, late publishes arrive: every answer has one end, and nothing follows it."""
        self.nats.down = self.fleet.log.full = False
        self.nats.holds = lambda sent: False
        while self.nats.held:
            self.nats.let_go(0)
        for worker in self.fleet.workers:
            if not worker.gone:
                worker.freeze(False)
                worker.engine.fails = 0
        self.fleet.workers.append(WorkerModel(self.nats, "healer"))
        deadline = self.fleet.clock.now + PATIENCE
        while not self.ended() and self.fleet.clock.now < deadline:
            self.fleet.clock.advance(1.0)
            self.what_left_a_buffer_is_in_the_log()
            for sid, record in self.fleet.open.items():
                if not any(record.id.encode() in job.data for job in self.fleet.jobs.messages):
                    self.fleet.queue(sid, f"@{self.fleet.jobs.last_seq}")  # the sweeper's part
        assert self.ended(), f"not ended: {[r.id for sid, r in self.fleet.open.items()]}"

    def ended(self) -> bool:
        return all(record.id in self.fleet.judges[sid].ended for sid, record in self.fleet.open.items())


def test_an_answer_is_told_once_and_ends_once_whoever_writes_it() -> None:
    plays(Takeover, examples=110)


ONE_WRITER = ({"g1": "done"}, 0)


def holder(fleet: FleetModel) -> WorkerModel:
    return next(worker for worker in fleet.workers if worker.worker and worker.worker.held)


def written(fleet: FleetModel, within: float) -> tuple[dict[str, str], int]:
    """How the answers of the first session have ended after so many seconds, and how many attempts took over."""
    fleet.clock.advance(within)
    fleet.close()
    judge = fleet.judges[SIDS[0]]
    return judge.ended, judge.attempts


@pytest.mark.parametrize("after", [None, 0.0, 0.001, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("latency", [0.0, 0.002])
def test_a_job_that_comes_to_two_workers_is_written_by_one(after: float | None, latency: float) -> None:
    """In two copies at once, or again so soon that its holder has hardly had the time to say so. Found by the model."""
    fleet = FleetModel()
    fleet.nats.latency = lambda: latency
    fleet.workers += [WorkerModel(fleet.nats, name) for name in ("w1", "w2", "w3")]
    fleet.clock.advance(3.0)
    fleet.ask(SIDS[0])
    if after is None:
        fleet.queue(SIDS[0], "@copy")
    else:
        fleet.clock.advance(after)
        for queue in fleet.queues:
            queue.redeliver_all(fleet.clock.now)
        fleet.nats.pump("JOBS")
    assert written(fleet, 3.0) == ONE_WRITER


def first_beat_lost(broken_after: float, away: float) -> FleetModel:
    """With its connection; a copy of the job comes to another, who reads that somebody began, and has heard beats of
    him that do not name it."""
    fleet = FleetModel()
    fleet.nats.latency = lambda: 0.002
    fleet.workers += [WorkerModel(fleet.nats, name) for name in ("w1", "w2", "w3")]
    fleet.clock.advance(3.1)
    fleet.ask(SIDS[0])
    fleet.clock.advance(broken_after)
    client = holder(fleet).client
    client.cut()
    fleet.queue(SIDS[0], "@copy")
    fleet.clock.advance(away)
    client.join()
    return fleet


@pytest.mark.parametrize("away", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("broken_after", [0.012, 0.02, 0.025])
def test_a_job_whose_first_beat_was_lost_with_a_connection_stays_with_its_holder(
    broken_after: float, away: float
) -> None:
    assert written(first_beat_lost(broken_after, away), 4.0) == ONE_WRITER


def test_a_writer_who_has_not_told_would_be_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """That case without the rule."""
    monkeypatch.setattr(pulse, "untold", lambda opening, others: False)
    assert written(first_beat_lost(0.02, 0.1), 4.0) != ONE_WRITER


def stood_still(seconds: float, phase: float) -> FleetModel:
    """The server, which then reads the holder's connection last."""
    fleet = FleetModel()
    fleet.nats.latency = lambda: 0.002
    for name in ("w1", "w2"):
        fleet.workers.append(WorkerModel(fleet.nats, name))
        fleet.clock.advance(0.07)
    fleet.clock.advance(3.0)
    fleet.ask(SIDS[0])
    fleet.clock.advance(0.1 + phase)
    fleet.nats.stand_still(seconds, holder(fleet).client, by=0.2)
    return fleet


@pytest.mark.parametrize("phase", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("seconds", [1.0, 1.1, 1.2])
def test_a_server_that_stood_still_makes_nobody_dead_whose_beats_it_reads_late(seconds: float, phase: float) -> None:
    assert written(stood_still(seconds, phase), 6.0) == ONE_WRITER


def test_an_echo_that_took_long_would_make_the_living_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of those cases without the rule."""
    monkeypatch.setattr(Observer, "on_echo", lambda observer, now: None)
    assert written(stood_still(1.1, 0.1), 6.0) != ONE_WRITER


@pytest.mark.parametrize("fails_after", [0.2, 0.4, 0.7])
def test_an_engine_that_fails_while_the_log_is_full_begins_nothing_anew(fails_after: float) -> None:
    """The terminal that says so is on its way, or there is no room even for that."""
    fleet = FleetModel()
    fleet.workers.append(WorkerModel(fleet.nats, "w1"))
    fleet.clock.advance(0.3)
    fleet.ask(SIDS[0])
    fleet.clock.advance(0.06)
    fleet.log.full = True
    fleet.clock.advance(fails_after)
    fleet.workers[0].engine.fails = 1
    fleet.clock.advance(0.3)
    fleet.log.full = False
    assert written(fleet, 5.0) == ({"g1": "failed"}, 0)


# -- the rules, taken out one by one -----------------------------------------------------------------------------------


def publishes_carry_no_fence(patch: pytest.MonkeyPatch) -> None:
    def store_soon(bus: Bus, subject: str, payload: bytes, expect_last: int, on_answer: Callable[[Any], None]) -> None:
        bus.call(subject, payload, None, lambda msg: on_answer(jetstream.read_ack(msg)))

    patch.setattr(jetstream, "store_soon", store_soon)


def another_writers_frame_is_taken_for_ones_own(patch: pytest.MonkeyPatch) -> None:
    def found(outbox: Outbox, frame: Frame | None) -> None:
        assert frame is not None
        outbox.chain.last, outbox.chain.known = frame.prev, False
        outbox._advance(msgspec.structs.replace(frame, attempt=outbox.attempt, epoch=outbox.epoch))

    patch.setattr(Outbox, "found", found)


def what_was_not_acknowledged_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def undecided(outbox: Outbox) -> None:
        outbox.state = State.UNDECIDED
        if outbox.sends_tokens and outbox._entries:
            outbox.waiting -= outbox._entries.popleft().size

    patch.setattr(Outbox, "undecided", undecided)


def a_refused_publish_is_taken_for_a_stored_one(patch: pytest.MonkeyPatch) -> None:
    def refused(outbox: Outbox, last: int | None) -> None:
        if last is not None and last > outbox.chain.last:
            outbox.stored(last)
        else:
            outbox.state = State.UNDECIDED

    patch.setattr(Outbox, "refused", refused)


def the_end_in_the_log_is_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover, "TERMINAL", frozenset())


def a_living_holder_is_not_asked_after(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover, "_holder", lambda gid, others: "")


def a_takeover_begins_at_the_beginning(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(answer, "Prefix", lambda *rest, **more: Prefix((), 0))


def a_job_is_acknowledged_however_its_writing_ended(patch: pytest.MonkeyPatch) -> None:
    async def conclude(held: Held, outcome: Any) -> str:
        held._free_slot()
        await held._ack()
        return str(outcome)

    patch.setattr(Held, "_conclude", conclude)


RULES = [
    (publishes_carry_no_fence, "ChainBroken|begins with a start"),
    (another_writers_frame_is_taken_for_ones_own, "ChainBroken|is not in the log|not ended|asked to go on from"),
    (what_was_not_acknowledged_is_forgotten, "ChainBroken|not ended"),
    (a_refused_publish_is_taken_for_a_stored_one, "ChainBroken|is not in the log"),
    (the_end_in_the_log_is_not_looked_for, "ChainBroken"),
    (a_living_holder_is_not_asked_after, "a living worker was taken over"),
    (a_takeover_begins_at_the_beginning, "is not what the model says there"),
    (a_job_is_acknowledged_however_its_writing_ended, "was acknowledged before its end"),
]


@pytest.mark.parametrize(("broken", "saying"), RULES)
def test_the_model_notices_when(broken: Any, saying: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    finds(Takeover, saying)
