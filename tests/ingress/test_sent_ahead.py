"""What a client sends before it has its answer: it waits its turn, and nothing of it is lost without a word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ingress import answer
from ingress.client import AHEAD, PIECE
from tests.ingress.conftest import DEADLINE, Ingress, Raw
from tests.ingress.fake_node import SID, Log, Seen

Make = Callable[..., Any]

NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"
EVENTS = b"GET /v1/sessions/%b/events?until=done HTTP/1.1\r\nhost: x\r\n\r\n" % SID.encode()
POSTED = b"POST /v1/sessions/%b/generations HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n" % SID.encode()
POSTED += b"content-length: 0\r\n\r\n"
OTHER = b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n"


def asked(count: int) -> bytes:
    return b"".join(b"GET /p%d HTTP/1.1\r\nhost: x\r\n\r\n" % index for index in range(count))


async def answered(raw: Raw, count: int) -> bool:
    """Each of them, in order."""
    return [(await raw.answer()).json["path"] for _ in range(count)] == [f"/p{index}" for index in range(count)]


@pytest.mark.parametrize("count", [5, AHEAD + 1, AHEAD + 2, 400])
async def test_requests_sent_ahead_are_answered_in_order(node: Make, ingress: Make, count: int) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(asked(count))
    assert await answered(raw, count)
    raw.send(asked(1))
    assert await answered(raw, 1), "it is a connection as before"


async def test_of_what_is_sent_ahead_only_a_few_requests_are_made_meanwhile(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    goes_on = asyncio.Event()

    def slow(request: Seen, writer: asyncio.StreamWriter) -> bytes:
        task = asyncio.ensure_future(goes_on.wait())
        task.add_done_callback(lambda _: writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"))
        return b""

    a.answers["/slow"] = slow
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
    await relay.settled(lambda: a.seen)
    (connection,) = relay.listener._connections
    raw.send(asked(1000))
    await relay.settled(lambda: not connection._transport.is_reading())
    assert AHEAD <= len(connection._waiting) < AHEAD + PIECE // len(asked(1))
    goes_on.set()
    await raw.answer()
    assert await answered(raw, 1000)


async def test_a_client_that_has_said_all_gets_the_answers_to_all_of_it(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    for count in (1, 5, 2 * AHEAD):
        raw = await Raw.open(relay.port)
        raw.send(asked(count))
        raw.writer.write_eof()
        assert await answered(raw, count)
        assert await raw.closed()


async def test_what_was_sent_together_with_a_request_for_a_stream_is_answered_behind_it(
    node: Make, ingress: Make
) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(EVENTS + asked(200))
    assert b"event: caught_up" in (await raw.answer()).body
    assert await answered(raw, 200)


def heard_at_once(relay: Ingress, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """`data` is what the ingress hears next when it has written the end of a stream, before anything else happens."""
    (connection,) = relay.listener._connections
    write = connection.write

    def writing(written: bytes) -> None:
        write(written)
        if written == answer.LAST_CHUNK:
            asyncio.get_running_loop().call_soon(connection.data_received, data)

    monkeypatch.setattr(connection, "write", writing)


def an_answer(request: Seen, writer: asyncio.StreamWriter) -> bytes:
    part = b'id: inc0-1\nevent: done\ndata: {"finish_reason":"stop"}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + answer.chunk(part) + answer.LAST_CHUNK


@pytest.mark.parametrize("first", [EVENTS, POSTED, OTHER], ids=["events", "answer", "other"])
async def test_what_is_sent_when_a_stream_has_ended_is_answered(
    node: Make, ingress: Make, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However soon: its last chunk has told the client that the connection is free."""
    a = await node("node-a")
    a.answers[f"/v1/sessions/{SID}/generations"] = a.answers["/stream"] = an_answer
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    await relay.settled(lambda: relay.listener._connections)
    heard_at_once(relay, NEXT, monkeypatch)
    raw.send(first)
    assert b"event: " in (await raw.answer()).body
    assert (await raw.answer()).json["path"] == "/next"
    raw.send(NEXT)
    assert (await raw.answer()).json["path"] == "/next", "it is a connection as before"


async def test_what_is_sent_during_a_stream_is_not_heard_and_ends_the_connection(
    node: Make, ingress: Make, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await node("node-a")
    log.add("start")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(EVENTS)
    async with asyncio.timeout(DEADLINE):
        await raw.reader.readuntil(b"event: caught_up\n")
        raw.send(NEXT)
        (connection,) = relay.listener._connections
        await relay.settled(lambda: connection._deaf)
        heard_at_once(relay, NEXT, monkeypatch)
        log.add("done")
        await raw.reader.readuntil(answer.LAST_CHUNK)
    assert await raw.closed()
    assert not [seen for seen in a.seen if seen.target == "/next"]
