"""Drain and splice: whichever leg ends at whichever byte, what a browser has is the log, and it never sees the seam."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.bus.frames import TERMINAL
from broker.bus.subjects import Cursor
from broker.node.events import closed
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from ingress.sse_leg import Event, Splice, Splitter, Turn
from tests.models.machine import finds, plays
from tests.models.nats_model import NatsModel
from tests.models.node_model import NodeModel, partition
from tests.models.relay_model import BrowserModel
from tests.models.session_model import SessionModel
from tests.models.viewer_model import WRONG, Told
from tests.models.virtual_loop import Clock

MAX_BROWSERS = 3
ROUNDS = 25  # of letting everything flow, after which nothing may be left


class Splicing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.nats = NatsModel(self.clock)
        self.loop = self.clock.loop()
        partition(self.nats)
        self.session = SessionModel(self.nats)
        self.nodes: list[NodeModel] = []
        self.browsers: list[BrowserModel] = []
        self.fresh = False  # somebody came without a cursor

    @initialize(
        before=st.lists(st.integers(0, 11), max_size=12),
        word=st.integers(0, 3),
        until_done=st.booleans(),
        live=st.booleans(),
    )
    def begin(self, before: list[int], word: int, until_done: bool, live: bool) -> None:
        self.nodes = [NodeModel(self.nats, self.loop, name) for name in ("n1", "n2")]
        self.write(before)
        self.join(word, until_done)
        self.clock.advance(0.05)
        if live:
            self.bytes_flow(0, 100_000)

    @rule(choices=st.lists(st.integers(0, 11), min_size=1, max_size=5))
    def write(self, choices: list[int]) -> None:
        for choice in choices:
            self.session.write(choice)

    @precondition(lambda self: not self.fresh)
    @rule(keep=st.integers(0, 8), choices=st.lists(st.integers(0, 11), max_size=3))
    def purge(self, keep: int, choices: list[int]) -> None:
        self.session.purge(keep)
        self.write(choices)

    @precondition(lambda self: len(self.browsers) < MAX_BROWSERS)
    @rule(place=st.integers(0, 100), until_done=st.booleans())
    def join(self, place: int, until_done: bool) -> None:
        word = ("fresh", "first", "now", "cursor")[place % 4]
        if word == "fresh" and self.session.changes:
            word = "first"  # a turn of which a part has aged out is told to nobody who does not ask for it
        self.fresh = self.fresh or word == "fresh"
        places = [0, *(frame.seq for frame in self.session.stored)]
        cursor = Cursor(self.session.incarnation, places[place // 4 % len(places)]) if word == "cursor" else None
        self.browsers.append(BrowserModel(self.session, self.nodes, Start(word, cursor), until_done=until_done))

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.2, 7.0]))
    def time_passes(self, seconds: float) -> None:
        """7 s without a byte: the leg counts as frozen."""
        self.clock.advance(seconds)

    @rule(which=st.integers(0, MAX_BROWSERS - 1), count=st.one_of(st.integers(1, 40), st.just(100_000)))
    def bytes_flow(self, which: int, count: int) -> None:
        """From a node to its relay: so that a leg may end at any byte."""
        browser = self.browser(which)
        if browser.leg is not None:
            browser.leg.flow(count)
        self.clock.settle()

    @rule(which=st.integers(0, MAX_BROWSERS - 1), count=st.one_of(st.integers(1, 200), st.just(100_000)))
    def bytes_arrive(self, which: int, count: int) -> None:
        """From the relay at the browser."""
        self.browser(which).receive(count)

    @rule(which=st.integers(0, MAX_BROWSERS - 1), broken=st.booleans())
    def node_dies(self, which: int, broken: bool) -> None:
        """Or it stops without a word, which to who waits for an end would be one: no node does that."""
        browser = self.browser(which)
        if browser.leg is not None:
            browser.leg.end(broken=broken or browser.until_done)
        self.clock.advance(0.02)

    @rule(which=st.integers(0, 1))
    def node_leaves(self, which: int) -> None:
        """It tells every viewer where to go on; what it writes flows as before."""
        for browser in self.browsers:
            leg = browser.leg
            if leg is not None and leg.id == self.nodes[which].name and leg.subscriber is not None:
                leg.subscriber.leave(0)
        self.clock.settle()

    @rule(which=st.integers(0, MAX_BROWSERS - 1))
    def ingress_leaves(self, which: int) -> None:
        self.browser(which).ingress_leaves()
        self.clock.advance(0.05)

    @rule(which=st.integers(0, MAX_BROWSERS - 1))
    def client_breaks(self, which: int) -> None:
        self.browser(which).reconnect()
        self.clock.advance(0.05)

    # -- what must be true ---------------------------------------------------------------------------------------------

    @invariant()
    def nobody_was_told_anything_wrong(self) -> None:
        for browser in self.browsers:
            if browser.task.done():
                browser.task.result()
            assert browser.told.resets <= self.session.changes, f"reset for nothing: {browser.told.names}"

    def complete(self, told: Told) -> bool:
        return told.caught_up and self.session.ends_at(told.place)

    def browser(self, which: int) -> BrowserModel:
        return self.browsers[which % len(self.browsers)]

    def teardown(self) -> None:
        try:
            if self.browsers:
                self.in_the_end()
        finally:
            for browser in self.browsers:
                browser.task.cancel()
            self.clock.failures.clear()
            self.clock.settle()
            for node in self.nodes:
                self.clock.run(self.loop, node.close())
            self.clock.close()

    def in_the_end(self) -> None:
        """Nothing fails any more: everybody gets everything, and who waited for an end has one."""
        for _ in range(ROUNDS):
            for browser in self.browsers:
                if browser.leg is not None and not browser.finished:
                    browser.leg.flow(100_000)
                browser.receive(100_000)
            self.clock.advance(0.05)
            if all(browser.finished or self.complete(browser.told) for browser in self.browsers):
                break
        self.nobody_was_told_anything_wrong()
        for browser in self.browsers:
            told = browser.told
            if browser.finished:
                assert told.names[-1] in TERMINAL | {"caught_up"}, f"no end: {told.names}"
                assert told.caught_up, f"ended within history: {told.names}"
            else:
                assert told.caught_up, f"history has not ended: {told.names}"
                assert self.session.ends_at(told.place), f"the end is missing: {told.names}"


def test_a_browser_sees_every_frame_once_whichever_leg_ends_at_whichever_byte() -> None:
    plays(Splicing, examples=180)


# -- the rules, taken out one by one -----------------------------------------------------------------------------------


def the_cursor_does_not_move(patch: pytest.MonkeyPatch) -> None:
    def take(splice: Splice, event: Event) -> tuple[bytes, Turn]:
        before = splice.cursor
        told = original(splice, event)
        splice.cursor = before
        return told

    original = Splice.take
    patch.setattr(Splice, "take", take)


def half_an_event_is_forwarded(patch: pytest.MonkeyPatch) -> None:
    def feed(splitter: Splitter, chunk: bytes) -> list[Event]:
        events = original(splitter, chunk)
        held, splitter._held = splitter._held, b""
        return [*events, Event(held, b"", None)] if held else events

    original = Splitter.feed
    patch.setattr(Splitter, "feed", feed)


def what_a_leg_left_half_is_put_before_the_next(patch: pytest.MonkeyPatch) -> None:
    held: dict[int, Splitter] = {}
    patch.setattr("ingress.stream.Splitter", lambda: held.setdefault(0, Splitter()))


def hello_is_forwarded_on_every_leg(patch: pytest.MonkeyPatch) -> None:
    def take(splice: Splice, event: Event) -> tuple[bytes, Turn]:
        splice.hello = False
        return original(splice, event)

    original = Splice.take
    patch.setattr(Splice, "take", take)


def the_end_of_history_is_not_said_again_after_a_reset(patch: pytest.MonkeyPatch) -> None:
    def take(splice: Splice, event: Event) -> tuple[bytes, Turn]:
        before = splice.caught_up
        told = original(splice, event)
        splice.caught_up = splice.caught_up or before
        return told

    original = Splice.take
    patch.setattr(Splice, "take", take)


def a_leaving_node_takes_its_viewers_with_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Subscriber, "leave", lambda subscriber, after_ms: subscriber.end("over", closed("internal", "over")))


JUDGED = WRONG + "|no whole event|reset for nothing|no end|ended within history|its connection was ended"
RULES = [
    the_cursor_does_not_move,
    half_an_event_is_forwarded,
    what_a_leg_left_half_is_put_before_the_next,
    hello_is_forwarded_on_every_leg,
    the_end_of_history_is_not_said_again_after_a_reset,
    a_leaving_node_takes_its_viewers_with_it,
]


@pytest.mark.parametrize("broken", RULES)
def test_the_model_notices_when(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    finds(Splicing, JUDGED)
