"""A WebSocket over many legs: every event once, every request carried out and answered once, whatever is lost."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ingress.socket_leg import Dialogue
from ingress.sse_leg import Turn
from tests.models.machine import finds, plays

AUTH = b'{"event":"auth","data":{"token":"t"}}'


def message(event: str, place: int | None = None, **data: Any) -> bytes:
    fields = {"event": event, **({"id": f"inc-{place}"} if place is not None else {}), "data": data}
    return json.dumps(fields, separators=(",", ":")).encode()


def place_of(cursor: str | None) -> int | None:
    return int(cursor.partition("-")[2]) if cursor else None


class Dialogues(RuleBasedStateMachine):
    """The log is the numbers 1, 2, 3 …; nodes share what they have carried out, as OKOME does by the request's id."""

    def __init__(self) -> None:
        super().__init__()
        self.dialogue = Dialogue()
        self.dialogue.from_client(AUTH, leg=False)
        self.log = 0
        self.floor = 0  # what is not above it has aged out
        self.old = 0  # turns that have aged out, which a fresh stream begins with: only the last of them has a place
        self.carried_out: dict[str, str] = {}
        self.from_node: deque[bytes] = deque()
        self.to_node: deque[bytes] = deque()
        self.place: int | None = (
            None  # what the client has, or was told that it cannot have; None: nothing with a place
        )
        self.wanted: int | None = None  # where the stream begins that the client has asked for last; None: afresh
        self.messages = 0  # of old turns, that the client has
        self.resumes = 0
        self.names: list[str] = []
        self.answers: list[tuple[str, str]] = []
        self.asked = 0
        self.connected = self.followed = False

    @initialize(old=st.integers(0, 3))
    def come(self, old: int) -> None:
        self.old = old
        self.connect()
        self.follow()

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        """The next node is asked for a stream from the cursor on."""
        cursor = self.dialogue.cursor
        self.dialogue.opening()
        self.connected = True
        self.from_node, self.to_node = deque(), deque()
        self.begin(place_of(cursor))

    @precondition(lambda self: self.connected and not self.followed)
    @rule()
    def follow(self) -> None:
        """And is told first what is due."""
        self.followed = True
        self.to_node = deque(self.dialogue.repeated())
        assert self.to_node[0] == AUTH, "who asks is told first"

    def begin(self, after: int | None) -> None:
        if after is None:
            after = self.floor
            self.from_node.append(message("hello", None if self.old else after))
            self.from_node += [
                message("message", after if number == self.old - 1 else None, number=number)
                for number in range(self.old)
            ]
        else:
            self.from_node.append(message("hello", after))
        if after < self.floor:
            after = self.floor
            self.from_node.append(message("reset", earliest=f"inc-{after}"))
        self.from_node += [message("token", place) for place in range(after + 1, self.log + 1)]
        self.from_node.append(message("caught_up", cursor=f"inc-{self.log}"))

    def say(self, text: bytes) -> None:
        if self.dialogue.from_client(text, leg=self.followed):
            assert self.followed, "said to nobody"
            self.to_node.append(text)

    @rule(count=st.integers(1, 3))
    def write(self, count: int) -> None:
        for _ in range(count):
            self.log += 1
            if self.connected:
                self.from_node.append(message("token", self.log))

    @rule(keep=st.integers(0, 4))
    def age(self, keep: int) -> None:
        if self.log - keep > self.floor:
            self.floor = self.log - keep
            self.old += 1

    @rule(cancel=st.booleans())
    def ask(self, cancel: bool) -> None:
        self.asked += 1
        text = message("cancel" if cancel else "generate", request_id=f"r{self.asked}")
        self.say(text)

    @rule(back=st.integers(0, 6))
    def resume(self, back: int) -> None:
        """From before what the client has, or afresh."""
        self.resumes += 1
        self.wanted = max(0, (self.place or 0) - back) if back < 6 else None
        self.say(message("resume", after=f"inc-{self.wanted}" if self.wanted is not None else None))

    @rule(count=st.integers(1, 5))
    def node_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.to_node))):
            read = json.loads(self.to_node.popleft())
            if read["event"] == "auth":
                continue
            if read["event"] == "resume":
                self.begin(place_of(read["data"]["after"]))
                continue
            request = read["data"]["request_id"]
            generation = self.carried_out.setdefault(request, f"g{len(self.carried_out)}")
            self.from_node.append(message("accepted", request_id=request, generation_id=generation))

    @precondition(lambda self: self.followed)
    @rule(count=st.integers(1, 8))
    def relay_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.from_node))):
            forward, turn, _ = self.dialogue.from_node(self.from_node.popleft())
            if forward:
                self.take(json.loads(forward))
            if turn is Turn.JOINED and (resume := self.dialogue.next_resume()):
                self.to_node.append(resume)
            if turn is Turn.LEAVE:
                self.node_dies()
                return

    @rule()
    def node_dies(self) -> None:
        """What was on its way, both ways, is lost."""
        self.connected = self.followed = False
        self.from_node, self.to_node = deque(), deque()

    @precondition(lambda self: self.connected)
    @rule()
    def node_leaves(self) -> None:
        self.from_node.append(message("reconnect", cursor=f"inc-{self.log}", after_ms=0))

    def take(self, event: dict[str, Any]) -> None:
        self.names.append(event["event"])
        match event["event"]:
            case "hello":
                self.place = place_of(event.get("id"))
                self.messages = 0
                assert self.wanted in (None, self.place), "another stream than the client has asked for"
            case "message":
                number = event["data"]["number"]
                assert number == self.messages, f"not one after the other: message {number} after {self.messages}"
                self.messages += 1
                self.place = place_of(event.get("id"))
            case "token":
                assert "hello" in self.names, "a stream without a beginning"
                place = place_of(event["id"])
                assert self.place is not None, "a token before a place"
                assert place == self.place + 1, f"not one after the other: {place} after {self.place}"
                self.place = place
            case "reset":
                assert self.place is not None, "a reset before a place"
                assert self.place < self.floor, "reset for nothing"
                self.place = place_of(event["data"]["earliest"])
            case "accepted":
                self.answers.append((event["data"]["request_id"], event["data"]["generation_id"]))

    @invariant()
    def the_seam_is_not_seen(self) -> None:
        streams = self.names.count("hello")
        assert streams <= 1 + self.resumes, "a seam was seen"
        assert self.names.count("caught_up") <= streams + self.names.count("reset"), "a seam was seen"
        assert not {"reconnect", "served_by"} & set(self.names), "a seam was seen"

    def teardown(self) -> None:
        for _ in range(200):
            if not self.connected:
                self.connect()
            if not self.followed:
                self.follow()
            self.node_reads(100)
            self.relay_reads(100)
        self.the_seam_is_not_seen()
        assert not self.dialogue.moving, "what was asked for did not begin"
        assert self.place == self.log, f"the client is at {self.place} of {self.log}"
        assert sorted(dict(self.answers)) == sorted(f"r{number + 1}" for number in range(self.asked)), "not answered"
        assert all(self.carried_out[request] == generation for request, generation in self.answers)


def test_a_sockets_events_come_once_and_its_requests_are_answered() -> None:
    plays(Dialogues, examples=800)


# -- the rules, taken out one by one -----------------------------------------------------------------------------------


def what_was_not_answered_is_not_repeated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dialogue, "repeated", lambda dialogue: [AUTH])


def the_cursor_does_not_move(patch: pytest.MonkeyPatch) -> None:
    def from_node(dialogue: Dialogue, text: bytes) -> tuple[bytes, Turn, str]:
        before = dialogue.cursor
        told = original(dialogue, text)
        dialogue.cursor = before
        return told

    original = Dialogue.from_node
    patch.setattr(Dialogue, "from_node", from_node)


def a_reset_does_not_move_the_cursor(patch: pytest.MonkeyPatch) -> None:
    def from_node(dialogue: Dialogue, text: bytes) -> tuple[bytes, Turn, str]:
        before = dialogue.cursor
        told = original(dialogue, text)
        if b'"reset"' in text:
            dialogue.cursor = before
        return told

    original = Dialogue.from_node
    patch.setattr(Dialogue, "from_node", from_node)


def hello_is_forwarded_on_every_leg(patch: pytest.MonkeyPatch) -> None:
    def from_node(dialogue: Dialogue, text: bytes) -> tuple[bytes, Turn, str]:
        dialogue._asked = True
        return original(dialogue, text)

    original = Dialogue.from_node
    patch.setattr(Dialogue, "from_node", from_node)


def what_still_comes_is_where_it_goes_on(patch: pytest.MonkeyPatch) -> None:
    def from_node(dialogue: Dialogue, text: bytes) -> tuple[bytes, Turn, str]:
        told = original(dialogue, text)
        dialogue.cursor = json.loads(text).get("id", dialogue.cursor)
        return told

    original = Dialogue.from_node
    patch.setattr(Dialogue, "from_node", from_node)


def a_resume_does_not_wait_for_the_stream_before(patch: pytest.MonkeyPatch) -> None:
    def from_client(dialogue: Dialogue, text: bytes, *, leg: bool) -> bool:
        dialogue._begins = False
        return original(dialogue, text, leg=leg)

    original = Dialogue.from_client
    patch.setattr(Dialogue, "from_client", from_client)


def messages_without_a_place_are_forwarded_on_every_leg(patch: pytest.MonkeyPatch) -> None:
    def from_node(dialogue: Dialogue, text: bytes) -> tuple[bytes, Turn, str]:
        dialogue._again = 0
        return original(dialogue, text)

    original = Dialogue.from_node
    patch.setattr(Dialogue, "from_node", from_node)


RULES = [
    (what_was_not_answered_is_not_repeated, "not answered"),
    (the_cursor_does_not_move, "not one after the other"),
    (a_reset_does_not_move_the_cursor, "reset for nothing"),
    (hello_is_forwarded_on_every_leg, "a seam was seen|another stream"),
    (what_still_comes_is_where_it_goes_on, "a seam was seen|another stream"),
    (a_resume_does_not_wait_for_the_stream_before, "a seam was seen|another stream"),
    (messages_without_a_place_are_forwarded_on_every_leg, "not one after the other: message"),
]


@pytest.mark.parametrize(("broken", "saying"), RULES)
def test_the_model_notices_when(broken: Any, saying: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    finds(Dialogues, saying)
