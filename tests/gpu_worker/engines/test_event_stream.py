"""Bodies taken apart, however the network cuts them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engines.event_stream import LINE_LIMIT, SIZE_LIMIT, Chunks, Malformed, Payloads


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """The bytes in pieces that end at these places, and at the end."""
    places = sorted({min(place, len(data)) for place in at} | {0, len(data)})
    return [data[first:last] for first, last in itertools.pairwise(places)]


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 400)), st.booleans())
def test_a_chunked_body_is_the_same_wherever_it_is_cut(chunks: list[bytes], at: list[int], extended: bool) -> None:
    extension = b";name=value" if extended else b""
    coded = b"".join(b"%X%s\r\n%s\r\n" % (len(one), extension, one) for one in chunks) + b"0\r\n\r\n"
    decoder = Chunks()
    assert b"".join(decoder.feed(part) for part in cut(coded, at)) == b"".join(chunks)
    assert decoder.ended


TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20))


@given(TEXTS, st.lists(st.integers(0, 400)))
def test_events_are_the_same_wherever_they_are_cut(texts: list[str], at: list[int]) -> None:
    ends = itertools.cycle([b"\n\n", b"\r\n\r\n"])
    stream = b"".join(b": ping\n\ndata: %s%s" % (text.encode(), next(ends)) for text in texts)
    payloads = Payloads()
    found = [payload for part in cut(stream, at) for payload in payloads.feed(part)]
    assert found == [text.encode().strip() for text in texts]


EVENTS = st.lists(
    st.sampled_from(
        [
            *(b"data: x\n\n", b"data:  y \n\n", b": z\n\n", b"data: a\r\n\r\n", b"\n", b"data: \n\n", b"data: b\r\r"),
            *(b"data: c\rdata: d\n\n", b"\r", b"data: e\ndata:f\n\n", b"\xef\xbb\xbfdata: g\n\n", b"data: h\n"),
            *(b"data: i\n\r", b"event: x\ndata: j\n\n", b"data\n", b"\xef\xbb\xbf\n", b"error: k\n\n"),
        ]
    )
)


@given(EVENTS, st.lists(st.integers(1, 40)), st.booleans())
def test_several_that_come_together_are_what_they_are_byte_by_byte(
    events: list[bytes], sizes: list[int], ends: bool
) -> None:
    """What is read at once takes shorter ways, all of which lead to the same."""
    body, coded = b"".join(events), b""
    for size in sizes or [10]:
        if part := body[:size]:
            coded += b"%x\r\n%s\r\n" % (len(part), part)
            body = body[size:]
    coded += b"0\r\n\r\n" * ends
    at_once, one_by_one = (Chunks(), Payloads()), (Chunks(), Payloads())
    whole = at_once[1].feed(at_once[0].feed(coded))
    slowly = [p for byte in coded for p in one_by_one[1].feed(one_by_one[0].feed(bytes([byte])))]
    assert (whole, at_once[0].ended) == (slowly, one_by_one[0].ended)
    assert at_once[1].end() == one_by_one[1].end()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b'data: {"a":\ndata: 1}\n\n', [b'{"a":\n1}']),
        (b"event: x\r\nid: 1\r\ndata:a\r\nretry: 5\r\n\r\n", [b"a"]),
        (b"data: a\rdata: b\n\n", [b"a\nb"]),
    ],
)
def test_events_are_what_the_standard_says(body: bytes, found: list[bytes]) -> None:
    """However they are cut, and at once: an event is there with its last byte, not with the one behind it."""
    assert Payloads().feed(body) == found
    for at in range(len(body)):
        payloads = Payloads()
        assert payloads.feed(body[:at]) + payloads.feed(body[at:]) == found


def test_an_event_that_only_the_body_ended_is_one() -> None:
    payloads = Payloads()
    assert payloads.feed(b"data: a\n\ndata: b\n") + payloads.end() == [b"a", b"b"]
    assert payloads.feed(b"data: c") + payloads.end() == [b"c"]
    assert payloads.end() == []


def test_a_chunk_that_is_not_as_long_as_it_says_is_not_taken_for_one_that_is() -> None:
    assert Chunks().feed(b"3\r\nabc\r\n5\r\na\r\nbc\r\n") == b"abca\r\nbc"
    assert Chunks().feed(b"4\r\nab\r\n\r\n2\r\ncd\r\n") == b"ab\r\ncd"


@given(TEXTS)
def test_events_that_come_alone_are_what_they_are(texts: list[str]) -> None:
    chunks, payloads = Chunks(), Payloads()
    for text in texts:
        event = b"data: %s\n\n" % text.encode()
        assert payloads.feed(chunks.feed(b"%x\r\n%s\r\n" % (len(event), event))) == [text.encode().strip()]


@pytest.mark.parametrize("size", [b"-5", b"1_0", b"+1", b"", b"xyz", b" ;a=b"])
def test_what_is_no_size_is_malformed(size: bytes) -> None:
    with pytest.raises(Malformed):
        Chunks().feed(size + b"\r\nabc")


def test_nothing_grows_without_a_bound() -> None:
    with pytest.raises(Malformed):
        Chunks().feed(b"1" * (SIZE_LIMIT + 1))
    payloads = Payloads()
    payloads.feed(b"data: " + b"x" * (LINE_LIMIT - 6))
    with pytest.raises(Malformed):
        payloads.feed(b"x")
    payloads = Payloads()
    with pytest.raises(Malformed):
        payloads.feed(b"data:\n" * (LINE_LIMIT // 5 + 1))
