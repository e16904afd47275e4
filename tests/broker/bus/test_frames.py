"""Frames: what is stored comes back, whatever the model said, in two lines that a person can read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus import frames
from broker.bus.errors import FrameMalformed

BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # where `str.splitlines` does
TEXT = st.text() | st.text(BREAKS + "aé…")  # every code point but surrogates: newlines, quotes, NUL, emoji
ID = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
COUNT = st.integers(0, 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(frames.TYPES)), ID, COUNT, ID, COUNT, COUNT, COUNT, st.dictionaries(TEXT, JSON), COUNT)
def test_every_frame_comes_back(
    kind: str, gid: str, epoch: int, attempt: str, prev: int, offset: int, n: int, data: dict[str, Any], seq: int
) -> None:
    data.pop("generation_id", None)
    data.pop("offset", None)
    payload = frames.encode_frame(kind, gid, epoch, attempt, prev, offset, n, data)
    frame = frames.decode_frame(payload, seq)
    assert frame == frames.Frame(seq, kind, gid, epoch, attempt, prev, offset, n, payload.split(b"\n", 1)[1])
    assert frame.fields() == {"generation_id": gid, "offset": offset, **data}
    assert list(frame.fields())[:2] == ["generation_id", "offset"]
    assert frame.terminal == (kind in {"done", "failed", "cancelled", "expired"})


@given(st.sampled_from(["token", "reasoning"]), TEXT, COUNT, COUNT)
def test_a_token_frame_laid_out_by_hand_is_the_same_frame(kind: str, text: str, offset: int, n: int) -> None:
    by_hand = frames.encode_tokens(kind, "g1", 2, "a9x7", 1041, offset, n, text)
    assert by_hand == frames.encode_frame(kind, "g1", 2, "a9x7", 1041, offset, n, {"text": text, "n": n})
    assert json.loads(by_hand.split(b"\n", 1)[1])["text"] == text


@given(TEXT)
def test_a_frame_is_two_lines_whatever_the_model_says(text: str) -> None:
    """The text's own newlines are escaped, all that anybody takes for one: SSE relays the second line as it is."""
    payload = frames.encode_tokens("token", "g1", 1, "a", 0, 0, 1, text)
    assert payload.count(b"\n") == 1
    assert b"\r" not in payload
    head, data = payload.decode().splitlines()
    assert head == "okome/1 token g1 1 a 0 0 1"
    assert json.loads(data)["text"] == text


@given(JSON)
def test_json_is_the_same_for_whoever_parses_it_and_one_line_for_whoever_splits(value: Any) -> None:
    data = frames.json_encode(value)
    assert json.loads(data) == value
    assert data.decode().splitlines() == [data.decode()]


@given(st.binary())
def test_bytes_are_a_frame_or_malformed(payload: bytes) -> None:
    try:
        frame = frames.decode_frame(payload, 1)
    except FrameMalformed:
        return
    assert payload.startswith(b"okome/1 " + frame.type.encode())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"okome/1 token g 1 a 0 0 1",
        b"okome/2 token g 1 a 0 0 1\n{}",
        b"okome/1 tokens g 1 a 0 0 1\n{}",
        b"okome/1 token g 1 a 0 0\n{}",
        b"okome/1 token g 1 a 0 0 1 1\n{}",
        b"okome/1 token g one a 0 0 1\n{}",
        b"okome/1 token g\xff 1 a 0 0 1\n{}",
        b"okome/1  token g 1 a 0 0 1\n{}",
    ],
)
def test_what_is_no_frame_of_this_version_is_said_to_be_malformed(payload: bytes) -> None:
    with pytest.raises(FrameMalformed, match="sequence 7"):
        frames.decode_frame(payload, 7)


def test_an_unknown_type_is_never_written() -> None:
    with pytest.raises(ValueError, match="rollback"):
        frames.encode_frame("rollback", "g", 1, "a", 0, 0, 0, {})
