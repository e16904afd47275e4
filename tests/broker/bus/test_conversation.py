"""The conversation is a fold over the log: the same turns, wherever reading stopped and went on."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.bus.conversation import context, fold
from broker.bus.frames import Frame, decode_frame, encode_frame
from broker.bus.records import Message


class Log:
    """Writes the frames of one session as a worker does."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.gid, self.epoch, self.attempt, self.offset = "", 1, "a", 0

    def add(self, kind: str, n: int = 0, /, **data: Any) -> None:
        seq = len(self.frames) + 1
        payload = encode_frame(kind, self.gid, self.epoch, self.attempt, seq - 1, self.offset, n, data)
        self.frames.append(decode_frame(payload, seq))
        self.offset += n

    def start(self, gid: str, said: str) -> None:
        self.gid, self.epoch, self.attempt, self.offset = gid, 1, "a", 0
        self.add("start", epoch=1, model="m", worker="w1", input=[{"role": "user", "content": said}], t=1)

    def takeover(self, worker: str) -> None:
        self.epoch, self.attempt = self.epoch + 1, worker
        self.add("attempt", epoch=self.epoch, worker=worker, t=2)


def test_a_turn_is_its_input_and_what_all_its_epochs_said() -> None:
    log = Log()
    log.start("g1", "Hi")
    log.add("reasoning", 2, text="hm", n=2)
    log.add("token", 1, text="Hel", n=1)
    log.takeover("w2")
    log.add("token", 2, text='lo "you"\n', n=2)
    log.add("usage", prompt_tokens=7, completion_tokens=5)
    log.add("done", finish_reason="stop", t=3)
    (turn,) = fold(log.frames)
    assert (turn.text, turn.status, turn.finish_reason) == ('Hello "you"\n', "done", "stop")
    assert (turn.epoch, turn.attempt, turn.worker, turn.tokens) == (2, "w2", "w2", 5)
    assert (turn.first_seq, turn.last_seq) == (1, len(log.frames))
    assert (turn.prompt_tokens, turn.completion_tokens) == (7, 5)
    assert turn.finished
    assert context([turn]) == [Message("user", "Hi"), Message("assistant", 'Hello "you"\n')]


def test_a_failed_turn_says_why_and_an_empty_one_is_no_context() -> None:
    log = Log()
    log.start("g1", "Hi")
    log.add("failed", code="engine_failed", message="out of memory", retryable=True, t=3)
    log.start("g2", "Again")
    log.add("token", 3, text="Yes", n=3)
    log.add("cancelled", t=4)
    log.start("g3", "Now?")
    failed, cancelled, running = fold(log.frames)
    assert (failed.status, failed.code, failed.error) == ("failed", "engine_failed", "out of memory")
    assert (cancelled.status, cancelled.completion_tokens) == ("cancelled", 3)
    assert not running.finished
    assert context([failed, cancelled, running]) == [Message("user", "Again"), Message("assistant", "Yes")]


def test_turns_share_nothing() -> None:
    """A mutable default would put one turn's text into the next."""
    log = Log()
    for gid in ("g1", "g2"):
        log.start(gid, gid)
        log.add("token", 1, text=gid, n=1)
        log.add("done", finish_reason="stop", t=1)
    assert [turn.text for turn in fold(log.frames)] == ["g1", "g2"]


@given(st.integers(0, 11))
def test_half_a_generation_at_the_head_is_left_out(cut: int) -> None:
    """Its start aged out: half an input is none. What follows is whole."""
    log = Log()
    for gid in ("g1", "g2", "g3"):
        log.start(gid, gid)
        log.add("token", 1, text="x", n=1)
        log.add("token", 1, text=gid, n=1)
        log.add("done", finish_reason="stop", t=1)
    whole = fold(log.frames)
    kept = fold(log.frames[cut:])
    assert kept == [turn for turn in whole if turn.first_seq > cut]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20))
def test_the_text_is_the_tokens_text_byte_for_byte(tokens: list[str]) -> None:
    log = Log()
    log.start("g1", "Hi")
    for text in tokens:
        log.add("token", 1, text=text, n=1)
    assert fold(log.frames)[0].text == "".join(tokens)
