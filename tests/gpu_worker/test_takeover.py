"""A delivery is an invitation: what follows from it is in the log, in KV and in the beats."""

from __future__ import annotations

from typing import Any

import pytest

from broker.bus.attempts import barren_epochs
from broker.bus.errors import ChainBroken
from broker.bus.frames import ATTEMPT, DONE, START, TOKEN, Frame, decode_frame, encode_frame, encode_tokens
from broker.bus.records import Beat, Generation, Job, Message, Request, Status
from gpu_worker.takeover import Ack, Adopt, Begin, Decision, GiveUp, NakLater, Opening, TakeOver, decide, untold

REQUEST = Request("scripted", [Message("user", "hello")])


def job(after: int = 0) -> Job:
    return Job("g1", "00session", "default", REQUEST, after, 0)


def record(**changes: Any) -> Generation:
    fields: dict[str, Any] = {"id": "g1", "sid": "00session", "tenant": "default", "request": REQUEST}
    return Generation(**(fields | {"created_at": 0, "after": 0} | changes))


class Told:
    """A log told frame by frame."""

    def __init__(self, last: int = 0) -> None:
        self.frames: list[Frame] = []
        self.last = last
        self.offset = 0
        self.epoch = 0
        self.attempt = ""

    def start(self, gid: str = "g1") -> Told:
        self.epoch, self.offset, self.attempt, self.gid = 1, 0, "a1", gid
        return self._add(START, {"worker": "w2", "t": 100})

    def takeover(self) -> Told:
        self.epoch += 1
        self.attempt = f"a{self.epoch}"
        return self._add(ATTEMPT, {"worker": f"w{self.epoch + 1}", "t": 100 * self.epoch})

    def end(self) -> Told:
        return self._add(DONE, {"finish_reason": "stop", "t": 0})

    def tokens(self, text: str, n: int) -> Told:
        payload = encode_tokens(TOKEN, self.gid, self.epoch, self.attempt, self.last, self.offset, n, text)
        self.offset += n
        return self._put(payload)

    def _add(self, kind: str, data: dict[str, Any]) -> Told:
        return self._put(encode_frame(kind, self.gid, self.epoch, self.attempt, self.last, self.offset, 0, data))

    def _put(self, payload: bytes) -> Told:
        self.frames.append(decode_frame(payload, self.last + 2))
        self.last += 2
        return self


def decided(
    told: Told,
    known: Generation | None = None,
    *,
    after: int = 0,
    held: frozenset[str] = frozenset(),
    **others: Beat,
) -> Decision:
    return decide(job(after), told.frames, told.last, known or record(), held, others)


def holding(gid: str) -> Beat:
    return Beat("w2", "i", 0, held={gid: "$JS.ACK.x"})


def test_nothing_in_the_log_means_begin() -> None:
    decision = decided(Told())
    assert isinstance(decision, Begin)
    assert decision.chain.last == 0


def test_a_second_turn_begins_behind_the_first() -> None:
    told = Told(last=40)
    decision = decided(told, after=40)
    assert isinstance(decision, Begin)
    assert decision.chain.last == 40


def test_a_log_that_aged_out_is_begun_anew() -> None:
    decision = decided(Told(), after=40)
    assert isinstance(decision, Begin)
    assert decision.chain.last == 0


def test_a_terminal_in_the_log_means_that_only_the_ack_is_missing() -> None:
    assert isinstance(decided(Told().start().tokens("a ", 1).end()), Ack)


@pytest.mark.parametrize("status", [status for status in Status if not status.open])
def test_what_is_recorded_as_ended_is_not_begun_again(status: Status) -> None:
    assert isinstance(decided(Told(), record(status=status)), Ack)


def test_a_deleted_session_is_not_written_to() -> None:
    assert isinstance(decide(job(), [], 0, None, (), {}), Ack)


def test_what_is_held_here_is_adopted() -> None:
    assert isinstance(decided(Told().start(), held=frozenset({"g1"})), Adopt)


def test_a_live_holder_keeps_its_job() -> None:
    decision = decided(Told().start().tokens("a ", 1), w2=holding("g1"))
    assert isinstance(decision, NakLater)
    assert decision.delay > 0
    assert isinstance(decided(Told(), w2=holding("g1")), NakLater), "also before its first frame"


def test_a_dead_holder_is_taken_over_from_the_stored_prefix() -> None:
    decision = decided(Told().start().tokens("a ", 1).tokens("b c ", 2), w2=holding("g9"))
    assert isinstance(decision, TakeOver)
    assert (decision.epoch, decision.chain.next_offset, decision.chain.last) == (2, 3, 6)
    assert decision.said == ("a ", "b c "), "frame by frame: an engine reads tokens from it"


def test_whoever_wrote_the_newest_opening_must_have_told_what_it_holds_since() -> None:
    """Its first beat that names the job may be on its way, or lost with a connection."""
    told = Told().start().tokens("a ", 1)
    decision = decided(told)
    assert isinstance(decision, TakeOver)
    assert decision.opening == Opening("w2", 100)
    for t, unsure in ((99, True), (100, True), (101, False)):
        assert untold(decision.opening, {"w2": Beat("w2", "i", t)}) is unsure
    assert not untold(decision.opening, {"w9": Beat("w9", "i", 0)}), "it is silent"
    later = decided(told.takeover())
    assert isinstance(later, TakeOver)
    assert later.opening == Opening("w3", 200)
    assert not untold(None, {"w2": Beat("w2", "i", 0)})


def test_a_cancel_is_seen_at_the_start_and_at_a_takeover() -> None:
    cancelled = record(cancel=True)
    begin = decided(Told(), cancelled)
    assert isinstance(begin, Begin)
    assert begin.cancelled
    takeover = decided(Told().start(), cancelled)
    assert isinstance(takeover, TakeOver)
    assert takeover.cancelled


def test_another_generation_that_runs_in_the_session_is_waited_for() -> None:
    assert isinstance(decided(Told().start("g0")), NakLater)
    assert isinstance(decided(Told().start("g0").end()), Begin)


def test_three_epochs_without_a_token_are_enough() -> None:
    told = Told().start().tokens("a ", 1).takeover().takeover()
    assert isinstance(decided(told), TakeOver)
    decision = decided(told.takeover())
    assert isinstance(decision, GiveUp)
    assert decision.epoch == 5
    assert barren_epochs(told.tokens("b ", 1).frames) == 0


def test_a_log_that_is_not_whole_is_no_ground_for_a_decision() -> None:
    told = Told().start().tokens("a ", 1).tokens("b ", 1)
    del told.frames[1]
    with pytest.raises(ChainBroken):
        decided(told)
    told = Told().start().tokens("a ", 1)
    told.frames.pop()
    with pytest.raises(ChainBroken):
        decided(told)
