"""Bytes in any cut to whole events, and what of them a viewer is shown."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.sse_leg import MAX_EVENT, Event, EventTooLarge, Splice, Splitter, Turn

TOKEN = b'id: i-%d\nevent: token\ndata: {"offset":%d,"text":" a"}\n\n'

blocks = st.lists(
    st.one_of(
        st.integers(0, 99).map(lambda n: TOKEN % (n, n)),
        st.just(b": hb\n"),
        st.just(b"\n"),
        st.just(b": ping\n\n"),
        st.just(b'event: caught_up\ndata: {"cursor":"i-1"}\n\n'),
        st.just(b"retry: 1000\nid: i-0\nevent: hello\ndata: {}\n\n"),
        st.integers(0, 99).map(lambda n: b': c i-%d\ndata: {"choices":[]}\n\n' % n),
        st.just(b"data: [DONE]\n\n"),
        st.text(alphabet=st.characters(exclude_characters="\n\r"), max_size=40).map(
            lambda text: b"event: token\ndata: " + text.encode(errors="replace") + b"\n\n"
        ),
    ),
    max_size=12,
)


def split(data: bytes, cuts: list[int]) -> list[Event]:
    splitter = Splitter()
    events: list[Event] = []
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        events += splitter.feed(data[start:end])
    return events


@given(blocks, st.lists(st.integers(0, 2000), max_size=30))
def test_any_chunking_gives_the_same_events(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    whole = Splitter().feed(data)
    assert split(data, cuts) == whole
    assert split(data, list(range(len(data)))) == whole
    shown = b"".join(event.raw for event in whole)
    assert shown == b"".join(line for line in data.splitlines(keepends=True) if not line.startswith(b": c "))


@given(blocks, st.binary(max_size=30).filter(lambda tail: b"\n" not in tail))
def test_a_partial_event_is_held_and_never_given(parts: list[bytes], tail: bytes) -> None:
    data = b"".join(parts)
    assert Splitter().feed(data + b"data: " + tail) == Splitter().feed(data)


def test_a_heartbeat_goes_out_at_once_without_the_event_behind_it() -> None:
    splitter = Splitter()
    assert [event.raw for event in splitter.feed(b": hb\nid: i-1\nevent: to")] == [b": hb\n"]
    assert splitter.held == len(b"id: i-1\nevent: to")


def test_an_event_without_end_is_refused() -> None:
    splitter = Splitter()
    assert splitter.feed(b"x" * MAX_EVENT) == []
    with pytest.raises(EventTooLarge):
        splitter.feed(b"x")


def test_the_cursor_moves_with_whole_events_only() -> None:
    splice, splitter = Splice(), Splitter()
    for event in splitter.feed(TOKEN % (1, 0) + (TOKEN % (2, 1))[:-1]):
        splice.take(event)
    assert splice.cursor == b"i-1"


def test_a_private_cursor_is_taken_with_its_event_and_never_shown() -> None:
    splice, splitter = Splice(), Splitter()
    assert splitter.feed(b": c i-7\n") == []
    assert splice.cursor == b""
    (event,) = splitter.feed(b"data: {}\n\n")
    assert splice.take(event) == (b"data: {}\n\n", Turn.GO_ON)
    assert splice.cursor == b"i-7"


def take(splice: Splice, data: bytes) -> list[tuple[bytes, Turn]]:
    return [splice.take(event) for event in Splitter().feed(data)]


HELLO = b'id: i-%d\nevent: hello\ndata: {"node":"n"}\n\n'
CAUGHT_UP = b'event: caught_up\ndata: {"cursor":"i-1"}\n\n'


def test_a_later_hello_and_caught_up_are_swallowed_and_do_not_move_the_cursor() -> None:
    splice = Splice()
    take(splice, HELLO % 0 + TOKEN % (1, 0) + CAUGHT_UP)
    assert take(splice, HELLO % 0 + CAUGHT_UP) == [(b"", Turn.JOINED), (b"", Turn.GO_ON)]
    assert splice.cursor == b"i-1"


def test_messages_without_a_place_come_once_although_a_later_leg_begins_with_them_again() -> None:
    """Turns that have aged out: where no cursor has come yet, there is none to go on from."""
    hello, messages = b"event: hello\ndata: {}\n\n", [b"event: message\ndata: %d\n\n" % n for n in range(3)]
    last = b"id: i-0\nevent: message\ndata: 3\n\n"
    splice = Splice()
    take(splice, hello + messages[0] + messages[1])
    whole = hello + b"".join(messages) + last + CAUGHT_UP
    shown = [b"", b"", b"", messages[2], last, CAUGHT_UP]
    assert [raw for raw, _ in take(splice, whole)] == shown
    assert splice.cursor == b"i-0"


def test_after_a_reset_history_is_announced_again() -> None:
    splice = Splice()
    take(splice, HELLO % 5 + CAUGHT_UP)
    reset = b'event: reset\ndata: {"earliest":"i-9"}\n\n'
    assert take(splice, reset + CAUGHT_UP) == [(reset, Turn.GO_ON), (CAUGHT_UP, Turn.GO_ON)]


def test_after_a_reset_the_next_leg_begins_where_it_says() -> None:
    """At the place before, which is lost, it would be reset once more; a node that still had that would repeat it."""
    splice = Splice()
    take(splice, HELLO % 5 + b'event: reset\ndata: {"earliest":"i-9","reason":"expired_or_foreign"}\n\n')
    assert splice.cursor == b"i-9"
    take(splice, b"event: reset\ndata: [\n\n")
    assert splice.cursor == b"i-9", "one that cannot be read says nothing"


def test_words_of_the_node_about_itself_are_not_shown() -> None:
    splice = Splice()
    assert take(splice, b'event: served_by\ndata: {"node":"n"}\n\n') == [(b"", Turn.GO_ON)]
    assert take(splice, b'event: reconnect\ndata: {"cursor":"i-1","after_ms":5}\n\n') == [(b"", Turn.LEAVE)]


@pytest.mark.parametrize("name", [b"done", b"failed", b"cancelled", b"expired"])
def test_until_done_is_finished_by_the_first_terminal_after_caught_up(name: bytes) -> None:
    terminal = b"id: i-3\nevent: %b\ndata: {}\n\n" % name
    splice = Splice(until_done=True)
    assert take(splice, terminal)[0][1] is Turn.GO_ON, "of an earlier generation"
    assert take(splice, CAUGHT_UP + terminal)[1] == (terminal, Turn.FINISHED)
    assert splice.finished
    assert take(Splice(), CAUGHT_UP + terminal)[1][1] is Turn.GO_ON, "without until=done the session goes on"


def test_closed_is_read_wherever_its_lines_stand() -> None:
    (event,) = Splitter().feed(b'retry: 700\ndata: {"code":"unavailable"}\nevent: closed\n\n')
    assert event.data == b'{"code":"unavailable"}'
    assert Splice().take(event) == (event.raw, Turn.CLOSED)
