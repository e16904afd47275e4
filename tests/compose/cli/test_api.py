"""The stream as the commands read it: each event once, over connections that end in every way they can."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from compose.cli import api
from compose.cli.api import Event, ask, follow, refusal
from compose.cli.outcome import CommandFailed

HEAD = "HTTP/1.1 {status}\r\ncontent-type: text/event-stream\r\nconnection: close\r\n{more}\r\n"

Told = tuple[str, str, dict[str, object]]


class Script:
    """A server that answers its n-th connection with the n-th text, then closes it; remembers the request lines."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.headers: list[str] = []
        self.quiet = 0.0  # seconds for which each connection but the last one stays when everything is said
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head.split("\r\n")[0])
        self.headers.append(head)
        writer.write(self.answers.pop(0).encode())
        await writer.drain()
        if self.answers:
            await asyncio.sleep(self.quiet)
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def serving(*answers: str) -> AsyncIterator[tuple[Script, httpx.AsyncClient]]:
    script = Script(*answers)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, httpx.AsyncClient(base_url=script.url, trust_env=False) as client:
        yield script, client


def stream(*events: Told, status: str = "200 OK") -> str:
    body = "".join(
        (f"id: {id}\n" if id else "") + f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, id, data in events
    )
    return HEAD.format(status=status, more="") + body


def token(number: int) -> Told:
    return "token", f"abcd-{number}", {"text": f"{number} "}


CAUGHT_UP: Told = ("caught_up", "", {"cursor": "abcd-1"})


async def read(client: httpx.AsyncClient, **options: str) -> list[Event]:
    return [event async for event in follow(client, "00abcdefgh", **options)]


async def test_a_broken_connection_is_resumed_behind_the_last_event() -> None:
    first, second = stream(CAUGHT_UP, token(1), token(2)), stream(token(3), ("done", "abcd-4", {}))
    async with serving(first, second) as (script, client):
        events = await read(client, until="done")
    assert [event.id for event in events] == ["", "abcd-1", "abcd-2", "abcd-3", "abcd-4"]
    assert script.asked == [
        "GET /v1/sessions/00abcdefgh/events?until=done HTTP/1.1",
        "GET /v1/sessions/00abcdefgh/events?after=abcd-2&until=done HTTP/1.1",
    ]


async def test_a_node_that_leaves_or_is_busy_is_asked_again_when_it_says() -> None:
    async with serving(
        stream(token(1), CAUGHT_UP, ("reconnect", "", {"cursor": "abcd-1", "after_ms": 0})),
        stream(("closed", "", {"code": "overloaded", "message": "busy", "retry_after_ms": 1})),
        stream(("done", "abcd-2", {})),
    ) as (script, client):
        events = await read(client, until="done")
    assert [event.name for event in events] == ["token", "caught_up", "reconnect", "closed", "done"]
    assert [event.id for event in events] == ["abcd-1", "", "", "", "abcd-2"]
    assert all("after=abcd-1" in line for line in script.asked[1:])


async def test_heartbeats_are_silence() -> None:
    body = stream(CAUGHT_UP, token(1)) + ": hb\n" + "event: done\nid: abcd-2\ndata: {}\n\n"
    async with serving(body) as (_, client):
        assert [event.name for event in await read(client, until="done")] == ["caught_up", "token", "done"]


async def test_until_done_ends_with_what_follows_the_history_not_with_an_earlier_answer() -> None:
    history: list[Told] = [token(1), ("done", "abcd-2", {}), token(3), CAUGHT_UP]
    reset: Told = ("reset", "", {"earliest": "abcd-0", "reason": "other_incarnation"})
    async with serving(stream(*history, reset, *history, ("done", "abcd-4", {}), token(5))) as (_, client):
        events = await read(client, after="0", until="done")
    assert [event.id for event in events if event.name == "done"] == ["abcd-2", "abcd-2", "abcd-4"]
    assert events[-1].id == "abcd-4"


async def test_a_stream_that_was_quiet_for_long_is_not_given_up_when_its_connection_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heartbeats are no events."""
    monkeypatch.setattr(api, "PATIENCE", 0.5)
    async with serving(stream(CAUGHT_UP, token(1)), stream(("done", "abcd-2", {}))) as (script, client):
        script.quiet = 0.6
        assert [event.name for event in await read(client, until="done")] == ["caught_up", "token", "done"]


async def test_a_stream_that_does_not_come_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PATIENCE", 1.0)
    busy = stream(("closed", "", {"code": "overloaded", "message": "busy", "retry_after_ms": 50}))
    async with serving(stream(token(1)), *[busy] * 100) as (_, client):
        with pytest.raises(CommandFailed, match="did not come back: busy"):
            await read(client)


async def test_nothing_to_read_is_the_end_and_not_an_error() -> None:
    async with serving("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n") as (_, client):
        assert await read(client, until="done") == []


async def test_a_refusal_is_final() -> None:
    body = json.dumps({"error": {"code": "unknown_session", "message": "no such session"}})
    answer = HEAD.format(status="404 Not Found", more=f"content-length: {len(body)}\r\n") + body
    async with serving(answer) as (_, client):
        with pytest.raises(CommandFailed, match=r"no such session \(unknown_session\)"):
            await read(client)


async def test_a_post_carries_an_idempotency_key() -> None:
    body = '{"session_id": "x"}'
    answer = f"HTTP/1.1 201 Created\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}"
    async with serving(answer) as (script, client):
        assert await ask(client, "POST", "/v1/sessions", {}) == {"session_id": "x"}
    assert "idempotency-key:" in script.headers[0].lower()


def test_a_refusal_names_the_field() -> None:
    body = b'{"error": {"code": "malformed", "message": "must be a number", "param": "max_tokens"}}'
    assert refusal(400, body) == "must be a number (malformed) [max_tokens]"
    assert refusal(502, b"<html>") == "the server answered 502"
