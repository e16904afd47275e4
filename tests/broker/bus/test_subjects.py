"""Names on the bus: nothing that a client sends shapes a subject, and a cursor is what `str(Cursor)` writes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus import subjects
from broker.bus.errors import CursorInvalid

ANY_TEXT = st.text(st.characters())  # with surrogates: JSON may carry half a pair


@given(ANY_TEXT)
def test_any_text_becomes_one_plain_subject_token_and_comes_back(name: str) -> None:
    token = subjects.encode(name)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", token)
    assert subjects.decode(token) == name


@given(ANY_TEXT, ANY_TEXT)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assert (subjects.encode(one) == subjects.encode(other)) == (one == other)


@given(st.from_regex(r"[a-z0-9]{4,16}", fullmatch=True), st.integers(0, 2**63 - 1))
def test_a_cursor_comes_back_from_its_text(incarnation: str, sequence: int) -> None:
    cursor = subjects.Cursor(incarnation, sequence)
    assert subjects.parse_cursor(str(cursor)) == cursor


@given(ANY_TEXT | st.from_regex(r"\A[a-z0-9]{3,17}-.*\Z") | st.from_regex(r"\A\w{2,20}-?-?\d{0,22}\s?\Z"))
def test_text_is_a_cursor_only_if_it_is_written_as_one(text: str) -> None:
    """Whatever is accepted is exactly what would have been handed out: no second spelling, no bigger number."""
    try:
        cursor = subjects.parse_cursor(text)
    except CursorInvalid:
        return
    assert str(cursor) == text
    assert 0 <= cursor.sequence < 2**63


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "-",
        "abcd",
        "abcd-",
        "-5",
        "abcd--5",
        "abcd-+5",
        "abcd-05",
        "abcd-5 ",
        "abcd-5\n",
        " abcd-5",
        "ABCD-5",
        "abc-5",
        "abcd-1_0",
        "abcd-٥",
        "abcd-1e3",
        "abcd-9223372036854775808",
        "abcd-" + "9" * 5000,
        "abcd-5-6",
        "0",
    ],
)
def test_garbage_is_no_cursor(garbage: str) -> None:
    with pytest.raises(CursorInvalid):
        subjects.parse_cursor(garbage)


@pytest.mark.parametrize(
    "text", ["abcdefg", "a" * 65, "abcdefgh.", "abcd efgh", "abcdefg*", "abcdefgh\n", "ab>cdefgh", "äbcdefgh"]
)
def test_an_illegal_session_id_is_refused(text: str) -> None:
    assert not subjects.is_session_id(text)


@given(st.integers(0, subjects.MAX_PARTITIONS - 1))
def test_a_session_keeps_the_partition_it_was_born_in(index: int) -> None:
    partition = subjects.partition_name(index)
    sid = subjects.new_session_id(partition)
    assert subjects.is_session_id(sid)
    assert subjects.partition_of(sid) == partition
    assert subjects.log_subject(sid) == f"tok.{partition}.{sid}"


def test_partitions_are_two_digits_and_in_order() -> None:
    names = [subjects.partition_name(index) for index in range(subjects.MAX_PARTITIONS)]
    assert names == sorted(set(names))
    for index in (-1, subjects.MAX_PARTITIONS):
        with pytest.raises(ValueError, match="partition"):
            subjects.partition_name(index)


def test_a_model_cannot_widen_its_queue() -> None:
    """A model called `*` or `>` is a token like any other."""
    assert subjects.job_subject(">") == "job.=3E.any"
    assert subjects.job_subject("llama3:8b", "w1") == "job.llama3=3A8b.w1"
