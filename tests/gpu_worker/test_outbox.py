"""One attempt's outbox against a model of a log that loses acks, delays publishes and has other writers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.bus.chain import Chain
from broker.bus.frames import ATTEMPT, DONE, FAILED, START, TOKEN, USAGE, Frame, decode_frame, encode_frame
from gpu_worker.outbox import FRAME_TEXT, Outbox, Publish, State, Stop

MINE, THEIRS = "mine0000", "theirs00"


class ModelLog:
    """One session's subject as JetStream keeps it: the fence, and nothing else, decides."""

    def __init__(self, before: int = 0) -> None:
        self.frames: list[Frame] = []
        self.seq = self.last = before

    def store(self, publish: Publish) -> int | None:
        """The sequence, or None where the fence holds."""
        if publish.expect_last != self.last:
            return None
        self.seq += 3  # other sessions write in between
        self.last = self.seq
        self.frames.append(decode_frame(publish.payload, self.seq))
        return self.seq

    def chain(self) -> Chain:
        chain = Chain(self.frames[0].prev if self.frames else self.last)
        for frame in self.frames:
            chain.advance(frame)
        return chain

    def text(self, attempt: str) -> str:
        return "".join(f.fields()["text"] for f in self.frames if f.attempt == attempt and f.type == TOKEN)


def outbox_at(log: ModelLog, epoch: int = 1) -> Outbox:
    return Outbox("g1", epoch, MINE, log.chain())


def begun(log: ModelLog) -> Outbox:
    """An outbox whose `start` is in the log."""
    outbox = outbox_at(log)
    outbox.event(START, {"epoch": 1, "model": "m", "worker": "w", "input": [], "t": 0})
    store(outbox, log)
    return outbox


def store(outbox: Outbox, log: ModelLog) -> Publish:
    publish = outbox.take()
    assert publish is not None
    seq = log.store(publish)
    assert seq is not None
    outbox.stored(seq)
    return publish


def intrude(log: ModelLog) -> None:
    """Another worker takes over, as far as the log lets it."""
    chain = log.chain()
    if not chain.open:
        return
    payload = encode_frame(ATTEMPT, "g1", chain.epoch + 1, THEIRS, log.last, chain.next_offset, 0, {"worker": "x"})
    log.store(Publish(payload, log.last))


def test_tokens_that_come_while_one_publish_is_in_flight_join_the_next_frame() -> None:
    log = ModelLog()
    outbox = begun(log)
    outbox.piece(TOKEN, "a ", 1)
    first = outbox.take()
    assert first is not None
    for word in ("b ", "c ", "d "):
        outbox.piece(TOKEN, word, 1)
    assert outbox.take() is None, "one publish in flight"
    seq = log.store(first)
    assert seq is not None
    outbox.stored(seq)
    store(outbox, log)
    assert [(f.offset, f.n) for f in log.frames[1:]] == [(0, 1), (1, 3)]
    assert log.text(MINE) == "a b c d "


def test_a_frame_has_one_kind_and_a_bounded_size() -> None:
    log = ModelLog()
    outbox = begun(log)
    big = "x" * (FRAME_TEXT // 2)
    for kind, text in ((TOKEN, big), (TOKEN, big), (TOKEN, "c"), ("reasoning", "d"), (TOKEN, "e")):
        outbox.piece(kind, text, 1)
    outbox.piece(TOKEN, "y" * (2 * FRAME_TEXT), 1)
    while outbox.take():
        outbox.undecided()
        store(outbox, log)
    assert [(f.type, f.n) for f in log.frames[1:]] == [
        (TOKEN, 2),
        (TOKEN, 1),
        ("reasoning", 1),
        (TOKEN, 1),
        (TOKEN, 1),  # one piece is never cut
    ]


def test_after_a_lost_ack_the_longer_retry_is_cut_where_the_stored_frame_ends() -> None:
    log = ModelLog()
    outbox = begun(log)
    outbox.piece(TOKEN, "a ", 1)
    sent = outbox.take()
    assert sent is not None
    log.store(sent)  # stored, but nobody says so
    outbox.undecided()
    outbox.piece(TOKEN, "b ", 1)
    again = outbox.take()
    assert again is not None
    assert b"a b " in again.payload
    assert again.expect_last == sent.expect_last, "the same fence"
    assert log.store(again) is None
    outbox.refused(log.last)
    assert outbox.state is State.READING
    outbox.found(log.frames[-1])
    store(outbox, log)
    assert log.text(MINE) == "a b "
    assert [(f.offset, f.n) for f in log.frames[1:]] == [(0, 1), (1, 1)]


def test_another_writer_behind_the_fence_ends_it() -> None:
    log = ModelLog()
    outbox = begun(log)
    outbox.piece(TOKEN, "a ", 1)
    intrude(log)
    publish = outbox.take()
    assert publish is not None
    assert log.store(publish) is None
    outbox.refused(log.last)
    outbox.found(log.frames[-1])
    assert outbox.stopped is Stop.FENCED
    outbox.event(DONE, {})
    assert outbox.take() is None


@pytest.mark.parametrize("last", [0, 1])
def test_a_log_that_went_back_is_not_written_to(last: int) -> None:
    log = ModelLog(before=7)
    outbox = begun(log)
    outbox.piece(TOKEN, "a ", 1)
    assert outbox.take() is not None
    outbox.refused(last)
    assert outbox.stopped is Stop.PURGED


@pytest.mark.parametrize("last", [None, 3])
def test_a_fence_that_still_stands_is_undecided(last: int | None) -> None:
    """Error 10164, or 10071 with last == my fence: the publish before is being proposed."""
    log = ModelLog()
    outbox = begun(log)
    outbox.piece(TOKEN, "a ", 1)
    first = outbox.take()
    outbox.refused(last)
    assert outbox.state is State.UNDECIDED
    assert outbox.take() == first, "the same fence and the same bytes"


def test_a_full_log_gets_the_terminal_behind_what_had_been_stored_after_all() -> None:
    log = ModelLog()
    outbox = begun(log)
    outbox.piece(TOKEN, "a ", 1)
    lost = outbox.take()
    assert lost is not None
    log.store(lost)
    outbox.undecided()
    outbox.piece(TOKEN, "b ", 1)
    assert outbox.take() is not None
    outbox.full({"code": "log_full", "message": "", "retryable": False, "t": 0})
    terminal = outbox.take()
    assert terminal is not None
    assert log.store(terminal) is None
    outbox.refused(log.last)
    outbox.found(log.frames[-1])
    store(outbox, log)
    assert outbox.state is State.ENDED
    assert [(f.type, f.offset) for f in log.frames] == [(START, 0), (TOKEN, 0), (FAILED, 1)]


COIN = st.booleans()
FAULTS = ("stored", "ack_lost", "dropped", "delayed", "busy", "intruder", "full")


@settings(max_examples=300, deadline=None)
@given(data=st.data(), pieces=st.lists(st.tuples(st.text(max_size=3), st.integers(1, 3)), max_size=12))
def test_whatever_is_lost_delayed_or_intruded_the_log_stays_one_chain(
    data: st.DataObject, pieces: list[tuple[str, int]]
) -> None:
    """The log is a chain, and holds what was offered once and in order, up to where the attempt ended."""
    log = ModelLog(before=data.draw(st.sampled_from([0, 40])))
    outbox = outbox_at(log)
    outbox.event(START, {"epoch": 1, "model": "m", "worker": "w", "input": [], "t": 0})
    todo = list(pieces)
    said = ""
    under_way: list[Publish] = []  # given up on by the writer, not by the network
    full = False
    for step in range(400):
        calm = step > 60  # the network heals, or nothing would ever end
        if data.draw(COIN) and under_way:
            log.store(under_way.pop(data.draw(st.integers(0, len(under_way) - 1))))
        for _ in range(0 if full else data.draw(st.integers(0, 2)) if not calm else len(todo)):
            if todo:
                text, n = todo.pop(0)
                outbox.piece(TOKEN, text, n)
                said += text
                if not todo:
                    outbox.event(USAGE, {"prompt_tokens": 1, "completion_tokens": 1})
                    outbox.event(DONE, {"finish_reason": "stop", "t": 0})
        if not pieces and step == 0:
            outbox.event(DONE, {"finish_reason": "stop", "t": 0})
        if outbox.state in (State.ENDED, State.STOPPED):
            break
        publish = outbox.take()
        if publish is None:
            continue
        match "stored" if calm else data.draw(st.sampled_from(FAULTS)):
            case "full" if outbox.chain.open and not full:
                full = True
                outbox.full({"code": "log_full", "message": "", "retryable": False, "t": 0})
                continue
            case "ack_lost":
                log.store(publish)
                outbox.undecided()
                continue
            case "dropped" | "full":
                outbox.undecided()
                continue
            case "delayed":
                under_way.append(publish)
                outbox.undecided()
                continue
            case "busy":
                outbox.refused(None)
                continue
            case "intruder":
                intrude(log)
        seq = log.store(publish)
        if seq is not None:
            outbox.stored(seq)
            continue
        outbox.refused(log.last)
        if outbox.state is State.READING:
            if not calm and data.draw(COIN):
                outbox.undecided()  # the leader did not answer
            else:
                outbox.found(log.frames[-1])
    for late in under_way:
        log.store(late)
    chain = log.chain()  # raises ChainBroken where a frame does not follow
    mine = log.text(MINE)
    assert outbox.state in (State.ENDED, State.STOPPED)
    if outbox.state is State.ENDED:
        assert not chain.open
        assert outbox.chain.last == log.last
        assert said.startswith(mine) if full else mine == said == "".join(text for text, _ in pieces)
        assert sum(frame.terminal for frame in log.frames) == 1
    else:
        assert outbox.stopped is Stop.FENCED
        assert any(frame.attempt == THEIRS for frame in log.frames)
        assert said.startswith(mine)
        assert not any(frame.terminal for frame in log.frames)
