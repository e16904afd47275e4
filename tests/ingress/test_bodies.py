"""The memory that bodies of clients may take in all, before anybody has said who they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from compose.chaos.http import reset
from ingress import answer
from ingress.client import Phase
from ingress.settings import IngressSettings
from tests.ingress.conftest import EventClient, Ingress, Raw
from tests.ingress.fake_node import SID, Log, Seen

Make = Callable[..., Any]

HEAD = b"POST /v1/login HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
WHOLE = HEAD + b"x" * 1000
SMALL: dict[str, Any] = {"body_limit": 1024, "body_memory": 4000}
"""Four bodies, and no fifth one."""


def held(relay: Ingress) -> float:
    return relay.count("okome_ingress_body_bytes")


async def sending(relay: Ingress, count: int) -> list[Raw]:
    """So many clients that have sent their bodies but for one byte."""
    before, clients = held(relay), [await Raw.open(relay.port) for _ in range(count)]
    for raw in clients:
        raw.send(WHOLE[:-1])
    await relay.settled(lambda: held(relay) == before + count * 999)
    return clients


async def test_bodies_take_no_more_memory_than_they_may_and_who_comes_then_is_told(node: Make, ingress: Make) -> None:
    relay = await ingress(await node("node-a"), **SMALL)
    first = await sending(relay, 4)
    late = await Raw.open(relay.port)
    late.send(WHOLE)
    answer = await late.answer()
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
    assert await late.closed()
    assert relay.count("okome_ingress_refused_total", code="overloaded") == 1
    without = await Raw.open(relay.port)
    without.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await without.answer()).status == 200, "what has no body is not concerned"
    for raw in first:
        raw.send(b"x")
        assert (await raw.answer()).status == 200
    again = await Raw.open(relay.port)
    again.send(WHOLE)
    assert (await again.answer()).status == 200
    await relay.settled(lambda: held(relay) == 0)


async def test_who_sends_a_body_that_is_allowed_and_has_no_room_is_not_reset(ingress: Make) -> None:
    """Or it might not see why, and when to come back."""
    mib = 1024 * 1024
    relay = await ingress(body_memory=mib)
    whole = b"POST /v1/login HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (mib, b"x" * mib)
    first, late = [await Raw.open(relay.port) for _ in range(2)]
    first.send(whole[:-1])
    await relay.settled(lambda: held(relay) == mib - 1)
    late.send(whole[:1000])
    assert (await late.answer()).status == 503
    (connection,) = [each for each in relay.listener._connections if each.phase is Phase.CLOSING]
    late.send(whole[1000:])
    await relay.settled(lambda: connection._skipped == len(whole[1000:]))
    assert connection in relay.listener._connections


CHUNKED = b"POST /v1/login HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
UPGRADE = b"connection: upgrade\r\nupgrade: %b\r\ncontent-length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (WHOLE, 200),
        (WHOLE[:-1], 408),
        (CHUNKED + b"3e8\r\n" + b"x" * 1000 + b"\r\nno number\r\n", 400),
        (CHUNKED + 2 * (b"3e8\r\n" + b"x" * 1000 + b"\r\n"), 413),
        (WHOLE.replace(b"host: x", b"nothing: x"), 400),
        (WHOLE.replace(b"POST", b"TRACE"), 405),
        (WHOLE.replace(b"/v1/login", b"/livez"), 405),
        (b"POST /v1/login HTTP/1.1\r\nhost: x\r\n" + UPGRADE % b"h2c" + b"x" * 1000, 200),
        (b"GET /v1/sessions/%b/ws HTTP/1.1\r\nhost: x\r\n" % SID.encode() + UPGRADE % b"websocket" + b"x" * 1000, 426),
    ],
    ids=["answered", "slow", "malformed", "too large", "no host", "method", "refused", "h2c", "websocket"],
)
async def test_nothing_of_a_body_is_counted_when_its_request_is_over(
    node: Make, ingress: Make, said: bytes, status: int
) -> None:
    relay = await ingress(await node("node-a"), body_timeout=0.3, **SMALL)
    raw = await Raw.open(relay.port)
    raw.send(said)
    assert (await raw.answer()).status == status
    await relay.settled(lambda: held(relay) == 0)
    (connection,) = relay.listener._connections
    assert not connection._body, "nor kept until it is closed, or asks for something else"


def waiting_for(goes_on: asyncio.Event) -> Callable[[Seen, asyncio.StreamWriter], bytes]:
    """A node's answer that comes then."""

    def slow(request: Seen, writer: asyncio.StreamWriter) -> bytes:
        task = asyncio.ensure_future(goes_on.wait())
        task.add_done_callback(lambda _: writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"))
        return b""

    return slow


@pytest.mark.parametrize("sent", [WHOLE[:-1], WHOLE, WHOLE * 3], ids=["while it sends", "then", "with more ahead"])
async def test_nothing_of_a_body_is_counted_when_its_client_is_gone(node: Make, ingress: Make, sent: bytes) -> None:
    a = await node("node-a")
    goes_on = asyncio.Event()
    a.answers["/v1/login"] = waiting_for(goes_on)
    relay = await ingress(a, **SMALL)
    raw = await Raw.open(relay.port)
    raw.send(sent)
    await relay.settled(lambda: held(relay) == sent.count(b"x" * 999) * 1000 - (sent == WHOLE[:-1]))
    reset(raw.writer)
    goes_on.set()  # who is not read from is not missed before
    await relay.settled(lambda: held(relay) == 0)
    await relay.settled(lambda: not relay.listener._connections)


async def test_a_body_sent_ahead_for_which_there_is_no_room_does_not_cost_the_answer_before(
    node: Make, ingress: Make
) -> None:
    a = await node("node-a")
    goes_on = asyncio.Event()
    a.answers["/slow"] = waiting_for(goes_on)
    relay = await ingress(a, **SMALL)
    raw = await Raw.open(relay.port)
    raw.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
    await relay.settled(lambda: a.seen)
    await sending(relay, 3)
    raw.send(WHOLE * 2)
    (connection,) = [each for each in relay.listener._connections if each._task is not None]
    await relay.settled(lambda: connection._deaf)
    goes_on.set()
    assert (await raw.answer()).status == 200
    assert await raw.closed(), "which says that nothing behind it was heard"
    assert [seen.target for seen in a.seen] == ["/slow"]
    assert held(relay) == 3 * 999


async def test_a_stream_holds_the_body_that_asked_for_it_until_it_has_a_place(
    node: Make, ingress: Make, log: Log
) -> None:
    """From there it goes on without; until then the same is asked of another node."""
    a = await node("node-a")
    path = f"/v1/sessions/{SID}/generations"
    writers: list[asyncio.StreamWriter] = []

    def begun(request: Seen, writer: asyncio.StreamWriter) -> bytes:
        writers.append(writer)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + answer.chunk(b"event: hello\ndata: {}\n\n")

    a.answers[path] = begun
    relay = await ingress(a)
    client = await EventClient.open(relay.port, method="POST", path=path, body=b"x" * 1000, accept="text/event-stream")
    await client.until("hello")
    assert held(relay) == 1000
    writers[0].write(answer.chunk(b"id: inc0-1\nevent: start\ndata: {}\n\n"))
    await client.until("start")
    assert held(relay) == 0
    for name in ("start", "done"):
        log.add(name)
    writers[0].transport.abort()
    await client.until("done")
    assert [seen.method for seen in a.seen] == ["POST", "GET"]


def test_each_body_that_is_allowed_has_room() -> None:
    settings: dict[str, Any] = {"body_limit": 2048, "body_memory": 2047}
    with pytest.raises(ValidationError, match="body_memory"):
        IngressSettings(**settings)
