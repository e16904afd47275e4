"""Ring: a bounded piece of one session's chain, the same as a list that remembers everything, as far as it reaches."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.bus.frames import DONE, START, TOKEN, Frame
from broker.node.ring import EMPTY, FRESH_BYTES, OVERHEAD, Added, Ring

OTHER = "gother"


def conversation(gaps: list[int]) -> list[Frame]:
    """A whole log: answers of three tokens, with other sessions' frames between them."""
    frames: list[Frame] = []
    seq = prev = 0
    for index, gap in enumerate(gaps):
        seq += 1 + gap
        turn, place = divmod(index, 5)
        kind = START if place == 0 else DONE if place == 4 else TOKEN
        offset = 0 if place == 0 else min(place - 1, 3)
        data = b'{"model":"m","worker":"w%d"}' % turn
        frames.append(Frame(seq, kind, f"g{turn}", 1, f"a{turn}", prev, offset, int(kind == TOKEN), data))
        prev = seq
    return frames


LOGS = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(conversation)


@settings(max_examples=150, deadline=None)
@given(LOGS, st.data())
def test_a_ring_is_the_end_of_the_list_of_everything_it_took(log: list[Frame], data: st.DataObject) -> None:
    """Whatever is offered in whatever order: what it takes follows without a hole, what it gives is exactly that."""
    limit = data.draw(st.integers(4, 24), "limit")
    begin = data.draw(st.integers(0, len(log)), "known up to")
    ring = Ring("s", "inc", limit)
    model: list[Frame] = []  # everything taken
    if begin:
        ring.begin(log[begin - 1].seq, log[begin - 1])
    position = begin
    for _ in range(data.draw(st.integers(0, 60), "steps")):
        match data.draw(st.sampled_from(["next", "next", "next", "skip", "old", "trim", "forged", "fork"])):
            case "next" if position < len(log):
                assert ring.add(log[position]) is Added.TAKEN
                model.append(log[position])
                position += 1
            case "skip" if ring.floor is not None and position + 1 < len(log):
                assert ring.add(log[position + 1]) is Added.HOLE
            case "old" if model:
                assert ring.add(data.draw(st.sampled_from(model))) is Added.OLD
            case "trim":
                ring.trim(data.draw(st.integers(0, limit)))
            case "forged" if model or begin:
                last = log[position - 1]
                forged = Frame(last.seq + 1, TOKEN, OTHER, 1, "x", last.seq, 0, 1, b"{}")
                assert ring.add(forged) is Added.BROKEN
            case "fork" if position > 1:
                anew = Frame(log[position - 1].seq + 1, START, OTHER, 1, "x", log[position - 1].prev - 1, 0, 0, b"{}")
                if anew.prev >= 0 and (model or begin):
                    assert ring.add(anew) is Added.FORKED
        check(ring, model, log, begin, limit)


def check(ring: Ring, model: list[Frame], log: list[Frame], begin: int, limit: int) -> None:
    kept = model[len(model) - len(ring) :]
    assert len(ring) <= limit + limit // 8
    around = EMPTY + (FRESH_BYTES if kept else 0)
    assert ring.size == around + sum(len(frame.data) + OVERHEAD for frame in kept)
    if ring.floor is None:
        assert not model
        return
    places = [ring.floor, *(frame.seq for frame in kept)]
    assert ring.last == places[-1]
    for seq in range((log[-1].seq if log else 0) + 2):
        assert ring.holds(seq) == (seq in places), seq
        behind = ring.read(seq, 2)[0] if seq in places else []
        assert ring.newest(seq) == (behind[0] if len(behind) == 1 else None), seq
    for place in places:
        for count in (1, 3, 1000):
            events, reached = ring.read(place, count)
            expected = [frame for frame in kept if frame.seq > place][:count]
            assert [event.data for event in events] == [frame.data for frame in expected]
            assert [event.cursor for event in events] == [f"inc-{frame.seq}" for frame in expected]
            assert reached == (expected[-1].seq if expected else place)


def test_a_ring_that_knows_only_where_the_log_ends_takes_what_follows() -> None:
    """Also where what stands at the end is no frame."""
    ring = Ring("s", "inc", 16)
    ring.begin(7, None)
    assert ring.holds(7)
    assert not ring.chain.open
    assert ring.add(Frame(9, START, "g", 1, "a", 7, 0, 0, b'{"worker":"w"}')) is Added.TAKEN
    assert (ring.last, ring.worker) == (9, "w")


def test_who_serves_and_what_is_asked_for_is_read_from_the_frames() -> None:
    ring = Ring("s", "inc", 16)
    for frame in conversation([0] * 6):
        ring.add(frame)
    assert (ring.model, ring.worker) == ("m", "w1")
