"""A viewer reads what a server may send, cut as a relay may cut it."""

from collections.abc import Callable, Iterator

import pytest

from bench.body import Body
from bench.contender import Dialect
from bench.load import Load, Order, Viewer, Watching
from bench.record import Shape
from bench.replay import Replay

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = b"".join(b"event: token\ndata: %d:12345678 \n\n" % index for index in range(3))


def order(shape: Shape, dialect: Dialect = "chat") -> Order:
    return Order(dialect, "http://127.0.0.1:1", "", shape, ramp=0.0, warm=0.0, window=0.0)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def cuts() -> Iterator[bytes]:
    """The same events, with a chunk's end behind every byte of them."""
    for at in range(1, len(EVENTS)):
        yield chunk(EVENTS[:at]) + chunk(EVENTS[at:])


def whole(data: bytes, read: Callable[[bytes], object]) -> None:
    read(data)


def bytewise(data: bytes, read: Callable[[bytes], object]) -> None:
    for at in range(len(data)):
        read(data[at : at + 1])


@pytest.mark.parametrize("reads", [whole, bytewise])
def test_a_chunk_that_ends_within_a_token_is_no_gap(reads: Callable[[bytes, Callable[[bytes], object]], None]) -> None:
    for sent in cuts():
        load = Load(order(Shape(1, 20.0)))
        viewer = Viewer(load)
        reads(HEAD + sent, viewer.data_received)
        assert (load.tokens, load.wrong, load.refused) == (3, 0, "")
        replay = Replay(b"", "first")
        reads(HEAD + sent, replay.data_received)
        assert (replay.tokens, replay.events) == (3, 3)


def test_a_viewer_who_gets_no_more_tokens_is_counted() -> None:
    """Two seconds, or five steps where these are longer."""
    for rate, seconds in ((20.0, 2), (1.0, 5)):
        load = Load(order(Shape(2, rate)))
        load.watching = [Watching(Viewer(load), b""), Watching(Viewer(load), b"")]
        load.watching[0].viewer.data_received(HEAD + chunk(EVENTS))
        last = load.watching[0].viewer.last_at
        load.watching[1].viewer.last_at = last + 1_000_000
        assert load.stalled(last + seconds * 1_000_000) == 0
        assert load.stalled(last + seconds * 1_000_000 + 1) == 1
    assert Load(order(Shape(2, 0.0))).stalled(10**9) == 0


def test_a_body_is_what_it_is_without_chunks_too() -> None:
    plain, parts = Body(), Body()
    assert plain.take(b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n" + EVENTS) == EVENTS
    sent = HEAD + b"5;a=b\r\n12345\r\n" + b"A\r\n0123456789\r\n" + b"0\r\n\r\n"
    got: list[bytes] = []
    bytewise(sent, lambda data: got.append(parts.take(data)))
    assert b"".join(got) == b"123450123456789"
    assert parts.head == HEAD


def test_what_is_no_stream_is_refused_with_its_words() -> None:
    load = Load(order(Shape(1, 20.0)))
    Viewer(load).data_received(b"HTTP/1.1 503 Busy\r\ncontent-length: 5\r\n\r\nlater")
    assert "later" in load.refused
