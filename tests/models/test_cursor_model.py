"""Resume cursors: honoured exactly, or `reset`, whatever became of the log between; never a silent skip."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from broker.bus.chain import Chain
from broker.bus.frames import Frame, decode_frame
from broker.bus.log import Stored
from broker.bus.subjects import Cursor
from broker.node.log_reader import Page
from broker.node.ring import Added, Ring
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from broker.node.tail import Tail
from tests.models.log_model import StreamModel
from tests.models.machine import finds, plays
from tests.models.node_model import NodeModel
from tests.models.reading_world import ReadingWorld
from tests.models.session_model import STREAM
from tests.models.viewer_model import WRONG, ViewerModel


class Cursors(ReadingWorld):
    """Logs are purged, age, are made anew and are restored, under clients that read and between their connections."""

    def start(self, place: int) -> Start:
        word = ("first", "now", "cursor", "cursor")[place % 4]
        return Start(word, self.cursor(place // 4) if word == "cursor" else None)

    def cursor(self, place: int) -> Cursor:
        """Any cursor: of this log or of one before it, of this session, of another's, or beyond the end."""
        incarnations = [self.session.incarnation, *sorted({incarnation for incarnation, _ in self.session.frames})]
        incarnation = incarnations[place % len(incarnations)]
        return Cursor(incarnation, place // len(incarnations) % (self.session.stream.last_seq + 3))

    # -- what becomes of the log -------------------------------------------------------------------------------------

    @rule(keep=st.integers(0, 12), choices=st.lists(st.integers(0, 11), max_size=3))
    def purge(self, keep: int, choices: list[int]) -> None:
        """By hand or by age: all but the newest are gone, and it is written on."""
        self.session.purge(keep)
        for choice in choices:
            self.session.write(choice)

    @rule()
    def made_anew(self) -> None:
        """Under the same name, empty, in a new incarnation; its consumers are gone."""
        self.nats.add(StreamModel(STREAM, "tok.00.*", incarnation=f"anew{self.session.changes}"))
        self.session.replaced()
        self.other.replaced()

    @rule(lost=st.integers(0, 10))
    def restored(self, lost: int) -> None:
        """From a copy that lacks the newest messages; OKOME gives it another incarnation before anybody writes."""
        self.nats.add(self.session.stream.restored(lost, f"back{self.session.changes}"))
        self.session.restored()
        self.other.restored()

    # -- what must be true -------------------------------------------------------------------------------------------

    @invariant()
    def nobody_is_reset_for_nothing(self) -> None:
        """Once for a cursor that was no good, and once for every time that the log was changed."""
        for viewer in self.viewers:
            assert viewer.told.resets <= self.session.changes + 1, f"reset too often: {viewer.told.names}"

    @precondition(lambda self: self.nodes)
    @rule(place=st.integers(0, 10_000), warm=st.booleans())
    def resume(self, place: int, warm: bool) -> None:
        """At rest a cursor is honoured exactly if it can be; the node may have read this log before, or not."""
        self.heal()
        cursor = self.cursor(place)
        node = self.nodes[0] if warm else NodeModel(self.nats, self.loop, "n3")
        viewer = ViewerModel(self.session, [node], Start("cursor", cursor))
        viewer.free()
        try:
            self.wait(lambda: viewer.told.caught_up or viewer.task.done())
            if viewer.task.done():
                viewer.task.result()
            assert viewer.told.caught_up, f"history has not ended: {viewer.told.names}"
            honoured = "reset" not in viewer.told.names
            honest = self.session.honourable(*cursor)
            if honest is True:
                assert honoured, f"{cursor}: {viewer.told.names}"
            if honest is False and not (warm and self.session.changes):
                assert not honoured, f"{cursor}: {viewer.told.names}"
        finally:
            viewer.close()
            self.clock.settle()
            if not warm:
                self.clock.run(self.loop, node.close())


def test_a_cursor_is_honoured_exactly_or_reset_whatever_became_of_the_log() -> None:
    plays(Cursors, examples=160)


# -- the rules, taken out one by one -----------------------------------------------------------------------------------


def a_cursor_of_another_incarnation_is_taken_for_one_of_this(patch: pytest.MonkeyPatch) -> None:
    init = Subscriber.__init__

    def believing(subscriber: Subscriber, tail: Tail, *rest: Any, **more: Any) -> None:
        history, tenant, sid, start, node = rest
        if start.cursor is not None:
            start = start._replace(cursor=start.cursor._replace(incarnation=tail.incarnation))
        init(subscriber, tail, history, tenant, sid, start, node, **more)

    patch.setattr(Subscriber, "__init__", believing)


def a_cursor_beyond_the_end_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    async def stands(subscriber: Subscriber, seq: int) -> bool:
        return True

    patch.setattr(Subscriber, "_stands", stands)


def a_page_that_does_not_follow_is_shown(patch: pytest.MonkeyPatch) -> None:
    advance = Chain.advance

    def lenient(chain: Chain, frame: Frame) -> None:
        if frame.seq > chain.last:
            chain.last = frame.prev
            chain.known = False
        advance(chain, frame)

    patch.setattr(Chain, "advance", lenient)
    patch.setattr("broker.node.log_reader.linked", lambda stored, after: everything(stored))


def everything(stored: list[Stored]) -> Page:
    return Page([decode_frame(message.data, message.seq) for message in stored], broken=False)


def a_purged_ring_goes_on_with_what_was_written_after_the_purge(patch: pytest.MonkeyPatch) -> None:
    add = Ring.add

    def lenient(ring: Ring, frame: Frame) -> Added:
        if ring.floor is not None and frame.seq > ring.last and frame.prev < ring.last:
            ring.chain.last, ring.chain.known = frame.prev, False
            frames, ring._seqs = ring._seqs, array("Q")
            floor, ring.floor = ring.floor, frame.prev
            ring.last = frame.prev
            added = add(ring, frame)
            ring._seqs = frames + ring._seqs
            ring.floor = floor
            return added
        return add(ring, frame)

    patch.setattr(Ring, "add", lenient)


def a_log_made_anew_is_followed_as_if_it_were_the_old_one(patch: pytest.MonkeyPatch) -> None:
    async def look(tail: Tail) -> None:
        tail._release(len(tail._unproven or ()), tail._follow.restarts if tail._follow else 0)

    patch.setattr(Tail, "_look", look)


JUDGED = WRONG + "|reset too often"
RULES = [
    a_cursor_of_another_incarnation_is_taken_for_one_of_this,
    a_cursor_beyond_the_end_is_waited_for,
    a_page_that_does_not_follow_is_shown,
    a_purged_ring_goes_on_with_what_was_written_after_the_purge,
    a_log_made_anew_is_followed_as_if_it_were_the_old_one,
]


@pytest.mark.parametrize("broken", RULES)
def test_the_model_notices_when(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    finds(Cursors, JUDGED)
