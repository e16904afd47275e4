"""What a client may send: limits in size and time, garbage, sending ahead. No other stream is disturbed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from broker.bus.credentials import internal_key, unseal
from ingress import client
from tests.ingress.conftest import DEADLINE, EventClient, Raw
from tests.ingress.fake_node import SID

Make = Callable[..., Any]


async def test_a_body_beyond_the_limit_is_413_before_anything_is_forwarded(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a, body_limit=1024)
    raw = await Raw.open(relay.port)
    raw.send(b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\ncontent-length: 1025\r\n\r\n")
    answer = await raw.answer()
    assert (answer.status, answer.error["code"]) == (413, "too_large")
    assert a.seen == []
    chunked = await Raw.open(relay.port)
    chunked.send(b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    chunked.send((b"200\r\n" + b"x" * 512 + b"\r\n") * 3)
    assert (await chunked.answer()).status == 413
    assert a.seen == []


async def test_a_body_at_the_limit_is_forwarded(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    body = b"x" * 1024 * 1024
    raw.send(b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    assert (await raw.answer()).status == 200
    assert a.seen[0].body == body


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x-h: 1\r\n" * 101 + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx-endless: " + b"y" * 40_000,
    ],
    ids=["field", "target", "count", "endless"],
)
async def test_a_head_beyond_the_limit_is_431(node: Make, ingress: Make, head: bytes) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(head)
    answer = await raw.answer()
    assert (answer.status, answer.error["code"]) == (431, "too_large")
    assert await raw.closed()
    assert a.seen == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nlast-event-id: a-1\r\nlast-event-id: a-2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncookie: okome_s=a\r\ncookie: okome_s=b\r\n\r\n",
        b"GET / HTTP/3.7\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_is_malformed_and_nothing_is_forwarded(node: Make, ingress: Make, data: bytes) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(data)
    answer = await raw.answer()
    assert (answer.status, answer.error["code"]) == (400, "malformed")
    assert answer.error["request_id"]
    assert answer.headers["cache-control"] == "no-store"
    assert a.seen == []


async def test_a_slow_head_is_ended(ingress: Make) -> None:
    relay = await ingress(header_timeout=0.2)
    raw = await Raw.open(relay.port)
    raw.send(b"GET / HT")
    assert (await raw.answer()).status == 408
    silent = await Raw.open(relay.port)
    assert await silent.closed()


async def test_a_slow_body_is_ended(ingress: Make) -> None:
    relay = await ingress(body_timeout=0.2)
    raw = await Raw.open(relay.port)
    raw.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
    assert (await raw.answer()).status == 408


async def test_an_idle_connection_is_closed(ingress: Make) -> None:
    relay = await ingress(idle_timeout=0.2)
    raw = await Raw.open(relay.port)
    raw.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer()).status == 200
    assert await raw.closed()


async def test_a_request_cut_into_bytes_is_one_request(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    for byte in b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc":
        raw.send(bytes([byte]))
        await raw.flush()
    assert (await raw.answer()).json["body"] == "abc"


async def ask_without_reading(relay: Any, raw: Raw, most: int = 4000) -> int:
    """Send requests one at a time until no answer can be written any more, and three beyond; how many."""
    await relay.settled(lambda: relay.listener._connections)
    (connection,) = relay.listener._connections
    for asked in range(1, most):
        raw.send(GET_METRICS)
        await raw.flush()
        await asyncio.sleep(0.001)
        if connection.congested:
            raw.send(GET_METRICS * 3)
            return asked + 3
    raise AssertionError("everything that was asked is answered, into memory")


GET_METRICS = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


async def test_who_does_not_read_gets_no_further_answer_until_he_does(ingress: Make) -> None:
    relay = await ingress()
    raw = await Raw.open(relay.port)
    asked = await ask_without_reading(relay, raw)
    (connection,) = relay.listener._connections
    await relay.settled(lambda: connection._waiting)
    waits = connection._transport.get_write_buffer_size()
    for _ in range(asked):
        answer = await raw.answer()
        assert answer.status == 200
    assert waits < connection._settings.write_high + 2 * len(answer.body)
    raw.send(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer()).json["role"] == "ingress"


async def test_who_never_reads_is_broken_off(ingress: Make) -> None:
    relay = await ingress(idle_timeout=0.5)
    raw = await Raw.open(relay.port)
    await ask_without_reading(relay, raw)
    await relay.settled(lambda: not relay.listener._connections)


@pytest.mark.parametrize(
    "fields",
    [
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\ncontent-length: 3\r\n",
        b"connection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n",
        b"connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 3\r\nexpect: 100-continue\r\n",
    ],
)
async def test_an_upgrade_to_what_is_not_spoken_is_overlooked(node: Make, ingress: Make, fields: bytes) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    body = b"3\r\nabc\r\n0\r\n\r\n" if b"chunked" in fields else b"abc"
    more = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"
    raw.send(b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\n%b\r\n%b%b" % (fields, body, more))
    if b"expect" in fields:
        async with asyncio.timeout(DEADLINE):
            assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await raw.answer()).json["body"] == "abc"
    assert (await raw.answer()).json["path"] == "/next"
    assert not {"upgrade", "http2-settings"} & set(a.seen[0].headers)


async def test_expect_100_continue(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.send(b"abc")
    assert (await raw.answer()).json["body"] == "abc"


async def test_expect_100_continue_is_answered_behind_the_answer_before(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(
        b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n"
        b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    )
    assert (await raw.answer()).json["path"] == "/first"
    async with asyncio.timeout(DEADLINE):
        assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.send(b"abc")
    assert (await raw.answer()).json["body"] == "abc"


async def test_http_1_0_is_not_told_to_go_on(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
    await raw.flush()
    raw.send(b"abc")
    assert (await raw.answer()).json["body"] == "abc"


@pytest.mark.parametrize("reads", [True, False])
async def test_a_last_answer_is_not_cut_while_its_client_reads(
    node: Make, ingress: Make, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    monkeypatch.setattr(client, "LINGER", 0.4)
    a = await node("node-a")
    size = 8 * 1024 * 1024
    a.answers["/big"] = lambda request, writer: b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (size, b"x" * size)
    relay = await ingress(a, header_timeout=0.2, write_high=4 * size)
    raw = await Raw.open(relay.port)
    raw.send(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        await raw.reader.readuntil(b"\r\n\r\n")
    if not reads:
        await relay.settled(lambda: not relay.listener._connections)
        return
    got = 0
    async with asyncio.timeout(3 * DEADLINE):
        while data := await raw.reader.read(128 * 1024):
            got += len(data)
            await asyncio.sleep(0.02)
    assert got == size


async def test_beyond_max_connections_a_client_is_told(ingress: Make) -> None:
    relay = await ingress(max_connections=1)
    first = await Raw.open(relay.port)
    first.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    await first.answer()
    second = await Raw.open(relay.port)
    answer = await second.answer()
    assert (answer.status, answer.error["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"


async def test_http_1_0_gets_an_answer_without_chunks(node: Make, ingress: Make, log: Any) -> None:
    a = await node("node-a")
    log.add("start")
    log.tokens(0, 2)
    log.add("done")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(b"GET /v1/sessions/%b/events?until=done HTTP/1.0\r\n\r\n" % SID.encode())
    async with asyncio.timeout(DEADLINE):
        data = await raw.reader.read()
    assert b"transfer-encoding" not in data
    assert data.endswith(b'data: {"cursor": "inc0-4"}\n\n')


async def test_a_client_that_has_said_all_still_gets_its_answer(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    raw.writer.write_eof()
    assert (await raw.answer()).status == 200
    assert await raw.closed()


async def test_a_path_is_a_path_however_it_is_written(node: Make, ingress: Make, log: Any) -> None:
    """Two slashes name no host, and an escaped letter makes no other kind of request."""
    a = await node("node-a")
    relay = await ingress(a)
    log.tokens(0, 2)
    raw = await Raw.open(relay.port)
    raw.send(b"GET //metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    await raw.answer()
    assert a.seen[0].target == "//metrics"
    client = await EventClient.open(relay.port, path=f"/v1/sessions/{SID[:-1]}%{ord(SID[-1]):x}/events")
    await client.until("caught_up")
    assert "served_by" in client.names
    own = await Raw.open(relay.port)
    own.send(b"GET /%6detrics HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await own.answer()).status == 200
    assert len(a.seen) == 2, "the node's own figures are not shown"


@pytest.mark.parametrize(
    ("field", "loopback"),
    [
        (b"x-mine: 1", True),
        (b"x-forwarded-for: 127.0.0.1", False),
        (b"forwarded: for=127.0.0.1", False),
        (b"x-real-ip: 127.0.0.1", False),
        (b"via: 1.1 proxy", False),
    ],
)
async def test_what_came_through_a_proxy_is_not_this_machines_own_user(
    node: Make, ingress: Make, field: bytes, loopback: bool
) -> None:
    """Behind a tunnel or a proxy on this machine every client of the world has its address."""
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(b"POST /v1/login HTTP/1.1\r\nhost: 127.0.0.1\r\norigin: http://127.0.0.1\r\n%b\r\n\r\n" % field)
    assert (await raw.answer()).status == 200
    key = internal_key(json.dumps({"key": relay.key}).encode())
    assert unseal(key, a.seen[0].headers["x-okome-relay"], 30, purpose="relay")["loopback"] is loopback


async def test_own_paths_tell_of_the_ingress(node: Make, ingress: Make) -> None:
    relay = await ingress()
    raw = await Raw.open(relay.port)
    raw.send(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer()).status == 503, "no node is live"
    a = await node("node-a")
    await relay.know(a)
    for path, status in (("/readyz", 200), ("/livez", 200), ("/metrics", 200), ("/version", 200)):
        raw.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        answer = await raw.answer()
        assert answer.status == status, path
    assert json.loads(answer.body)["role"] == "ingress"
    relay.relay.drain()
    raw.send(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer()).status == 503, "draining"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/livez", "GET, HEAD"),
        ("DELETE", "/%6detrics", "GET, HEAD"),
        ("TRACE", "/readyz", "GET, HEAD"),
        ("TRACE", "/v1/models", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
    ],
)
async def test_a_method_that_is_refused_here_is_told_which_are_not(
    ingress: Make, method: str, path: str, allow: str
) -> None:
    relay = await ingress()
    raw = await Raw.open(relay.port)
    raw.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
    answer = await raw.answer()
    assert (answer.status, answer.error["code"], answer.headers["allow"]) == (405, "method_not_allowed", allow)
