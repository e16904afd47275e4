"""Ordinary requests: forwarded as they are, repeated only where that does no harm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.ingress.conftest import Raw
from tests.ingress.fake_node import SID, FakeNode

Make = Callable[..., Any]


def post(path: str, body: bytes = b"{}", extra: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: public.example\r\n%bcontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        extra,
        len(body),
        body,
    )


async def test_fields_pass_end_to_end_and_no_further(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(
        b"GET /v1/models?limit=1 HTTP/1.1\r\nHost: public.example\r\nCookie: okome_login=x\r\nOrigin: http://public.example\r\n"
        b"Connection: keep-alive, x-mine\r\nX-Mine: 1\r\nTE: trailers\r\nX-Forwarded-For: 6.6.6.6\r\n"
        b"X-Okome-Admission: forged\r\n"
        b"X-Request-Id: my-id\r\n\r\n"
    )
    answer = await raw.answer()
    seen = a.seen[0]
    assert seen.target == "/v1/models?limit=1"
    assert seen.headers["host"] == "public.example"
    assert seen.headers["cookie"] == "okome_login=x"
    assert seen.headers["x-request-id"] == answer.headers["x-request-id"] == "my-id"
    assert not {"x-mine", "te", "connection", "x-forwarded-for", "x-okome-admission"} & seen.headers.keys()
    assert answer.headers["x-okome-session"] == "s"
    assert not {"x-okome-admission", "server"} & answer.headers.keys()


async def test_requests_of_a_session_go_to_the_node_of_its_partition(node: Make, ingress: Make) -> None:
    nodes = [await node("node-a"), await node("node-b")]
    relay = await ingress(*nodes)
    raw = await Raw.open(relay.port)
    for pp in ("00", "01", "0a", "0v"):
        sid = pp + SID[2:]
        raw.send(f"GET /v1/sessions/{sid} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert (await raw.answer()).json["node"] == relay.nodes.choose(pp).id


async def test_connections_to_a_node_are_used_again(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    for _ in range(5):
        raw.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await raw.answer()).status == 200
    assert len(relay.nodes.members["node-a"].open) == 2, "one for requests, one for checks"


async def test_a_post_without_a_key_gets_one_and_is_repeated_under_it(node: Make, ingress: Make) -> None:
    nodes: list[FakeNode] = [await node("node-a"), await node("node-b")]
    tried: list[tuple[str, str]] = []

    def once(request: Any, writer: asyncio.StreamWriter) -> bytes | None:
        tried.append((request.headers["idempotency-key"], request.body.decode()))
        return None if len(tried) == 1 else b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}"

    for n in nodes:
        n.answers["/v1/sessions"] = once
    relay = await ingress(*nodes)
    raw = await Raw.open(relay.port)
    raw.send(post("/v1/sessions", b'{"title":"x"}'))
    assert (await raw.answer()).status == 201
    assert len(tried) == 2
    assert tried[0] == tried[1]
    assert tried[0][0]


async def test_an_answer_that_a_leaving_node_cannot_wait_for_is_waited_for_by_another(
    node: Make, ingress: Make
) -> None:
    """What was accepted is accepted: the key is the same, and where there is no other node the refusal is said."""
    nodes: list[FakeNode] = [await node("node-a"), await node("node-b")]
    keys: list[str] = []

    waits: list[str] = []

    def leaving(request: Any, writer: asyncio.StreamWriter) -> bytes:
        keys.append(request.headers["idempotency-key"])
        waits.append(request.query["wait"])
        status = b"503 X" if len(keys) in (1, 3, 4) else b"200 OK"
        told = b"x-okome-generation: g%d\r\n" % len(keys) if len(keys) < 4 else b""  # the last one reaches nobody
        return b"HTTP/1.1 %b\r\n%bcontent-length: 0\r\n\r\n" % (status, told)

    path = f"/v1/sessions/{SID}/generations"
    for n in nodes:
        n.answers[path] = leaving
    relay = await ingress(*nodes)
    raw = await Raw.open(relay.port)
    for expected, told in ((200, "g2"), (503, "g3")):
        raw.send(post(f"{path}?wait=60", b"{}"))
        answer = await raw.answer()
        assert (answer.status, answer.headers["x-okome-generation"]) == (expected, told)
        assert keys[-1] == keys[-2]
    assert all(1 <= int(wait) <= 60 for wait in waits)


async def test_an_answer_cut_off_before_anything_was_sent_is_asked_for_again(node: Make, ingress: Make) -> None:
    a, b = await node("node-a"), await node("node-b")
    count = 0

    def half(request: Any, writer: asyncio.StreamWriter) -> bytes | None:
        nonlocal count
        count += 1
        if count > 1:
            return b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwh")
        writer.close()
        return b""

    a.answers["/v1/models"] = b.answers["/v1/models"] = half
    relay = await ingress(a, b)
    raw = await Raw.open(relay.port)
    raw.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = await raw.answer()
    assert answer.body == b"whole"
    assert relay.count("okome_ingress_repeats_total") == 1


async def test_a_patch_that_may_have_been_carried_out_is_not_repeated(node: Make, ingress: Make) -> None:
    nodes: list[FakeNode] = [await node("node-a"), await node("node-b")]
    tried = []
    for n in nodes:
        n.answers[f"/v1/sessions/{SID}"] = lambda request, writer: tried.append(request.method)
    relay = await ingress(*nodes)
    raw = await Raw.open(relay.port)
    raw.send(b"PATCH /v1/sessions/%b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % SID.encode())
    answer = await raw.answer()
    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]
    assert tried == ["PATCH"]


async def test_a_large_answer_passes_and_a_broken_one_does_not_look_whole(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    big = b"x" * 3_000_000

    def whole(request: Any, writer: asyncio.StreamWriter) -> bytes:
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(big), big)

    def broken(request: Any, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n186a0\r\n" + big[:100_000] + b"\r\n")
        writer.close()
        return b""

    a.answers["/big"], a.answers["/broken"] = whole, broken
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer()).body == big
    raw.send(b"GET /broken HTTP/1.1\r\nhost: x\r\n\r\n")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await raw.answer()


async def test_head_and_304_have_no_body(node: Make, ingress: Make) -> None:
    a = await node("node-a")
    a.answers["/x"] = lambda request, writer: (
        b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n"
        if request.method == "HEAD"
        else b"HTTP/1.1 304 Not Modified\r\netag: e\r\n\r\n"
    )
    relay = await ingress(a)
    raw = await Raw.open(relay.port)
    raw.send(b"HEAD /x HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = await raw.answer(bodiless=True)
    assert answer.headers["content-length"] == "999"
    raw.send(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer(bodiless=True)).status == 304


async def test_without_a_node_a_request_is_503(ingress: Make) -> None:
    relay = await ingress(leg_timeout=0.2)
    raw = await Raw.open(relay.port)
    raw.send(post("/v1/sessions"))
    answer = await raw.answer()
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    assert "127.0.0.1" not in answer.error["message"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n%b\r\n", 200),
        (b"GET /version HTTP/1.1\r\nhost: x\r\n%b\r\n", 200),
        (b"POST /livez HTTP/1.1\r\nhost: x\r\n%bcontent-length: 0\r\n\r\n", 405),
        (b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\n%bcontent-length: 0\r\n\r\n", 503),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n%bhost: y\r\n\r\n", 400),
        (b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\n%bcontent-length: 9\r\n\r\n{", 408),
        (b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\n%bcontent-length: 9999999\r\n\r\n", 413),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n%bx-long: " + b"y" * 40_000 + b"\r\n\r\n", 431),
    ],
)
async def test_own_answers_can_be_read_by_an_allowed_origin_and_no_other(
    ingress: Make, asked: bytes, status: int
) -> None:
    relay = await ingress(leg_timeout=0.2, body_timeout=0.2, cors_origins="https://app.example")
    for origin, may in (("https://app.example", True), ("https://evil.example", False)):
        raw = await Raw.open(relay.port)
        raw.send(asked.replace(b"%b", f"origin: {origin}\r\n".encode()))
        answer = await raw.answer()
        assert (answer.status, answer.headers.get("access-control-allow-origin") == origin) == (status, may)
        told = answer.headers.get("access-control-expose-headers", "")
        assert told == may * "Retry-After, x-okome-session, x-okome-generation, x-request-id"
