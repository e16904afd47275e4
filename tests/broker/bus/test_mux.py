"""Records of many streams in one message: what is written is what is read, and nothing else is read at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus import mux
from broker.bus.mux import Kind, Malformed

RECORDS = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, mux.MAX_STREAM), st.binary(max_size=300)))
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1).map(str.encode)
NAME = st.from_regex(rb"[a-z][a-z0-9-]{0,20}", fullmatch=True)


@given(RECORDS)
def test_records_are_read_as_they_were_written(written: list[tuple[Kind, int, bytes]]) -> None:
    assert list(mux.records(b"".join(mux.record(*each) for each in written))) == written


@given(st.lists(st.integers(0, mux.MESSAGE * 2), max_size=12))
def test_records_become_messages_that_are_not_too_long(sizes: list[int]) -> None:
    said = [mux.record(Kind.DATA, number, b"x" * size) for number, size in enumerate(sizes)]
    messages = list(mux.messages(said))
    assert b"".join(messages) == b"".join(said)
    assert all(len(message) <= mux.MESSAGE or message in said for message in messages)
    assert all(list(mux.records(message)) for message in messages)


@given(RECORDS.filter(bool), st.data())
def test_a_message_that_is_cut_anywhere_gives_whole_records_and_then_an_error(
    written: list[tuple[Kind, int, bytes]], data: st.DataObject
) -> None:
    message = b"".join(mux.record(*each) for each in written)
    cut = data.draw(st.integers(1, len(message) - 1))
    read = []
    try:
        for each in mux.records(message[:cut]):
            read.append(each)
    except Malformed:
        pass
    else:
        assert sum(9 + len(rest) for _, _, rest in read) == cut, "only between two records it is no error"
    assert read == written[: len(read)]


@given(st.integers(100, 599), st.lists(st.tuples(NAME, TEXT)))
def test_a_head_is_read_as_it_was_written(status: int, fields: list[tuple[bytes, bytes]]) -> None:
    assert mux.read_head(mux.head(status, fields)) == (status, fields)


@given(st.binary(min_size=1, max_size=255), st.binary(min_size=1))
def test_tokens_are_read_with_the_cursor_they_were_written_with(cursor: bytes, events: bytes) -> None:
    ((kind, stream, data),) = mux.records(mux.tokens(7, cursor, events))
    assert (kind, stream) == (Kind.TOKENS, 7)
    assert mux.read_tokens(data) == (cursor, events)
    with pytest.raises(Malformed):
        mux.read_tokens(data[: len(cursor)])


@pytest.mark.parametrize("head", [b"", b"20\r\n", b"abc\r\n", b"200\r\nno colon\r\n", b"200\r\n: no name\r\n"])
def test_what_is_no_head_is_an_error(head: bytes) -> None:
    with pytest.raises(Malformed):
        mux.read_head(head)


def test_a_credit_is_four_bytes() -> None:
    ((kind, stream, rest),) = mux.records(mux.credit(7, 1 << 20))
    assert (kind, stream, mux.credit_of(rest)) == (Kind.CREDIT, 7, 1 << 20)
    with pytest.raises(Malformed):
        mux.credit_of(b"\0\0\1")
