"""The chain: a legal log passes whole, and every illegal successor is refused without a trace."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus.chain import Chain
from broker.bus.errors import ChainBroken
from broker.bus.frames import TERMINAL, TYPES, Frame

FIELDS = ("last", "gid", "epoch", "attempt", "next_offset", "open", "known")


def frame(seq: int, kind: str, gid: str, epoch: int, attempt: str, prev: int, offset: int, n: int = 0) -> Frame:
    return Frame(seq, kind, gid, epoch, attempt, prev, offset, n, b"{}")


def state(chain: Chain) -> tuple[object, ...]:
    return tuple(getattr(chain, name) for name in FIELDS)


@st.composite
def logs(draw: st.DrawFn) -> list[Frame]:
    """A legal log of some generations, with takeovers, sweeper's ends, and other sessions' sequences in between."""
    log: list[Frame] = []
    seq = prev = 0

    def add(kind: str, gid: str, epoch: int, attempt: str, offset: int, n: int = 0) -> None:
        nonlocal seq, prev
        seq += draw(st.integers(1, 5))
        log.append(frame(seq, kind, gid, epoch, attempt, prev, offset, n))
        prev = seq

    for index in range(draw(st.integers(1, 3))):
        gid, epoch, attempt, offset = f"g{index}", 1, f"a{index}.1", 0
        add("start", gid, epoch, attempt, offset)
        for step in draw(
            st.lists(st.sampled_from(["token", "reasoning", "tool_call", "usage", "attempt"]), max_size=8)
        ):
            if step == "attempt":
                epoch += 1
                attempt = f"a{index}.{epoch}"
            n = draw(st.integers(1, 4)) if step in ("token", "reasoning") else 0
            add(step, gid, epoch, attempt, offset, n)
            offset += n
        if draw(st.booleans()):  # the sweeper ends it
            epoch, attempt = epoch + 1, "sweeper"
        add(draw(st.sampled_from(sorted(TERMINAL))), gid, epoch, attempt, offset)
    return log


@given(logs())
def test_a_legal_log_passes_whole(log: list[Frame]) -> None:
    chain = Chain()
    for each in log:
        chain.advance(each)
    assert chain.last == log[-1].seq
    assert not chain.open


@given(logs(), st.data())
def test_a_hole_or_a_repeat_is_always_noticed(log: list[Frame], data: st.DataObject) -> None:
    """Whatever is left out or shown twice: the frame behind it does not follow."""
    at = data.draw(st.integers(0, len(log) - 1))
    chain = Chain()
    for each in log[:at]:
        chain.advance(each)
    before = state(chain)
    for wrong in [*log[at + 1 :], *log[:at]]:
        with pytest.raises(ChainBroken):
            chain.advance(wrong)
    assert state(chain) == before


def legal(chain: Chain, each: Frame) -> bool:
    """docs/bus.md, "What may follow what", written down a second time."""
    if each.prev != chain.last or each.seq <= chain.last:
        return False
    if each.n < 0 or (each.n > 0 and each.type not in ("token", "reasoning")):
        return False
    if each.type == "start":
        return not chain.open and each.offset == 0 and each.epoch == 1 and each.gid != chain.gid
    if not chain.open or each.gid != chain.gid or each.offset != chain.next_offset:
        return False
    if each.type == "attempt":
        return each.epoch == chain.epoch + 1
    if each.attempt == chain.attempt:
        return each.epoch == chain.epoch
    return each.type in TERMINAL and each.epoch == chain.epoch + 1


@given(logs(), st.data())
def test_every_illegal_successor_is_refused_and_every_legal_one_taken(log: list[Frame], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(log)))
    chain = Chain()
    for each in log[:at]:
        chain.advance(each)
    wrong = data.draw(st.sampled_from([-1, 1, 2]))
    near = frame(
        chain.last + data.draw(st.integers(0, 2)),
        data.draw(st.sampled_from(sorted(TYPES))),
        data.draw(st.sampled_from([chain.gid or "g", "another"])),
        chain.epoch + data.draw(st.integers(-1, 2)),
        data.draw(st.sampled_from([chain.attempt or "a", "other"])),
        chain.last,
        chain.next_offset,
        data.draw(st.integers(-1, 2)),
    )
    field = data.draw(st.sampled_from(["", "prev", "offset"]))
    if field:
        near = msgspec.structs.replace(near, **{field: getattr(near, field) + wrong})
    if data.draw(st.booleans()):
        near = msgspec.structs.replace(near, epoch=1, offset=0, n=0)
    before = state(chain)
    if legal(chain, near):
        chain.advance(near)
        assert (chain.last, chain.gid, chain.next_offset) == (near.seq, near.gid, near.offset + near.n)
    else:
        with pytest.raises(ChainBroken):
            chain.advance(near)
        assert state(chain) == before


def running() -> Chain:
    """Two tokens of g1 have been said in epoch 2 by attempt b."""
    chain = Chain()
    chain.advance(frame(5, "start", "g1", 1, "a", 0, 0))
    chain.advance(frame(6, "token", "g1", 1, "a", 5, 0, 1))
    chain.advance(frame(7, "attempt", "g1", 2, "b", 6, 1))
    chain.advance(frame(8, "token", "g1", 2, "b", 7, 1, 1))
    return chain


@pytest.mark.parametrize(
    ("why", "wrong"),
    [
        ("hole", frame(10, "token", "g1", 2, "b", 9, 2, 1)),
        ("repeat", frame(8, "token", "g1", 2, "b", 7, 1, 1)),
        ("sequence goes back", frame(8, "token", "g1", 2, "b", 8, 2, 1)),
        ("tokens left out", frame(9, "token", "g1", 2, "b", 8, 3, 1)),
        ("tokens twice", frame(9, "token", "g1", 2, "b", 8, 1, 1)),
        ("a fenced writer", frame(9, "token", "g1", 1, "a", 8, 2, 1)),
        ("a writer without an attempt frame", frame(9, "token", "g1", 3, "c", 8, 2, 1)),
        ("an epoch left out", frame(9, "attempt", "g1", 4, "c", 8, 2)),
        ("the same epoch twice", frame(9, "attempt", "g1", 2, "c", 8, 2)),
        ("a stale end", frame(9, "done", "g1", 1, "a", 8, 2)),
        ("another generation", frame(9, "token", "g2", 2, "b", 8, 2, 1)),
        ("a start inside", frame(9, "start", "g2", 1, "c", 8, 0)),
        ("an end of tokens", frame(9, "done", "g1", 2, "b", 8, 2, 1)),
        ("less than no tokens", frame(9, "token", "g1", 2, "b", 8, 2, -1)),
    ],
)
def test_what_does_not_follow_is_refused(why: str, wrong: Frame) -> None:
    chain = running()
    before = state(chain)
    with pytest.raises(ChainBroken):
        chain.advance(wrong)
    assert state(chain) == before, why


@pytest.mark.parametrize("kind", sorted(TYPES - {"start"}))
def test_nothing_but_a_start_follows_the_end(kind: str) -> None:
    chain = running()
    chain.advance(frame(9, "cancelled", "g1", 2, "b", 8, 2))
    with pytest.raises(ChainBroken):
        chain.advance(frame(10, kind, "g1", 2, "b", 9, 2))
    with pytest.raises(ChainBroken):
        chain.advance(frame(10, "start", "g1", 1, "c", 9, 0))
    chain.advance(frame(10, "start", "g2", 1, "c", 9, 0))


def test_a_log_begins_with_a_start() -> None:
    with pytest.raises(ChainBroken):
        Chain().advance(frame(1, "token", "g1", 1, "a", 0, 0, 1))


def test_a_chain_that_begins_inside_a_log_still_wants_its_prev() -> None:
    """After a resume at a cursor nothing is known but its sequence; from the first frame on all of it is checked."""
    chain = Chain(last=40)
    with pytest.raises(ChainBroken):
        chain.advance(frame(50, "token", "g1", 3, "a", 41, 7, 2))
    chain.advance(frame(50, "token", "g1", 3, "a", 40, 7, 2))
    with pytest.raises(ChainBroken):
        chain.advance(frame(51, "token", "g1", 3, "a", 50, 7, 2))
    chain.advance(frame(51, "done", "g1", 3, "a", 50, 9))
