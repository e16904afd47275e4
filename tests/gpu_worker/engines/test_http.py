"""HTTP to an engine, against listeners that answer byte by byte what each test needs."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from gpu_worker.engines.edge import Edges
from gpu_worker.engines.http import ALIVE, MAX_HEAD, Broken, Endpoint, Take, Unreachable, ask, call
from gpu_worker.engines.refused import Refused

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listener(speak: Speak) -> AsyncIterator[Endpoint]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await speak(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with asyncio.timeout(10), server:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], "key", 1)


def chunked(*chunks: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def saying(answer: bytes) -> Speak:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return speak


def staying(answer: bytes, gone: asyncio.Event) -> Speak:
    """Says this, and keeps the connection until the client has gone."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        gone.set()

    return speak


async def test_events_are_whole_however_the_bytes_are_cut() -> None:
    """An event over several chunks, several in one, comments and blank lines: one payload per data line, then None."""
    answer = chunked(b'data: {"a"', b":1}\n\n: ping\n\ndata: 2\n\nda", b"ta: 3\n", b"\nerror: {}\n\n", b"")
    async with listener(saying(answer)) as endpoint:
        with await ask(endpoint, "POST", "/", {}) as events:
            got = [await events.event() for _ in range(5)]
    assert got == [b'{"a":1}', b"2", b"3", b"{}", None]


async def test_a_stream_that_breaks_off_is_not_an_end() -> None:
    """A connection closed before the last chunk is Broken: an answer cut short must not look finished."""
    async with listener(saying(chunked(b"data: 1\n\n"))) as endpoint:
        with await ask(endpoint, "POST", "/", {}) as events:
            assert await events.event() == b"1"
            with pytest.raises(Broken):
                await events.event()


NONSENSE = [
    *(b"nonsense\r\n\r\n", b"HTTP/1.1 x\r\n\r\n", b"HTTP/1.1 -200 OK\r\n\r\n", b"HTTP/1.1 000 OK\r\n\r\n"),
    *(b"HTTP/1.1 200 OK\r\ncontent-length: %s\r\n\r\n{}" % length for length in (b"+2", b"0_2", b"9" * 30, b"2, 2")),
    *(b"HTTP/1.1 200 OK\r\nx: " + b"x" * (MAX_HEAD + 1), b"HTTP/1.1 200 OK\r\ntransfer-encoding: br\r\n\r\n{}"),
]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", *NONSENSE])
async def test_nonsense_is_broken(answer: bytes) -> None:
    """What is not HTTP raises Broken, nothing else."""
    async with listener(saying(answer)) as endpoint:
        with pytest.raises(Broken):
            await call(endpoint, "GET", "/")


async def test_lines_of_a_head_may_end_as_they_like() -> None:
    async with listener(saying(b"HTTP/1.1 200\nContent-Length: 6\n\n{\r\n\r\n}")) as endpoint:
        assert await call(endpoint, "GET", "/") == b"{\r\n\r\n}"


async def test_that_an_answer_is_still_to_come_is_none() -> None:
    """Any number of heads below 200 may come before it, but not without end; nothing of theirs is taken for its own."""
    early = b"HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\n"
    document = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    for times in (1, 3):
        async with listener(saying(early * times + document)) as endpoint:
            assert await call(endpoint, "GET", "/") == b"{}"
    async with listener(saying(early * 1_000 + document)) as endpoint:
        with pytest.raises(Broken):
            await call(endpoint, "GET", "/")


async def test_a_refusal_carries_the_servers_reason() -> None:
    """Status, type and message come through; a body that says neither is no second error."""
    body = b'{"error":{"code":400,"type":"exceed_context_size_error","message":"too long"}}'
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with listener(saying(answer)) as endpoint:
        with pytest.raises(Refused) as caught:
            await call(endpoint, "POST", "/", {})
    assert (caught.value.status, caught.value.kind, caught.value.message) == (
        400,
        "exceed_context_size_error",
        "too long",
    )
    async with listener(saying(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nhm")) as endpoint:
        with pytest.raises(Refused) as caught:
            await call(endpoint, "POST", "/", {})
    assert caught.value.status == 500


async def test_nobody_there_is_unreachable() -> None:
    """A refused connection is told from a broken one: nothing was sent."""
    async with listener(saying(b"")) as endpoint:
        pass
    with pytest.raises(Unreachable):
        await call(endpoint, "GET", "/")


async def test_leaving_closes_the_connection_at_once() -> None:
    """The server sees the end of the connection without our reading what it still had to say."""
    gone = asyncio.Event()
    async with listener(staying(chunked(b"data: 1\n\n"), gone)) as endpoint:
        with await ask(endpoint, "POST", "/", None) as events:
            assert await events.event() == b"1"
        await gone.wait()


# -- poured ------------------------------------------------------------------------------------------------------------


def into(got: list[bytes]) -> Take:
    """Takes all, and leaves the end to the server."""

    def take(payloads: list[bytes]) -> bool:
        got.extend(payloads)
        return False

    return take


async def test_what_is_poured_comes_at_once_and_in_order_however_the_bytes_are_cut() -> None:
    got: list[bytes] = []
    answer = chunked(b'data: {"a"', b":1}\n\n: ping\n\ndata: 2\n\nda", b"ta: 3\n", b"\n", b"data: 4\n\n", b"")
    async with listener(saying(answer)) as endpoint:
        with await ask(endpoint, "POST", "/", {}) as events:
            await events.pour(into(got))
    assert got == [b'{"a":1}', b"2", b"3", b"4"]


async def test_whoever_takes_may_say_that_it_is_over_also_of_what_came_with_the_head() -> None:
    got: list[bytes] = []

    def take(payloads: list[bytes]) -> bool:
        got.extend(payloads)
        return b"2" in payloads

    gone = asyncio.Event()
    async with listener(staying(chunked(b"data: 1\n\ndata: 2\n\ndata: 3\n\n"), gone)) as endpoint:
        with await ask(endpoint, "POST", "/", None) as events:
            await events.pour(take)
        await gone.wait()
    assert got == [b"1", b"2", b"3"], "what came together is given together"


async def test_what_is_held_is_kept_and_comes_when_it_goes_on() -> None:
    got: list[bytes] = []
    more, said, two = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"data: 1\n\ndata: 2\n\n"))
        await more.wait()
        writer.write(b"9\r\ndata: 3\n\n\r\n9\r\ndata: 4\n\n\r\n0\r\n\r\n")
        await writer.drain()
        said.set()

    async with listener(speak) as endpoint:
        with await ask(endpoint, "POST", "/", {}) as events:

            def take(payloads: list[bytes]) -> bool:
                got.extend(payloads)
                if b"2" in payloads:
                    events.hold(True)
                    two.set()
                return False

            over = events.pour(take)
            await two.wait()
            more.set()
            await said.wait()
            await asyncio.sleep(0.05)
            assert (got, over.done()) == ([b"1", b"2"], False)
            events.hold(False)
            await over
    assert got == [b"1", b"2", b"3", b"4"]


async def test_what_whoever_takes_raises_is_said_to_whoever_waits() -> None:
    def take(payloads: list[bytes]) -> bool:
        raise KeyError(payloads)

    async with listener(saying(chunked(b"data: 1\n\ndata: 2\n\n", b""))) as endpoint:
        with await ask(endpoint, "POST", "/", {}) as events, pytest.raises(KeyError):
            await events.pour(take)


async def test_a_poured_stream_that_breaks_off_is_not_an_end() -> None:
    got: list[bytes] = []
    async with listener(saying(chunked(b"data: 1\n\n"))) as endpoint:
        with await ask(endpoint, "POST", "/", {}) as events, pytest.raises(Broken):
            await events.pour(into(got))
    assert got == [b"1"]


async def test_a_document_cannot_be_poured() -> None:
    async with listener(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) as endpoint:
        with await ask(endpoint, "POST", "/", {}) as events, pytest.raises(Broken, match="document"):
            await events.pour(into([]))


async def test_silence_ends_what_is_poured_but_not_while_it_is_held() -> None:
    one, gone = asyncio.Event(), asyncio.Event()
    async with listener(staying(chunked(b"data: 1\n\n"), gone)) as endpoint:
        with await ask(endpoint, "POST", "/", None, silence_timeout=0.5) as events:

            def take(payloads: list[bytes]) -> bool:
                one.set()
                return False

            over = events.pour(take)
            await one.wait()
            events.hold(True)
            await asyncio.sleep(1.0)
            assert not over.done()
            events.hold(False)
            with pytest.raises(TimeoutError):
                await over
        await gone.wait()


@pytest.mark.parametrize(
    ("begin", "sign"),
    [
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b": still there\n\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"),
    ],
)
async def test_signs_of_life_are_believed_for_a_while(begin: bytes, sign: bytes) -> None:
    """They come more often than silence is allowed, and nothing else does."""
    silence = 0.3
    gone = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(sign)
                await writer.drain()
                await asyncio.sleep(silence / 6)
        gone.set()

    began = time.monotonic()
    async with listener(speak) as endpoint, asyncio.timeout(20):
        with (
            pytest.raises(TimeoutError, match="signs of life"),
            await ask(endpoint, "POST", "/", None, silence_timeout=silence) as answer,
        ):
            await (answer.pour(into([])) if answer.streams else answer.whole())
        await gone.wait()
    assert time.monotonic() - began >= ALIVE * silence


async def test_what_is_left_unread_is_no_silence_and_is_given_when_it_is_drawn() -> None:
    got: list[bytes] = []
    poured, told, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked())
        await poured.wait()
        await staying(b"9\r\ndata: 1\n\n\r\n", gone)(reader, writer)

    edges = Edges()
    async with listener(speak) as endpoint:
        with await ask(endpoint, "POST", "/", None, silence_timeout=0.4, edges=edges) as events:
            over = events.pour(into(got), told.set)
            poured.set()
            await told.wait()
            await asyncio.sleep(0.8)
            assert (got, over.done()) == ([], False)
            assert events.source is not None
            events.source.draw()
            assert got == [b"1"]
            with pytest.raises(TimeoutError):
                await over
        await gone.wait()
    edges.close()
