"""The HTTP face of a role: four paths, a reason for not being ready, and a busy port that is said so."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.bus.health import App, Health, Receive, Scope, Send, reasons_in, serve
from broker.bus.version import VERSION


async def fetch(port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[int]:
    async with asyncio.timeout(20), serve(app, "127.0.0.1", 0) as port:
        yield port


async def test_a_role_is_alive_before_it_is_ready_and_says_why_it_is_not() -> None:
    health = Health("worker", "w1")
    async with serving(health) as port:
        assert (await fetch(port, "/livez"))[0] == 200
        status, headers, body = await fetch(port, "/readyz")
        assert (status, body) == (503, b"starting: not started yet\n")
        assert headers["cache-control"] == "no-store"
        health.set("starting", None)
        health.set("nats", "no round trip")
        status, _, body = await fetch(port, "/readyz")
        assert (status, body) == (503, b"nats: no round trip\n")
        assert not health.ready
        health.set("nats", None)
        health.set("nats", None)
        status, _, body = await fetch(port, "/readyz")
        assert (status, body) == (200, b"ok\n")


async def test_what_is_found_out_by_looking_is_looked_at_whenever_somebody_asks() -> None:
    """And who asks can tell because of what it is not ready."""
    health = Health("node", "n1")
    health.set("starting", None)
    why: str | None = "no round trip: 1 s"
    health.looks["nats"] = lambda: why
    assert not health.ready
    health.set("tails", "2 partitions cannot be followed")
    async with serving(health) as port:
        status, _, body = await fetch(port, "/readyz")
        assert status == 503
        assert reasons_in(body) == {"nats", "tails"}
        why = None
        assert reasons_in((await fetch(port, "/readyz"))[2]) == {"tails"}
        health.set("tails", None)
        status, _, body = await fetch(port, "/readyz")
        assert status == 200
        assert not reasons_in(body)


async def test_metrics_version_and_nothing_else() -> None:
    health = Health("node", "n1")
    health.extra = lambda: {"partitions": 32}
    async with serving(health) as port:
        status, headers, body = await fetch(port, "/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        assert b"python_info" in body
        status, headers, body = await fetch(port, "/version")
        assert json.loads(body) == {"role": "node", "id": "n1", "version": VERSION, "partitions": 32}
        assert headers["content-type"] == "application/json"
        assert "server" not in headers
        assert (await fetch(port, "/livez/../x"))[0] == 404


async def test_a_task_that_was_left_behind_is_seen_in_the_metrics() -> None:
    async def tasks(port: int) -> float:
        found = re.search(rb"^okome_tasks (\S+)$", (await fetch(port, "/metrics"))[2], re.MULTILINE)
        assert found is not None
        return float(found[1])

    stay = asyncio.Event()
    async with serving(Health("node", "n1")) as port:
        before = await tasks(port)
        left_behind = asyncio.create_task(stay.wait())
        assert await tasks(port) == before + 1
        stay.set()
        await left_behind
        assert await tasks(port) == before


async def test_a_busy_port_is_an_error_at_once() -> None:
    health = Health("node", "n1")
    async with serving(health) as port:
        with pytest.raises(OSError, match="in use"):
            async with serve(health, "127.0.0.1", port):
                pytest.fail("two listeners on one port")
        assert (await fetch(port, "/livez"))[0] == 200


async def test_leaving_ends_open_requests_within_a_deadline() -> None:
    inside = asyncio.Event()

    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        inside.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        async with serving(hang) as port:
            asking = asyncio.create_task(fetch(port, "/"))
            await inside.wait()
        assert (await asking)[0] == 500
        with pytest.raises(OSError, match=r"."):
            await fetch(port, "/")


@pytest.mark.parametrize("before", [b"", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"], ids=["first", "later"])
async def test_the_head_of_a_request_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    monkeypatch.setattr("broker.bus.health.HEAD_TIMEOUT", 0.3)
    async with serving(Health("worker", "w1")) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(before + b"GET /livez HTTP/1.1\r\nhost")
        assert (await reader.read()).count(b"200 OK") == (1 if before else 0), "then it is closed"
        writer.close()


async def test_a_field_behind_the_body_is_no_field_of_the_head() -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        seen.append(list(scope["headers"]))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            writer.write(b"1\r\nx\r\n0\r\nauthorization: z\r\n\r\n")
            assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert seen == [[(b"host", b"x"), (b"transfer-encoding", b"chunked")]] * 2
